"""Random plated discrete models against a loop over all joint assignments (``brute_force``).

A structure is compiled once and then tried on several data sets, masks, weights and parameters: compiling, not
running, is what costs time.
"""

import contextlib
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from numpyro.distributions import biject_to

import emppl  # noqa: F401  registers the families
from emppl import estep
from emppl.inputs.arguments import split_arguments
from tests.kit.brute_force import BruteForce, unconstrained_gradient
from tests.kit.fits import program_of
from tests.kit.random_models import model, random_data, random_params, specs

DRAWS = 5
EM_STEPS = 10


def many(examples, shard, *strategies):
    """Run a function on examples from hypothesis: the same every time, different ones in every shard."""
    chosen = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),  # specifications are small as they are: shrinking only costs time
    )
    return lambda law: hypothesis.seed(shard)(chosen(given(*strategies)(law)))()


def em_step(program, fused, params, leaves, prepared):
    """One fused EM iteration: objective at ``params``, expectations, new parameters."""
    found = estep.expectations(program.model, fused, params, leaves, prepared)
    objective = found.log_likelihood + program.model.log_prior(params, leaves)
    return program.m_step(params, found, leaves, prepared), objective, found.log_likelihood


def everything(program, fused, params, leaves):
    """All that is compared, in one compiled function."""
    prepared = estep.prepare(program.model, fused, leaves)

    def step(params, _):
        new, objective, log_likelihood = em_step(program, fused, params, leaves, prepared)
        return new, (new, objective, log_likelihood)

    _, (path, objectives, log_likelihoods) = jax.lax.scan(step, params, None, length=EM_STEPS)
    posterior = estep.e_step(program.model, params, leaves)
    found, statistics = estep.from_posterior(program.model, params, posterior, leaves)
    return {
        "log_likelihood": posterior.log_likelihood,
        "marginals": estep.marginals(program.model, params, leaves),
        "decoded": estep.decode(program.model, params, leaves),
        "fused_log_likelihood": log_likelihoods[0],
        "fused_params": jax.tree.map(lambda leaf: leaf[0], path),
        "plain_params": program.m_step(params, found, leaves, statistics),
        "objectives": objectives,
    }


def check(spec, priors):
    """Every law that holds for one structure."""
    compiled = program = None
    for draw in range(DRAWS):
        rng = np.random.default_rng([spec.seed, draw])
        params, data = random_params(spec, rng), random_data(spec, rng)
        oracle = BruteForce(model, params, data, spec, priors)
        if compiled is None:
            program, leaves = program_of(model, data, spec, priors)
            assert {rule.kind for rule in program.rules.values()} == {"closed form"}
            function = functools.partial(everything, program, program.fused)
            compiled = jax.jit(function)
        leaves, _ = split_arguments((data, spec, priors), {})
        got = jax.device_get(compiled(params, leaves))

        expected = oracle.log_likelihood()
        np.testing.assert_allclose(got["log_likelihood"], expected, rtol=1e-10, atol=1e-10)
        for name, table in oracle.marginals().items():
            present = np.isfinite(table)
            assert got["marginals"][name].shape == table.shape
            np.testing.assert_allclose(got["marginals"][name][present], table[present], rtol=0, atol=1e-10)
        best = oracle.log_joint().max()
        np.testing.assert_allclose(oracle.score(got["decoded"]), best, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(got["fused_log_likelihood"], expected, rtol=1e-9, atol=1e-9)
        for name, value in got["plain_params"].items():
            np.testing.assert_allclose(got["fused_params"][name], value, rtol=1e-9, atol=1e-12, err_msg=name)
        steps = np.diff(got["objectives"])
        assert np.all(np.isfinite(got["objectives"]))
        assert steps.min() >= -1e-11 * (1 + np.abs(got["objectives"]).max()), steps


@pytest.mark.parametrize("shard", range(1))
def test_random_models(shard):
    """Log-likelihood, marginals and decoding equal brute force; fused equals plain; EM never falls.

    Ten structures, each with five sets of data, masks, weights and parameters.
    """
    many(10, shard, specs(), st.booleans())(check)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(2, 4))
def test_many_random_models(shard):
    """The same laws on a hundred more structures."""
    many(50, shard, specs(), st.booleans())(check)


def no_gradient(gradient, unit):
    """Is a gradient zero, relative to the size of what was added up to get it?"""
    for name, leaf in gradient.items():
        assert np.all(np.abs(leaf) <= unit), (name, leaf)


@pytest.mark.parametrize("shard", [0, *(pytest.param(shard, marks=pytest.mark.slow) for shard in range(1, 3))])
def test_m_step_is_stationary(shard):
    """At the M-step's solution the gradient of Q is zero (six structures a shard)."""
    many(3, shard, specs(max_assignments=300), st.booleans())(m_step_is_stationary)


def m_step_is_stationary(spec, priors):
    """Brute-force Q plus log prior has zero gradient at the M-step's solution, along every constraint's surface.

    Blocks are updated in turn, so the M-step is repeated on the same posterior until blocks agree.
    """
    rng = np.random.default_rng(spec.seed)
    params, data = random_params(spec, rng), random_data(spec, rng)
    oracle = BruteForce(model, params, data, spec, priors)
    program, leaves = program_of(model, data, spec, priors)

    def solve(params, leaves):
        posterior = estep.e_step(program.model, params, leaves)
        found, statistics = estep.from_posterior(program.model, params, posterior, leaves)
        step = lambda _, new: program.m_step(new, found, leaves, statistics)  # noqa: E731
        return jax.lax.fori_loop(0, 60, step, {name: jnp.asarray(value) for name, value in params.items()})

    solution = jax.jit(solve)(params, leaves)
    objective = lambda values: oracle.q(values) + oracle.log_prior(values)  # noqa: E731
    solution = off_the_kink(solution)
    interior = inside(solution, oracle.constraints)
    held = {name: value for name, value in solution.items() if name not in interior}
    partly = lambda values: objective({**held, **values})  # noqa: E731
    gradient = jax.jit(lambda values: unconstrained_gradient(partly, values, oracle.constraints))
    no_gradient(gradient(interior), 1e-8 * (1 + abs(float(objective(solution)))))


def off_the_kink(params):
    """NumPyro's Bernoulli(logits=...) has a kink at exactly 0, where automatic differentiation gives a one-sided slope."""
    return {name: jnp.where(value == 0, 1e-12, value) for name, value in params.items()}


def inside(solution, supports):
    """The parameters away from the boundary, where unconstrained coordinates are infinite."""
    with jax.numpy_rank_promotion("allow"):
        free = {name: biject_to(supports[name]).inv(value) for name, value in solution.items()}
    return {n: v for n, v in solution.items() if np.all(np.isfinite(free[n])) and np.abs(free[n]).max() < 100}


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(3))
def test_fixed_point_is_stationary(shard):
    """A fixed point of EM is a stationary point of the marginal likelihood (eight structures a shard)."""
    many(4, shard, specs(weights=("none",), max_assignments=300))(fixed_point_is_stationary)


def fixed_point_is_stationary(spec):
    """Where EM stops moving, the brute-force marginal likelihood (plus log prior) has zero gradient."""
    rng = np.random.default_rng(spec.seed)
    params, data = random_params(spec, rng), random_data(spec, rng)
    oracle = BruteForce(model, params, data, spec, True)
    program, leaves = program_of(model, data, spec, True)
    fused = program.fused

    def run(params, leaves):
        prepared = estep.prepare(program.model, fused, leaves)

        def body(carry):
            params, _, number = carry
            new = em_step(program, fused, params, leaves, prepared)[0]
            moved = jax.tree.map(
                lambda before, after: jnp.max(jnp.abs(after - before) / (1 + jnp.abs(after))), params, new
            )
            return new, jnp.max(jnp.stack(jax.tree.leaves(moved))), number + 1

        start = {name: jnp.asarray(value) for name, value in params.items()}
        moving = lambda carry: (carry[1] > 1e-13) & (carry[2] < 100_000)  # noqa: E731
        return jax.lax.while_loop(moving, body, (start, jnp.asarray(1.0), 0))

    last, moved, _ = jax.jit(run)(params, leaves)
    assume(float(moved) <= 1e-13)  # EM may crawl towards a boundary for ever
    last = off_the_kink(last)
    interior = inside(last, oracle.constraints)
    held = {name: value for name, value in last.items() if name not in interior}

    def objective(values):
        values = {**held, **values}
        return oracle.log_likelihood(values) + oracle.log_prior(values)

    gradient = jax.jit(lambda values: unconstrained_gradient(objective, values, oracle.constraints))
    no_gradient(gradient(interior), 1e-6)


@pytest.mark.parametrize("plated", [True, False])
def test_states_that_differ_in_their_base_measure(plated):
    """``log C(2, z)`` belongs inside the sum over ``z``: a Binomial latent's own term is no constant."""

    def counted(y):
        share = numpyro.param("share", 0.3, constraint=dist.constraints.unit_interval)
        mu = numpyro.param("mu", jnp.array([-0.5, 0.4, 2.0]))
        data = numpyro.plate("data", len(y))
        with data if plated else contextlib.nullcontext():
            z = numpyro.sample("z", dist.Binomial(2, share))
        with data:
            numpyro.sample("y", dist.Normal(mu[z], 0.8), obs=y)

    y, params = np.array([0.3, 1.9, -0.7]), {"share": 0.35, "mu": np.array([-0.4, 0.5, 1.7])}
    oracle = BruteForce(counted, params, y)
    program, leaves = program_of(counted, y)
    prepared = estep.prepare(program.model, program.fused, leaves)
    free = {name: jnp.asarray(value) for name, value in params.items()}
    new, _, log_likelihood = em_step(program, program.fused, free, leaves, prepared)
    np.testing.assert_allclose(log_likelihood, oracle.log_likelihood(), rtol=1e-12)
    states = oracle.marginals()["z"].reshape(-1, 3)
    np.testing.assert_allclose(new["share"], np.mean(states @ np.arange(3)) / 2, rtol=1e-10)
    each = np.broadcast_to(states, (3, 3))
    np.testing.assert_allclose(new["mu"], y @ each / each.sum(0), rtol=1e-10)

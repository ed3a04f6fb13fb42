"""Hidden Markov models of every kind, written with numpyro's scan, against enumeration of every path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpyro.contrib.control_flow import scan

import emppl
from emppl import estep
from emppl.compiled import functions
from tests.kit.brute_force import BruteForce
from tests.kit.compilations import compilations
from tests.kit.fits import compiled_of

simplex = dist.constraints.simplex
positive = dist.constraints.positive


def draw(shape, seed, kind="simplex"):
    key = jax.random.key(seed)
    if kind == "simplex":
        return jax.random.dirichlet(key, jnp.ones(shape[-1]), shape[:-1])
    return jax.random.normal(key, shape) if kind == "real" else jnp.exp(0.5 * jax.random.normal(key, shape))


def basic(x, K=3):
    init = numpyro.param("init", draw((K,), 1), constraint=simplex)
    trans = numpyro.param("trans", draw((K, K), 2), constraint=simplex)
    mu = numpyro.param("mu", jnp.arange(float(K)))

    def step(carry, x_t):
        z_prev, t = carry
        z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, init, trans[z_prev])))
        numpyro.sample("x", dist.Normal(mu[z], 1), obs=x_t)
        return (z, t + 1), None

    scan(step, (0, 0), x)


def site_before(x, K=2):
    init = numpyro.param("init", draw((K,), 1), constraint=simplex)
    trans = numpyro.param("trans", draw((K, K), 2), constraint=simplex)
    mu = numpyro.param("mu", jnp.arange(float(K)))
    z0 = numpyro.sample("z0", dist.Categorical(init))

    def step(z_prev, x_t):
        z = numpyro.sample("z", dist.Categorical(trans[z_prev]))
        numpyro.sample("x", dist.Normal(mu[z], 1), obs=x_t)
        return z, None

    scan(step, z0, x)


def fixed_start(x, K=3):
    """Left-right: zeros below the diagonal, start in the first state."""
    up = jnp.triu(jnp.ones((K, K)))
    raw = numpyro.param("raw", draw((K, K), 2, "positive"), constraint=positive)
    mu = numpyro.param("mu", jnp.arange(float(K)))
    trans = up * raw / jnp.sum(up * raw, -1, keepdims=True)

    def step(z_prev, x_t):
        z = numpyro.sample("z", dist.Categorical(trans[z_prev]))
        numpyro.sample("x", dist.Normal(mu[z], 1), obs=x_t)
        return z, None

    scan(step, 0, x)


def sequences(x, length, K=2):
    """A plate of ragged sequences, as in numpyro's HMM examples."""
    init = numpyro.param("init", draw((K,), 1), constraint=simplex)
    trans = numpyro.param("trans", draw((K, K), 2), constraint=simplex)
    mu = numpyro.param("mu", draw((K, x.shape[-1]), 3, "real"))

    def step(carry, x_t):
        z_prev, t = carry
        with numpyro.plate("sequences", len(length), dim=-2):
            with numpyro.handlers.mask(mask=(t < length)[:, None]):
                z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, init, trans[z_prev])))
                with numpyro.plate("tones", x.shape[-1], dim=-1):
                    numpyro.sample("x", dist.Normal(mu[z.squeeze(-1)], 1), obs=x_t)
        return (z, t + 1), None

    scan(step, (jnp.zeros((len(length), 1), int), 0), x)


def covariates(x, u, K=2):
    """Transitions and emissions depend on a covariate; the previous observation is in the carry."""
    init = numpyro.param("init", draw((K,), 1), constraint=simplex)
    bias = numpyro.param("bias", draw((K, K), 2, "real"))
    slope = numpyro.param("slope", draw((K, K), 3, "real"))
    mu = numpyro.param("mu", jnp.arange(float(K)))
    rho = numpyro.param("rho", 0.3 * jnp.ones(K))

    def step(carry, data):
        z_prev, x_prev, t = carry
        x_t, u_t = data
        logits = jnp.where(t == 0, jnp.log(init), bias[z_prev] + slope[z_prev] * u_t)
        z = numpyro.sample("z", dist.Categorical(logits=logits))
        numpyro.sample("x", dist.Normal(mu[z] + rho[z] * x_prev, 1), obs=x_t)
        return (z, x_t, t + 1), None

    scan(step, (0, 0.0, 0), (x, u))


def mixture_of_chains(x, K=2, C=2):
    weight = numpyro.param("weight", draw((C,), 4), constraint=simplex)
    init = numpyro.param("init", draw((K,), 1), constraint=simplex)
    trans = numpyro.param("trans", draw((C, K, K), 2), constraint=simplex)
    mu = numpyro.param("mu", jnp.arange(float(K)))
    with numpyro.plate("sequences", x.shape[1]):
        c = numpyro.sample("c", dist.Categorical(weight))

    def step(carry, x_t):
        z_prev, t = carry
        with numpyro.plate("sequences", x.shape[1]):
            z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, init, trans[c, z_prev])))
            numpyro.sample("x", dist.Normal(mu[z], 1), obs=x_t)
        return (z, t + 1), None

    scan(step, (jnp.zeros(x.shape[1], int), 0), x)


def second_order(x, K=2):
    init = numpyro.param("init", draw((K,), 1), constraint=simplex)
    trans = numpyro.param("trans", draw((K, K, K), 2), constraint=simplex)
    mu = numpyro.param("mu", jnp.arange(float(K)))

    def step(carry, x_t):
        z_2, z_1, t = carry
        probs = jnp.where(t == 0, init, trans[z_2, z_1])
        z = numpyro.sample("z", dist.Categorical(probs))
        numpyro.sample("x", dist.Normal(mu[z], 1), obs=x_t)
        return (z_1, z, t + 1), None

    scan(step, (0, 0, 0), x, history=2)


def factorial(x, K=2, L=3):
    """Two latents per step, one emission of both, and a mixture inside the step."""
    a = numpyro.param("a", draw((K, K), 1), constraint=simplex)
    b = numpyro.param("b", draw((L, L), 2), constraint=simplex)
    weight = numpyro.param("weight", draw((K, 2), 5), constraint=simplex)
    mu = numpyro.param("mu", draw((K, L), 3, "real"))
    offset = numpyro.param("offset", jnp.array([0.0, 2.0]))

    def step(carry, x_t):
        z_prev, w_prev = carry
        z = numpyro.sample("z", dist.Categorical(a[z_prev]))
        w = numpyro.sample("w", dist.Categorical(b[w_prev]))
        m = numpyro.sample("m", dist.Categorical(weight[z]))
        numpyro.sample("x", dist.Normal(mu[z, w] + offset[m], 1), obs=x_t)
        return (z, w), None

    scan(step, (1, 2), x)


def partly_known(x, labels, known, K=2):
    init = numpyro.param("init", draw((K,), 1), constraint=simplex)
    trans = numpyro.param("trans", draw((K, K), 2), constraint=simplex)
    mu = numpyro.param("mu", jnp.arange(float(K)))

    def step(carry, data):
        z_prev, t = carry
        x_t, label, is_known = data
        probs = jnp.where(t == 0, init, trans[z_prev])
        z = numpyro.sample("z", dist.Categorical(probs), obs=label, obs_mask=is_known)
        numpyro.sample("x", dist.Normal(mu[z], 1).mask(~jnp.isnan(x_t)), obs=x_t)
        return (z, t + 1), None

    scan(step, (0, 0), (x, labels, known))


X = draw((5,), 10, "real") + 1.0
CASES = {
    "basic": (basic, (X,)),
    "site_before": (site_before, (X,)),
    "fixed_start": (fixed_start, (X,)),
    "sequences": (sequences, (draw((4, 3, 2), 11, "real"), jnp.array([4, 2, 1]))),
    "covariates": (covariates, (X, draw((5,), 12, "real"))),
    "mixture_of_chains": (mixture_of_chains, (draw((3, 2), 13, "real"),)),
    "second_order": (second_order, (X,)),
    "factorial": (factorial, (X[:3],)),
}


@pytest.mark.parametrize("name", CASES)
def test_evidence_and_posterior_are_those_of_all_paths(name):
    model, data = CASES[name]
    em = emppl.EM(model)
    params = em.start(jax.random.key(0), *data)
    truth = BruteForce(model, params, *data)
    np.testing.assert_allclose(em.log_likelihood(params, *data), truth.log_likelihood(), rtol=1e-12)
    derived, leaves = compiled_of(em, *data)
    found, expected = derived.marginals(params, leaves), truth.marginals()
    assert set(found) == set(expected)
    for latent, wanted in expected.items():
        seen = ~np.isnan(wanted)
        np.testing.assert_allclose(np.asarray(found[latent])[seen], wanted[seen], atol=1e-10)
    decoded = derived.decode(params, leaves)
    np.testing.assert_allclose(truth.score(decoded), truth.log_joint().max(), rtol=1e-12)


LONG = set(CASES) - {"basic", "sequences", "factorial"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in CASES])
def test_an_iteration_raises_the_likelihood_and_both_paths_agree(name):
    model, data = CASES[name]
    em = emppl.EM(model, max_iterations=3, tolerance=0)
    start = em.start(jax.random.key(0), *data)
    result = em.run(jax.random.key(0), *data)
    params = start
    for _ in range(3):
        params = em.m_step(params, em.e_step(params, *data), *data)
    for reached in (params, result.params):
        assert BruteForce(model, reached, *data).log_likelihood() > BruteForce(model, start, *data).log_likelihood()
    truth = BruteForce(model, result.params, *data)
    np.testing.assert_allclose(result.log_likelihood, truth.log_likelihood(), rtol=1e-9)
    if name not in ("covariates", "fixed_start"):  # Newton steps from weights stop earlier than those from sums
        for parameter, value in params.items():
            np.testing.assert_allclose(result.params[parameter], value, rtol=1e-6, atol=1e-9)


def test_many_symbols_are_looked_up():
    """Forty symbols, ragged sequences: the loop, which gathers densities, equals the pieces, which use `log_prob`."""

    def model(x, lengths, K=3, M=40):
        init = numpyro.param("init", draw((K,), 1), constraint=simplex)
        trans = numpyro.param("trans", draw((K, K), 2), constraint=simplex)
        emission = numpyro.param("emission", draw((K, M), 3), constraint=simplex)

        def step(carry, x_t):
            z_prev, t = carry
            with numpyro.plate("sequences", x.shape[1]), numpyro.handlers.mask(mask=t < lengths):
                z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, init, trans[z_prev])))
                numpyro.sample("x", dist.Categorical(emission[z]), obs=x_t)
            return (z, t + 1), None

        scan(step, (jnp.zeros(x.shape[1], int), 0), x)

    data = np.random.default_rng(0).integers(0, 40, (6, 4)), np.array([6, 3, 6, 5])
    em = emppl.EM(model, max_iterations=2, tolerance=0)
    params = em.start(jax.random.key(0), *data)
    result = em.run(jax.random.key(0), *data)
    for _ in range(2):
        params = em.m_step(params, em.e_step(params, *data), *data)
    for parameter, value in params.items():
        np.testing.assert_allclose(result.params[parameter], value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.log_likelihood, em.log_likelihood(params, *data), rtol=1e-12)


def test_known_states_and_missing_values_are_conditioned_on():
    labels = jnp.array([0, 1, 0, 1, 0])
    known = jnp.array([False, True, False, False, True])
    x = X.at[3].set(jnp.nan)
    em = emppl.EM(partly_known)
    params = em.start(jax.random.key(0), x, labels, known)
    truth = BruteForce(basic, params, jnp.where(jnp.isnan(x), 0.0, x), K=2)
    paths = truth.assignments["z"]
    log_joint = truth.log_joint() - truth.tables["x"][:, 3]  # the missing value drops out
    log_joint = np.where(np.all((paths == np.asarray(labels)) | ~np.asarray(known), 1), log_joint, -np.inf)
    evidence = jax.scipy.special.logsumexp(log_joint)
    np.testing.assert_allclose(em.log_likelihood(params, x, labels, known), evidence, rtol=1e-12)
    derived, leaves = compiled_of(em, x, labels, known)
    found = derived.marginals(params, leaves)["z_unobserved"]
    np.testing.assert_allclose(found[:, 1], np.exp(log_joint - evidence) @ paths, atol=1e-10)
    result = em.run(jax.random.key(0), x, labels, known)
    assert result.decode()["z"][1] == 1 and result.posterior("z").shape == (5, 2)


def test_steps_that_do_not_exist_must_be_at_the_end_and_without_data():
    def model(x, exists, seen, K=2):
        trans = numpyro.param("trans", draw((K, K), 2), constraint=simplex)
        mu = numpyro.param("mu", jnp.arange(float(K)))

        def step(z_prev, data):
            x_t, exists_t, seen_t = data
            z = numpyro.sample("z", dist.Categorical(trans[z_prev]).mask(exists_t))
            numpyro.sample("x", dist.Normal(mu[z], 1).mask(seen_t), obs=x_t)
            return z, None

        scan(step, 0, (x, exists, seen))

    em = emppl.EM(model)
    good = jnp.array([True, True, True, False, False])
    params = em.start(jax.random.key(0), X, good, good)
    truth = BruteForce(model, params, X, good, good)
    np.testing.assert_allclose(em.log_likelihood(params, X, good, good), truth.log_likelihood(), rtol=1e-12)
    gap = good.at[4].set(True)
    assert np.isnan(jax.jit(em.log_likelihood)(params, X, gap, gap))
    with pytest.raises(emppl.DataError, match="'z'.*exists again"):
        em.log_likelihood(params, X, gap, gap)
    with pytest.raises(emppl.DataError, match="'z'.*exists again"):
        em.run(jax.random.key(0), X, gap, gap)
    with pytest.raises(emppl.DataError, match="'z'.*data"):
        em.run(jax.random.key(0), X, good, jnp.ones(5, bool))


@pytest.mark.parametrize("name", ["basic", "mixture_of_chains", pytest.param("factorial", marks=pytest.mark.slow)])
def test_draws_follow_the_posterior_of_whole_paths(name):
    """All latents together, also those around the chain and inside its steps; rare assignments count as one."""
    model, data = CASES[name]
    em = emppl.EM(model)
    params = em.start(jax.random.key(0), *data)
    truth = BruteForce(model, params, *data)
    derived, leaves = compiled_of(em, *data)
    draws = derived.sample(params, leaves, jax.random.split(jax.random.key(1), 20_000))
    rows = {z: np.reshape(truth.assignments[z], (len(truth.posterior()), -1)) for z in truth.latents}
    code = {row.tobytes(): number for number, row in enumerate(np.concatenate(list(rows.values()), 1).astype(int))}
    drawn = np.concatenate([np.reshape(draws[z], (20_000, -1)) for z in rows], 1).astype(int)
    counts = np.bincount([code[row.tobytes()] for row in drawn], minlength=len(code))
    wanted = 20_000 * truth.posterior()
    often = wanted > 10
    counts, wanted = (np.append(array[often], array[~often].sum()) for array in (counts, wanted))
    freedom = np.sum(wanted > 0) - 1
    assert freedom > 10
    assert np.sum((counts - wanted) ** 2 / np.maximum(wanted, 1e-9)) < freedom + 5 * np.sqrt(2 * freedom)


def test_draws_are_made_in_groups_where_memory_is_short(monkeypatch):
    draws = []
    for cells in (2**24, 40):
        monkeypatch.setattr(functions, "_CELLS_OF_DRAWS", cells)
        em = emppl.EM(basic)
        derived, leaves = compiled_of(em, X)
        params = em.start(jax.random.key(0), X)
        draws.append(derived.sample(params, leaves, jax.random.split(jax.random.key(1), 7))["z"])
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize("name", ["mixture_of_chains", "sequences", pytest.param("factorial", marks=pytest.mark.slow)])
def test_decoding_equals_its_twin(name):
    """Viterbi's algorithm, and the gradient of a maximum step by step."""
    model, data = CASES[name]
    em = emppl.EM(model)
    params = em.start(jax.random.key(0), *data)
    derived, leaves = compiled_of(em, *data)
    twin = jax.jit(lambda params, leaves: estep.decode(derived.program.model, params, leaves, twin=True))(
        params, leaves
    )
    for latent, path in derived.decode(params, leaves).items():
        np.testing.assert_array_equal(path, twin[latent])


def accumulating(x):
    mu = numpyro.param("mu", jnp.arange(2.0))

    def step(total, x_t):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(mu[z] + 0.1 * total, 1), obs=x_t)
        return total + z, None

    scan(step, 0, x)


def outputs_read(x):
    mu = numpyro.param("mu", jnp.arange(2.0))
    trans = numpyro.param("trans", draw((2, 2), 2), constraint=simplex)

    def step(z_prev, _):
        z = numpyro.sample("z", dist.Categorical(trans[z_prev]))
        return z, z

    _, z = scan(step, 0, None, length=len(x))
    with numpyro.plate("time", len(x)):
        numpyro.sample("x", dist.Normal(mu[z], 1), obs=x)


def chain_inside_chain(x):
    trans = numpyro.param("trans", draw((2, 2), 2), constraint=simplex)
    mu = numpyro.param("mu", jnp.arange(2.0))

    def step(carry, x_t):
        z_prev, w_prev = carry
        z = numpyro.sample("z", dist.Categorical(trans[z_prev]))
        with numpyro.plate("many", 4):
            w = numpyro.sample("w", dist.Categorical(0.5 * trans[w_prev] + 0.5 * trans[z][None]))
            numpyro.sample("x", dist.Normal(mu[w], 1), obs=x_t)
        return (z, w), None

    scan(step, (0, jnp.zeros(4, int)), jnp.tile(x[:, None], (1, 4)))


def timed_weight(x):
    trans = numpyro.param("trans", draw((2, 2), 2), constraint=simplex)
    mu = numpyro.param("mu", jnp.arange(2.0))

    def step(z_prev, x_t):
        with numpyro.handlers.scale(scale=jnp.abs(x_t)):
            z = numpyro.sample("z", dist.Categorical(trans[z_prev]))
            numpyro.sample("x", dist.Normal(mu[z], 1), obs=x_t)
        return z, None

    scan(step, 0, x)


def backwards(x):
    trans = numpyro.param("trans", draw((2, 2), 2), constraint=simplex)

    def step(z_prev, x_t):
        z = numpyro.sample("z", dist.Categorical(trans[z_prev]))
        numpyro.sample("x", dist.Normal(1.0 * z, 1), obs=x_t)
        return z, None

    scan(step, 0, x, reverse=True)


def around_a_plate(x):
    with numpyro.plate("rows", 3):
        basic(x)


@pytest.mark.parametrize(
    "model, says",
    [
        (accumulating, "accumulates latents.*'z'"),
        (outputs_read, "'x'.*what the scan returns"),
        (chain_inside_chain, "different plates depend on each other"),
        (timed_weight, "varies over the steps"),
        (backwards, "in reverse"),
        (around_a_plate, "plate"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_reason(model, says):
    with pytest.raises(emppl.ModelError, match=f"(?s){says}"):
        emppl.EM(model).plan(X)


@pytest.mark.parametrize("name", ["basic", "fixed_start", "covariates", "sequences"])
def test_the_filter_is_the_posterior_of_the_last_step_of_shorter_data(name):
    model, data = CASES[name]
    em = emppl.EM(model)
    params = em.start(jax.random.key(0), *data)
    found = em.filter(params, *data)
    np.testing.assert_allclose(jnp.sum(found.log_likelihood["z"]), em.log_likelihood(params, *data), rtol=1e-12)
    cut = (
        data[0][:-1],
        *(one[:-1] if one.shape[:1] == data[0].shape[:1] and name != "sequences" else one for one in data[1:]),
    )
    if name == "sequences":
        cut = (data[0][:3], jnp.minimum(data[1], 3))
    truth = BruteForce(model, params, *cut)
    wanted = truth.marginals()["z"]
    last = wanted[-1]
    seen = ~np.isnan(last)
    np.testing.assert_allclose(np.asarray(found.states["z"][len(wanted) - 1])[seen], last[seen], atol=1e-10)
    gained = em.log_likelihood(params, *data) - truth.log_likelihood()
    np.testing.assert_allclose(jnp.sum(found.log_likelihood["z"][-1]), gained, rtol=1e-9)
    np.testing.assert_allclose(jnp.sum(found.predicted["z"], -1), 1, rtol=1e-12)


def test_other_data_of_the_same_shapes_compile_nothing():
    """Neither the fit nor what is asked of its result: not one event of JAX's compiler."""
    em = emppl.EM(sequences, max_iterations=3)

    def use(seed, lengths):
        arguments = draw((4, 3, 2), seed, "real"), jnp.array(lengths)
        result = em.run(jax.random.key(seed), *arguments)
        result.posterior("z"), result.decode(), result.sample_posterior(jax.random.key(seed), 2)
        em.filter(result.params, *arguments)
        return jnp.zeros(())

    with compilations() as first:
        use(1, [4, 2, 1])
    assert first
    with compilations() as second:
        use(2, [3, 4, 2])
    assert not second


def test_an_option_that_the_compiler_no_longer_has_is_left_out(monkeypatch):
    """The options are XLA's internal ones, so a release without them must not stop a fit."""
    em = emppl.EM(basic, max_iterations=1)
    has_option = jax.__version_info__ < (0, 12)  # where it has been looked for; later compilers have it no more
    expected = {"xla_cpu_use_fusion_emitters": False} if has_option else None
    assert compiled_of(em, X)[0]._compiler_options == expected
    monkeypatch.setattr(functions, "FEWER_PASSES", {"xla_no_such_option": False})
    em = emppl.EM(basic, max_iterations=1)
    assert compiled_of(em, X)[0]._compiler_options is None
    assert em.run(jax.random.key(0), X).num_iterations == 1


def moving_transition(x, K):
    slope = numpyro.param("slope", jnp.zeros((K, K)))

    def step(z_prev, x_t):
        z = numpyro.sample("z", dist.Categorical(logits=slope[z_prev] * x_t))
        numpyro.sample("x", dist.Normal(1.0 * z, 1), obs=x_t)
        return z, None

    scan(step, 0, x)


def large_product(x, K):
    trans = numpyro.param("trans", jnp.full((K, K), 1 / K), constraint=simplex)
    weight = numpyro.param("weight", jnp.zeros((K, K)))

    def step(carry, x_t):
        z = numpyro.sample("z", dist.Categorical(trans[carry[0]]))
        w = numpyro.sample("w", dist.Categorical(trans[carry[1]]))
        numpyro.sample("x", dist.Normal(weight[z, w], 1), obs=x_t)
        return (z, w), None

    scan(step, (0, 0), x)


@pytest.mark.parametrize(
    "model, K, steps, says",
    [
        (moving_transition, 90, 100_000, r"90 values \(\{'z': 90\}\) over 100,000 steps: .* 6.03 GiB, limit 4 GiB"),
        (large_product, 160, 5, r"25,600 values \(\{.*'w': 160.*\) over 5 steps: .* 4.88 GiB, limit 4 GiB"),
    ],
    ids=["transitions over time", "joint state"],
)
def test_a_chain_whose_tables_would_not_fit_is_refused(model, K, steps, says):
    x = jnp.zeros(steps)
    for use in (emppl.EM(model).plan, functools.partial(emppl.EM(model).run, jax.random.key(0))):
        with pytest.raises(emppl.ModelError, match=f"(?s){says}.*Reduce the number of states"):
            use(x, K=K)


def test_a_model_without_a_chain_has_no_filter():
    def mixture(x):
        mu = numpyro.param("mu", jnp.arange(2.0))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], 1), obs=x)

    with pytest.raises(emppl.ModelError, match="no chain"):
        emppl.EM(mixture).filter({"mu": np.arange(2.0)}, X)


# ------------------------------------------------------------------------------------------ generated structures


def generated(x, u, length, how):
    """A chain with any of the features above, alone or together."""
    K, sequences = how["states"], x.shape[1]
    zeros = jnp.triu(jnp.ones((K, K))) if how["left_right"] else jnp.ones((K, K))
    init = numpyro.param("init", draw((K,), 1), constraint=simplex)
    raw = numpyro.param("raw", draw((2, K, K), 2, "positive"), constraint=positive)
    mu = numpyro.param("mu", draw((2, K), 3, "real"))
    slope = numpyro.param("slope", draw((K,), 4, "real"))
    c = 0
    if how["mixture"]:
        with numpyro.plate("sequences", sequences):
            c = numpyro.sample("c", dist.Bernoulli(0.3))
    z0 = jnp.zeros(sequences, int)
    if how["start"] == "site":
        with numpyro.plate("sequences", sequences):
            z0 = numpyro.sample("z0", dist.Categorical(init))

    def step(carry, data):
        z_2, z_1, w_1, x_before, t = carry
        x_t, u_t = data
        weight = zeros[z_1] * raw[c, z_1]
        if how["second_order"]:
            weight = weight + 0.5 * raw[0, z_2] * zeros[z_1]
        if how["covariate"]:
            weight = weight * jnp.exp(slope * u_t)
        probs = weight / jnp.sum(weight, -1, keepdims=True)
        if how["start"] == "where":
            probs = jnp.where(t == 0, init, probs)
        with numpyro.plate("sequences", sequences), numpyro.handlers.mask(mask=t < length):
            z = numpyro.sample("z", dist.Categorical(probs))
            mean = mu[c, z] + (0.5 * x_before if how["autoregressive"] else 0.0)
            w = w_1
            if how["second_latent"]:
                w = numpyro.sample("w", dist.Bernoulli(jnp.where(w_1 == 1, 0.8, 0.3)))
                mean = mean + 1.5 * w
            if how["local"]:
                mean = mean + numpyro.sample("m", dist.Bernoulli(0.4))
            if how["poisson"]:
                numpyro.sample("x", dist.Poisson(jnp.exp(0.3 * mean)), obs=jnp.abs(jnp.round(x_t)).astype(int))
            else:
                numpyro.sample("x", dist.Normal(mean, 1), obs=x_t)
        return (z_1, z, w, x_t, t + 1), None

    zero = jnp.zeros(sequences, int)
    scan(step, (zero, z0, zero, jnp.zeros(sequences), 0), (x, u), history=2 if how["second_order"] else 1)


class Frozen(dict):
    """A static model argument must be hashable."""

    def __hash__(self):
        return hash(tuple(sorted(self.items())))


switches = ("left_right", "mixture", "second_order", "covariate", "autoregressive", "second_latent", "local", "poisson")
structures = st.fixed_dictionaries(
    {"states": st.integers(2, 3), "start": st.sampled_from(["fixed", "where", "site"])}
    | {name: st.booleans() for name in switches}
)


def check_structure(how, steps, seed, decode=False):
    how = Frozen(how)
    many = how["second_latent"] + how["local"] + how["mixture"] + (how["start"] == "site") + (how["states"] > 2)
    sequences = 1 if many > 1 else 2
    steps = min(steps, 3 if many > 1 else 4) if not how["second_order"] else 3
    x, u = draw((steps, sequences), seed, "real"), draw((steps, 1), seed + 1, "real")
    length = jnp.array([steps, steps - 1][:sequences])
    data = (x, u, length, how)
    em = emppl.EM(generated)
    params = em.start(jax.random.key(0), *data)
    truth = BruteForce(generated, params, *data)
    np.testing.assert_allclose(em.log_likelihood(params, *data), truth.log_likelihood(), rtol=1e-10)
    derived, leaves = compiled_of(em, *data)
    found, expected = derived.marginals(params, leaves), truth.marginals()
    for latent, wanted in expected.items():
        seen = ~np.isnan(wanted)
        np.testing.assert_allclose(np.asarray(found[latent])[seen], wanted[seen], atol=1e-10)
    if decode:
        np.testing.assert_allclose(truth.score(derived.decode(params, leaves)), truth.log_joint().max(), rtol=1e-10)
    # The loop runs the kernels; its gradient is checked through the statistics that it leaves to the M-step.
    fused = derived.program.fused
    prepared = jax.jit(lambda leaves: estep.prepare(derived.program.model, fused, leaves))(leaves)
    fast = jax.jit(lambda p: estep.expectations(derived.program.model, fused, p, leaves, prepared))(params)
    np.testing.assert_allclose(fast.log_likelihood, truth.log_likelihood(), rtol=1e-10)
    plain = derived.e_step(params, leaves)
    for name, weight in fast.weights.items():
        np.testing.assert_allclose(weight, plain.weights[name], atol=1e-10)


@pytest.mark.slow
@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(structures, st.integers(2, 4), st.integers(0, 50))
def test_any_structure_agrees_with_all_paths(how, steps, seed):
    check_structure(how, steps, seed)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(structures, st.integers(2, 4), st.integers(0, 50))
def test_any_structure_agrees_with_all_paths_at_length(how, steps, seed):
    check_structure(how, steps, seed, decode=True)

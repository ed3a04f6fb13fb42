"""Gaussian latents of every structure against dense algebra: likelihood, posterior, Q, M-step, draws."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

import emppl
from tests.kit import dense_gaussian as dense
from tests.kit.fits import fit

# Compiling one structure takes about ten seconds: these few cover the paths, the rest runs with the slow tests.
FEW = ("factor analysis", "groups by index", "weighted schools", "mixed mixture")
EVERY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in dense.STRUCTURES]
)
SEEDS = 3


@functools.cache
def em(name: str) -> emppl.EM:
    structure = dense.STRUCTURES[name]
    latents = {latent: emppl.Gaussian() for latent in structure.latents}
    return emppl.EM(structure.model, latents=latents, tolerance=0)


@functools.cache
def drawn(name: str, seed: int):
    """Data and two sets of parameters."""
    structure = dense.STRUCTURES[name]
    rng = np.random.default_rng([seed, list(dense.STRUCTURES).index(name)])
    data, params = structure.draw(rng)
    return data, params, structure.draw(rng)[1]


@functools.cache
def oracle(name: str, function):
    """A function of cells as a compiled function of parameters and data."""
    cells = dense.STRUCTURES[name].cells
    compiled = jax.jit(lambda data, *params: function(*(cells(one, *data) for one in params)))

    def call(data, *params):
        with jax.numpy_rank_promotion("allow"):
            return compiled(data, *params)

    return call


@functools.cache
def after(name: str, seed: int, steps: int = 0) -> emppl.EMResult:
    """A result a few steps after given parameters."""
    data, params, _ = drawn(name, seed)
    few = copy.copy(em(name))  # nothing is compiled twice
    few.max_iterations = steps
    return few.run(jax.random.key(0), *data, init_params=params)


@EVERY
@pytest.mark.parametrize("seed", range(SEEDS))
def test_log_likelihood(name, seed):
    data, params, _ = drawn(name, seed)
    expected = oracle(name, dense.total_log_evidence)(data, params)
    np.testing.assert_allclose(em(name).e_step(params, *data).log_likelihood, expected, rtol=1e-11)
    np.testing.assert_allclose(after(name, seed).log_likelihood, expected, rtol=1e-11)


@EVERY
@pytest.mark.parametrize("seed", range(SEEDS))
def test_posterior(name, seed):
    structure = dense.STRUCTURES[name]
    data, params, _ = drawn(name, seed)
    mean, cov = map(np.asarray, oracle(name, dense.mixture_moments)(data, params))
    for latent, places in structure.places.items():
        found, spread = after(name, seed).posterior(latent)
        np.testing.assert_allclose(found, mean[places[..., 0], places[..., 1]], rtol=1e-9, atol=1e-10)
        rows = places if spread.ndim == found.ndim else places[..., :, None, :]
        columns = places if spread.ndim == found.ndim else places[..., None, :, :]
        expected = cov[rows[..., 0], rows[..., 1], columns[..., 1]]
        np.testing.assert_allclose(spread, expected, rtol=1e-9, atol=1e-10)
    for latent in structure.discrete:
        shares = np.asarray(oracle(name, dense.responsibilities)(data, params))
        np.testing.assert_allclose(after(name, seed).posterior(latent), np.squeeze(shares), rtol=1e-9, atol=1e-12)
        best = np.squeeze(np.argmax(shares, -1))
        np.testing.assert_array_equal(after(name, seed).decode()[latent], best)


@EVERY
@pytest.mark.parametrize("seed", range(SEEDS))
def test_q_is_the_analytic_expectation(name, seed):
    data, params, others = drawn(name, seed)
    posterior = em(name).e_step(params, *data)
    expected = oracle(name, dense.total_q)(data, others, params)
    np.testing.assert_allclose(em(name).q(others, posterior, *data), expected, rtol=1e-10)


@EVERY
def test_m_step_is_a_stationary_point_of_the_analytic_q(name):
    data, params, _ = drawn(name, 0)
    new = after(name, 0, 1).params
    cells = dense.STRUCTURES[name].cells
    analytic = jax.grad(lambda new: dense.total_q(cells(new, *data), cells(params, *data)))
    with jax.numpy_rank_promotion("allow"):
        slope = jax.jit(analytic)(new)
    q = oracle(name, dense.total_q)
    assert q(data, new, params) > q(data, params, params)
    if "probs" in slope:  # on the simplex
        slope["probs"] = slope["probs"] - jnp.mean(slope["probs"])
    for parameter, there in slope.items():
        symmetric = there + jnp.swapaxes(there, -1, -2) if parameter in ("cov", "phi", "sigma") else there
        np.testing.assert_allclose(symmetric, 0, atol=1e-8, err_msg=parameter)


@EVERY
def test_every_iteration_climbs(name):
    objective = after(name, 1, 20).history["objective"]
    assert len(objective) > 10
    assert np.diff(objective).min() > -1e-10 * np.abs(objective[-1])


@pytest.mark.parametrize(
    "name", ["mixed mixture", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nested by index", "chain"))]
)
def test_draws_have_the_posterior_moments(name):
    """Joint draws: also the covariance between latents, and with the discrete ones."""
    structure, number = dense.STRUCTURES[name], 4000
    data, params, _ = drawn(name, 0)
    mean, cov = map(np.asarray, oracle(name, dense.mixture_moments)(data, params))
    drawn_values = after(name, 0).sample_posterior(jax.random.key(1), number)
    vectors = np.zeros((number, *mean.shape))
    for latent, places in structure.places.items():
        assert drawn_values[latent].shape == (number, *places.shape[:-1])
        vectors[:, places[..., 0], places[..., 1]] = drawn_values[latent]
    deviation = np.sqrt(np.diagonal(cov, axis1=-2, axis2=-1))
    assert np.max(np.abs(vectors.mean(0) - mean) / deviation) < 5 / np.sqrt(number)
    off = (vectors - mean) / deviation
    found, expected = np.einsum("nci,ncj->cij", off, off) / number, cov / (deviation[:, :, None] * deviation[:, None])
    # Five standard errors of a product of two normal numbers; mixtures have longer tails.
    assert np.max(np.abs(found - expected)) < 5 * 2 / np.sqrt(number)
    for latent in structure.discrete:
        shares = np.asarray(oracle(name, dense.responsibilities)(data, params))[:, 1]
        assert np.max(np.abs(drawn_values[latent].mean(0) - shares)) < 5 * 0.5 / np.sqrt(number)
        # Given the last state: the means of the latents there.
        means = np.asarray(oracle(name, dense.state_means)(data, params))[:, -1]
        chosen = drawn_values[latent] == 1
        for cell in range(len(shares)):
            here = vectors[chosen[:, cell], cell]
            if len(here) > 50:
                assert np.max(np.abs(here.mean(0) - means[cell]) / deviation[cell]) < 5 / np.sqrt(len(here))


@pytest.mark.slow
def test_draws_by_quadrature():
    """The nodes of a quadrature are no draws: Metropolis-Hastings steps make some."""
    name, number = "flat prior", 2000
    data, params, _ = drawn(name, 0)
    result = fit(
        dense.STRUCTURES[name].model, *data, init_params=params, latents={"a": emppl.Quadrature(5)}, max_iterations=0
    )
    mean, variance = result.posterior("a")
    exact, cov = map(np.asarray, oracle(name, dense.mixture_moments)(data, params))
    np.testing.assert_allclose(mean, exact[:, 0], rtol=1e-9)
    np.testing.assert_allclose(variance, cov[:, 0, 0], rtol=1e-9)
    found = result.sample_posterior(jax.random.key(1), number)["a"]
    off = (found - mean) / np.sqrt(variance)
    assert np.max(np.abs(off.mean(0))) < 5 / np.sqrt(number)
    assert np.max(np.abs((off**2).mean(0) - 1)) < 5 * np.sqrt(2 / number)


@EVERY
def test_number_of_observations(name):
    """Cells of the outermost plates that hold all latents, or of the data."""
    data, _, _ = drawn(name, 0)
    expected = {
        "weighted rows": np.sum(np.asarray(data[-1])),
        "two sites": dense.ROWS,
        "nested plates": dense.SCHOOLS,
        "weighted schools": np.sum(np.asarray(data[-1])),
        "groups by index": dense.SUBJECTS,
        "crossed": dense.OBSERVATIONS,
        "nested by index": dense.OBSERVATIONS,
        "no plate": dense.OBSERVATIONS,
        "chain": dense.STEPS * dense.SEQUENCES,
    }
    result = after(name, 0)
    assert result.num_observations == expected.get(name, dense.ROWS)
    assert np.isfinite([result.bic, result.icl]).all()


def test_plan_of_latents_given_a_state():
    data, _, _ = drawn("mixed mixture", 0)
    plan = em("mixed mixture").plan(*data)
    found = {one.name: (one.states, one.dimensions, one.groups, one.atoms) for one in plan.latents}
    assert found == {"c": (2, 0, 0, 0), "b": (0, 2, 2 * dense.ROWS, 3)}
    assert "integrates out 'b' given 'c'" in str(plan)
    assert "sums out 'c'" in str(plan)


def _gated(y, w):
    """A discrete latent whose probability depends on a continuous one."""
    with numpyro.plate("rows", len(y)):
        a = numpyro.sample("a", dist.Normal(0.3, numpyro.param("spread", 1.0, constraint=constraints.positive)))
        c = numpyro.sample("c", dist.Bernoulli(logits=a))
        numpyro.sample("w", dist.Normal(a, 1.0), obs=w)
        numpyro.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[c], 1.0), obs=y)


@pytest.mark.slow
def test_a_discrete_latent_given_a_continuous_one():
    y, w = np.random.default_rng(0).normal(size=(2, 6))
    result = fit(_gated, y, w, latents={"a": emppl.Quadrature(30)}, max_iterations=0)
    a = np.linspace(-9, 9, 4001)[:, None, None]
    gate = 1 / (1 + np.exp(a * np.array([1.0, -1.0])))
    density = stats.norm.pdf(a, 0.3) * stats.norm.pdf(w[:, None], a) * gate
    density = density * stats.norm.pdf(y[:, None], np.array([-1.0, 1.0]))
    cells = density.sum(0) * 18 / 4000  # the trapezoidal rule: exact to rounding for such a smooth density
    share = density / density.sum((0, 2), keepdims=True)
    mean = (a * share).sum((0, 2))
    np.testing.assert_allclose(result.log_likelihood, np.log(cells.sum(1)).sum(), rtol=1e-11)
    np.testing.assert_allclose(result.posterior("c"), cells / cells.sum(1, keepdims=True), atol=1e-11)
    found, variance = result.posterior("a")
    np.testing.assert_allclose(found, mean, atol=1e-11)
    np.testing.assert_allclose(variance, (a**2 * share).sum((0, 2)) - mean**2, atol=1e-11)
    np.testing.assert_array_equal(result.decode()["c"], cells.argmax(1))
    draws = result.sample_posterior(jax.random.key(1), 2000)
    assert np.max(np.abs(draws["a"].mean(0) - mean) / np.sqrt(variance)) < 5 / np.sqrt(2000)
    assert np.max(np.abs(draws["c"].mean(0) - (cells / cells.sum(1, keepdims=True))[:, 1])) < 5 * 0.5 / np.sqrt(2000)


INDEX = np.array([0, 1, 2] * 4)
READINGS = {
    "an array of the model": (lambda m: m[jnp.asarray(INDEX)], INDEX),
    "one entry": (lambda m: m[1], np.ones(12, int)),
    "a slice of one": (lambda m: m[1:2], np.ones(12, int)),
    "taken": (lambda m: jnp.take(m, 1), np.ones(12, int)),
    "a dynamic slice": (lambda m: jax.lax.dynamic_slice(m, (1,), (1,)), np.ones(12, int)),
    "repeated": (lambda m: jnp.repeat(m, 4), np.repeat([0, 1, 2], 4)),
    "reversed": (lambda m: jnp.repeat(m[::-1], 4), np.repeat([2, 1, 0], 4)),
    "tiled": (lambda m: jnp.tile(m, 4), INDEX),
    "behind a branch": (lambda m: jax.lax.cond(True, lambda m: jnp.tile(m, 4), lambda m: jnp.tile(-m, 4), m), INDEX),
}


@pytest.mark.parametrize("reading", READINGS)
def test_groups_read_by_constants_are_those_that_are_read(reading):
    """Groups lie where the model reads them, not in order along a plate that is as long."""
    read, index = READINGS[reading]

    def model(y):
        scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
        with numpyro.plate("groups", 3):
            m = numpyro.sample("m", dist.Normal(0.0, scale))
        with numpyro.plate("rows", 12):
            numpyro.sample("y", dist.Normal(read(m), 1.0), obs=y)

    y = np.random.default_rng(0).normal(size=12)
    design = np.eye(3)[index]
    exact = stats.multivariate_normal.logpdf(y, np.zeros(12), 1.7**2 * design @ design.T + np.eye(12))
    found = emppl.EM(model, latents={"m": emppl.Gaussian()}).log_likelihood({"scale": 1.7}, y)
    np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_groups_beside_a_plate_of_the_same_length_stay_apart_from_it():
    """Effects of eight schools, and eight data in a plate of their own: entry k belongs to effect k."""

    def model(y, errors):
        scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
        with numpyro.plate("schools", 8):
            effect = numpyro.sample("effect", dist.Normal(0.0, scale))
        with numpyro.plate("data", 8):
            numpyro.sample("y", dist.Normal(effect, errors), obs=y)

    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    exact = stats.norm.logpdf(y, 0.0, np.sqrt(5.0**2 + errors**2)).sum()
    found = emppl.EM(model, latents={"effect": emppl.Gaussian()}).log_likelihood({"scale": 5.0}, y, errors)
    np.testing.assert_allclose(found, exact, rtol=1e-12)

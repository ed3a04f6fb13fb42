"""Continuous latents inside a ``scan``, against NumPyro's own log density and dense normal algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer.util import log_density

import emppl
from tests.kit.fits import fit

positive = constraints.positive


def dense(model, args, params, shapes):
    """Log-likelihood, mean and covariance of all latents, from second derivatives of NumPyro's log density."""
    sizes = {name: int(np.prod(shape, dtype=int)) for name, shape in shapes.items()}

    def density(vector):
        values, start = {}, 0
        for name, shape in shapes.items():
            values[name] = vector[start : start + sizes[name]].reshape(shape)
            start += sizes[name]
        with jax.numpy_rank_promotion("allow"):
            return log_density(model, args, {}, {**params, **values})[0]

    zero = jnp.zeros(sum(sizes.values()))
    precision = -np.asarray(jax.hessian(density)(zero))
    mean = np.linalg.solve(precision, np.asarray(jax.grad(density)(zero)))
    value = float(density(jnp.asarray(mean))) + len(mean) / 2 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] / 2
    return value, mean, np.linalg.inv(precision)


def local_level(y):
    level_sd = numpyro.param("level_sd", 0.7, constraint=positive)
    noise_sd = numpyro.param("noise_sd", 1.3, constraint=positive)

    def step(level, y):
        level = numpyro.sample("level", dist.Normal(level, level_sd))
        numpyro.sample("y", dist.Normal(level, noise_sd), obs=y)
        return level, None

    scan(step, numpyro.param("start", 0.2), y)


def trend_and_season(y):
    """Level, slope and a seasonal pattern of period four, which reaches three steps back."""
    sd = numpyro.param("sd", jnp.array([0.5, 0.3, 0.4, 0.8]), constraint=positive)

    def step(carry, y):
        level, slope, seasons = carry
        new_level = numpyro.sample("level", dist.Normal(level + slope, sd[0]))
        new_slope = numpyro.sample("slope", dist.Normal(slope, sd[1]))
        season = numpyro.sample("season", dist.Normal(-(seasons[0] + seasons[1] + seasons[2]), sd[2]))
        numpyro.sample("y", dist.Normal(new_level + season, sd[3]), obs=y)
        return (new_level, new_slope, (season, seasons[0], seasons[1])), None

    scan(step, (0.0, 0.1, (0.0, 0.3, -0.3)), y)


def dynamical_system(y):
    """A vector state, in a plate of sequences."""
    transition = numpyro.param("transition", jnp.array([[0.9, 0.2], [-0.1, 0.8]]))
    loadings = numpyro.param("loadings", jnp.array([[1.0, 0.0], [0.5, 1.0], [0.3, -0.7]]))
    noise = numpyro.param("noise", 0.5 * jnp.eye(3), constraint=constraints.positive_definite)
    innovation = numpyro.param("innovation", jnp.eye(2), constraint=constraints.positive_definite)

    def step(state, y):
        with numpyro.plate("sequences", y.shape[0]):
            mean = jnp.squeeze(transition @ state[..., None], -1)
            state = numpyro.sample("state", dist.MultivariateNormal(mean, innovation))
            numpyro.sample("y", dist.MultivariateNormal(jnp.squeeze(loadings @ state[..., None], -1), noise), obs=y)
        return state, None

    scan(step, jnp.zeros((y.shape[1], 2)), y)


def gaps(y, seen):
    """Observations are missing where they are masked."""
    sd = numpyro.param("sd", jnp.array([0.7, 1.3]), constraint=positive)

    def step(level, data):
        y, seen = data
        level = numpyro.sample("level", dist.Normal(0.8 * level, sd[0]))
        numpyro.sample("y", dist.Normal(level, sd[1]).mask(seen), obs=y)
        return level, None

    scan(step, 0.0, (y, seen))


def draw(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape)).cumsum(0)


SEEN = jnp.array([True, False, True, True, False, False, True, True])
CASES = {
    "local level": (local_level, (draw(12),), {"level": (12,)}),
    "order three": (trend_and_season, (draw(11),), {"level": (11,), "slope": (11,), "season": (11,)}),
    "order three, whole blocks": (trend_and_season, (draw(9),), {"level": (9,), "slope": (9,), "season": (9,)}),
    "vectors in a plate": (dynamical_system, (draw(5, 3, 3),), {"state": (5, 3, 2)}),
    "missing": (gaps, (draw(8), SEEN), {"level": (8,)}),
}


QUICK = ("local level",)
MARKED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", MARKED)
def test_equals_dense_normal_algebra(name):
    model, args, shapes = CASES[name]
    em = emppl.EM(model)
    params = em.start(jax.random.key(0), *args)
    value, mean, covariance = dense(model, args, params, shapes)
    posterior = em.e_step(params, *args)
    np.testing.assert_allclose(em.log_likelihood(params, *args), value, rtol=1e-10)
    np.testing.assert_allclose(posterior.log_likelihood, value, rtol=1e-10)
    # The atoms of one step have its mean and covariance.
    start = 0
    for latent, shape in shapes.items():
        size = int(np.prod(shape))
        ours = np.concatenate(
            [
                np.asarray(posterior.atoms[f"{latent}@{step}"])[:, None]
                for step in range(sum(f"{latent}@{step}" in posterior.atoms for step in range(4)))
            ]
            + [np.asarray(posterior.atoms[latent])],
            1,
        ).reshape(-1, size)
        np.testing.assert_allclose(ours.mean(0), mean[start : start + size], atol=1e-9)
        variance = np.diag(covariance)[start : start + size]
        np.testing.assert_allclose(ours.var(0), variance, atol=1e-9)
        start += size


@pytest.mark.parametrize("name", [n if n == "local level" else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_q_is_the_expectation_and_em_climbs(name):
    """Q at other parameters is the expectation under the dense posterior; one EM iteration raises the likelihood."""
    model, args, shapes = CASES[name]
    em = emppl.EM(model)
    params = em.start(jax.random.key(0), *args)
    posterior = em.e_step(params, *args)
    other = {name: 1.1 * value for name, value in params.items()}
    _, mean, covariance = dense(model, args, params, shapes)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]

    def density(vector):
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        values = {n: jnp.asarray(p.reshape(s)) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        with jax.numpy_rank_promotion("allow"):
            return float(log_density(model, args, {}, {**other, **values})[0])

    # For a quadratic, sigma points of the whole posterior give the expectation.
    root = np.sqrt(len(mean)) * np.linalg.cholesky(covariance)
    expected = np.mean([density(mean + sign * column) for column in root.T for sign in (1, -1)])
    np.testing.assert_allclose(em.q(other, posterior, *args), expected, rtol=1e-9)
    better = em.m_step(params, posterior, *args)
    assert em.q(better, posterior, *args) > em.q(params, posterior, *args)
    assert em.log_likelihood(better, *args) > em.log_likelihood(params, *args)


@pytest.mark.slow
def test_a_mixture_of_chains():
    """One regime for every sequence: a discrete latent outside the scan."""

    def model(y, regime=None):
        decay = numpyro.param("decay", jnp.array([0.9, -0.5]))
        weights = numpyro.param("weights", jnp.array([0.3, 0.7]), constraint=constraints.simplex)
        with numpyro.plate("sequences", y.shape[1]):
            z = numpyro.sample("z", dist.Categorical(weights), obs=regime)

        def step(level, y):
            with numpyro.plate("sequences", y.shape[0]):
                level = numpyro.sample("level", dist.Normal(decay[z] * level, 0.6))
                numpyro.sample("y", dist.Normal(level, 0.4), obs=y)
            return level, None

        scan(step, jnp.zeros(y.shape[1]), y)

    y = draw(7, 4)
    em = emppl.EM(model)
    params = em.start(jax.random.key(0), y)
    total = 0.0
    for sequence in range(4):
        one = y[:, sequence : sequence + 1]
        logs = [dense(model, (one, jnp.array([z])), params, {"level": (7, 1)})[0] for z in range(2)]
        total += np.logaddexp(*logs)
    np.testing.assert_allclose(em.log_likelihood(params, y), total, rtol=1e-10)
    result = fit(model, y, max_iterations=200)
    assert np.all(np.diff(result.history["objective"]) > -1e-9)
    mean, variance = result.posterior("level")
    draws = result.sample_posterior(jax.random.key(1), 1000)["level"]
    assert draws.shape == (1000, 7, 4)
    for sequence in range(4):
        one = y[:, sequence : sequence + 1]
        given = [dense(model, (one, jnp.array([z])), result.params, {"level": (7, 1)}) for z in range(2)]
        share = np.exp([value - np.logaddexp(given[0][0], given[1][0]) for value, _, _ in given])
        means = np.stack([m for _, m, _ in given])
        squares = np.stack([np.diag(c) for _, _, c in given]) + means**2
        np.testing.assert_allclose(mean[:, sequence], share @ means, atol=1e-8)
        np.testing.assert_allclose(variance[:, sequence], share @ squares - (share @ means) ** 2, atol=1e-8)
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.sqrt(np.asarray(variance) / 1000))


def test_switching_is_refused():
    def model(y):
        sd = numpyro.param("sd", jnp.array([0.3, 2.0]), constraint=positive)

        def step(carry, y):
            level, _ = carry
            regime = numpyro.sample("regime", dist.Bernoulli(0.2))
            level = numpyro.sample("level", dist.Normal(level, sd[regime]))
            numpyro.sample("y", dist.Normal(level, 1.0), obs=y)
            return (level, regime), None

        scan(step, (0.0, 0), y)

    with pytest.raises(emppl.ModelError, match="switches it"):
        emppl.EM(model).plan(draw(6))


@pytest.mark.slow
def test_ragged_sequences_by_mask():
    """Steps that a mask leaves out do not exist: as many chains, each of its own length."""

    def model(y, lengths):
        sd = numpyro.param("sd", jnp.array([0.7, 1.3]), constraint=positive)

        def step(carry, y):
            level, number = carry
            with numpyro.plate("sequences", len(y)), numpyro.handlers.mask(mask=number < lengths):
                level = numpyro.sample("level", dist.Normal(0.8 * level, sd[0]))
                numpyro.sample("y", dist.Normal(level, sd[1]), obs=y)
            return (level, number + 1), None

        scan(step, (jnp.zeros(y.shape[1]), 0), y)

    y, lengths = draw(9, 3), np.array([9, 4, 6])
    em = emppl.EM(model)
    params = em.start(jax.random.key(0), y, lengths)
    whole = em.log_likelihood(params, y, lengths)
    parts = [em.log_likelihood(params, y[:length, [n]], np.array([length])) for n, length in enumerate(lengths)]
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-11)
    better = em.m_step(params, em.e_step(params, y, lengths), y, lengths)
    assert em.log_likelihood(better, y, lengths) > whole


def poisson_walk(y):
    sd = numpyro.param("sd", 0.5, constraint=positive)

    def step(level, y):
        level = numpyro.sample("level", dist.Normal(level, sd))
        numpyro.sample("y", dist.Poisson(jnp.exp(level)), obs=y)
        return level, None

    scan(step, 0.0, y)


def test_a_path_that_is_not_normal_is_no_matter_for_the_smoother():
    counts = jnp.array([1, 2, 0, 3, 4])
    with pytest.raises(emppl.ModelError, match=r"Gaussian\(\) cannot integrate 'level'.* MonteCarlo"):
        emppl.EM(poisson_walk, latents={"level": emppl.Gaussian()}).plan(counts)
    with pytest.raises(emppl.ModelError, match="'level' has 5 in every group"):
        emppl.EM(poisson_walk, latents={"level": emppl.Quadrature(5)}).plan(counts)
    (latent,) = emppl.EM(poisson_walk).plan(counts).latents
    assert (latent.strategy, latent.dimensions, latent.groups) == (emppl.MonteCarlo.title, 5, 1)
    with pytest.raises(emppl.ModelError, match="2,048 are the limit"):
        emppl.EM(poisson_walk).plan(jnp.ones(3000))


def test_a_chain_within_bounds_is_refused():
    def model(y):
        def step(level, y):
            level = numpyro.sample("level", dist.Gamma(2.0, 2.0 / level))
            numpyro.sample("y", dist.Poisson(level * numpyro.param("rate", 1.0, constraint=positive)), obs=y)
            return level, None

        scan(step, 1.0, y)

    with pytest.raises(emppl.ModelError, match="'level' inside a scan is positive"):
        emppl.EM(model).plan(jnp.array([1, 2, 0, 3, 4]))

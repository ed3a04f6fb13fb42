"""Information by differences of the score beside the Hessian by automatic differentiation, its plain twin."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl
from emppl.uncertainty.charts import chart_around
from emppl.uncertainty.differences import information_by_differences
from emppl.uncertainty.information import observed_information
from tests.kit.fits import fit

RNG = np.random.default_rng(4)


def chain(y):
    """A hidden Markov model: simplices, numbers without bounds, numbers above zero."""
    move = numpyro.param("move", jnp.array([[0.8, 0.2], [0.1, 0.9]]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    sigma = numpyro.param("sigma", jnp.array(0.8), constraint=constraints.positive)

    def step(z, y_t):
        z = numpyro.sample("z", dist.Categorical(move[z]))
        numpyro.sample("y", dist.Normal(mu[z], sigma), obs=y_t)
        return z, None

    scan(step, 0, y)


def groups(y, g):
    """A random intercept and slope: a covariance matrix, an interval, Q in place of the integral."""
    loc = numpyro.param("loc", jnp.zeros(2))
    cov = numpyro.param("cov", jnp.eye(2), constraint=constraints.positive_definite)
    sigma = numpyro.param("sigma", jnp.array(1.0), constraint=constraints.interval(0.1, 5.0))
    with numpyro.plate("groups", 12):
        b = numpyro.sample("b", dist.MultivariateNormal(loc, cov))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(b[g, 0] + b[g, 1] * jnp.tile(jnp.linspace(-1, 1, 5), 12), sigma), obs=y)


def counts(y, g):
    """Quadrature, ordered numbers (curved), and a mean of 10,000 standard deviations."""
    cut = numpyro.param("cut", jnp.array([-1.0, 1.0]), constraint=constraints.ordered_vector)
    tau = numpyro.param("tau", jnp.array(0.7), constraint=constraints.positive)
    level = numpyro.param("level", jnp.array(1e4))
    with numpyro.plate("groups", 12):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.OrderedLogistic(b[g] + 0.0, cut), obs=(y > -0.5).astype(int) + (y > 0.7))
        numpyro.sample("x", dist.Normal(level, 1.0), obs=1e4 + y)


G = np.repeat(np.arange(12), 5)
SLOPES = 2 * RNG.normal(size=12)
Y = RNG.normal(size=12)[G] + RNG.normal(size=60)
MODELS = {
    "chain": (chain, (np.where(np.arange(60) % 20 < 9, -1.0, 1.5) + RNG.normal(size=60),), {}),
    "groups": (groups, (Y + SLOPES[G] * np.tile(np.linspace(-1, 1, 5), 12), G), {"latents": {"b": emppl.Gaussian()}}),
    "counts": (counts, (Y, G), {"latents": {"b": emppl.Quadrature(41)}}),
}


@pytest.mark.parametrize("name", MODELS)
def test_differences_are_the_derivatives(name):
    model, args, options = MODELS[name]
    result = fit(model, *args, **options)
    assert result.converged
    model, local = result.fit.model, result.accuracy.charts_by_position
    exact = observed_information(local, result.fit.compiled.hessian_columns, result.fit.data)
    constraint = {n: site.constraint for n, site in model.trace.sites.items()}
    near = information_by_differences(constraint, local, result.fit.compiled.scores, result.fit.data)
    unit = np.sqrt(np.diagonal(exact.matrix))
    np.testing.assert_allclose(near.matrix / np.outer(unit, unit), exact.matrix / np.outer(unit, unit), atol=2e-6)
    np.testing.assert_allclose(near.score / unit, exact.score / unit, atol=1e-7)
    assert near.noise < 2e-6


def test_steps_find_their_length():
    """Whatever the units: a function of a hundred and of a millionth, a bound close by, and one without curvature."""
    scale = np.array([100.0, 1e-6, 1.0, 1.0])
    base = jnp.array([0.0, 0.0, 1e-3, 0.0])

    def objective(x):
        u = x / scale
        return -jnp.log(jnp.cosh(u[0] - 0.1)) - u[1] ** 2 - u[1] ** 4 + 5e-4 * jnp.log(u[2]) - 0.5 * u[2] + 0.3 * u[3]

    wide, above = constraints.real, constraints.positive
    local = {
        name: chart_around(constraint, np.asarray(base[i]), 1e-5)
        for i, (name, constraint) in enumerate(zip("abcd", (wide, wide, above, wide), strict=True))
    }
    scores = jax.jit(lambda frames, data, steps: jax.vmap(lambda step: jax.grad(objective)(base + step))(steps))
    constraint = dict(zip("abcd", (wide, wide, above, wide), strict=True))
    found = information_by_differences(constraint, local, scores, ())
    truth = -np.asarray(jax.hessian(objective)(base))
    unit = np.sqrt(np.maximum(np.diagonal(truth), 1e-12))
    np.testing.assert_allclose(found.matrix / np.outer(unit, unit), truth / np.outer(unit, unit), atol=1e-7)

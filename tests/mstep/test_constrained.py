"""Constraints that a closed form does not imply: it is taken where they do not bind."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from numpyro.distributions import constraints

import emppl
from tests.kit.fits import KEY, fit, never_falls


def two_normals(constraint, start):
    def model(x):
        mu = numpyro.param("mu", jnp.array(start), constraint=constraint)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    return model


def test_ordered_means_take_the_closed_form_as_long_as_they_are_ordered(x):
    """The constraint does not bind: the fit of the free means, step by step."""
    start = [-1.0, 1.0]
    free = fit(two_normals(constraints.real, start), x)
    em = emppl.EM(two_normals(constraints.ordered_vector, start))
    (plan,) = em.plan(x).parameters
    assert plan.rule == "constrained" and "or else newton" in plan.update
    result = em.run(KEY, x)
    assert result.num_iterations == free.num_iterations
    np.testing.assert_allclose(result.params["mu"], free.params["mu"], rtol=1e-12)


def test_a_bound_is_where_the_maximum_is():
    """Means beyond their interval: the bound, as scipy's bounded maximiser says, and the boundary is named."""
    x = np.concatenate([np.random.default_rng(0).normal(-2, 1, 80), np.random.default_rng(1).normal(0.5, 1, 80)])
    em = emppl.EM(two_normals(constraints.interval(-1.0, 1.0), [-0.5, 0.6]))
    (plan,) = em.plan(x).parameters
    assert plan.rule == "constrained" and "or else the bound" in plan.update
    result = em.run(KEY, x)

    def negative(mu):
        return -scipy.special.logsumexp(scipy.stats.norm.logpdf(x, mu[:, None]) + np.log(0.5), 0).sum()

    best = scipy.optimize.minimize(negative, [-0.5, 0.6], bounds=[(-1, 1)] * 2, method="L-BFGS-B", tol=1e-12)
    assert best.x[0] == -1.0
    assert result.converged and never_falls(result)
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-8)
    assert result.boundary == ["mu[0]"]


def directions(angle, how, low, high):
    if how == "prior":
        loc = numpyro.sample("loc", dist.Uniform(low, high))
    else:
        loc = numpyro.param("loc", 4.5, constraint=constraints.interval(low, high))
    with numpyro.plate("data", len(angle)):
        numpyro.sample("angle", dist.VonMises(loc, 5.0), obs=angle)


@pytest.mark.parametrize("how", ["param", "prior"])
@pytest.mark.parametrize(
    "low, high", [(0.0, 2 * np.pi), (0.5, 5.0), (3.0, 4.7), (4.2, 6.0), (-20.0, -12.9), (2.0, 4.2)]
)
def test_a_direction_in_an_interval_goes_round_the_circle(how, low, high):
    """The direction, a whole turn on, or the end that is nearest on the circle: the best of a fine grid."""
    angle = scipy.stats.vonmises.rvs(5, loc=4.6 - 2 * np.pi, size=20, random_state=1)
    em = emppl.EM(directions)
    before = {"loc": low + 0.3 * (high - low)}
    posterior = em.e_step(before, angle, how, low, high)
    after = em.m_step(before, posterior, angle, how, low, high)["loc"]
    grid = np.linspace(low, high, 200_001)
    q = lambda loc: 5 * (np.cos(loc) * np.cos(angle).sum() + np.sin(loc) * np.sin(angle).sum())  # noqa: E731
    assert low <= after <= high
    assert q(after) >= q(grid).max() - 1e-12
    assert q(after) <= q(grid).max() + 1e-6


def test_a_half_line_holds_every_direction():
    """Beyond the bound the direction is there again, whole turns on."""

    def model(angle):
        loc = numpyro.param("loc", 9.0, constraint=constraints.greater_than(7.0))
        with numpyro.plate("data", len(angle)):
            numpyro.sample("angle", dist.VonMises(loc, 5.0), obs=angle)

    angle = scipy.stats.vonmises.rvs(5, loc=1.0, size=20, random_state=1)
    result = fit(model, angle)
    best = np.arctan2(np.sin(angle).mean(), np.cos(angle).mean()) + 2 * np.pi
    assert result.converged and 7 < best
    assert float(result.params["loc"]) == pytest.approx(best, rel=1e-12)


def test_bounds_by_entry():
    """An array of bounds: the mean where it may lie there, or its bound."""

    def model(x):
        mu = numpyro.sample("mu", dist.Uniform(np.array([3.0, 0.1]), 10.0).to_event(1))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)

    x = np.array([[0.3, 0.2], [0.9, 0.4]])
    result = fit(model, x)
    assert result.converged and result.boundary == ["mu[0]"]
    np.testing.assert_allclose(result.params["mu"], [3.0, 0.3], rtol=1e-12)

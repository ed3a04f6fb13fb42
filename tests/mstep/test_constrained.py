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

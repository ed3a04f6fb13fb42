"""Standard errors in closed algebra."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from tests.kit.fits import fit


def moments_model(x):
    loc = numpyro.param("loc", jnp.zeros(2))
    cov = numpyro.param("cov", jnp.eye(2), constraint=constraints.positive_definite)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.MultivariateNormal(loc, cov), obs=x)


def test_covariance_matrix_parameter_has_wishart_errors():
    """Standard errors of a covariance matrix: Var(s_ij) = (s_ii s_jj + s_ij^2) / n."""
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([0, 1], [[2.0, 0.7], [0.7, 1.0]], 90)
    result = fit(moments_model, x)
    s = np.cov(x.T, bias=True)
    np.testing.assert_allclose(result.params["cov"], s, rtol=1e-8)
    errors = result.standard_errors()
    np.testing.assert_allclose(errors["cov"], np.sqrt((np.outer(np.diag(s), np.diag(s)) + s**2) / 90), rtol=1e-5)
    np.testing.assert_allclose(errors["loc"], np.sqrt(np.diag(s) / 90), rtol=1e-6)

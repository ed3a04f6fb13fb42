"""Estimates on the edge of what they may be, which have no standard error; and the errors of the rest."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

from tests.kit.differences import numerical_errors
from tests.kit.fits import fit
from tests.result.test_result import X

INTERVALS = {
    "interval, upper": (constraints.interval(-3.0, 1.0), 0.5, 1.0),
    "interval, lower": (constraints.interval(2.5, 9.0), 3.5, 2.5),
    "greater than": (constraints.greater_than(2.5), 3.0, 2.5),
}


@pytest.mark.parametrize("case", INTERVALS)
def test_estimate_on_the_edge_of_an_interval(case):
    """A mean pressed against its bound is named, has no standard error, and the others have that of the model with it fixed."""
    constraint, start, edge = INTERVALS[case]

    def model(x):
        low = numpyro.param("low", -1.0)
        high = numpyro.param("high", start, constraint=constraint)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.6))
            numpyro.sample("x", dist.Normal(jnp.where(z == 1, high, low), 1.0), obs=x)

    result = fit(model, X, max_iterations=5000)
    assert result.boundary == ["high"]
    assert result.params["high"] == pytest.approx(edge, abs=1e-4)
    with pytest.warns(UserWarning, match="No standard error for entries on the boundary: high"):
        errors = result.standard_errors()
    assert np.isnan(errors["high"])

    def by_hand(v):
        return np.log(0.4 * stats.norm.pdf(X, v[0], 1) + 0.6 * stats.norm.pdf(X, edge, 1)).sum()

    expected = numerical_errors(by_hand, np.array([float(result.params["low"])]))
    np.testing.assert_allclose(errors["low"], expected[0], rtol=1e-4)
    assert "high" in result.certificate.boundary


def test_estimate_inside_an_interval_is_no_boundary():
    """The same model with wide bounds: no boundary, and both standard errors as from a numerical Hessian."""

    def model(x):
        low = numpyro.param("low", -1.0)
        high = numpyro.param("high", 0.5, constraint=constraints.interval(-4.0, 9.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.6))
            numpyro.sample("x", dist.Normal(jnp.where(z == 1, high, low), 1.0), obs=x)

    result = fit(model, X, tolerance=1e-12)
    assert result.boundary == []

    def by_hand(v):
        return np.log(0.4 * stats.norm.pdf(X, v[0], 1) + 0.6 * stats.norm.pdf(X, v[1], 1)).sum()

    at = np.array([float(result.params["low"]), float(result.params["high"])])
    errors = result.standard_errors()
    np.testing.assert_allclose([errors["low"], errors["high"]], numerical_errors(by_hand, at), rtol=1e-4)


def test_probability_and_rate_of_zero():
    """A component without successes, one without counts: exactly on the edge, the rest as with them fixed at zero."""
    heads = np.array([0, 0, 0, 0, 7, 8, 6, 9])
    counts = np.array([0, 0, 0, 0, 5, 2, 4, 6])

    def model(heads, counts):
        bias = numpyro.param("bias", jnp.array([0.1, 0.6]), constraint=constraints.unit_interval)
        rate = numpyro.param("rate", jnp.array([0.1, 3.0]), constraint=constraints.positive)
        with numpyro.plate("data", len(heads)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("heads", dist.Binomial(10, bias[z]), obs=heads)
            numpyro.sample("counts", dist.Poisson(rate[z]), obs=counts)

    result = fit(model, heads, counts)
    assert result.boundary == ["bias[0]", "rate[0]"]
    with pytest.warns(UserWarning, match=r"bias\[0\], rate\[0\]"):
        errors = result.standard_errors()
    assert np.isnan(errors["bias"][0]) and np.isnan(errors["rate"][0])

    def by_hand(v):
        one = stats.binom.pmf(heads, 10, v[0]) * stats.poisson.pmf(counts, v[1])
        return np.log(0.5 * ((heads == 0) & (counts == 0)) + 0.5 * one).sum()

    expected = numerical_errors(by_hand, np.array([result.params["bias"][1], result.params["rate"][1]]))
    np.testing.assert_allclose([errors["bias"][1], errors["rate"][1]], expected, rtol=1e-4)


def test_zero_in_a_simplex_and_errors_of_the_rest():
    """A category that never occurs is on the boundary; the others have multinomial standard errors."""
    y = np.repeat([0, 1, 2], [30, 50, 20])

    def model(y):
        p = numpyro.param("p", jnp.ones(4) / 4, constraint=constraints.simplex)
        with numpyro.plate("data", len(y)):
            numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Categorical(p), obs=y)

    result = fit(model, y)
    assert result.boundary == ["p[3]"]
    with pytest.warns(UserWarning, match=r"p\[3\]"):
        errors = result.standard_errors()["p"]
    p = np.array([0.3, 0.5, 0.2])
    np.testing.assert_allclose(errors[:3], np.sqrt(p * (1 - p) / 100), rtol=1e-6)
    found = result.covariance().matrix[:3, :3]
    np.testing.assert_allclose(found, (np.diag(p) - np.outer(p, p)) / 100, rtol=1e-6, atol=1e-12)

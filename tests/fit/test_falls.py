"""Falls of the objective: those that are rounding, and those of a wrong M-step."""

import re

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy.special import logsumexp

from emppl import StopReason
from tests.kit.fits import fit


def poisson(x):
    weights = numpyro.param("weights", jnp.ones(3) / 3, constraint=constraints.simplex)
    rate = numpyro.param("rate", jnp.linspace(1.0, 30.0, 3), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Poisson(rate[z]), obs=x)


COUNTS = np.concatenate([np.random.default_rng(0).poisson([[2.0], [20.0]], (2, 50)).ravel(), [2_000_000]])


@pytest.mark.parametrize("accelerate", [None, "squarem"])
def test_a_huge_count_is_no_fall(accelerate):
    """Its terms are 3e7 nats, of which 8 are left: the objective is known to 1e-8."""
    result = fit(poisson, COUNTS, accelerate=accelerate, progress_bar=False)
    assert result.converged and result.certificate.monotone
    p = result.params
    joint = np.log(p["weights"]) + scipy.stats.poisson.logpmf(COUNTS[:, None], p["rate"])
    np.testing.assert_allclose(result.log_likelihood, np.sum(logsumexp(joint, axis=1)), atol=1e-6)
    np.testing.assert_allclose(p["rate"][2], 2_000_000, rtol=1e-12)
    shares = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    np.testing.assert_allclose(p["weights"], shares.mean(0), rtol=1e-6)
    np.testing.assert_allclose(p["rate"], shares.T @ COUNTS / shares.sum(0), rtol=1e-6)


def circles(x):
    mu = numpyro.param("mu", jnp.array([-2.0, 2.0]), constraint=constraints.circular)
    kappa = numpyro.param("kappa", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
        numpyro.sample("x", dist.VonMises(mu[z], kappa[z]), obs=x)


@pytest.mark.parametrize("concentration", [1e6, 1e8])
def test_extreme_concentrations_are_no_fall(concentration):
    """Where second derivatives are rounding as well, the fit says so instead of asking for a report."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.vonmises(-1, concentration, 100), rng.vonmises(1, 5, 100)])
    result = fit(circles, x, progress_bar=False)
    # The second derivative by the larger one, 1 - A / kappa - A^2, is rounding: either ending is honest there.
    assert result.converged or (
        concentration == 1e8 and result.stop_reason is StopReason.UNFINISHED and "known to" in result.stop_message
    )
    # Angles of the second component are impossible in the first one, where 1 / kappa is the mean square.
    narrow = x[:100]
    np.testing.assert_allclose(result.params["mu"][0], narrow.mean(), atol=1e-6)
    np.testing.assert_allclose(result.params["kappa"][0], 1 / narrow.var(), rtol=2e-3)


def test_a_local_level_far_from_zero_does_not_fall_at_its_maximum():
    """Levels of 1e4 whose steps are one: squares of 1e8 cancel in the smoother."""
    rng, n = np.random.default_rng(1), 40
    covariates = np.stack([20 + 5 * rng.normal(size=n), np.arange(n) % 7 == 0.0], 1)
    y = 1e4 + np.cumsum(rng.normal(size=n)) + covariates @ [2.0, 3.0] + 0.7 * rng.normal(size=n)

    def model(y, covariates):
        slope = numpyro.param("slope", jnp.zeros(2))
        noise = numpyro.param("noise", 1.0, constraint=constraints.positive)
        step = numpyro.param("step", 1.0, constraint=constraints.positive)

        def body(level, row):
            observed, x = row
            level = numpyro.sample("level", dist.Normal(level, step))
            numpyro.sample("y", dist.Normal(level + x @ slope, noise), obs=observed)
            return level, None

        scan(body, 1e4, (y, covariates))

    shared = np.minimum.outer(np.arange(n), np.arange(n)) + 1.0

    def loss(v):
        covariance = np.exp(2 * v[3]) * shared + np.exp(2 * v[2]) * np.eye(n)
        return -scipy.stats.multivariate_normal.logpdf(y - 1e4 - covariates @ v[:2], cov=covariance)

    best = scipy.optimize.minimize(loss, [2.0, 3.0, 0.0, 0.0], method="BFGS", options={"gtol": 1e-7})
    start = {"slope": best.x[:2], "noise": np.exp(best.x[2]), "step": np.exp(best.x[3])}
    result = fit(model, y, covariates, init_params=start, progress_bar=False)
    assert result.converged
    np.testing.assert_allclose(result.log_likelihood, -best.fun, atol=1e-4)
    np.testing.assert_allclose(result.params["slope"], best.x[:2], atol=1e-2)


@pytest.mark.parametrize("drift", [1.0001, 1.01])
def test_a_wrong_m_step_still_falls(drift):
    """Rates that grow at every iteration, beside terms as large: from their best values on, the objective falls."""
    start = {"weights": np.array([0.495, 0.495, 0.01]), "rate": np.array([2.1, 21.0, 2e6])}
    wrong = {"rate": lambda params, posterior: params["rate"] * drift}
    result = fit(poisson, COUNTS, init_params=start, m_step=wrong, progress_bar=False, verify=True)
    assert result.stop_reason is StopReason.DECREASED
    (note,) = [note for note in result.notes if "M-step" in note]
    assert re.match(r"The M-step of rate \(.*\) changes Q plus the log prior by -", note)

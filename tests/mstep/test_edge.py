"""Bounds of a support: the extremes of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

import emppl
from tests.families.test_families import FIRST, POSITIVE, ROWS, WEIGHTS, stats
from tests.kit.fits import rules


def bounded(x, mask, kind):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)))
        with numpyro.handlers.mask(mask=mask):
            if kind == "Uniform":
                low, high = numpyro.param("low", jnp.array([-9.0, 0.5])), numpyro.param("high", jnp.array([1.5, 9.0]))
                numpyro.sample("x", dist.Uniform(low[z], high[z]), obs=x)
            else:
                low = numpyro.param("low", 0.01, constraint=POSITIVE)
                alpha = numpyro.param("alpha", jnp.array([1.0, 3.0]), constraint=POSITIVE)
                numpyro.sample("x", dist.Pareto(low, alpha[z]), obs=x)


def test_bounds_of_a_uniform_are_the_extremes_of_what_has_weight():
    """Values inside both supports count for both components; masked and impossible ones for none."""
    rng = np.random.default_rng(13)
    x = np.concatenate([rng.uniform(-3, 1, ROWS // 2), rng.uniform(0, 4, ROWS // 2)])
    mask = np.arange(ROWS) % 9 != 4
    em = emppl.EM(bounded)
    assert set(rules(em, x, mask, "Uniform").values()) == {"edge of the support"}
    result = em.run(jax.random.key(0), x, mask, "Uniform")
    assert result.converged
    seen = x[mask]
    first, second = seen[seen <= 1.5], seen[seen >= 0.5]
    np.testing.assert_allclose(result.params["low"], [first.min(), second.min()], rtol=1e-12)
    np.testing.assert_allclose(result.params["high"], [first.max(), second.max()], rtol=1e-12)
    density = [stats.uniform.pdf(seen, one.min(), np.ptp(one)) for one in (first, second)]
    assert result.log_likelihood == pytest.approx(np.log(WEIGHTS @ np.array(density)).sum(), abs=1e-9)


def test_both_arguments_of_a_pareto():
    """The smallest value, and scipy's maximum in the others given that one."""
    rng = np.random.default_rng(14)
    x = 0.7 * (1 + np.where(FIRST, rng.pareto(0.8, ROWS), rng.pareto(6.0, ROWS)))
    em = emppl.EM(bounded)
    assert rules(em, x, np.ones(ROWS, bool), "Pareto") == {"low": "edge of the support", "alpha": "newton"}
    result = em.run(jax.random.key(0), x, np.ones(ROWS, bool), "Pareto")
    assert result.converged, result.stop_reason
    np.testing.assert_allclose(result.params["low"], x.min(), rtol=1e-14)

    def loss(free):
        density = [stats.pareto.pdf(x, a, scale=x.min()) for a in np.exp(free)]
        return -np.log(WEIGHTS @ np.array(density)).sum()

    best = scipy.optimize.minimize(loss, np.log([1.0, 3.0]), method="BFGS", options={"gtol": 1e-8})
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-7)
    np.testing.assert_allclose(result.params["alpha"], np.exp(best.x), rtol=1e-3)

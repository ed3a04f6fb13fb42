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
from numpyro.distributions import constraints

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


def uniform_to(how, low=3.0, high=10.0):
    """Uniform data whose upper end is bounded by itself: a constraint, or the support of a prior."""

    def model(x):
        hi = numpyro.param("hi", 4.5, constraint=constraints.interval(low, high)) if how == "interval" else None
        hi = numpyro.param("hi", 4.5, constraint=constraints.greater_than(low)) if how == "greater_than" else hi
        hi = numpyro.sample("hi", dist.Uniform(low, high)) if how == "prior" else hi
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", dist.Uniform(0.0, hi), obs=x)

    return model


@pytest.mark.parametrize("how", ["interval", "greater_than", "prior"])
@pytest.mark.parametrize("scale", [2.0, 3.7])
def test_the_bound_of_an_edge_itself_holds(how, scale):
    """Data that end before the parameter may: its own bound is best; data that end after it: the last of them."""
    x = np.array([0.1, 0.25, 0.5, 0.75, 1.0]) * scale
    em = emppl.EM(uniform_to(how))
    result = em.run(jax.random.key(0), x, init_params={"hi": 4.5})
    best = max(3.0, x.max())
    assert result.converged
    assert float(result.params["hi"]) == pytest.approx(best, rel=1e-14)
    assert result.log_likelihood == pytest.approx(stats.uniform.logpdf(x, 0, best).sum(), abs=1e-9)
    assert result.boundary == (["hi"] if best == 3.0 else [])


def test_a_lower_edge_and_the_scale_of_a_pareto_stop_at_their_bounds():
    """The other side: the end of the interval below the data."""
    x = np.array([0.2, 0.5, 1.0, 1.5, 2.0])

    def lower(x):
        low = numpyro.param("low", -2.0, constraint=constraints.less_than(-1.0))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", dist.Uniform(low, 5.0), obs=x)

    def pareto(x):
        scale = numpyro.param("scale", 0.1, constraint=constraints.interval(0.01, 0.15))
        alpha = numpyro.param("alpha", 1.0, constraint=constraints.positive)
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", dist.Pareto(scale, alpha), obs=x)

    result = emppl.EM(lower).run(jax.random.key(0), x)
    assert result.converged and float(result.params["low"]) == pytest.approx(-1, rel=1e-14)
    result = emppl.EM(pareto).run(jax.random.key(0), x)
    alpha = len(x) / np.log(x / 0.15).sum()
    assert result.converged and float(result.params["scale"]) == pytest.approx(0.15, rel=1e-14)
    assert float(result.params["alpha"]) == pytest.approx(alpha, rel=1e-9)
    assert result.log_likelihood == pytest.approx(stats.pareto.logpdf(x, alpha, scale=0.15).sum(), abs=1e-9)


def test_every_entry_has_a_bound_of_its_own():
    """An array of bounds: one of them holds."""

    def model(x):
        hi = numpyro.sample("hi", dist.Uniform(np.array([3.0, 0.1]), 10.0).to_event(1))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", dist.Uniform(0.0, hi).to_event(1), obs=x)

    x = np.array([[0.3, 0.2], [0.9, 0.4]])
    result = emppl.EM(model).run(jax.random.key(0), x, init_params={"hi": np.array([4.5, 4.5])})
    assert result.converged
    np.testing.assert_allclose(result.params["hi"], [3.0, 0.4], rtol=1e-14)


def ordered_ends(x):
    hi = numpyro.param("hi", jnp.array([1.0, 3.0]), constraint=constraints.ordered_vector)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.Uniform(0.0, hi).to_event(1), obs=x)


def test_ordered_edges_are_the_data_values_where_these_are_ordered():
    """Where they are not, steps lower no Q, come nearer to the supremum (0.9, 0.9), and nothing is called converged."""
    x = np.array([[0.3, 0.2], [0.9, 1.4]])
    result = emppl.EM(ordered_ends).run(jax.random.key(0), x)
    assert result.converged
    np.testing.assert_allclose(result.params["hi"], [0.9, 1.4], rtol=1e-14)
    x = np.array([[0.3, 0.2], [0.9, 0.4]])
    result = emppl.EM(ordered_ends).run(jax.random.key(0), x)
    start, best = -2 * np.log(3.0), -4 * np.log(0.9)
    assert not result.converged and start < result.log_likelihood < best

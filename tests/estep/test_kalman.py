"""The filter of normal chains: a Kalman filter in plain numpy."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl


def kalman(y, transition, noise, observe, variance, first_mean, first_covariance):
    """Filtered and predicted moments, and the log density of every observation given those before (NaN: missing)."""
    mean, covariance, filtered, predicted, evidence = first_mean, first_covariance, [], [], []
    for t, value in enumerate(y):
        if t:
            mean, covariance = transition @ mean, transition @ covariance @ transition.T + noise
        predicted.append((mean, covariance))
        evidence.append(0.0)
        if not np.isnan(value):
            spread = observe @ covariance @ observe + variance
            error, gain = value - observe @ mean, covariance @ observe / spread
            mean, covariance = mean + gain * error, covariance - np.outer(gain, gain) * spread
            evidence[-1] = -(np.log(2 * np.pi * spread) + error**2 / spread) / 2
        filtered.append((mean, covariance))
    return filtered, predicted, np.array(evidence)


def trend(y):
    """A level and a slope, one vector, of several series side by side."""
    variance = numpyro.param("variance", 0.4, constraint=constraints.positive)

    def step(carry, now):
        before, t = carry
        moved = before @ jnp.array([[1.0, 0.0], [1.0, 0.9]])
        mean = jnp.where(t == 0, jnp.array([1.0, 0.0]), moved)
        root = jnp.where(t == 0, jnp.array([[2.0, 0.0], [0.3, 1.0]]), jnp.array([[0.5, 0.0], [0.1, 0.2]]))
        with numpyro.plate("series", y.shape[1]):
            state = numpyro.sample("state", dist.MultivariateNormal(mean, scale_tril=root))
            seen = jnp.isfinite(now)
            numpyro.sample("y", dist.Normal(state[:, 0], jnp.sqrt(variance)).mask(seen), obs=jnp.where(seen, now, 0.0))
        return (state, t + 1), None

    scan(step, (jnp.zeros((y.shape[1], 2)), 0), y)


def test_filter_of_a_local_trend():
    """Moments of every step and series, predictions of the next, and evidence that adds up to the log-likelihood."""
    y = np.random.default_rng(0).normal(size=(7, 3)).cumsum(0)
    y[3, 1] = np.nan
    em = emppl.EM(trend)
    found = em.filter({"variance": 0.7}, y)
    roots = np.array([[2.0, 0.0], [0.3, 1.0]]), np.array([[0.5, 0.0], [0.1, 0.2]])
    first, noise = (root @ root.T for root in roots)
    transition, observe = np.array([[1.0, 1.0], [0.0, 0.9]]), np.array([1.0, 0.0])
    for number in range(3):
        *moments, evidence = kalman(y[:, number], transition, noise, observe, 0.7, np.array([1.0, 0.0]), first)
        np.testing.assert_allclose(found.log_likelihood["state"][:, number], evidence, atol=1e-9)
        for pairs, (mean, covariance) in zip(moments, (found.states["state"], found.predicted["state"]), strict=True):
            pairs = pairs[-len(mean) :]
            np.testing.assert_allclose(mean[:, number], [one for one, _ in pairs], atol=1e-9)
            np.testing.assert_allclose(covariance[:, number], [two for _, two in pairs], atol=1e-9)
    np.testing.assert_allclose(jnp.sum(found.log_likelihood["state"]), em.log_likelihood({"variance": 0.7}, y))


def test_observations_of_the_state_before():
    """A step may observe the state that it is carried, and a chain of order two has no filter yet."""

    def late(y):
        def step(before, now):
            numpyro.sample("y", dist.Normal(before, jnp.sqrt(numpyro.param("variance", 0.4))), obs=now)
            return numpyro.sample("x", dist.Normal(0.8 * before, 0.5)), None

        scan(step, 1.5, y)

    y = np.array([1.0, 0.4, 0.9, -0.3, 0.2])
    found = emppl.EM(late).filter({"variance": 0.7}, y)
    mean, covariance = found.states["x"]
    m, c = 1.5, 0.0
    for t, value in enumerate(y):
        spread = c + 0.7
        np.testing.assert_allclose(
            found.log_likelihood["x"][t], -(np.log(2 * np.pi * spread) + (value - m) ** 2 / spread) / 2, rtol=1e-8
        )
        m, c = m + c / spread * (value - m), c - c**2 / spread
        m, c = 0.8 * m, 0.64 * c + 0.25
        np.testing.assert_allclose((mean[t], covariance[t]), (m, c), rtol=1e-8)

    def second_order(y):
        def step(carry, now):
            x = numpyro.sample("x", dist.Normal(0.5 * carry[0] + 0.2 * carry[1], 1.0))
            numpyro.sample("y", dist.Normal(x, numpyro.param("scale", 1.0)), obs=now)
            return (x, carry[0]), None

        scan(step, (0.0, 0.0), y)

    with pytest.raises(emppl.ModelError, match="'x' cannot be filtered: it is of order 2"):
        emppl.EM(second_order).filter({"scale": 1.0}, y)

    def weighted(y):
        with numpyro.handlers.scale(scale=2.0):
            late(y)

    with pytest.raises(emppl.ModelError, match="'x' cannot be filtered: its cells have weights"):
        emppl.EM(weighted).filter({"variance": 1.0}, y)

"""Arguments of a model: data in a low precision, or in an unusual type, count as the numbers that they are."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

import emppl
from emppl.inputs.arguments import raised
from tests.kit.fits import KEY

COUNTS = np.array([1, 0, 100, 120, 3, 5, 7, 110])
TRIALS = np.array([20, 30, 120, 125, 10, 8, 9, 111])
LOW = ["float32", "float16", "int32", "int16", "int8", "uint8", "uint16"]


def two(weights, *densities):
    return np.log(sum(weight * density for weight, density in zip(weights, densities, strict=True))).sum()


def counts(y):
    rate = numpyro.param("rate", jnp.array([3.0, 100.0]), constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("y", dist.Poisson(rate[z]), obs=y)


def successes(y, trials):
    rate = numpyro.param("rate", jnp.array([0.2, 0.7]), constraint=constraints.unit_interval)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("y", dist.Binomial(trials, rate[z]), obs=y)


@pytest.mark.parametrize("kind", LOW)
def test_counts_in_a_low_precision(kind):
    right = two([0.4, 0.6], stats.poisson(3.0).pmf(COUNTS), stats.poisson(100.0).pmf(COUNTS))
    params = {"rate": np.array([3.0, 100.0])}
    given = float(emppl.EM(counts).log_likelihood(params, COUNTS.astype(kind)))
    closed = float(emppl.EM(lambda: counts(jnp.asarray(COUNTS.astype(kind)))).log_likelihood(params))
    assert [given, closed] == pytest.approx([right, right], rel=1e-13)


@pytest.mark.parametrize("kind", ["float32", "int16"])
def test_numbers_of_trials_in_a_low_precision(kind):
    right = two([0.4, 0.6], stats.binom(TRIALS, 0.2).pmf(COUNTS), stats.binom(TRIALS, 0.7).pmf(COUNTS))
    params, trials = {"rate": np.array([0.2, 0.7])}, TRIALS.astype(kind)
    given = float(emppl.EM(successes).log_likelihood(params, COUNTS.astype(kind), trials))
    closed = float(emppl.EM(lambda y: successes(y, trials)).log_likelihood(params, COUNTS))
    assert [given, closed] == pytest.approx([right, right], rel=1e-12)


def test_half_precision_measurements():
    x = np.array([0.1, 0.2, 5.3, 5.1, -0.7, 4.4], np.float16)

    def model(x, offset):
        mu = numpyro.param("mu", jnp.array([0.0, 5.0]))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("x", dist.Normal(mu[z] + offset * 1.1, 0.7), obs=x)
            numpyro.factor("penalty", -0.01 * offset**2)

    offset = np.array([0.3, 0.1, 0.2, 0.4, 0.7, 0.9], np.float16)
    at = offset.astype(float) * 1.1
    densities = (stats.norm(mean + at, 0.7).pdf(x.astype(float)) for mean in (0.1, 4.9))
    right = two([0.5, 0.5], *densities) - 0.01 * np.sum(offset.astype(float) ** 2)
    em = emppl.EM(model)
    assert float(em.log_likelihood({"mu": np.array([0.1, 4.9])}, x, offset)) == pytest.approx(right, rel=1e-13)
    weights = emppl.EM(model).e_step({"mu": np.array([0.1, 4.9])}, x, offset).weights["x"]
    assert weights.dtype == np.float64


def test_truth_values_are_observed():
    y = np.array([True, False, False, True, True])

    def model(y):
        rate = numpyro.param("rate", jnp.array([0.2, 0.7]), constraint=constraints.unit_interval)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("y", dist.Bernoulli(rate[z]), obs=y)

    right = two([0.4, 0.6], np.where(y, 0.2, 0.8), np.where(y, 0.7, 0.3))
    got = float(emppl.EM(model).log_likelihood({"rate": np.array([0.2, 0.7])}, y))
    assert got == pytest.approx(right, rel=1e-14)


def test_the_fit_of_low_precision_counts_is_that_of_the_counts():
    fits = [emppl.EM(counts).run(KEY, COUNTS.astype(kind)) for kind in ("float32", "int64")]
    np.testing.assert_allclose(fits[0].params["rate"], fits[1].params["rate"], rtol=1e-12)
    assert fits[0].log_likelihood == pytest.approx(fits[1].log_likelihood, rel=1e-13)


def test_raised_keeps_what_is_wide_enough_and_truth_values():
    assert raised(np.zeros(2)).dtype == np.float64
    assert raised(np.zeros(2, bool)).dtype == bool
    assert raised(np.array([200], np.uint8)) == 200
    assert raised(np.zeros(2, np.complex64)).dtype == np.complex64


def test_whole_numbers_that_would_wrap_round_are_refused():
    """JAX makes -1294967296 of three milliards in a session of float32."""
    big, params = np.array([3_000_000_000, 1, 2, 0]), {"rate": np.array([1.0, 1e9])}
    right = two([0.4, 0.6], stats.poisson(1.0).pmf(big[1:]), stats.poisson(1e9).pmf(big[1:]))
    with jax.enable_x64(False):
        with pytest.raises(emppl.DataError, match="number 1 of the model runs from 0 to 3000000000.*int32"):
            emppl.EM(counts).log_likelihood(params, big)
        assert float(emppl.EM(counts).log_likelihood(params, big[1:])) == pytest.approx(right, rel=1e-5)
    assert np.isfinite(emppl.EM(counts).log_likelihood({"rate": np.array([1.0, 3e9])}, big))

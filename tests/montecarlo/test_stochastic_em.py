"""Stochastic EM against closed algebra, exact EM, and the binomial distribution of its draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import emppl
from emppl import StochasticEM, StopReason, estep
from tests.kit.fits import program_of
from tests.strategies.test_discrete import hidden_markov


def quiet(model, latents, **options):
    return emppl.EM(model, latents=latents, **options)


def through_another(x):
    """The table of ``z`` holds no rows: its sum over ``z`` is one for all rows, but draws must not be."""
    mu = numpyro.param("mu", jnp.array([0.0, 1.0]))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        w = numpyro.sample("w", dist.Categorical(jnp.array([[0.8, 0.2], [0.3, 0.7]])[z]))
        numpyro.sample("x", dist.Normal(mu[w], 1.0), obs=x)


@pytest.mark.parametrize("rows", [50, 1200])
def test_every_row_has_a_draw_of_its_own(rows):
    """Numbers of rows in each joint state are multinomial: mean and variance over draws; 1,200 rows are two chunks."""
    x = np.full(rows, 0.8)
    program, leaves = program_of(through_another, x, latents={"z": StochasticEM(), "w": StochasticEM()})
    fused = program.fused
    params = {"mu": jnp.array([0.0, 1.0])}
    prepared = estep.prepare(program.model, fused, leaves)

    def count(key):
        found = estep.expectations(program.model, fused, params, leaves, prepared, key=key)
        return found.log_likelihood, found.sums["w"]

    number = 400
    log_likelihoods, counts = jax.device_get(jax.jit(jax.vmap(count))(jax.random.split(jax.random.key(0), number)))
    joint = np.array([0.7, 0.3])[:, None] * np.array([[0.8, 0.2], [0.3, 0.7]])
    joint = joint * np.exp(-((0.8 - np.arange(2)) ** 2) / 2)
    evidence = np.log(joint.sum() / np.sqrt(2 * np.pi))
    np.testing.assert_allclose(log_likelihoods, rows * evidence, rtol=1e-10)  # the same for every draw
    joint /= joint.sum()
    counts = counts.reshape(number, 2, 3)[..., :2]  # by z and w; the last column counts both
    variance = rows * joint * (1 - joint)
    np.testing.assert_allclose(counts.mean(0), rows * joint, atol=4.5 * np.sqrt(variance.max() / number))
    np.testing.assert_allclose(counts.var(0, ddof=1) / variance, 1, atol=4.5 * np.sqrt(2 / number))


def intercepts(y):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("data", len(y)):
        b = numpyro.sample("b", dist.Normal(mu, 1.0))
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)


@pytest.mark.slow
def test_iterations_are_the_autoregression_that_theory_says():
    """Half of the information is missing: mean at the maximum, variance 1/3 of the estimator's, correlation 1/2."""
    y = np.random.default_rng(0).normal(1.0, np.sqrt(2), 40)
    result = quiet(intercepts, {"b": StochasticEM()}, tolerance=0.0, max_iterations=3000).run(jax.random.key(0), y)
    assert result.stop_reason is StopReason.MAX_ITERATIONS and result.num_iterations == 3000
    deviation = np.sqrt(2 / 40)  # of the estimator
    np.testing.assert_allclose(result.standard_errors()["mu"], deviation, rtol=0.05)  # by importance sampling
    error = result.monte_carlo_errors["mu"]
    # An autoregression of correlation 1/2 knows its mean as a third of independent draws would.
    np.testing.assert_allclose(error, deviation * np.sqrt(1 / 3 * 3 / 2940), rtol=0.45)
    assert abs(result.params["mu"] - y.mean()) < 4 * error
    assert np.sum(result.history["decision"] == "averaging") > 2500
    assert "error of the average" in result.stop_message


@functools.cache
def chain_data():
    rng = np.random.default_rng(3)
    states = (rng.random((7, 60)) < 0.4).cumsum(0) % 2
    return rng.normal(2.5 * states)


@functools.cache
def chain_fits():
    exact = quiet(hidden_markov, {}).run(jax.random.key(0), chain_data())
    return exact, quiet(hidden_markov, {"z": StochasticEM()}, tolerance=4e-3).run(jax.random.key(0), chain_data())


@pytest.mark.slow
def test_a_hidden_markov_model_ends_beside_the_maximum(capsys):
    """Estimates within a tenth of their standard errors; log-likelihoods are exact; the result says what it is."""
    exact, result = chain_fits()
    assert result.converged and "average" in result.stop_message
    for name, error in result.standard_errors().items():
        np.testing.assert_array_less(np.abs(result.params[name] - exact.params[name]) / error, 0.2)
        stated = result.monte_carlo_errors[name] / error
        assert np.all((stated > 0.005) & (stated < 0.1)), stated
    assert result.log_likelihood <= exact.log_likelihood < result.log_likelihood + 0.1
    assert result.history["log_likelihood"][0] == pytest.approx(exact.history["log_likelihood"][0], rel=1e-10)
    result.print_summary()
    assert "Stochastic EM: the estimates are the average of" in capsys.readouterr().out
    assert result.certificate.monte_carlo_error < 0.1
    assert "forward filtering, backward sampling" in str(result.plan)


def test_an_interrupted_or_short_fit_says_so(monkeypatch):
    """Within the burn-in there are no errors; the cap is named."""
    em = quiet(hidden_markov, {"z": StochasticEM()}, max_iterations=30)
    result = em.run(jax.random.key(0), chain_data())
    assert result.stop_reason is StopReason.MAX_ITERATIONS and result.num_iterations == 30
    assert np.all(np.isnan(result.monte_carlo_errors["mu"]))
    assert any("still drifted" in note for note in result.notes)


def test_what_cannot_be_drawn_together_is_refused():
    """A continuous latent is not drawn given a discrete one, and strategies are not mixed."""

    def mixed(x):
        mu = numpyro.param("mu", jnp.array([0.0, 3.0]))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            b = numpyro.sample("b", dist.Normal(mu[z], 1.0))
            numpyro.sample("x", dist.Poisson(jnp.exp(b)), obs=x)

    x = np.arange(5.0)
    with pytest.raises(emppl.ModelError, match=r"'z' is drawn.*'b'.*'b': Quadrature\(15\)"):
        quiet(mixed, {"z": StochasticEM(), "b": StochasticEM()}).plan(x)
    quiet(mixed, {"z": StochasticEM(), "b": emppl.Laplace()}).plan(x)
    with pytest.raises(emppl.ModelError, match="one strategy"):

        def two(x):
            mu = numpyro.param("mu", jnp.array([0.0, 3.0]))
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", dist.Bernoulli(0.4))
                w = numpyro.sample("w", dist.Bernoulli(0.4))
                numpyro.sample("x", dist.Normal(mu[z] + w, 1.0), obs=x)

        quiet(two, {"z": StochasticEM(), "w": emppl.Hard()}).plan(x)

    def weighted(x):
        with numpyro.handlers.scale(scale=x):
            through_another(x)

    with pytest.raises(emppl.ModelError, match="'z' has weights.*Repeat its rows"):
        quiet(weighted, {"z": StochasticEM(), "w": StochasticEM()}).plan(x)
    with pytest.raises(emppl.ParameterError, match="at least one chain"):
        StochasticEM(num_chains=0)
    for strategy in (StochasticEM(num_samples=5), StochasticEM(num_chains=2)):
        with pytest.raises(emppl.ParameterError, match=r"drawn exactly, once.*latents={'z': StochasticEM\(\)}"):
            quiet(hidden_markov, {"z": strategy}).plan(chain_data())

    def apart(x):
        """A discrete and a continuous latent that do not meet."""
        through_another(x)
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Poisson(jnp.exp(numpyro.param("a", 0.0) + b)), obs=2.0)

    discrete = {"z": StochasticEM(), "w": StochasticEM()}
    for strategy in (StochasticEM(num_samples=5), emppl.MonteCarlo()):
        with pytest.raises(emppl.ModelError, match=r"one and the same.*latents={'b': StochasticEM\(num_samples=1,"):
            quiet(apart, {**discrete, "b": strategy}).plan(x)
    quiet(apart, {**discrete, "b": StochasticEM()}).plan(x)


@pytest.mark.long
def test_stated_errors_cover():
    """Averages of eighty chains at the default tolerance: their spread is what every one of them states."""
    exact, _ = chain_fits()
    em = quiet(hidden_markov, {"z": StochasticEM()})
    fits = [em.run(jax.random.key(seed), chain_data()) for seed in range(80)]
    for name in exact.params:
        values = np.array([fit.params[name] for fit in fits])
        stated = np.array([fit.monte_carlo_errors[name] for fit in fits])
        ratio = values.std(0, ddof=1) / np.sqrt(np.mean(stated**2, 0))
        print(name, ratio)
        assert np.all((ratio > 0.75) & (ratio < 1.3)), (name, ratio)

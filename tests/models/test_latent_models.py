"""Models of missing cells and state spaces against oracles (see test_models.py)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import emppl
from emppl.montecarlo.derivatives import Surroundings
from emppl.montecarlo.mixing import effective_draws
from emppl.montecarlo.path import posterior_draws
from emppl.montecarlo.simulator import batch_error
from emppl.uncertainty.information import charts
from models import air_quality, nile_level, polio, stochastic_volatility, uk_gas
from tests.integrals.test_trajectories import grid_filter
from tests.kit.fits import compiled_of, fit
from tests.kit.oracles import check, oracle


def test_air_quality():
    days = air_quality.data()
    result = fit(air_quality.model, days)
    known = oracle("mvn_missing")
    check(result.log_likelihood, known["reference"]["loglik"]["airquality"], known["tolerance"]["loglik"], "loglik")
    path = known["reference"]["iterations"]["airquality_loglik_0_to_4"]
    check(result.history["log_likelihood"][:5], path, known["tolerance"]["iterations"], "path")
    params = {"mean": result.params["mean"], "cov": result.params["covariance"]}
    check(params, known["reference"]["params"]["airquality"], known["tolerance"]["params"], "params")


def test_the_nile_iteration_by_iteration():
    known = oracle("nile_local_level")
    path = np.array(known["reference"]["iterations"]["em_var_obs_var_level_loglik"])
    result = fit(nile_level.model, nile_level.data(), max_iterations=5)
    check(result.history["log_likelihood"], path[:, 2], known["tolerance"]["iterations"], "path")
    found = [result.params["observation_variance"], result.params["level_variance"]]
    check(found, path[5, :2], known["tolerance"]["iterations"], "variances")


def test_the_nile_accelerated():
    known = oracle("nile_local_level")
    result = fit(nile_level.model, nile_level.data(), accelerate="squarem", max_iterations=20_000)
    assert result.converged
    assert result.num_iterations < 200
    check(result.log_likelihood, known["reference"]["loglik"]["prior_N_0_1e7"], known["tolerance"]["loglik"], "loglik")
    params = known["reference"]["params"]["prior_N_0_1e7"]
    check(result.params["observation_variance"], params["var_obs"], known["tolerance"]["params"], "var_obs")
    check(result.params["level_variance"], params["var_level"], known["tolerance"]["params"], "var_level")


@pytest.mark.slow
def test_gas_by_quarter():
    known = oracle("ukgas_bsm")
    result = fit(uk_gas.model, uk_gas.data(), accelerate="squarem", max_iterations=20_000)
    assert result.converged
    check(result.log_likelihood, known["reference"]["loglik"], known["tolerance"]["loglik"], "loglik")
    for ours, theirs in (("slope", "slope"), ("seasonal", "seasonal"), ("observation", "obs")):
        reference = known["reference"]["params"][f"var_{theirs}"]
        np.testing.assert_allclose(result.params[f"{ours}_variance"], reference, rtol=known["tolerance"]["params"])


def by_name(values):
    """Parameters as one vector."""
    return np.concatenate([np.ravel(values[name]) for name in values])


def check_within_its_errors(result, expected):
    """Estimates lie within three of their stated Monte Carlo errors of the maximum, which are small."""
    assert result.converged, result.stop_message
    off, errors = np.abs(by_name(result.params) - expected), by_name(result.monte_carlo_errors)
    assert np.all(off <= 3 * errors), off / errors
    assert np.all(errors <= 0.1 * by_name(result.standard_errors())), errors / by_name(result.standard_errors())


@pytest.mark.long
def test_polio_by_monte_carlo():
    known = oracle("polio_poisson_ar1")["reference"]
    result = fit(polio.model, *polio.data(), latents={"u": emppl.MonteCarlo(num_samples=1600)}, tolerance=1e-2)
    check_within_its_errors(result, by_name({"coef": [*known["params"]["coef"].values()], **only(known["params"])}))
    assert abs(result.log_likelihood - known["loglik"]) < 4 * result.simulation.log_likelihood_error
    errors = by_name({"coef": [*known["standard_errors"]["coef"].values()], **only(known["standard_errors"])})
    np.testing.assert_allclose(by_name(result.standard_errors()), errors, rtol=0.1)
    mean, _ = result.posterior("u")
    months = np.array([1, 7, 35, 168]) - 1
    np.testing.assert_allclose(mean[months], known["posterior"]["latent_mean_months_1_7_35_168"], atol=0.05)


def only(values):
    return {name: values[name] for name in ("phi", "sigma")}


@pytest.mark.long
def test_polio_by_laplace():
    """Approximate as announced: the log-likelihood is off by a tenth, the estimates by little of their errors."""
    known = oracle("polio_poisson_ar1")["reference"]
    em = emppl.EM(polio.model, latents={"u": emppl.Laplace()})
    result = em.run(jax.random.key(0), *polio.data())
    assert "approximate" in str(em.plan(*polio.data()))
    assert abs(result.log_likelihood - known["loglik"]) < 0.2
    expected = by_name({"coef": [*known["params"]["coef"].values()], **only(known["params"])})
    errors = by_name({"coef": [*known["standard_errors"]["coef"].values()], **only(known["standard_errors"])})
    assert np.max(np.abs(by_name(result.params) - expected) / errors) < 0.1


@functools.cache
def volatility():
    """Maximum of the likelihood of a filter on a grid, and the smoothed means there."""
    returns = stochastic_volatility.data()

    def on_grid(v):
        level, phi, sigma = v[0], np.tanh(v[1]), np.exp(v[2])
        spread = sigma / np.sqrt(1 - phi**2)
        grid = np.linspace(level - 7 * spread, level + 7 * spread, 201)
        width = grid[1] - grid[0]
        step = stats.norm.pdf(grid, level + phi * (grid[:, None] - level), sigma) * width
        start = stats.norm.pdf(grid, level, spread) * width
        value, smoothed = grid_filter(start, step, stats.norm.pdf(returns[:, None], 0, np.exp(grid / 2)))
        return value, smoothed @ grid

    best = optimize.minimize(lambda v: -on_grid(v)[0], [-1.0, 1.2, -0.7], method="BFGS")
    return np.array([best.x[0], np.tanh(best.x[1]), np.exp(best.x[2])]), -best.fun, on_grid(best.x)[1]


@pytest.mark.slow
def test_draws_of_volatility_have_no_score_at_the_maximum():
    """Fisher's identity: at the grid's maximum the mean of the complete-data scores is Monte Carlo noise."""
    best, value, means = volatility()
    np.testing.assert_allclose([*best, value], list(stochastic_volatility.known.values()), atol=2e-5)
    em = emppl.EM(stochastic_volatility.model, latents={"h": emppl.MonteCarlo(num_samples=800)})
    compiled, leaves = compiled_of(em, stochastic_volatility.data())
    params = dict(zip(("level", "phi", "sigma"), map(jnp.asarray, best), strict=True))
    simulator, chains = compiled.simulator, compiled.simulator.begin()
    for key in jax.random.split(jax.random.key(3), 3):
        drawn = simulator.draw(params, chains, key, leaves, number=800)
        chains = drawn.walkers
    frames = {name: one.frame for name, one in charts(compiled.program.model, jax.device_get(params)).items()}
    scores = simulator.derivatives.measure(Surroundings(params, frames, leaves), drawn, 400).scores
    noise = np.sqrt(np.diagonal(batch_error(np.moveaxis(scores, 0, -1))))
    assert np.all(np.abs(scores.mean((1, 2))) < 3 * noise)
    assert np.all(noise < 0.1 * scores.std((1, 2)))
    (draws,) = drawn.draws.values()
    draws = np.asarray(draws)[:, :, 0]
    error = draws.std((0, 1)) / np.sqrt(effective_draws(draws))
    np.testing.assert_array_less(np.abs(draws.mean((0, 1)) - means), 5 * error)
    path_moments = compiled.moments(params, leaves, posterior_draws(simulator, params, leaves))["h"][0]
    np.testing.assert_allclose(path_moments, means, atol=0.06)  # deviations are 0.5 to 0.8
    # By importance sampling, of two hundred numbers together.
    found = [
        float(compiled.random_log_likelihood(params, leaves, key)) for key in jax.random.split(jax.random.key(1), 16)
    ]
    assert abs(np.mean(found) + np.var(found, ddof=1) / 2 - value) < 4 * np.std(found, ddof=1) / 4


@pytest.mark.long
def test_stochastic_volatility():
    best, value, _ = volatility()
    result = fit(
        stochastic_volatility.model,
        stochastic_volatility.data(),
        latents={"h": emppl.MonteCarlo(num_samples=1600)},
        tolerance=1e-2,
    )
    check_within_its_errors(result, best)
    assert abs(result.log_likelihood - value) < 4 * result.simulation.log_likelihood_error

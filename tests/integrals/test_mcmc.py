"""What moves the chains, against dense algebra, gamma posteriors and quadrature; and what is said of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from scipy import optimize, special

import emppl
from emppl import SAEM, MonteCarlo, StochasticEM
from tests.integrals.test_smoother import poisson_walk
from tests.integrals.test_trajectories import COUNTS, walk_on_grid
from tests.kit.fits import compiled_of, fit
from tests.montecarlo.test_simulation import many_pumps

POSITIVE = dist.constraints.positive
KERNELS = ("metropolis", "hmc", "nuts")


def simulator_of(model, latents, *args):
    compiled, leaves = compiled_of(emppl.EM(model, latents=latents), *args)
    return compiled.simulator, leaves


def draws_of(simulator, params, leaves, blocks, number=250, start=None):
    """Draws of all blocks but the first, by the function that the loop uses: ``(chains, draws, groups, numbers)``."""
    chains, found = simulator.begin(), []
    if start is not None:
        chains = {axis: dataclasses.replace(one, position=start) for axis, one in chains.items()}
    for key in jax.random.split(jax.random.key(1), blocks):
        drawn = simulator.draw(params, chains, key, leaves, number=number)
        chains = drawn.walkers
        found.append(np.asarray(next(iter(drawn.draws.values()))))
    return np.concatenate(found[1:], 1), next(iter(chains.values()))


def check_means(draws, expected, least=0.02):
    """Means within five Monte Carlo errors, which are small."""
    effective = effective_sample_size(draws)
    assert np.min(effective) > least * draws.shape[0] * draws.shape[1], np.min(effective)
    assert np.max(split_gelman_rubin(draws)) < 1.05
    error = draws.std((0, 1)) / np.sqrt(effective)
    np.testing.assert_array_less(np.abs(draws.mean((0, 1)) - expected), 5 * error)


# ------------------------------------------------------------------------------------------------------ the draws


def regression(design, y):
    spread = numpyro.param("spread", 1.0, constraint=POSITIVE)
    with numpyro.plate("columns", design.shape[1]):
        b = numpyro.sample("b", dist.Normal(0.0, spread))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(design @ b, 0.5), obs=y)


def regression_data(columns=20):
    rng = np.random.default_rng(3)
    common = rng.standard_normal((30, 1))
    design = rng.standard_normal((30, columns)) + 2 * common  # which correlates the coefficients
    return design, rng.standard_normal(30)


@pytest.mark.parametrize(
    "kernel", [pytest.param(one, marks=() if one == "nuts" else pytest.mark.slow) for one in KERNELS]
)
def test_twenty_correlated_numbers(kernel):
    """Against dense algebra, at two values of the parameter, for which nothing is compiled twice."""
    design, y = regression_data()
    simulator, leaves = simulator_of(regression, {"b": MonteCarlo(kernel=kernel)}, design, y)
    for spread in (1.0, 0.2):
        draws, chains = draws_of(simulator, {"spread": jnp.asarray(spread)}, leaves, 5)
        precision = np.eye(20) / spread**2 + design.T @ design / 0.5**2
        mean = np.linalg.solve(precision, design.T @ y / 0.5**2)
        assert np.max(np.abs(np.linalg.inv(precision) - np.diag(np.diag(np.linalg.inv(precision))))) > 1e-3
        white = (draws[:, :, 0] - mean) @ np.linalg.cholesky(precision)
        check_means(white, np.zeros(20))
        check_means(white[..., :, None] * white[..., None, :], np.eye(20))
        assert int(chains.divergences) == 0 and int(chains.counted) == 5 * 4 * 250
    assert simulator.draw._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [None, "nuts"])
def test_many_groups_of_six_numbers(kernel):
    """Gamma posteriors; chains that begin at fifty times the mean, where steps that serve elsewhere are far too long."""
    rng = np.random.default_rng(0)
    time = rng.uniform(0.5, 5, 6)
    failures = rng.poisson(3 * time, (50, 6)).astype(float)
    simulator, leaves = simulator_of(many_pumps, {"rate": MonteCarlo(kernel=kernel)}, time, failures)
    shape, rate = 0.8 + failures, 0.6 + time
    start = jnp.broadcast_to(jnp.log(50 * shape / rate), (4, 50, 6))
    draws, chains = draws_of(simulator, {"beta": jnp.asarray(0.6)}, leaves, 9, start=start)
    check_means(draws, special.digamma(shape) - np.log(rate))
    check_means(np.exp(draws), shape / rate)
    assert int(chains.divergences) == 0  # of the first block, too


def bent(y):
    """Two latents on a parabola: their density is a banana."""
    width = numpyro.param("width", 0.3, constraint=POSITIVE)
    with numpyro.plate("pairs", y.shape[0]):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(w[:, 0], 0.7), obs=y[:, 0])
        numpyro.sample("z", dist.Normal(w[:, 1] + w[:, 0] ** 2, width), obs=y[:, 1])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_curved_density(kernel):
    y = np.array([[1.0, 0.5], [1.0, -0.5]])
    simulator, leaves = simulator_of(bent, {"w": MonteCarlo(kernel=kernel)}, y)
    draws, _ = draws_of(simulator, {"width": jnp.asarray(0.5)}, leaves, 17)
    # The trapezoidal rule, which for a function like this is exact to rounding.
    one, two = np.meshgrid(np.linspace(-5, 5, 1001), np.linspace(-9, 5, 1401), indexing="ij")
    for pair, (x, z) in enumerate(y):
        height = -(one**2 + two**2) / 2 - ((x - one) / 0.7) ** 2 / 2 - ((z - two - one**2) / 0.5) ** 2 / 2
        weight = np.exp(height - height.max())
        weight /= weight.sum()
        seen = lambda a, b: np.stack([a, b, a * a, a * b, b * b, a**3], -1)  # noqa: E731
        expected = np.sum(weight[..., None] * seen(one, two), (0, 1))
        check_means(seen(draws[:, :, pair, 0], draws[:, :, pair, 1]), expected)


@pytest.mark.slow
def test_a_fit_by_nuts():
    """Against the maximum of the likelihood on a grid, and the posterior of the seven latents there."""
    best = optimize.minimize_scalar(lambda log_sd: -walk_on_grid(float(np.exp(log_sd)))[0], bracket=(-1.0, 0.0))
    result = fit(poisson_walk, COUNTS, latents={"level": MonteCarlo(kernel="nuts")})
    assert result.converged and result.certificate.divergences == {"level": 0}
    error = float(result.monte_carlo_errors["sd"])
    assert abs(float(result.params["sd"]) - np.exp(best.x)) < 3 * error
    assert error < 0.05 * float(result.standard_errors()["sd"])
    assert abs(result.log_likelihood + best.fun) < 4 * result.simulation.log_likelihood_error + 1e-3
    _, mean, variance = walk_on_grid(float(result.params["sd"]))
    drawn = np.asarray(result.sample_posterior(jax.random.key(1), 500)["level"])  # every one from a chain of its own
    assert drawn.shape == (500, len(COUNTS))
    np.testing.assert_array_less(np.abs(drawn.mean(0) - mean), 4 * np.sqrt(variance / 500))
    squares = (drawn - mean) ** 2
    np.testing.assert_array_less(np.abs(squares.mean(0) - variance), 4 * squares.std(0) / np.sqrt(500))


# -------------------------------------------------------------------------------------------------- what is said


def funnel(y):
    """The first latent of a group is the logarithm of the scale of the others: their density bends everywhere."""
    shift = numpyro.param("shift", 0.0)
    with numpyro.plate("groups", y.shape[0]):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(6), 1.0).to_event(1))
        numpyro.sample("y", dist.Normal(shift + w[:, 1:] * jnp.exp(2 * w[:, :1]), 0.1).to_event(1), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [MonteCarlo(), StochasticEM(kernel="nuts")])
def test_divergences_are_said(strategy, capsys):
    y = np.random.default_rng(0).standard_normal((2, 5))
    result = fit(funnel, y, latents={"w": strategy}, max_iterations=3)
    there = result.certificate.divergences
    assert set(there) == {"w"} and 0 < there["w"] <= 2 * strategy.num_chains * strategy.num_samples * 25
    assert any("diverged" in note and f"{type(strategy).__name__}(kernel=" in note for note in result.certificate.notes)
    result.print_summary()
    assert "Trajectories diverged" in capsys.readouterr().out


def few(y):
    level = numpyro.param("level", 0.0)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        b = numpyro.sample("b", dist.Normal(level, 0.7))
        numpyro.sample("y", dist.Poisson(jnp.exp(b) + z), obs=y)


def test_the_plan_says_what_draws():
    y = np.arange(4.0)
    for strategy, words in (
        (MonteCarlo(), "drawn by independence Metropolis from the Laplace approximation (up to 4 numbers"),
        (MonteCarlo(kernel="nuts"), "drawn by NUTS (kernel='nuts')"),
        (SAEM(kernel="hmc"), "drawn by Hamiltonian trajectories (kernel='hmc')"),
    ):
        (line,) = emppl.EM(few, latents={"b": strategy}).plan(y).integrals
        assert words in line
    (line,) = emppl.EM(many_pumps).plan(np.ones(6), np.ones((2, 6))).integrals
    assert line == "'rate', drawn by Hamiltonian trajectories (more than 4 numbers in every group)"


def test_kernels_are_checked():
    with pytest.raises(emppl.ParameterError, match="'metropolis', 'hmc', 'nuts', or None.*it is 'gibbs'"):
        MonteCarlo(kernel="gibbs")
    with pytest.raises(emppl.ParameterError, match="without a chain"):
        emppl.EM(few, latents={"z": StochasticEM(kernel="nuts")}).plan(np.arange(4.0))

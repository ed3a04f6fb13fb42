"""Chains of continuous latents that are integrated as whole trajectories: dense algebra, and filters on a fine grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import special, stats

import emppl
from emppl.montecarlo.mixing import effective_draws, mixing
from emppl.montecarlo.path import joined
from tests.integrals.test_smoother import CASES, dense, poisson_walk
from tests.kit.fits import compiled_of
from tests.kit.oracles import oracle

COUNTS = jnp.array([1, 2, 0, 3, 4, 9, 2])


def grid_filter(start, step, emission):
    """Log-likelihood and smoothed probabilities on a grid: ``start`` and ``step`` are probabilities of its points."""
    forward, value = [], 0.0
    for number, one in enumerate(emission):
        here = (start if number == 0 else forward[-1] @ step) * one
        value += np.log(here.sum())
        forward.append(here / here.sum())
    backward, smoothed = np.ones(len(start)), []
    for here, one in zip(forward[::-1], emission[::-1], strict=True):
        smoothed.append(here * backward / np.sum(here * backward))
        backward = step @ (one * backward)
        backward = backward / backward.sum()
    return value, np.array(smoothed[::-1])


@functools.cache
def walk_on_grid(sd):
    """The Poisson walk by the trapezoidal rule: log-likelihood, means and variances."""
    grid = np.linspace(-5, 6, 1101)
    width = grid[1] - grid[0]
    step = stats.norm.pdf(grid, grid[:, None], sd) * width
    emission = stats.poisson.pmf(np.asarray(COUNTS)[:, None], np.exp(grid))
    value, smoothed = grid_filter(stats.norm.pdf(grid, 0, sd) * width, step, emission)
    mean = smoothed @ grid
    return value, mean, smoothed @ grid**2 - mean**2


QUICK = ("local level",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES])
def test_laplace_is_exact_where_the_smoother_is(name):
    model, args, shapes = CASES[name]
    em = emppl.EM(model, latents=dict.fromkeys(shapes, emppl.Laplace()))
    smoother = emppl.EM(model)
    params = em.start(jax.random.key(0), *args)
    value, mean, covariance = dense(model, args, params, shapes)
    posterior = em.e_step(params, *args)
    np.testing.assert_allclose(posterior.log_likelihood, value, rtol=1e-10)
    start = 0
    for latent, shape in shapes.items():
        # Atoms of the later steps, the newest of each window.
        atoms = np.asarray(posterior.atoms[latent])
        size, order = int(np.prod(shape)), shape[0] - atoms.shape[1]
        expected = mean[start : start + size].reshape(shape)[order:]
        np.testing.assert_allclose(atoms.mean(0).reshape(expected.shape), expected, atol=1e-8)
        variance = np.diagonal(covariance)[start : start + size].reshape(shape)[order:]
        np.testing.assert_allclose(atoms.var(0).reshape(expected.shape), variance, rtol=1e-7)
        start += size
    ours = em.m_step(params, posterior, *args)
    theirs = smoother.m_step(params, smoother.e_step(params, *args), *args)
    for one in ours:
        np.testing.assert_allclose(ours[one], theirs[one], rtol=1e-6, atol=1e-8, err_msg=one)


@pytest.mark.slow
def test_draws_of_trajectories():
    """Moments of the draws, and the evidence by importance sampling, against the grid."""
    em = emppl.EM(poisson_walk)
    compiled, leaves = compiled_of(em, COUNTS)
    params = {"sd": jnp.asarray(0.6)}
    value, mean, variance = walk_on_grid(0.6)
    chains, found = compiled.simulator.begin(), []
    for key in jax.random.split(jax.random.key(1), 20):
        found.append(compiled.simulator.draw(params, chains, key, leaves, number=100))
        chains = found[-1].walkers
    (draws,) = joined(found[1:]).draws.values()
    draws = np.asarray(draws)[:, :, 0]
    number = effective_draws(draws)
    assert np.min(number) > 0.2 * draws.shape[0] * draws.shape[1]
    np.testing.assert_array_less(np.abs(draws.mean((0, 1)) - mean), 5 * np.sqrt(variance / number))
    np.testing.assert_allclose(draws.var((0, 1)), variance, rtol=0.1)
    assert abs(float(compiled.log_likelihood(params, leaves)) - value) < 0.02
    looked = mixing(compiled.program.model, joined(found[1:]).draws)
    assert set(looked.r_hat) == {"level"} and looked.r_hat["level"] < 1.02
    assert looked.worst in {f"level[{step}]" for step in range(len(COUNTS))}


def two_kinds(y):
    """Every sequence walks in steps of one size or the other."""
    sd = numpyro.param("sd", jnp.array([0.3, 0.9]), constraint=dist.constraints.positive)
    with numpyro.plate("sequences", y.shape[1]):
        kind = numpyro.sample("kind", dist.Bernoulli(0.4))

    def step(level, y):
        with numpyro.plate("sequences", y.shape[0]):
            level = numpyro.sample("level", dist.Normal(level, sd[kind]))
            numpyro.sample("y", dist.Poisson(jnp.exp(level)), obs=y)
        return level, None

    scan(step, jnp.zeros(y.shape[1]), y)


@pytest.mark.slow
def test_chains_in_a_plate_given_a_discrete_latent():
    y = np.stack([COUNTS, COUNTS[::-1]], 1)
    em = emppl.EM(two_kinds, latents={"level": emppl.MonteCarlo()})
    params = em.start(jax.random.key(0), y)
    grid = np.linspace(-8, 9, 1701)
    width = grid[1] - grid[0]
    values = np.array(
        [
            [
                grid_filter(
                    stats.norm.pdf(grid, 0, sd) * width,
                    stats.norm.pdf(grid, grid[:, None], sd) * width,
                    stats.poisson.pmf(column[:, None], np.exp(grid)),
                )[0]
                for sd in (0.3, 0.9)
            ]
            for column in y.T
        ]
    )
    joint = values + np.log([0.6, 0.4])
    exact = special.logsumexp(joint, 1)
    posterior = em.e_step(params, y)
    assert abs(float(posterior.log_likelihood) - exact.sum()) < 0.05


def test_the_bound_of_the_ascent_knows_the_dimensions():
    """Steps of noise alone: their gain, in units of its own error, passes the bound as often as it may."""
    from emppl.montecarlo.ascent import lower_bound

    assert lower_bound(1) == pytest.approx(stats.norm.ppf(0.75))
    for dimensions in (2, 5, 20):
        assert lower_bound(dimensions) == pytest.approx(np.sqrt(stats.chi2.ppf(0.75, dimensions)) / 2, rel=2e-3)
        rng = np.random.default_rng(dimensions)
        rises = []
        for _ in range(2000):
            scores = rng.standard_normal((100, dimensions))  # of draws, at the maximum of Q; unit curvature
            step = scores.mean(0)
            each = scores @ step - step @ step / 2
            rises.append(each.mean() / (each.std(ddof=1) / 10))
        assert np.mean(np.array(rises) > lower_bound(dimensions)) == pytest.approx(0.25, abs=0.05)
        assert np.mean(np.array(rises) > stats.norm.ppf(0.75)) > 0.35


@pytest.mark.long
def test_polio_by_its_importance_sampler():
    """At the published maximum the log-likelihood, by importance sampling, is that of the oracle's grid."""
    from models import polio

    known = oracle("polio_poisson_ar1")["reference"]
    params = {name: known["params"][name] for name in ("phi", "sigma")}
    params["coefficients"] = np.array(list(known["params"]["coef"].values()))
    em = emppl.EM(polio.model)
    assert abs(float(em.log_likelihood(params, *polio.data())) - known["loglik"]) < 0.3

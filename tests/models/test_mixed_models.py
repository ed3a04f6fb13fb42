"""Models in models/ whose continuous latents are integrated numerically, against other programs and published answers.

Answers and tolerances are the files in tests/oracles; what these lack is computed here with scipy.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from scipy import linalg, optimize, special, stats

import emppl
from emppl import Quadrature
from models import (
    absences,
    booth_hobert,
    cattle,
    graded_responses,
    law_school,
    matings,
    orange_trees,
    pumps,
    seeds,
    toenails,
)
from tests.kit.fits import fit
from tests.kit.oracles import check_block, oracle


@dataclasses.dataclass(frozen=True)
class Case:
    """A fit and the blocks of an oracle that are compared."""

    oracle: str
    model: Callable
    data: tuple
    latents: Mapping[str, Any]
    params: Callable[[Mapping], Mapping]
    posterior: Callable[[emppl.EMResult], Mapping] | None
    variant: str | None = None


def named(*names: str) -> Callable[[Mapping], dict]:
    def params(values):
        return {"coef": dict(zip(names, values["coefficients"], strict=True)), "sd": values["sd"]}

    return params


def first_effects(site: str) -> Callable[[emppl.EMResult], dict]:
    def posterior(result):
        mean, variance = result.posterior(site)
        return {"random_effect_mean_first_5": mean[:5], "random_effect_sd_first_5": np.sqrt(variance[:5])}

    return posterior


def rates(result) -> dict:
    mean, variance = result.posterior("rate")
    return {"theta_mean": mean, "theta_sd": np.sqrt(variance)}


def abilities(result) -> dict:
    mean, variance = result.posterior("ability")
    return {"eap_first_5_patterns": mean[:5], "sd_first_5_patterns": np.sqrt(variance[:5])}


QUINE = ("intercept", "eth_N", "sex_M", "age_F1", "age_F2", "age_F3", "lrn_SL")

CASES = {
    "cattle": Case(
        "cbpp",
        cattle.model,
        cattle.data(),
        {"u": Quadrature(15)},
        named("intercept", "period2", "period3", "period4"),
        first_effects("u"),
    ),
    "booth_hobert": Case(
        "booth_hobert",
        booth_hobert.model,
        booth_hobert.data(),
        {"u": Quadrature(21)},
        lambda values: {"coef": {"x": values["slope"]}, "sd": values["sd"]},
        first_effects("u"),
    ),
    "seeds": Case(
        "seeds",
        seeds.model,
        seeds.data(),
        {},
        named("intercept", "seed", "extract", "seed_x_extract"),
        first_effects("b"),
    ),
    "toenails": Case(
        "toenail",
        toenails.model,
        toenails.data(),
        {"u": Quadrature(61)},
        named("intercept", "treat", "time", "treat_x_time"),
        first_effects("u"),
    ),
    "pumps": Case(
        "pump_gamma_poisson",
        pumps.model,
        pumps.data(),
        {},
        lambda values: {"alpha": values["alpha"], "beta": values["beta"]},
        rates,
    ),
    "absences": Case(
        "quine_gamma_poisson",
        absences.model,
        absences.data(),
        {},
        lambda values: {"coef": dict(zip(QUINE, values["coefficients"], strict=True)), "theta": values["shape"]},
        lambda result: {"mean_of_gamma_multiplier_first_5": result.posterior("multiplier")[0][:5]},
    ),
    "law_school": Case(
        "lsat7_2pl",
        law_school.model,
        law_school.data(),
        {"ability": Quadrature(21)},
        lambda values: {"a": values["slopes"], "d": values["intercepts"]},
        abilities,
        variant="2pl",
    ),
    "law_school_common": Case(
        "lsat7_2pl",
        law_school.common_slope,
        law_school.data(),
        {"ability": Quadrature(21)},
        lambda values: {"a": values["slope"], "d": values["intercepts"]},
        None,
        variant="rasch_common_slope",
    ),
}
LONG = ("toenails", "booth_hobert", "absences", "seeds", "law_school", "law_school_common")


@functools.cache
def fitted(name: str) -> emppl.EMResult:
    case = CASES[name]
    result = fit(case.model, *case.data, latents=case.latents)
    assert result.converged, result.stop_message
    return result


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in CASES])
def test_answer(name):
    case, result = CASES[name], fitted(name)

    def block(found):
        return found if case.variant is None else {case.variant: found}

    def chosen(which):
        found = oracle(case.oracle)["reference"][which]
        return found if case.variant is None else found[case.variant]

    check_block(case.oracle, "params", block(case.params(result.params)))
    check_block(case.oracle, "loglik", block(result.log_likelihood))
    check_block(case.oracle, "standard_errors", block(case.params(result.standard_errors())))
    if case.posterior is not None:
        check_block(case.oracle, "posterior", case.posterior(result))
    # The error of integration that the fit states is no smaller than its distance from the answer.
    reference = oracle(case.oracle)["reference"]["loglik"]
    distance = result.log_likelihood - (reference if case.variant is None else reference[case.variant])
    assert abs(distance) <= 2 * abs(result.integration_error.log_likelihood) + 2e-6
    # How far a finer rule would move the estimates is how far they are from those of the oracle's hundred nodes.
    shift = result.integration_error.shift
    errors = vector(chosen("standard_errors"), case.params(result.params))
    off = vector(case.params(result.params)) - vector(chosen("params"), case.params(result.params))
    assert abs(np.max(np.abs(off) / errors) - shift) <= 0.1 * shift + 1e-4
    assert shift < 1e-4


def vector(values: Mapping, like: Mapping | None = None) -> np.ndarray:
    """The entries of a block, those that ``like`` has and in its order."""
    like = values if like is None else like
    parts = [
        vector(values[name], one) if isinstance(one, Mapping) else np.ravel(values[name]) for name, one in like.items()
    ]
    return np.concatenate(parts)


def marginal(log_density, sd: float) -> np.ndarray:
    """Log marginal densities over a normal effect, from ``log_density(effect) -> (groups, points)``: trapezoids."""
    grid = np.linspace(-9, 9, 1801)
    with np.errstate(divide="ignore"):
        heights = log_density(sd * grid) + stats.norm.logpdf(grid)
    return special.logsumexp(heights, axis=1) + np.log(grid[1] - grid[0])


def maximum(minus, start) -> optimize.OptimizeResult:
    return optimize.minimize(minus, start, method="BFGS", options={"gtol": 1e-6})


def test_overdispersed_counts():
    days, covariates = absences.data()
    result = fit(absences.log_normal, days, covariates)

    def minus(v):
        predictor = covariates @ v[:-1]
        return -marginal(
            lambda u: stats.poisson.logpmf(days[:, None], np.exp(predictor[:, None] + u)), np.exp(v[-1])
        ).sum()

    at = np.append(result.params["coefficients"], np.log(result.params["sd"]))
    assert -minus(at) == pytest.approx(result.log_likelihood, abs=1e-4)
    assert np.max(np.abs(optimize.approx_fprime(at, minus, 1e-6))) < 0.02


@pytest.mark.slow
def test_graded_responses():
    (answers,) = graded_responses.data()
    result = fit(graded_responses.model, answers, latents={"trait": Quadrature(21)})

    def value(slopes, thresholds):
        def log_density(trait):
            above = special.expit(slopes[:, None, None] * trait - thresholds[:, :, None])
            steps = np.concatenate([np.ones_like(above[:, :1]), above, np.zeros_like(above[:, :1])], 1)
            grades = np.log(steps[:, :-1] - steps[:, 1:])
            return sum(grades[question, answers[:, question]] for question in range(answers.shape[1]))

        return marginal(log_density, 1.0).sum()

    slopes, thresholds = result.params["slopes"], result.params["thresholds"]
    best = value(slopes, thresholds)
    assert best == pytest.approx(result.log_likelihood, abs=1e-4)
    for _, place in zip(range(5), np.random.default_rng(0).normal(size=(5, 5, 4)), strict=False):
        for size in (1e-3, -1e-3):
            assert value(slopes + size * place[:, 0], thresholds + size * place[:, 1:]) < best


def test_orange_trees():
    circumference, days = orange_trees.data()
    result = fit(orange_trees.model, circumference, days)
    assert result.converged

    def minus(v):
        centre, spread, midpoint, scale, residual = v[0], np.exp(v[1]), v[2], np.exp(v[3]), np.exp(v[4])
        growth = special.expit((days / 1000 - midpoint) / scale)

        def log_density(effect):
            curve = np.exp(centre + effect)[:, None] * growth
            return stats.norm.logpdf(circumference[:, None], curve, residual).sum(-1)

        return -marginal(log_density, spread).sum()

    p = result.params
    at = np.array([p["centre"], np.log(p["spread"]), p["midpoint"], np.log(p["scale"]), np.log(p["residual"])])
    assert -minus(at) == pytest.approx(result.log_likelihood, abs=1e-6)
    assert maximum(minus, at).fun == pytest.approx(-result.log_likelihood, abs=1e-5)


@pytest.mark.slow
def test_crossed_effects_by_laplace():
    mated, mixed, female, male, animals = matings.data()
    design = np.zeros((len(mated), 2 * animals))
    design[np.arange(len(mated)), female] = 1
    design[np.arange(len(mated)), animals + male] = 1

    def height(v, effects):
        """Log joint density, up to half the log determinant of the prior precision and a constant of the normal."""
        eta = v[0] + v[1] * mixed + effects @ design.T
        prior = np.repeat(np.exp(-2 * v[2:]), animals)
        return (mated * eta - np.logaddexp(0, eta)).sum(-1) - 0.5 * (prior * effects**2).sum(-1)

    def laplace(v):
        prior = np.repeat(np.exp(-2 * v[2:]), animals)
        effects = np.zeros(2 * animals)
        for _ in range(30):
            p = special.expit(v[0] + v[1] * mixed + design @ effects)
            precision = design.T @ ((p * (1 - p))[:, None] * design) + np.diag(prior)
            effects = effects + linalg.solve(precision, design.T @ (mated - p) - prior * effects, assume_a="pos")
        p = special.expit(v[0] + v[1] * mixed + design @ effects)
        return effects, design.T @ ((p * (1 - p))[:, None] * design) + np.diag(prior)

    def minus(v):
        effects, precision = laplace(v)
        log_prior = 0.5 * np.log(np.exp(-2 * v[2:])).sum() * animals
        return -(height(v, effects) + log_prior - 0.5 * np.linalg.slogdet(precision)[1])

    def error_of_laplace(v):
        """Log of the mean of joint over normal density, at draws from that normal, and its standard error."""
        effects, precision = laplace(v)
        noise = np.random.default_rng(0).standard_normal((20_000, 2 * animals))
        draws = effects + linalg.solve_triangular(np.linalg.cholesky(precision), noise.T, lower=True, trans=1).T
        ratio = np.exp(height(v, draws) - height(v, effects) + 0.5 * (noise**2).sum(-1))
        return np.log(ratio.mean()), ratio.std() / ratio.mean() / np.sqrt(len(ratio))

    result = fit(
        matings.model, mated, mixed, female, male, animals, latents={"f": emppl.Laplace(), "m": emppl.Laplace()}
    )
    assert result.converged
    at = np.concatenate([result.params["coefficients"], np.log([result.params["female_sd"], result.params["male_sd"]])])
    assert -minus(at) == pytest.approx(result.log_likelihood, abs=1e-8)
    found = result.integration_error
    expected, noise = error_of_laplace(at)
    assert abs(found.log_likelihood - expected) < 4 * np.hypot(found.log_likelihood_noise, noise), (found, expected)
    # The fixed point lies close to the maximum of the approximation: by a small part of the standard errors.
    errors = result.standard_errors()
    units = np.concatenate([errors["coefficients"], [errors[n] / result.params[n] for n in ("female_sd", "male_sd")]])
    best = maximum(minus, at)
    assert np.max(np.abs(best.x - at) / units) < 0.15

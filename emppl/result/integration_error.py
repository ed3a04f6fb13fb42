"""How far integrals by quadrature or Laplace are off: the same at the estimate by a finer rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from emppl.compiled import Fit
from emppl.model.model import Model
from emppl.result.accuracy import Accuracy
from emppl.strategies import ImportanceSampling, ObjectiveKind, Strategy

_MOST_NOISE = 1.0
"""Standard deviation of one estimate, in nats, beyond which importance sampling is not to be trusted."""

_LARGE_CHANGE = 1.0
"""Change of the log-likelihood, in nats, that moves the estimates if the two rules see one function."""

_LEAST_SHIFT = 1e-3
"""Shift, in standard errors, below which nodes that move with the parameters hide an error of the score."""


@dataclasses.dataclass(frozen=True)
class IntegrationError:
    """A fit beside a finer rule of integration, both at the estimate.

    Attributes:
        rule: the finer rule, by latent.
        log_likelihood: by the finer rule, minus that of the fit (nats). NaN if the rule is too noisy to tell.
        shift: how far the estimates would move under the finer rule: the largest change of any, in its standard errors,
            by one Newton step. NaN where there are no standard errors, and where it is next to nothing although the
            log-likelihood changes by more than a nat: then the two rules see different functions.
        log_likelihood_noise: Monte Carlo standard error of ``log_likelihood``; zero where the rule draws nothing.
        shift_noise: the same of ``shift``.
        disagree: whether ``shift`` is NaN because the log-likelihood changes and the score does not.
    """

    rule: dict[str, str]
    log_likelihood: float
    shift: float
    log_likelihood_noise: float = 0.0
    shift_noise: float = 0.0
    disagree: bool = False

    def __str__(self) -> str:
        names = ", ".join(f"{name!r} by {title}" for name, title in self.rule.items())
        if np.isnan(self.log_likelihood):
            return f"The error of integration is not known: {names} is too noisy to tell."
        changed, moved = _with_noise(self.log_likelihood, self.log_likelihood_noise, "+"), ""
        if self.disagree:
            moved = (
                ", but its score is next to the same: the two disagree, so that how far the estimates are off is not "
                "known. Compare with MonteCarlo()"
            )
        if not np.isnan(self.shift):
            moved = f", and would move the estimates by {_with_noise(self.shift, self.shift_noise)} standard errors"
        return f"Error of integration: {names} changes the log-likelihood by {changed}{moved}."


def _with_noise(value: float, noise: float, sign: str = "") -> str:
    return f"{value:{sign}.2g}" + (f" (Monte Carlo error {noise:.1g})" if noise else "")


def integration_error(fit: Fit, accuracy: Accuracy, log_likelihood: float) -> IntegrationError | None:
    """The log-likelihood and its maximum by a finer rule, or None where there is none to compare with.

    Args:
        accuracy: of the estimates.
        log_likelihood: at the estimates, by the rule of the fit.
    """
    finer = fit.compiled.finer
    if finer is None or fit.model.hard:
        return None
    frames = {name: chart.frame for name, chart in accuracy.charts_by_position.items()}
    sampling = [integral.strategy for integral in finer.integrals if isinstance(integral.strategy, ImportanceSampling)]
    keys = jax.random.split(jax.random.key(0), sampling[0].replicates if sampling else 1)
    values, scores = map(np.asarray, fit.compiled.finer_score(frames, fit.data, keys))
    rule = {name: _title(finer.strategies[name]) for integral in finer.integrals for name in integral.latents}
    shifts = _shifts(accuracy, scores)
    largest = int(np.argmax(np.abs(shifts.mean(0))))
    shift = float(np.abs(shifts.mean(0)[largest]))
    if not sampling:
        return _compared(IntegrationError(rule, float(values[0]) - log_likelihood, shift))
    spread = values.std(ddof=1)
    if not spread <= _MOST_NOISE:
        return IntegrationError(rule, float("nan"), float("nan"), float("nan"), float("nan"))
    # The logarithm of an estimate is too low by half its variance.
    difference = float(values.mean() + spread**2 / 2 - log_likelihood)
    root = np.sqrt(len(keys))
    shift_noise = float(shifts.std(0, ddof=1)[largest] / root)
    return _compared(IntegrationError(rule, difference, shift, float(spread / root), shift_noise))


def _compared(error: IntegrationError) -> IntegrationError:
    """An error whose shift is NaN where it contradicts the change of the log-likelihood."""
    if abs(error.log_likelihood) > _LARGE_CHANGE and error.shift < _LEAST_SHIFT:
        return dataclasses.replace(error, shift=float("nan"), shift_noise=float("nan"), disagree=True)
    return error


def _title(strategy: Strategy) -> str:
    return strategy.title if isinstance(strategy, ImportanceSampling) else repr(strategy)


def _shifts(accuracy: Accuracy, scores: np.ndarray) -> np.ndarray:
    """Newton steps of all coordinates in their standard errors, ``(replicates, coordinates)``; NaN without any."""
    unknown = np.full((len(scores), 1), np.nan)
    if not accuracy.is_cheap:
        return unknown
    local, information = accuracy.measured
    active = np.concatenate([chart.active for chart in local.values()])
    if not active.any():
        return np.zeros((len(scores), 1))
    try:
        inverse = np.linalg.inv(information.matrix)
    except np.linalg.LinAlgError:
        return unknown
    variances = np.diagonal(inverse)
    return scores[:, active] @ inverse / np.sqrt(variances) if np.all(variances > 0) else unknown


def integration_notes(model: Model, fall: float, error: Callable[[], IntegrationError | None]) -> list[str]:
    """What integrals that are not exact mean for a fit.

    Args:
        fall: how far the objective fell between iterations (nats).
        error: the error of integration, computed when it is asked for.
    """
    kinds = (ObjectiveKind.QUADRATURE, ObjectiveKind.APPROXIMATE)
    if not any(integral.strategy.objective_kind in kinds for integral in model.integrals):
        return []
    if model.hard:
        return ["The error of integration is not known: its measure is the maximum of the likelihood."]
    notes = []
    if fall > 0:
        notes.append(
            f"The objective fell by up to {fall:.2g} nats: its error of approximation moves with the parameters. Q, "
            "which the M-step maximises, rose in every iteration; they end at a fixed point, close to the maximum."
        )
    compared = error()
    if compared is not None:
        return [*notes, str(compared)]
    unknown = [
        name
        for integral in model.integrals
        if integral.strategy.objective_kind.is_approximate and integral.strategy.finer(integral.dimensions) is None
        for name in integral.latents
    ]
    why = "too many numbers are integrated together for quadrature" if unknown else "a finer rule needs too much memory"
    return [*notes, f"The error of integration is not known: {why}{_listed(unknown)}."]


def _listed(names: list[str]) -> str:
    return f" ({', '.join(map(repr, names))})" if names else ""

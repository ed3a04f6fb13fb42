"""How far integrals by quadrature or Laplace are off: the same at the estimate by a finer rule."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np

from emppl.strategies import ImportanceSampling, ObjectiveKind

if TYPE_CHECKING:
    from emppl.result.result import EMResult


_TOO_NOISY = 1.0
"""Standard deviation of one estimate, in nats, beyond which importance sampling is not to be trusted."""

_NATS = 1.0
_NO_SHIFT = 1e-3
"""So many nats with a shift below this: nodes that move with the parameters hide an error of the score."""


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
        disagree: is ``shift`` NaN because the log-likelihood changes and the score does not?
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


def integration_error(result: EMResult) -> IntegrationError | None:
    """The log-likelihood and its maximum by a finer rule, or None where there is none to compare with."""
    derived = result._derived
    model = derived.finer
    if model is None or result.classification is not None:
        return None
    frames = {name: one.frame for name, one in result._charts_by_position.items()}
    drawn = [one.strategy for one in model.integrals if isinstance(one.strategy, ImportanceSampling)]
    keys = jax.random.split(jax.random.key(0), drawn[0].replicates if drawn else 1)
    values, scores = map(np.asarray, derived.finer_score(frames, result._data, keys))
    rule = {name: _title(model.strategies[name]) for one in model.integrals for name in one.latents}
    shifts = _shifts(result, scores)
    largest = int(np.argmax(np.abs(shifts.mean(0))))
    shift = float(np.abs(shifts.mean(0)[largest]))
    if not drawn:
        return _compared(IntegrationError(rule, float(values[0]) - result.log_likelihood, shift))
    spread = values.std(ddof=1)
    if not spread <= _TOO_NOISY:
        return IntegrationError(rule, float("nan"), float("nan"), float("nan"), float("nan"))
    # The logarithm of an estimate is too low by half its variance.
    difference = float(values.mean() + spread**2 / 2 - result.log_likelihood)
    root = np.sqrt(len(keys))
    shift_noise = float(shifts.std(0, ddof=1)[largest] / root)
    return _compared(IntegrationError(rule, difference, shift, float(spread / root), shift_noise))


def _compared(error: IntegrationError) -> IntegrationError:
    """A shift that the change of the log-likelihood belies is not known."""
    if abs(error.log_likelihood) > _NATS and error.shift < _NO_SHIFT:
        return dataclasses.replace(error, shift=float("nan"), shift_noise=float("nan"), disagree=True)
    return error


def _title(strategy) -> str:
    return strategy.title if isinstance(strategy, ImportanceSampling) else repr(strategy)


def _shifts(result: EMResult, scores: np.ndarray) -> np.ndarray:
    """Newton steps of all coordinates in their standard errors, ``(replicates, coordinates)``; NaN without any."""
    unknown = np.full((len(scores), 1), np.nan)
    if not result.uncertainty_is_cheap:
        return unknown
    local, information = result._measured
    active = np.concatenate([one.active for one in local.values()])
    if not active.any():
        return np.zeros((len(scores), 1))
    try:
        inverse = np.linalg.inv(information.matrix)
    except np.linalg.LinAlgError:
        return unknown
    variances = np.diagonal(inverse)
    return scores[:, active] @ inverse / np.sqrt(variances) if np.all(variances > 0) else unknown


def integration_notes(result: EMResult) -> list[str]:
    """What integrals that are not exact mean for this fit."""
    if not any(
        one.strategy.objective_kind in (ObjectiveKind.QUADRATURE, ObjectiveKind.APPROXIMATE)
        for one in result._model.integrals
    ):
        return []
    if result.classification is not None:
        return ["The error of integration is not known: its measure is the maximum of the likelihood."]
    notes = []
    steps = np.diff(result.history["objective"])
    fall = -np.min(steps, initial=0)
    if fall > 0 and result.simulation is None:
        notes.append(
            f"The objective fell by up to {fall:.2g} nats: its error of approximation moves with the parameters. Q, "
            "which the M-step maximises, rose in every iteration; they end at a fixed point, close to the maximum."
        )
    if result.integration_error is not None:
        return [*notes, str(result.integration_error)]
    unknown = [
        name
        for one in result._model.integrals
        if one.strategy.objective_kind.is_approximate and one.strategy.finer(one.dimensions) is None
        for name in one.latents
    ]
    why = "too many numbers are integrated together for quadrature" if unknown else "a finer rule needs too much memory"
    return [*notes, f"The error of integration is not known: {why}{_listed(unknown)}."]


def _listed(names: list[str]) -> str:
    return f" ({', '.join(map(repr, names))})" if names else ""

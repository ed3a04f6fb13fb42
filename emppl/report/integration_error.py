"""How far integrals by quadrature or Laplace are off: the same at the estimate by a finer rule."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np

from emppl.strategies import Evidence

if TYPE_CHECKING:
    from emppl.report.result import EMResult


@dataclasses.dataclass(frozen=True)
class IntegrationError:
    """A fit beside a finer rule of integration, both at the estimate.

    Attributes:
        rule: the finer rule, by latent.
        log_likelihood: by the finer rule, minus that of the fit (nats).
        shift: how far the estimates would move under the finer rule: the largest change of any, in its standard errors,
            by one Newton step. NaN where there are no standard errors.
    """

    rule: dict[str, str]
    log_likelihood: float
    shift: float

    def __str__(self) -> str:
        names = ", ".join(f"{name!r} by {title}" for name, title in self.rule.items())
        moved = "" if np.isnan(self.shift) else f", and would move the estimates by {self.shift:.2g} standard errors"
        return f"Error of integration: {names} changes the log-likelihood by {self.log_likelihood:+.2g}{moved}."


def integration_error(result: EMResult) -> IntegrationError | None:
    """The log-likelihood and its maximum by a finer rule, or None where there is none to compare with."""
    derived = result._derived
    if derived.finer is None or result.classification is not None:
        return None
    params, leaves = result._free, result._leaves
    frames = {name: one.frame for name, one in result._charts_by_position.items()}
    value, score = jax.device_get(derived.finer_score(params, frames, leaves))
    shift = float("nan")
    if result.uncertainty_is_cheap:
        shift = _shift(result, np.asarray(score))
    program = derived.finer
    rule = {name: repr(program.strategies[name]) for one in program.integrals for name in one.latents}
    return IntegrationError(rule, float(value) - result.log_likelihood, shift)


def _shift(result: EMResult, score: np.ndarray) -> float:
    local, information = result._measured
    active = np.concatenate([one.active for one in local.values()])
    try:
        inverse = np.linalg.inv(information.matrix)
    except np.linalg.LinAlgError:
        return float("nan")
    variances = np.diagonal(inverse)
    if not np.all(variances > 0):
        return float("nan")
    return float(np.max(np.abs(inverse @ score[active]) / np.sqrt(variances), initial=0.0))


def integration_notes(result: EMResult) -> list[str]:
    """What integrals that are not exact mean for this fit."""
    if not any(
        one.strategy.evidence in (Evidence.QUADRATURE, Evidence.APPROXIMATE) for one in result._program.integrals
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
        for one in result._program.integrals
        if one.strategy.evidence.is_approximate and one.strategy.finer(one.dimensions) is None
        for name in one.latents
    ]
    why = "too many numbers are integrated together for quadrature" if unknown else "a finer rule needs too much memory"
    return [*notes, f"The error of integration is not known: {why}{_listed(unknown)}."]


def _listed(names: list[str]) -> str:
    return f" ({', '.join(map(repr, names))})" if names else ""

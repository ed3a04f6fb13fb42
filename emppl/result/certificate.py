"""How far to trust a fit: monotonicity, the score at the end, agreement of restarts, the boundary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from emppl.derivation.plan import objective_in_words
from emppl.fit.outcome import StopReason
from emppl.fit.restarts import distinct_optima
from emppl.result.fitted import Fitted
from emppl.result.integration_error import IntegrationError
from emppl.result.summary import quiet_standard_errors

_NORMAL_QUANTILE = 1.645
"""Standard errors above a gain up to which it may lie, one-sided at 95%."""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """How far to trust the answer.

    Attributes:
        objective: what was maximised.
        converged: whether the best restart converged.
        monotone: whether the objective rose at every iteration, up to rounding.
        largest_decrease: largest fall of the objective between iterations, in nats (0 if none).
        score_norm: largest standardised score: gradient over root information, in local coordinates; about zero at
            an interior maximum. NaN, with a note, for a model too large to compute the information unasked.
        restarts: number of starts.
        distinct_optima: how many different objectives the converged restarts ended at.
        restarts_at_best: how many ended at the best one.
        integration_error: how far integrals by quadrature or Laplace are off; None where they are exact, or where no
            finer rule tells.
        boundary: entries on the boundary of the parameter space.
        r_hat: by simulated latent, the largest split R-hat of its entries in the last E-step; empty for other fits.
        effective_draws: by simulated latent, the smallest effective sample size of its entries there.
        divergences: by simulated latent, how many trajectories of the last E-step (in stochastic EM: of all that were
            averaged) lost their energy: the draws may lack places where the density bends sharply.
        monte_carlo_error: largest Monte Carlo standard error of an estimate, as a share of its standard error.
        notes: anything else worth knowing.
    """

    objective: str
    converged: bool
    monotone: bool
    largest_decrease: float
    score_norm: float
    restarts: int
    distinct_optima: int
    restarts_at_best: int
    integration_error: IntegrationError | None
    boundary: list[str]
    notes: list[str]
    r_hat: Mapping[str, float] = dataclasses.field(default_factory=dict)
    effective_draws: Mapping[str, float] = dataclasses.field(default_factory=dict)
    divergences: Mapping[str, int] = dataclasses.field(default_factory=dict)
    monte_carlo_error: float = float("nan")


def build_certificate(result: Fitted) -> Certificate:
    """The certificate of a fit."""
    fall = _largest_fall(result)
    ended = result.history["final_objectives"][result.history["final_status"] == StopReason.CONVERGED.name]
    distinct, at_best = distinct_optima(ended, result.objective)
    notes, score_norm = list(result.remarks), float("nan")
    if result.accuracy.is_cheap:
        score_norm = result.accuracy.score_norm()
    elif result.classification is None:
        notes.append(
            "The score is not standardised, which takes the information matrix of all parameters: call "
            "result.standard_errors() and then look at the certificate."
        )
    return Certificate(
        objective=objective_in_words(result.fit.model),
        converged=result.converged,
        monotone=fall <= max(1e-9 * (1 + abs(result.log_posterior)), float(result.history.get("noise", 0))),
        largest_decrease=fall,
        score_norm=score_norm,
        restarts=len(result.history["final_objectives"]),
        distinct_optima=distinct,
        restarts_at_best=at_best,
        integration_error=result.integration_error,
        boundary=result.accuracy.boundary,
        notes=notes,
        **_of_draws(result),
    )


def _largest_fall(result: Fitted) -> float:
    """Largest fall of the objective; of noisy ones, of the upper confidence bound of Q's gain in accepted steps."""
    if result.simulation is None:
        steps = np.diff(result.history["objective"])
    else:
        taken = np.isin(result.history["decision"], ("accepted", "unfinished", "converged"))
        steps = (result.history["gain"] + _NORMAL_QUANTILE * result.history["gain_error"])[taken]
    finite = steps[np.isfinite(steps)]
    return float(max(0.0, -finite.min())) if len(finite) else 0.0


def _of_draws(result: Fitted) -> dict[str, Any]:
    if result.simulation is None:
        return {}
    facts: dict[str, Any] = {"divergences": result.simulation.divergences.numbers}
    if result.simulation.errors is not None:
        errors, shares = quiet_standard_errors(result), [0.0]
        for name, value in result.simulation.errors.items():
            if name in errors:
                shares += [float(np.nanmax(value / np.where(errors[name] > 0, errors[name], np.nan)))]
        return facts | ({"monte_carlo_error": max(shares)} if errors else {})
    closing = result.simulation.closing
    if closing is None:
        return facts
    facts |= {"r_hat": closing.mixing.r_hat, "effective_draws": closing.mixing.effective_draws}
    return facts | {"monte_carlo_error": closing.relative_error}

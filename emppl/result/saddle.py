"""Iterations that have come to rest where the log-likelihood is no maximum go on from beside that point."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from emppl.compiled import Fit
from emppl.fit.outcome import Ending, StopReason
from emppl.result.result import EMResult
from emppl.strategies.base import ObjectiveKind
from emppl.uncertainty.corners import with_corners
from emppl.uncertainty.second_order import far_along, in_words, way_up

_LEAST_PROMISE = 1e-3
"""Gain, in nats, that a Newton step has to promise where the iterations came to rest until it is tried."""

_MOST_LOSS = 5.0
"""Nats below where the iterations came to rest from which they are started once more, along a flat direction."""

_MOST_FLAT = 3
"""Most flat directions along which the iterations are started once more."""

_ELSEWHERE = "from other values"


def leave_saddle(
    fit: Fit, result: EMResult, tolerance: float, run_from: Callable[[dict[str, np.ndarray]], EMResult]
) -> EMResult | None:
    """What the iterations come to from beside the point where they came to rest.

    Args:
        fit: the model and all its data.
        result: where they came to rest.
        tolerance: of the fit, in nats.
        run_from: iterations from some parameters.

    Returns:
        The result of going on; with the reason ``SADDLE`` where the log-likelihood rises, but nothing leads up. None
        where it is a maximum, or where that is not looked at.
    """
    if result.stop_reason is not StopReason.CONVERGED or not _is_looked_at(result):
        return None
    local, verdict = result.accuracy.measured[0], result.accuracy.second_order
    least = result.objective + max(tolerance, 1e-9 * (1 + abs(result.objective)))

    def went_on(params: dict[str, np.ndarray], way: str) -> EMResult | None:
        after = run_from(params)
        if not after.converged and way != _ELSEWHERE:  # the way from there is long
            other = run_from(_other_start(fit))
            after, way = (other, _ELSEWHERE) if other.objective > after.objective else (after, way)
        return _continued(result, after, way) if after.objective > least else None

    upwards = verdict.upwards(max(_LEAST_PROMISE, 10 * tolerance))
    higher = way_up(fit.model, local, upwards, fit.objective, least) if len(upwards) else None
    if higher is not None:
        params, direction = higher
        return went_on(params, f"along {in_words(local, direction)}")
    # Along a flat direction the way up may be bent, as where two components are next to each other.
    for direction in [*verdict.rising, *verdict.flat][:_MOST_FLAT]:
        beside = far_along(fit.model, local, direction, fit.objective, result.objective - _MOST_LOSS)
        after = None if beside is None else went_on(beside, f"along {in_words(local, direction)}")
        if after is not None:
            return after
    if not len(verdict.rising):
        return None
    return went_on(_other_start(fit), _ELSEWHERE) or _at_a_saddle(result, in_words(local, verdict.rising[0]))


def _other_start(fit: Fit) -> dict[str, np.ndarray]:
    """Starting values of a second restart."""
    return {name: np.asarray(value[1]) for name, value in fit.compiled.start(jax.random.key(0), fit.data, 2).items()}


def _is_looked_at(result: EMResult) -> bool:
    """Whether the objective is a smooth log-likelihood, and its second derivatives take no longer than the fit."""
    model = result.fit.model
    smooth = model.objective_kind is ObjectiveKind.EXACT and not with_corners(model)
    return smooth and "noise" not in result.history and result.accuracy.is_quick


def _continued(before: EMResult, after: EMResult, direction: str) -> EMResult:
    """One result of iterations that came to rest, and went on from beside that point."""
    note = (
        f"After {before.num_iterations} iterations, at log-likelihood {before.log_likelihood:.6f}, the fit had come to "
        f"rest at a point that is no maximum; it went on {direction}."
    )
    history = dict(after.history)
    # What lay below the point that was left is no part of a history whose objective rises.
    above = after.history["objective"] >= before.objective
    for column in ("objective", "log_likelihood"):
        history[column] = np.concatenate([before.history[column], after.history[column][above]])
    best = int(np.argmax(before.history["final_objectives"] == before.objective))
    for column in ("final_objectives", "final_status"):
        history[column] = np.array(before.history[column])
        history[column][best] = after.history[column][0]
    ending = Ending(after.ending.reason, after.ending.message, [*before.ending.notes, note, *after.ending.notes])
    number = before.num_iterations + after.num_iterations
    return dataclasses.replace(after, ending=ending, history=history, num_iterations=number)


def _at_a_saddle(result: EMResult, direction: str) -> EMResult:
    message = f"{StopReason.SADDLE.message} It rises along {direction}."
    return dataclasses.replace(result, ending=Ending(StopReason.SADDLE, message, result.ending.notes))

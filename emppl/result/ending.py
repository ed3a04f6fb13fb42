"""How a fit ended, as a result: the best restart, what is said of it, and what stochastic and hard fits add."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from emppl.fit.outcome import StopReason
from emppl.fit.restarts import best_restart, collapsed_name
from emppl.program import Program
from emppl.result.components import symmetric_latent
from emppl.result.result import EMResult
from emppl.uncertainty.corners import prior_has_corners, without_corners

if TYPE_CHECKING:
    from emppl.em import EM
    from emppl.fit.loop import History, LaneState
    from emppl.montecarlo.stochastic import Simulation


def from_states(
    em: EM,
    args: tuple,
    kwargs: dict,
    program: Program,
    states: LaneState,
    history: History,
    *,
    interrupted: bool,
    accurate: bool,
    best: int | None = None,
) -> EMResult:
    """Pick the best restart and describe how it ended."""
    model = program.model
    status = np.array([StopReason(int(code)) for code in np.asarray(states.status)], dtype=object)
    if interrupted:
        status[status == StopReason.RUNNING] = StopReason.INTERRUPTED
    objective = np.asarray(states.gains.objective, dtype=float)
    best = best_restart(objective, status) if best is None else best
    good = {name: np.asarray(value)[best] for name, value in states.good_params.items()}
    params = {n: np.asarray(model.fixed[n], float) if n in model.fixed else good[n] for n in program.rules}
    reason: StopReason = status[best]
    message = reason.message
    if reason is StopReason.COLLAPSED:
        message = f"{collapsed_name(model, int(states.collapsed_at[best]))} {message}"
    rough = [*model.rough, *(name for name in model.free if prior_has_corners(model, name))]
    corners = [name for name in dict.fromkeys(rough) if not program.rules[name].exact]
    if reason is StopReason.UNFINISHED and corners:
        message = (
            "The objective no longer rises, but the density of the data or of a latent, or the prior, has corners or "
            f"jumps in {', '.join(corners)}, where no slope says how much is left to gain. Start from other values and "
            f"compare, or choose a smooth density, such as SoftLaplace or StudentT. {without_corners(model)}"
        ).rstrip()
    symmetric = symmetric_latent(program, params)
    if symmetric is not None and reason is StopReason.CONVERGED:
        reason = StopReason.SYMMETRIC
        message = f"The states of latent {symmetric!r} have equal parameters. {reason.message}"
    column = slice(None), best
    objectives = history.objective[column]
    used = ~np.isnan(objectives)
    notes = []
    if accurate:
        notes.append(
            "Components are far narrower than the data, so that the matrix-product path would lose digits: the "
            "plain path was taken."
        )
    for plate in model.trace.plates.values():
        if plate.size < plate.full_size:
            notes.append(
                f"The fit saw one fixed subsample of plate {plate.name!r}, {plate.size:,} of its {plate.full_size:,} "
                "cells, and counted each as many times as makes up for the others. Standard errors are as if all "
                "were there: leave out subsample_size to use all data."
            )
    return EMResult(
        params=params,
        log_likelihood=float(states.log_likelihood[best]),
        log_posterior=float(objective[best]),
        stop_reason=reason,
        stop_message=message,
        num_iterations=int(states.iteration[best]),
        history={
            "objective": objectives[used],
            "log_likelihood": history.log_likelihood[column][used],
            "final_objectives": objective,
            "final_status": np.array([one.name for one in status]),
        },
        notes=notes,
        em=em,
        args=args,
        kwargs=kwargs,
    )


def with_simulation(result: EMResult, simulation: Simulation, rows: list[dict]) -> EMResult:
    """The result of a stochastic fit: what it knows about its own error, and every decision it took."""
    notes = [*result.notes, *simulation.notes]
    if simulation.log_likelihood_error > 0:
        notes.append(f"Monte Carlo standard error of the log-likelihood: {simulation.log_likelihood_error:.2g}.")
    columns = {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    message = result.stop_message
    closing = simulation.closing
    if result.stop_reason is StopReason.UNMIXED and closing is not None:
        message = f"{message} {closing.mixing.words}"
    if simulation.frozen:
        message = frozen_words(simulation.frozen)
    if result.stop_reason is StopReason.MAX_ITERATIONS and simulation.errors is not None:
        message = (
            "Stopped at max_iterations before the error of the average was below the tolerance. The Monte Carlo "
            "standard errors say how far it may be off; raise max_iterations, or the tolerance."
        )
    if result.stop_reason is StopReason.CONVERGED and simulation.errors is not None:
        message = "Converged: the estimates no longer drift, and the error of their average is below the tolerance."
    return dataclasses.replace(
        result,
        history={**result.history, **columns},
        notes=notes if closing is None or closing.note is not None else [*notes, closing.words],
        stop_message=message,
        simulation=simulation,
    )


def frozen_words(frozen: Mapping[str, float]) -> str:
    """What it means that the data say next to nothing of latents beside their prior, and what to write."""
    which = ", ".join(f"{name!r} ({share:.1g})" for name, share in frozen.items())
    return (
        f"The share of a latent's information that comes from the data is next to nothing here: {which}. The rest is "
        "its prior, which is that narrow: draws of the latent repeat what the parameters were, iterations hardly "
        "move, and that they rest does not say that the maximum is near. Write the latent as a standard normal that "
        "is multiplied by its standard deviation, start from a larger one, or use Quadrature(15) or Laplace()."
    )


def classified(result: EMResult) -> EMResult:
    """The result of hard EM: what was maximised is not the log-likelihood, which is computed here."""
    value = float(result._derived.summed_log_likelihood(result._free, result._data))
    history = {**result.history, "classification": result.history["log_likelihood"]}
    del history["log_likelihood"]
    names = ", ".join(result._model.hard)
    message = result.stop_message
    if result.stop_reason is StopReason.CONVERGED and all(rule.exact for rule in result._program.blocks):
        if not result._model.integrals:  # beside those EM goes on after the last change
            message = "Converged: the assignments no longer change, and neither does the objective."
    note = (
        f"Hard(): the objective is the classification likelihood, {result.log_likelihood:.6f} at the best "
        f"assignment of {names}. The estimates do not maximise the log-likelihood and have no standard errors; "
        "with init_params=result.params and Enumerate() they are a start for maximum likelihood."
    )
    return dataclasses.replace(
        result,
        log_likelihood=value,
        log_posterior=result.log_posterior - result.log_likelihood + value,
        classification=result.log_likelihood,
        history=history,
        stop_message=message,
        notes=[*result.notes, note],
    )

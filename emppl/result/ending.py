"""From the states that a loop ended in to a result: the best restart, and in words how it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from emppl.compiled import Fit
from emppl.fit.loop import Outcome
from emppl.fit.outcome import Ending, StopReason
from emppl.fit.restarts import best_restart, collapsed_name, left_out
from emppl.model.model import Model
from emppl.montecarlo.simulation import Simulation
from emppl.numerics.rounding import MOST_NOISE
from emppl.program import Program
from emppl.result.components import symmetric_latent
from emppl.result.result import EMResult
from emppl.uncertainty.corners import with_corners, without_corners


def result_of(fit: Fit, outcome: Outcome) -> EMResult:
    """The result of a fit: that of its best restart.

    Args:
        outcome: what the loop left.
    """
    model, states, simulation = fit.model, outcome.states, outcome.simulation
    status = np.array([StopReason(int(code)) for code in np.asarray(states.status)], dtype=object)
    if outcome.interrupted:
        status[status == StopReason.RUNNING] = StopReason.INTERRUPTED
    objective = np.asarray(states.gains.objective, dtype=float)
    best = best_restart(objective, status) if outcome.best is None else outcome.best
    estimated = {name: np.asarray(value)[best] for name, value in states.good_params.items()}
    params = {
        name: np.asarray(model.fixed[name], float) if name in model.fixed else estimated[name]
        for name in fit.program.rules
    }
    ending = _ending(fit.program, params, status[best], outcome, best)
    ending.notes.extend(_notes(model, outcome.accurate))
    if simulation is None:
        ending.notes.extend(left_out(objective, status, best))
    else:
        ending = _ending_by_draws(ending, simulation)
    if model.hard:
        ending = _ending_of_assignments(ending, fit.program, float(states.log_likelihood[best]))
    history = _history(outcome, status, objective, best)
    log_likelihood, log_posterior, classification = float(states.log_likelihood[best]), float(objective[best]), None
    if model.hard:
        # What was maximised is not the log-likelihood, which is computed here.
        classification = log_likelihood
        free = {name: value for name, value in params.items() if name not in model.fixed}
        log_likelihood = float(fit.compiled.summed_log_likelihood(free, fit.data))
        log_posterior += log_likelihood - classification
        history["classification"] = history.pop("log_likelihood")
    number = int(states.iteration[best])
    result = EMResult(params, log_likelihood, log_posterior, ending, number, history, fit, simulation, classification)
    noise = float(states.gains.noise[best])
    return result if noise == 0 else dataclasses.replace(result, ending=_ending_in_noise(result, noise))


def _ending_in_noise(result: EMResult, noise: float) -> Ending:
    """The ending where rounding hides small gains: that the objective stands still is an end if the slope is zero."""
    ending, known = result.ending, f"The objective is known to {noise:.2g} nats only, because terms that are far larger"
    advice = "Centre and rescale the data: subtract a typical value, and use units in which the numbers are near one."
    notes = [*ending.notes, f"{known} than their sum cancel. {advice}"]
    if ending.reason is not StopReason.CONVERGED or not result.accuracy.is_cheap:
        return Ending(ending.reason, ending.message, notes)
    left = result.accuracy.score_norm() ** 2 / 2
    if left <= max(noise, MOST_NOISE):
        return Ending(ending.reason, ending.message, notes)
    unproved = f"the slope, over the curvature, promises {left:.2g} nats more: this is no maximum"
    if not left < _MOST_CREDIBLE:
        unproved = "its second derivatives have lost their digits as well: that this is a maximum cannot be shown"
    message = f"{known} than their sum cancel. It no longer rises by more than that, but {unproved}. {advice}"
    return Ending(StopReason.UNFINISHED, message, ending.notes)


_MOST_CREDIBLE = 1e6
"""Nats that a Newton step may promise; more comes from a curvature that is nothing but rounding."""


def _history(outcome: Outcome, status: np.ndarray, objective: np.ndarray, best: int) -> dict[str, np.ndarray]:
    objectives, log_likelihoods = (column[:, best] for column in outcome.history)
    used = ~np.isnan(objectives)
    return {
        "objective": objectives[used],
        "log_likelihood": log_likelihoods[used],
        "final_objectives": objective,
        "final_status": np.array([reason.name for reason in status]),
        **({} if outcome.simulation is None else outcome.simulation.history),
        **({"noise": noise} if (noise := np.asarray(outcome.states.gains.noise[best])) > 0 else {}),
    }


def _ending(program: Program, params: Mapping, reason: StopReason, outcome: Outcome, best: int) -> Ending:
    """Why the best restart stopped, with the names of what went wrong."""
    model, message = program.model, reason.message
    if reason is StopReason.COLLAPSED:
        message = f"{collapsed_name(model, int(outcome.states.collapsed_at[best]))} {message}"
    corners = [name for name in with_corners(model) if not program.rules[name].exact]
    if reason is StopReason.UNFINISHED and corners:
        message = (
            "The objective no longer rises, but the density of the data or of a latent, or the prior, has corners or "
            f"jumps in {', '.join(corners)}, so that the gain that is left is not known. Start from other values and "
            f"compare, or choose a smooth density, such as SoftLaplace or StudentT. {without_corners(model)}"
        ).rstrip()
    given = any(getattr(rule, "solver", None) is not None for rule in program.blocks)
    if reason is StopReason.UNFINISHED and not corners and not given and outcome.simulation is None:
        climbing = [name for name in model.free if not program.rules[name].exact]
        message = (
            f"The objective no longer rises although the slope of Q is not zero in {', '.join(climbing)}: this is no "
            "maximum. Derivatives of the density are not finite there or lose their digits, as far out in the tail of "
            "a truncated distribution, or where the model takes the logarithm of an exact zero. Start from other "
            "values, bound the parameter (a constraint, or a prior with prior=True), or write the density so that it "
            "stays accurate."
        )
    symmetric = symmetric_latent(program, params)
    if symmetric is not None and reason is StopReason.CONVERGED:
        reason = StopReason.SYMMETRIC
        message = f"The states of latent {symmetric!r} have equal parameters. {reason.message}"
    return Ending(reason, message)


def _notes(model: Model, accurate: bool) -> list[str]:
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
    return notes


def _ending_by_draws(ending: Ending, simulation: Simulation) -> Ending:
    """The ending of a stochastic fit, with its Monte Carlo errors."""
    reason, message, closing = ending.reason, ending.message, simulation.closing
    notes = [*ending.notes, *simulation.notes]
    if simulation.log_likelihood_error > 0:
        notes.append(f"Monte Carlo standard error of the log-likelihood: {simulation.log_likelihood_error:.2g}.")
    if closing is not None and closing.note is None:
        notes.append(closing.words)
    if reason is StopReason.UNMIXED and closing is not None:
        message = f"{message} {closing.mixing.words}"
    if simulation.frozen:
        message = frozen_words(simulation.frozen)
    if reason is StopReason.MAX_ITERATIONS and simulation.errors is not None:
        message = (
            "Stopped at max_iterations before the error of the average was below the tolerance. The Monte Carlo "
            "standard errors say how far it may be off; raise max_iterations, or the tolerance."
        )
    if reason is StopReason.CONVERGED and simulation.errors is not None:
        message = "Converged: the estimates no longer drift, and the error of their average is below the tolerance."
    return Ending(reason, message, notes)


def frozen_words(frozen: Mapping[str, float]) -> str:
    """Why a fit by draws stalls where data carry little information beside the prior of a latent, and the remedy."""
    which = ", ".join(f"{share:.1g} of the information about {name!r}" for name, share in frozen.items())
    return (
        f"The data carry only {which}; the rest is the prior, which is so narrow that draws reproduce the current "
        "parameters. The iterations stalled; this is not convergence. Write the latent as a standard normal that is "
        "multiplied by its standard deviation, start from a larger one, or use Quadrature(15) or Laplace()."
    )


def _ending_of_assignments(ending: Ending, program: Program, classification: float) -> Ending:
    """The ending of hard EM: its objective is not the log-likelihood."""
    message = ending.message
    if ending.reason is StopReason.CONVERGED and all(rule.exact for rule in program.blocks):
        if not program.model.integrals:  # beside those EM goes on after the last change
            message = "Converged: the assignments no longer change, and neither does the objective."
    note = (
        f"Hard(): the objective is the classification likelihood, {classification:.6f} at the best assignment of "
        f"{', '.join(program.model.hard)}. The estimates do not maximise the log-likelihood and have no standard "
        "errors; with init_params=result.params and Enumerate() they are a start for maximum likelihood."
    )
    return Ending(ending.reason, message, [*ending.notes, note])

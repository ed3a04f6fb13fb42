"""Fits by Monte Carlo, each a composition of phases, and what they know beyond their estimates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from emppl.fit.loop import Inputs, Outcome, Settings
from emppl.fit.outcome import StopReason
from emppl.montecarlo.approximation import Approximation
from emppl.montecarlo.ascent import Ascent
from emppl.montecarlo.averaging import Averaging, BurnIn
from emppl.montecarlo.closing import MOST_DIMENSIONS, Closing
from emppl.montecarlo.looks import Precision
from emppl.montecarlo.mixing import Divergences, divergences
from emppl.montecarlo.path import Path
from emppl.montecarlo.phases import Loop, Phase
from emppl.montecarlo.simulator import Problem, Simulator
from emppl.montecarlo.stochastic_em import SPREAD_SHARE, Wandering
from emppl.strategies import SAEM, Simulated, StochasticEM
from emppl.types import Data, Params

TOLERANCE = 1e-3
"""Default tolerance, in nats: an estimate is then within a twentieth of its standard error of the maximum."""

HANDOVER = 1e-2
"""Gain of one M-step, in nats, below which the closing phase does the rest: its steps do not shrink as EM's do."""

_REPLICATES = 16
"""Independent estimates of the log-likelihood."""

_SMALLEST_INFORMED_SHARE = 0.1
"""Share of a latent's information below which a gain of one M-step says little of what is left to gain."""

Evidence = Callable[[Params, Data, jax.Array], jax.Array]
"""The log-likelihood by importance sampling, compiled."""


def compose(problem: Problem, tolerance: float, max_iterations: int) -> tuple[tuple[Phase, ...], tuple[Phase, ...]]:
    """The phases of a fit: those that every restart goes through, and those of the best one after them.

    Args:
        problem: compiled steps and data.
        tolerance: in nats.
        max_iterations: most M-steps.
    """
    strategy = problem.simulator.strategy
    closes = problem.simulator.model.free_dimensions <= MOST_DIMENSIONS
    closing = (Closing(problem, math.inf, tolerance),) if closes else ()
    if isinstance(strategy, StochasticEM):
        known = float(np.sqrt(2 * tolerance / SPREAD_SHARE))  # an error of e standard errors costs e^2 / 2 nats
        burn_in, averaging = (Wandering(problem, name, max_iterations) for name in ("burn-in", "averaging"))

        def is_known(path: Path) -> bool:
            return path.trail.relative_error <= known and path.trail.is_level

        phases = BurnIn(problem, max_iterations, burn_in), Averaging(problem, max_iterations, averaging, is_known)
        return phases, ()
    if isinstance(strategy, SAEM):
        forgetting = Approximation(problem, "burn-in", decay=0.0)
        remembering = Approximation(problem, "averaging", decay=strategy.decay)

        def is_settled(path: Path) -> bool:
            # A closing phase wants to begin near the maximum; without one nothing may drift.
            return path.trail.is_level or (closes and path.trail.is_close(path.spread))

        phases = (
            BurnIn(problem, max_iterations, forgetting),
            Averaging(problem, max_iterations, remembering, is_settled),
        )
        return phases, closing
    ascent = Ascent(problem, max_iterations, tolerance)
    if closes and 0 < tolerance < HANDOVER:  # a tolerance of 0 goes on to the last iteration
        # Where the closing phase finds nothing, the ascent does what it should have done, and it tries again.
        return (Ascent(problem, max_iterations, HANDOVER),), (*closing, ascent, *closing)
    return (ascent,), closing


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What a stochastic fit knows beyond its estimates.

    Attributes:
        history: by column, one entry per M-step on draws, accepted or not.
        log_likelihood_error: Monte Carlo standard error of the log-likelihood.
        closing: errors and diagnostics of the closing phase; None if it was not reached.
        total_draws: all draws of all chains of a group.
        notes: remarks.
        divergences: trajectories of the last E-step that lost their energy, of all averaged ones in stochastic EM.
        errors: Monte Carlo standard errors of the estimates, where there is no closing phase.
        frozen: latents that the data say next to nothing of beside their prior, and the share of their information that
            is the data's: the fit could not move.
    """

    history: dict[str, np.ndarray]
    log_likelihood_error: float
    closing: Precision | None
    total_draws: int
    notes: list[str]
    divergences: Divergences
    errors: dict[str, np.ndarray] | None
    frozen: dict[str, float]


def simulate(
    simulator: Simulator,
    evidence: Evidence,
    key: jax.Array,
    starts: Mapping[str, np.ndarray],
    inputs: Inputs,
    settings: Settings,
) -> Outcome:
    """Fit from every start, and finish the best.

    Args:
        evidence: the log-likelihood by importance sampling.
        starts: starting values, a leading axis of restarts.
        inputs: what every iteration works on.
        settings: when the fit stops, and whom it tells.
    """
    problem, data, strategy = Problem(simulator, inputs.data, inputs.prepared), inputs.data, simulator.strategy
    paths = []
    for lane in range(len(next(iter(starts.values())))):
        params = {name: jnp.asarray(value[lane]) for name, value in starts.items()}
        memory = simulator.program.begin(params)
        key, own_key = jax.random.split(key)
        paths.append(Path.starting(simulator, params, memory, own_key, strategy.num_samples))
    loop = Loop(paths, settings.report, settings.checkpoint)
    search, finish = compose(problem, settings.tolerance, settings.max_iterations)
    frozen: dict[str, float] = {}
    interrupted, error = False, float("nan")
    try:
        if loop.chosen is None:
            for lane in range(len(paths)):
                loop.follow(lane, search)
                loop.save()
            if len(paths) > 1:  # the last E-step's estimate is too noisy to compare restarts by
                loop.paths = [_measured(evidence, path, data)[0] for path in loop.paths]
            loop.chosen = loop.best()
        loop.follow(loop.chosen, (*search, *finish))
        path, frozen = _examined(problem, loop.paths[loop.chosen])
        loop.paths[loop.chosen] = path  # in case the next line is interrupted
        loop.paths[loop.chosen], error = _measured(evidence, path, data)
    except KeyboardInterrupt:
        interrupted = True
    chosen = loop.best()
    path = loop.paths[chosen]
    notes, diverged = _notes(strategy, path, bool(finish), interrupted), divergences(simulator.model, path.walkers)
    simulation = Simulation(
        history=dict(path.history),
        log_likelihood_error=error,
        closing=path.closing,
        total_draws=path.total_draws * strategy.num_chains,
        notes=notes if diverged.words is None else [*notes, diverged.words],
        divergences=diverged,
        errors=_errors(path, bool(frozen)) if isinstance(strategy, StochasticEM) else None,
        frozen=frozen,
    )
    return Outcome(loop.states(), loop.history(), interrupted, best=chosen, simulation=simulation)


def _measured(evidence: Evidence, path: Path, data: Data) -> tuple[Path, float]:
    """With the mean of independent estimates, corrected for the bias of the logarithm; and its standard error."""
    estimates = np.zeros(_REPLICATES)
    for replicate in range(_REPLICATES):
        path, key = path.split()
        estimates[replicate] = evidence(path.params, data, key)
    variance = estimates.var(ddof=1)
    value = float(estimates.mean() + variance / 2)
    objective = path.objective + (value - path.log_likelihood)
    return path._replace(objective=objective, log_likelihood=value), float(np.sqrt(variance / _REPLICATES))


def _examined(problem: Problem, path: Path) -> tuple[Path, dict[str, float]]:
    """The path with the status that it deserves, and latents of which the data say too little for it to have moved."""
    simulator, data, _ = problem
    frozen = {}
    is_stochastic = isinstance(simulator.strategy, StochasticEM)
    is_unaided = path.closing is not None and path.closing.note is not None
    if path.status is StopReason.CONVERGED and (is_stochastic or is_unaided):
        # The autocorrelation time is EM's; an average of n iterations needs an information share above 1/n.
        least = 1 / len(path.trail.values) if is_stochastic else _SMALLEST_INFORMED_SHARE
        shares = jax.device_get(simulator.informed_shares(path.params, data))
        frozen = {name: float(share) for name, share in shares.items() if share < least}
    if frozen or (path.closing is not None and path.closing.mixing.is_poor):
        path = path._replace(status=StopReason.UNMIXED)
    return path, frozen


def _notes(strategy: Simulated, path: Path, closes: bool, interrupted: bool) -> list[str]:
    """Remarks on how the estimates came about."""
    if isinstance(strategy, StochasticEM):
        return [] if interrupted else [_words(path)]
    if path.closing is not None and path.closing.note is not None:
        return [path.closing.note]
    if closes or path.status not in (StopReason.CONVERGED, StopReason.NOISY):
        return []
    reason = f"The model has more than {MOST_DIMENSIONS} free dimensions"
    return [f"{reason}: no closing phase, and no Monte Carlo standard errors."]


def _words(path: Path) -> str:
    """What the estimates of stochastic EM are."""
    burn_in = int(np.sum(path.history["decision"] == "burn-in"))
    if path.phase == 0:
        return f"Stochastic EM: the estimates are those of the last of {burn_in} iterations, which still drifted."
    return (
        f"Stochastic EM: the estimates are the average of {len(path.trail.values)} iterations after {burn_in} of "
        "burn-in (Monte Carlo standard errors: result.monte_carlo_errors). It differs from the maximum of the "
        "likelihood by a share of the standard errors that vanishes as data grow."
    )


def _errors(path: Path, is_frozen: bool) -> dict[str, np.ndarray] | None:
    """Monte Carlo standard errors of averaged estimates; NaN where iterations hardly moved, None before averaging."""
    if path.phase == 0 or not len(path.trail.values):
        return None
    errors = path.trail.errors(path.params)
    return {name: np.full_like(error, np.nan) for name, error in errors.items()} if is_frozen else errors

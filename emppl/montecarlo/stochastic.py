"""A fit by Monte Carlo: restarts one after the other, then the closing phase and the log-likelihood of the best one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.checkpoint.file import Checkpoint
from emppl.fit.convergence import Gains
from emppl.fit.loop import History, LaneState
from emppl.fit.outcome import StopReason
from emppl.fit.restarts import best_restart
from emppl.montecarlo.ascent import climb
from emppl.montecarlo.averaging import average
from emppl.montecarlo.closing import MOST_DIMENSIONS, Closing, close
from emppl.montecarlo.mixing import Divergences, divergences
from emppl.montecarlo.path import Path
from emppl.montecarlo.simulator import Simulator
from emppl.montecarlo.stochastic_em import wander
from emppl.strategies import SAEM, MonteCarlo, StochasticEM

TOLERANCE = 1e-3
"""Default tolerance, in nats: an estimate is then within a twentieth of its standard error of the maximum."""

HANDOVER = 1e-2
"""Gain of one M-step, in nats, below which the closing phase does the rest: its steps do not shrink as EM's do."""

_REPLICATES = 16

_HARDLY = 0.1
"""Share of a latent's information below which a gain of one M-step says little of what is left to gain."""

_ENDED = (StopReason.CONVERGED, StopReason.NOISY)
"""How an ascent or an average ends that a closing phase may follow."""

_CHOSEN = "chosen"
"""Name of the number of the best restart, in checkpoints."""


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What a stochastic fit knows beyond its estimates.

    Attributes:
        strategy: its options.
        log_likelihood: estimate of the log-likelihood, by importance sampling.
        log_likelihood_error: its Monte Carlo standard error.
        closing: errors and diagnostics of the closing phase; None if it was not reached.
        total_draws: all draws of all chains of a group.
        notes: remarks.
        divergences: trajectories of the last E-step that lost their energy, of all averaged ones in stochastic EM.
        errors: Monte Carlo standard errors of the estimates, where there is no closing phase.
        frozen: latents that the data say next to nothing of beside their prior, and the share of their information that
            is the data's: the fit could not move.
    """

    strategy: Any
    log_likelihood: float
    log_likelihood_error: float
    closing: Closing | None
    total_draws: int
    notes: list[str]
    divergences: Divergences
    errors: dict[str, np.ndarray] | None = None
    frozen: dict[str, float] = dataclasses.field(default_factory=dict)


def run(
    simulator: Simulator,
    evidence,
    key,
    params,
    data,
    prepared,
    tolerance,
    max_iterations,
    report,
    checkpoint: Checkpoint | None = None,
):
    """Fit from every start, and close at the best.

    Args:
        simulator: compiled steps.
        evidence: ``(params, data, key) -> log-likelihood`` by importance sampling, compiled.
        key: random key.
        params: starting values, a leading axis of restarts.
        data: arrays of the model's arguments.
        prepared: their statistics.
        tolerance: in nats.
        max_iterations: most M-steps of every restart.
        report: called with the states of all restarts after every M-step.
        checkpoint: where the state is kept, and taken from if there is one.

    Returns:
        ``(states, history, rows, simulation, interrupted, index of the best restart)``.
    """
    model = simulator.model
    lanes = len(next(iter(params.values())))
    paths = []
    for lane in range(lanes):
        start = {name: jnp.asarray(value[lane]) for name, value in params.items()}
        memory = simulator.program.begin(start)
        key, mine = jax.random.split(key)
        paths.append(Path(start, simulator.begin(), memory, mine, simulator.strategy.num_samples))

    chosen: int | None = None
    saved = None if checkpoint is None else checkpoint.load()
    if saved is not None:
        for lane, path in enumerate(paths):
            mark = f"{lane}/"
            path.restore({n.removeprefix(mark): one for n, one in saved.items() if n.startswith(mark)})
        chosen = int(saved[_CHOSEN]) if _CHOSEN in saved else None

    def show(_path):
        report(_states(paths))

    def state():
        found = {f"{lane}/{name}": one for lane, path in enumerate(paths) for name, one in path.state().items()}
        return found if chosen is None else {**found, _CHOSEN: np.array(chosen)}

    def keep():
        if checkpoint is not None:
            checkpoint.save_at_times(state)

    closing, interrupted, notes = None, False, []
    frozen: dict[str, float] = {}
    closes = model.free_dimensions <= MOST_DIMENSIONS and not isinstance(simulator.strategy, StochasticEM)
    rough = max(tolerance, HANDOVER) if tolerance and closes else tolerance  # 0 goes on to the last iteration
    value, error = float("nan"), float("nan")
    try:
        if chosen is None:
            for path in paths:
                if isinstance(simulator.strategy, StochasticEM):
                    wander(simulator, path, data, prepared, tolerance, max_iterations, show, keep)
                elif isinstance(simulator.strategy, SAEM):
                    average(simulator, path, data, prepared, max_iterations, closes, show, keep)
                else:
                    climb(simulator, path, data, prepared, rough, max_iterations, show, keep)
                if checkpoint is not None:
                    checkpoint.save(state())
            if lanes > 1:  # the last E-step's estimate is too noisy to compare restarts by
                for path in paths:
                    value, error = _log_likelihood(evidence, path, data)
                    path.objective, path.log_likelihood = path.objective + value - path.log_likelihood, value
            chosen = _best(paths)
        best = paths[chosen]
        if isinstance(simulator.strategy, StochasticEM):
            notes.append(_words(best))
            if best.status is StopReason.CONVERGED:
                # Iterations forget where they were as fast as EM moves: too slowly for an average of so many.
                frozen = _frozen(simulator, best, data, 1 / len(best.trail.values))
        elif closes:
            closing = _finish(simulator, best, data, prepared, tolerance, rough, max_iterations, show, keep)
        elif best.status in _ENDED:
            notes.append(
                f"The model has more than {MOST_DIMENSIONS} free dimensions: no closing phase, and no Monte Carlo "
                "standard errors."
            )
        if closing is not None and closing.note is not None:
            notes.append(closing.note)
            if best.status is StopReason.CONVERGED:
                frozen = _frozen(simulator, best, data, _HARDLY)
        if closing is not None and closing.mixing.is_poor:
            best.status = StopReason.UNMIXED
        value, error = _log_likelihood(evidence, best, data)
        best.objective += value - best.log_likelihood
        best.log_likelihood = value
    except KeyboardInterrupt:
        interrupted = True
    # The restart that was closed stays the one, whatever noise says afterwards.
    chosen = _best(paths) if chosen is None else chosen
    best = paths[chosen]
    diverged = divergences(model, best.chains)
    if diverged.words is not None:
        notes.append(diverged.words)
    draws = best.total_draws * simulator.strategy.num_chains
    simulation = Simulation(simulator.strategy, value, error, closing, draws, notes, diverged, best.errors, frozen)
    return _states(paths), _history(paths), best.rows, simulation, interrupted, chosen


def _frozen(simulator: Simulator, path: Path, data, least: float) -> dict[str, float]:
    """Latents that are informed by less than a share, where the path ends as not mixed: it could not move."""
    shares = jax.device_get(simulator.informed_shares(path.params, data))
    found = {name: float(one) for name, one in shares.items() if one < least}
    if found:
        path.status = StopReason.UNMIXED
        if path.errors is not None:
            path.errors = {name: np.full_like(one, np.nan) for name, one in path.errors.items()}
    return found


def _finish(
    simulator: Simulator, path: Path, data, prepared, tolerance, rough, max_iterations, show, keep
) -> Closing | None:
    """The closing phase; where it finds nothing, the ascent does what it should have done, and it tries again.

    Returns:
        What was found; None where the ascent came to no end.
    """
    if not path.unaided:
        if path.status not in _ENDED:
            return None
        closing = close(simulator, path, data, tolerance, show, keep)
        if closing.note is None or not isinstance(simulator.strategy, MonteCarlo) or rough <= tolerance:
            return closing
        path.status, path.looks, path.unaided = StopReason.RUNNING, None, True
    climb(simulator, path, data, prepared, tolerance, max_iterations, show, keep)
    return close(simulator, path, data, tolerance, show, keep) if path.status in _ENDED else None


def _words(path: Path) -> str:
    """What the estimates of stochastic EM are."""
    burn_in = sum(row["decision"] == "burn-in" for row in path.rows)
    if path.phase == "burn-in":
        return f"Stochastic EM: the estimates are those of the last of {burn_in} iterations, which still drifted."
    return (
        f"Stochastic EM: the estimates are the average of {len(path.trail.values)} iterations after {burn_in} of "
        "burn-in (Monte Carlo standard errors: result.monte_carlo_errors). It differs from the maximum of the "
        "likelihood by a share of the standard errors that vanishes as data grow."
    )


def _best(paths: list[Path]) -> int:
    return best_restart(np.array([path.objective for path in paths]), np.array([path.status for path in paths]))


def _log_likelihood(evidence, path: Path, data) -> tuple[float, float]:
    """Mean of independent estimates, corrected for the bias of the logarithm, and its standard error."""
    found = np.array([float(evidence(path.params, data, path.split())) for _ in range(_REPLICATES)])
    spread = found.var(ddof=1)
    return float(found.mean() + spread / 2), float(np.sqrt(spread / _REPLICATES))


def _states(paths: list[Path]) -> LaneState:
    """The restarts in the form that results are made of."""
    lanes = len(paths)
    params = {name: np.stack([np.asarray(path.params[name]) for path in paths]) for name in paths[0].params}
    progress = Gains.beginning(lanes, float)._replace(objective=np.array([path.objective for path in paths]))
    none = np.zeros(lanes, bool)
    return LaneState(
        params,
        params,
        progress,
        np.array([path.log_likelihood for path in paths]),
        np.array([path.iteration for path in paths]),
        np.array([path.status.value for path in paths]),
        np.full(lanes, -1),
        np.zeros(lanes),
        none,
        {},
        {},
    )


def _history(paths: list[Path]) -> History:
    length = max(len(path.rows) for path in paths)
    columns = {}
    for name in ("objective", "log_likelihood"):
        table = np.full((length, len(paths)), np.nan)
        for lane, path in enumerate(paths):
            table[: len(path.rows), lane] = [row[name] for row in path.rows]
        columns[name] = table
    return History(columns["objective"], columns["log_likelihood"])

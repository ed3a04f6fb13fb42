"""The EM loop: jitted blocks of iterations inside a plain Python loop, all restarts in one vmap."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep
from emppl.checkpoint.file import Checkpoint, flattened, restored
from emppl.fit.acceleration import Leaping, leap
from emppl.fit.convergence import MOST_STALLS, Gains, convergence_test, needs_rise
from emppl.fit.falls import without_rounded_falls
from emppl.fit.outcome import StopReason
from emppl.fit.restarts import watched_sites
from emppl.model.model import Model
from emppl.model.natural import scale_floor
from emppl.program import Program
from emppl.types import Data, Params

_BUFFER = 256
"""Most iterations of one block."""
_SECONDS_PER_BLOCK = 0.5


class LaneState(NamedTuple):
    """State of one restart (or of all, with a leading axis).

    ``params`` are to be evaluated next; ``good_params`` were, with ``gains.objective`` and ``log_likelihood``.
    ``unfinished``: whether an inner iteration of the M-step that gave ``params`` stopped short. ``memory`` is what
    M-step rules keep for the next one (the state of an optimiser). ``centers``: where the atoms of integrated latents
    were. ``leaping``: place in the cycle of an accelerated fit; None without acceleration.
    """

    params: Any
    good_params: Any
    gains: Gains
    log_likelihood: Any
    iteration: Any
    status: Any
    collapsed_at: Any
    rounding: Any
    unfinished: Any
    memory: Any
    centers: Any
    leaping: Leaping | None = None


class History(NamedTuple):
    """Objective and log-likelihood of every E-step, one row per iteration, one column per restart."""

    objective: np.ndarray
    log_likelihood: np.ndarray


class Inputs(NamedTuple):
    """What every iteration works on: arrays of the model's arguments, and their statistics by site."""

    data: Any
    prepared: Any


class Settings(NamedTuple):
    """When a loop stops, and what it reports and saves.

    Attributes:
        tolerance: in nats, on the estimated remaining gain.
        max_iterations: most M-steps.
        report: called with the states after each block, for the progress bar.
        checkpoint: where the state is kept, and taken from if there is one.
    """

    tolerance: float
    max_iterations: int
    report: Callable[[LaneState], None]
    checkpoint: Checkpoint | None = None


class Outcome(NamedTuple):
    """The outcome of a loop.

    Attributes:
        states: all restarts.
        history: objective and log-likelihood of every E-step.
        interrupted: whether the user stopped it.
        accurate: whether the accurate path was taken.
        best: the restart that is the result; None for the best by objective.
        simulation: the Monte Carlo error of a stochastic fit.
    """

    states: LaneState
    history: History
    interrupted: bool
    accurate: bool = False
    best: int | None = None
    simulation: Any = None


def initial_states(
    model: Model, params: dict[str, np.ndarray], memory: Any, lanes: int, dtype: Any, accelerate: bool = False
) -> LaneState:
    """State of all restarts before the first E-step, made on the host (nothing to compile)."""
    number = np.zeros(lanes, np.int32)
    lowest = np.full(lanes, -np.inf, dtype)
    zero = np.zeros(lanes, dtype)
    no = np.zeros(lanes, bool)
    beginning = Gains.beginning(lanes, dtype)
    centers = {
        integral.axis: np.full((lanes, integral.groups, integral.dimensions), np.nan, dtype)
        for integral in model.integrals
    }
    leaping = Leaping.beginning(params, lanes, dtype) if accelerate else None
    return LaneState(params, params, beginning, lowest, number, number, number - 1, zero, no, memory, centers, leaping)


def limits(tolerance: float, max_iterations: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scalar arguments of a block, with the types it is compiled for."""
    return (
        np.asarray(tolerance, jnp.result_type(float)),
        np.asarray(max_iterations, np.int32),
        np.asarray(block, np.int32),
    )


def make_iteration(program: Program, accurate: bool, condense: Callable | None = None) -> Callable:
    """One EM iteration: E-step, convergence test, M-step.

    Args:
        accurate: take the plain path, with statistics centred at each component.
        condense: ``(params, data) -> (program, expectations, prepared, data)``, an E-step whose M-step comes to the
            same on fewer data; None for the whole.

    Returns:
        ``iterate(state, data, prepared, tolerance, max_iterations) -> state``.
    """
    model = program.model
    judge = convergence_test(model.objective_kind)

    def expectations(
        params: Params, data: Data, prepared: Mapping[str, Any], guesses: Mapping[str, jax.Array]
    ) -> tuple[Program, Any, Mapping[str, Any], Data]:
        if condense is not None:
            return condense(params, data)
        if accurate:
            posterior = estep.e_step(model, params, data)
            return program, *estep.from_posterior(model, params, posterior, data, local=True), data
        return program, estep.expectations(model, program.fused, params, data, prepared, guesses), prepared, data

    def iterate(
        state: LaneState, data: Data, prepared: Mapping[str, Any], tolerance: jax.Array, max_iterations: jax.Array
    ) -> LaneState:
        floor, where = smallest_scale(model, state.params, data, prepared, accurate)
        m_step_program, expected, prepared, m_step_data = expectations(state.params, data, prepared, state.centers)
        objective = expected.log_likelihood + model.log_prior(state.params, data)
        collapsed = ~(floor >= 1) & (state.iteration > 0)
        finite = jnp.isfinite(objective)
        step = m_step_program.maximise(state.params, expected, m_step_data, prepared, state.memory)
        rise = step.rise(state.params) if needs_rise(model.objective_kind) else state.gains.rise
        after_step, leaping, failed = step.params, None, jnp.asarray(False)
        if state.leaping is None:
            judgement = judge(objective, state.gains, state.iteration, expected.rounding, tolerance)
        else:
            after_step, leaping, failed, judgement = leap(
                model, state.leaping, state.params, step.params, objective, state.gains, expected.rounding, tolerance
            )
            # A leap that fails is taken back, whatever is wrong with it.
            finite, collapsed = finite | failed, collapsed & ~failed
        good = finite & ~judgement.decreased & ~collapsed & ~failed
        # Gains that shrink because an inner iteration stops short do not count as convergence.
        converged = judgement.converged & ~state.unfinished
        unfinished = judgement.converged & state.unfinished & (judgement.gains.stalls >= MOST_STALLS)
        capped = state.iteration >= max_iterations
        status = _status(collapsed, ~finite, judgement.decreased, converged, unfinished, capped)
        running = status == StopReason.RUNNING.value
        if not accurate:
            # Too much rounding: leave the lane as it was; the host goes on with the accurate path.
            unsafe = expected.amplification > rounding_limit(objective.dtype)
            paused = state._replace(rounding=expected.amplification)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), state.params, state.good_params)
        after = LaneState(
            jax.tree.map(lambda new, old: jnp.where(running, new, old), after_step, state.params),
            kept,
            judgement.gains._replace(objective=jnp.where(good, objective, state.gains.objective), rise=rise),
            jnp.where(good, expected.log_likelihood, state.log_likelihood),
            state.iteration + running.astype(state.iteration.dtype),
            status.astype(state.status.dtype),
            jnp.where(collapsed, where, state.collapsed_at).astype(state.collapsed_at.dtype),
            expected.amplification,
            step.unfinished,
            jax.tree.map(lambda new, old: jnp.where(running, new, old), step.memory, state.memory),
            jax.tree.map(lambda new, old: jnp.where(failed, old, new), expected.centers, state.centers),
            leaping,
        )
        if accurate:
            return after
        return jax.tree.map(lambda old, new: jnp.where(unsafe, old, new), paused, after)

    return iterate


def _status(*conditions: jax.Array) -> jax.Array:
    """The code of the first reason to stop that holds, in the order of the arguments."""
    reasons = (
        StopReason.COLLAPSED,
        StopReason.NOT_FINITE,
        StopReason.DECREASED,
        StopReason.CONVERGED,
        StopReason.UNFINISHED,
        StopReason.MAX_ITERATIONS,
    )
    return jnp.select(list(conditions), [reason.value for reason in reasons], StopReason.RUNNING.value)


def rounding_limit(dtype: Any) -> float:
    """Amplification from which the matrix-product path would lose digits that a log-likelihood needs."""
    return 1e7 if jnp.dtype(dtype) == jnp.float64 else 1e6


def make_block(iterate: Callable) -> Callable:
    """A jitted block: up to ``limit`` iterations of all restarts; finished ones are frozen.

    Returns:
        ``block(states, data, prepared, tolerance, max_iterations, limit) -> (states, objectives, log_likelihoods)``,
        where the buffers hold NaN for iterations that a restart did not make.
    """

    def block(
        states: LaneState,
        data: Data,
        prepared: Mapping[str, Any],
        tolerance: jax.Array,
        max_iterations: jax.Array,
        limit: jax.Array,
    ) -> tuple[LaneState, jax.Array, jax.Array]:
        lanes = states.status.shape[0]

        def advance(state: LaneState) -> LaneState:
            after = iterate(state, data, prepared, tolerance, max_iterations)
            frozen = state.status != StopReason.RUNNING.value
            return jax.tree.map(lambda old, new: jnp.where(frozen, old, new), state, after)

        # One lane without the batch axis: a batched matrix product would miss the fast kernel.
        step = jax.vmap(advance) if lanes > 1 else _single(advance)
        empty = jnp.full((_BUFFER, lanes), jnp.nan, states.gains.objective.dtype)

        def keep_going(carry: tuple) -> jax.Array:
            states, _, _, number = carry
            running = states.status == StopReason.RUNNING.value
            unsafe = running & (states.rounding > rounding_limit(states.gains.objective.dtype))
            return (number < limit) & jnp.any(running) & ~jnp.any(unsafe)

        def body(carry: tuple) -> tuple:
            states, objectives, log_likelihoods, number = carry
            running = states.status == StopReason.RUNNING.value
            states = step(states)
            live = running & ~(states.rounding > rounding_limit(states.gains.objective.dtype))
            row = lambda value: jnp.where(live, value, jnp.nan)  # noqa: E731
            return (
                states,
                objectives.at[number].set(row(states.gains.objective)),
                log_likelihoods.at[number].set(row(states.log_likelihood)),
                number + 1,
            )

        states, objectives, log_likelihoods, _ = jax.lax.while_loop(
            keep_going, body, (states, empty, empty, jnp.zeros_like(limit))
        )
        return states, objectives, log_likelihoods

    return jax.jit(block)


def _single(advance: Callable) -> Callable[[LaneState], LaneState]:
    def step(states: LaneState) -> LaneState:
        state = jax.tree.map(lambda leaf: leaf[0], states)
        return jax.tree.map(lambda leaf: leaf[None], advance(state))

    return step


def smallest_scale(
    model: Model, params: Params, data: Data, prepared: Mapping[str, Any], accurate: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Smallest spread of any component, and its flat position over all watched sites.

    In units of the narrowest spread that it may have: a component has collapsed below 1. Sums of statistics tell
    components apart down to the root of the precision; what has no statistics, or has them centred at each component,
    is exact.

    Args:
        prepared: statistics by site.
        accurate: whether the statistics are centred at each component.
    """
    watched = watched_sites(model)
    fields = {True: ("arguments",), False: ("arguments", "value", "mask", "distribution")}
    wanted = frozenset((name, field) for name, factor in watched for field in fields[factor.is_exponential])
    arrays = model.evaluate(params, data, wanted)
    floors = []
    for _, factor in watched:
        spreads = scale_floor(factor, arrays, prepared).ravel()
        eps = jnp.finfo(spreads.dtype).eps
        floors.append(spreads / (16 * eps if accurate or not factor.is_exponential else 4 * jnp.sqrt(eps)))
    if not floors:
        return jnp.asarray(1.0), jnp.asarray(-1)
    scales = jnp.concatenate(floors)
    scales = jnp.where(jnp.isnan(scales), 0, scales)
    return jnp.min(scales), jnp.argmin(scales)


def too_much_rounding(states: LaneState) -> bool:
    """Whether the fast path has stopped because it would lose too many digits."""
    live = np.asarray(states.status) == StopReason.RUNNING.value
    return bool(np.any(live & (np.asarray(states.rounding) > rounding_limit(states.gains.objective.dtype))))


def run_blocks(blocks: Callable[[bool], Callable], states: LaneState, inputs: Inputs, settings: Settings) -> Outcome:
    """Run blocks until every restart has stopped, or the user interrupts.

    Args:
        blocks: gives the compiled block, for the fast path (``False``) or the accurate one (``True``).
        states: all restarts.
        inputs: what every block works on.
        settings: when to stop, and what to report and save.

    Returns:
        The states that the restarts ended in.
    """
    objectives, log_likelihoods = [], []
    accurate, interrupted = False, False
    limit = min(32, _BUFFER)
    checkpoint = settings.checkpoint
    saved = None if checkpoint is None else checkpoint.load()
    if saved is not None:
        states, accurate = restored("states", saved, states), bool(saved["accurate"])
        objectives, log_likelihoods = [saved["objectives"]], [saved["log_likelihoods"]]
        settings.report(states)

    def state() -> dict[str, Any]:
        history = {"objectives": np.concatenate(objectives), "log_likelihoods": np.concatenate(log_likelihoods)}
        return {**flattened("states", states), **history, "accurate": accurate}

    try:
        while np.any(np.asarray(states.status) == StopReason.RUNNING.value):
            began = time.perf_counter()
            after, objective, log_likelihood = blocks(accurate)(
                states, *inputs, *limits(settings.tolerance, settings.max_iterations, limit)
            )
            if too_much_rounding(after):
                accurate = True
                after = after._replace(rounding=np.zeros_like(after.rounding))
            evaluate = functools.partial(_evaluate, blocks(accurate), inputs)
            states = without_rounded_falls(after, evaluate)
            objectives.append(np.asarray(objective))
            log_likelihoods.append(np.asarray(log_likelihood))
            settings.report(states)
            if checkpoint is not None:
                checkpoint.save_at_times(state)
            seconds = time.perf_counter() - began
            limit = int(np.clip(limit * _SECONDS_PER_BLOCK / max(seconds, 1e-3), 1, _BUFFER))
        if checkpoint is not None and objectives:
            checkpoint.save(state())
    except KeyboardInterrupt:
        interrupted = True
    return Outcome(jax.device_get(states), _history(objectives, log_likelihoods, states), interrupted, accurate)


def _evaluate(block: Callable, inputs: Inputs, states: LaneState) -> np.ndarray:
    """The objective of every restart at its parameters, NaN where it is not finite or a component has collapsed."""
    _, objectives, _ = block(states, *inputs, *limits(0.0, np.iinfo(np.int32).max, 1))
    return np.asarray(objectives[0])


def _history(objectives: list[np.ndarray], log_likelihoods: list[np.ndarray], states: LaneState) -> History:
    if not objectives:
        empty = np.zeros((0, np.asarray(states.status).shape[0]))
        return History(empty, empty)
    rows = np.concatenate(objectives), np.concatenate(log_likelihoods)
    used = ~np.all(np.isnan(rows[0]), axis=1)
    return History(rows[0][used], rows[1][used])

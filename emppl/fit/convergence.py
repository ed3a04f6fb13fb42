"""When a fit has converged: one test for each kind of objective, chosen in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl.strategies import ObjectiveKind


class Gains(NamedTuple):
    """The state that one convergence test hands to the next.

    Attributes:
        objective: log-likelihood plus log prior of the last good iteration, in nats.
        gain: its rise, in nats.
        ratio: the gain divided by the one before.
        near: whether the gain that was left is below the tolerance.
        stalls: number of successive gains that are only rounding.
        highest: highest objective so far, in nats.
        level: the objective when it last rose by more than rounding, in nats.
        idle: number of iterations since then.
        rise: by how much the M-step before raised Q plus the log prior, in nats; only where the test needs it.
        noise: rounding error of the objective, in nats, as measured where it seemed to fall; zero before that.
    """

    objective: Any
    gain: Any
    ratio: Any
    near: Any
    stalls: Any
    highest: Any
    level: Any
    idle: Any
    rise: Any
    noise: Any

    @classmethod
    def beginning(cls, lanes: int, dtype: Any) -> Gains:
        """Before the first E-step of every restart, on the host."""
        zero = np.zeros(lanes, dtype)
        no = np.zeros(lanes, bool)
        none, low, high = np.zeros(lanes, np.int32), zero - np.inf, zero + np.inf
        return cls(low, high, zero, no, none, low, low, none, high, zero)


class Judgement(NamedTuple):
    """The verdict of a convergence test on one iteration.

    Attributes:
        converged: whether the gain that is left is below the tolerance.
        decreased: whether the objective fell by more than rounding.
        gains: what the next test needs to know.
    """

    converged: jax.Array
    decreased: jax.Array
    gains: Gains


def convergence_test(kind: ObjectiveKind) -> Callable[..., Judgement]:
    """The test for a kind of objective.

    Returns:
        ``test(objective, gains, iteration, amplification, tolerance) -> Judgement``.
    """
    return _TESTS[kind]


def needs_rise(kind: ObjectiveKind) -> bool:
    """Whether the test asks by how much the M-step before raised Q."""
    return kind not in (ObjectiveKind.EXACT, ObjectiveKind.CLASSIFICATION)


def _exact(
    objective: jax.Array, gains: Gains, iteration: jax.Array, amplification: jax.Array, tolerance: jax.Array | float
) -> Judgement:
    """The test of an exact objective, which EM cannot lower: its gains predict what is left to come.

    Args:
        objective: log-likelihood plus log prior, in nats.
        gains: what the test before this one left.
        iteration: number of M-steps made.
        amplification: how much larger than the log-probabilities the terms are that were added up.
        tolerance: in nats, on the gain that is left.

    Returns:
        The judgement.
    """
    gain = objective - gains.objective
    rounding = rounding_of(objective, amplification) + gains.noise
    decreased = jnp.isfinite(objective) & (gain < -rounding)
    # Sums in another order jitter by more than single gains at the end: what counts is the rise of many together.
    rose = objective > gains.level + rounding_of(objective, 0.0) + gains.noise
    idle = jnp.where(rose, 0, gains.idle + 1).astype(gains.idle.dtype)
    converged, after = _settled(
        objective, gain, gains, iteration, tolerance, jnp.abs(gain), idle >= _MOST_IDLE_ITERATIONS
    )
    after = after._replace(level=jnp.where(rose, objective, gains.level), idle=idle)
    return Judgement(converged, decreased, after)


def _classified(
    objective: jax.Array, gains: Gains, iteration: jax.Array, amplification: jax.Array, tolerance: jax.Array | float
) -> Judgement:
    """The test of a classification likelihood: assignments are finitely many, and each has one best objective.

    Where the objective stands still, the assignments do: an M-step of closed forms maps equal assignments to equal
    parameters, to the last bit. Where it only raises Q, the gains shrink as those of any EM.
    """
    judgement = _exact(objective, gains, iteration, amplification, tolerance)
    still = jnp.isfinite(objective) & (objective == gains.objective)
    return judgement._replace(converged=judgement.converged | still)


def _approximate(drift: float) -> Callable[..., Judgement]:
    """The test where an approximation takes the place of the log-likelihood.

    Its error moves with the parameters, so that EM need not raise it, and comes to rest at a fixed point of the
    iterations, not at its maximum. What the M-step does raise is Q, exactly, whatever the atoms and their weights are:
    the rise of Q is half the squared length of the step in the metric of the complete-data information, falls to zero
    at the fixed point and nowhere else, and is judged as the gain of an exact objective is.

    A rise below zero is a defect, as a fall of an exact objective is. So is a fall of the objective by more than the
    approximation may be wrong.

    Args:
        drift: how far the objective may fall below its highest value, relative to its size.
    """

    def test(
        objective: jax.Array, gains: Gains, iteration: jax.Array, amplification: jax.Array, tolerance: jax.Array | float
    ) -> Judgement:
        size, rise = 1 + jnp.abs(objective), gains.rise
        highest = jnp.maximum(gains.highest, jnp.where(jnp.isfinite(objective), objective, -jnp.inf))
        rounding = rounding_of(objective, amplification) + gains.noise
        lowered = (rise < -rounding) | (highest - objective > drift * size)
        decreased = jnp.isfinite(objective) & lowered
        converged, after = _settled(objective, rise, gains, iteration, tolerance, jnp.abs(rise))
        return Judgement(converged, decreased, after._replace(highest=highest))

    return test


def rounding_of(objective: jax.Array, amplification: jax.Array | float) -> jax.Array:
    """Rounding error of an objective that can be told from its own size and that of matrix products, in nats."""
    eps = jnp.finfo(objective.dtype).eps
    return 256 * eps * (1 + jnp.abs(objective)) + eps * amplification


def _settled(
    objective: jax.Array,
    gain: jax.Array,
    gains: Gains,
    iteration: jax.Array,
    tolerance: jax.Array | float,
    change: jax.Array,
    idle: jax.Array | bool = False,
) -> tuple[jax.Array, Gains]:
    """Aitken's rule: gains that shrink by the factor ``ratio`` leave ``gain * ratio / (1 - ratio)`` to come.

    The rule holds once the ratio has settled. While a fast change still hides slower ones (leaving a nearly symmetric
    start) it promises too little, so it must hold twice, with nearly one ratio.
    """
    eps = jnp.finfo(objective.dtype).eps
    stalls = jnp.where(change <= 8 * eps * (1 + jnp.abs(objective)), gains.stalls + 1, jnp.zeros_like(gains.stalls))
    stalls = jnp.where(idle, MOST_STALLS, stalls).astype(gains.stalls.dtype)
    ratio = gain / gains.gain
    shrinking = (ratio > 0) & (ratio < 1) & (iteration >= 2)
    remaining = jnp.where(shrinking, gain * ratio / jnp.where(shrinking, 1 - ratio, 1), jnp.inf)
    near = remaining <= tolerance
    settled = near & gains.near & (jnp.abs(ratio - gains.ratio) <= _MOST_RATIO_DIFFERENCE)
    converged = jnp.isfinite(objective) & (settled | (stalls >= MOST_STALLS))
    return converged, gains._replace(objective=objective, gain=gain, ratio=ratio, near=near, stalls=stalls)


MOST_STALLS = 3
"""Successive gains below 8 units of rounding after which the objective stands still."""

_MOST_IDLE_ITERATIONS = 32
"""Iterations whose gains together stay below 256 units of rounding, after which the objective stands still."""

_MOST_RATIO_DIFFERENCE = 0.1
"""Largest difference of two successive ratios of gains that count as settled."""

_TESTS = {
    ObjectiveKind.EXACT: _exact,
    ObjectiveKind.CLASSIFICATION: _classified,
    ObjectiveKind.QUADRATURE: _approximate(1e-3),
    ObjectiveKind.APPROXIMATE: _approximate(1e-2),
}

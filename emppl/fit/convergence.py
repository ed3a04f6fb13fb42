"""When a fit has converged: one test for each kind of evidence, chosen in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl.strategies import Evidence


class Progress(NamedTuple):
    """What one test leaves for the next.

    Attributes:
        objective: log-likelihood plus log prior of the last good iteration, in nats.
        gain: its rise, in nats.
        ratio: the gain divided by the one before.
        near: was the gain that is left below the tolerance?
        stalls: number of successive gains that are only rounding.
    """

    objective: Any
    gain: Any
    ratio: Any
    near: Any
    stalls: Any

    @classmethod
    def beginning(cls, lanes: int, dtype) -> Progress:
        """Before the first E-step of every restart, on the host."""
        zero = np.zeros(lanes, dtype)
        return cls(zero - np.inf, zero + np.inf, zero, np.zeros(lanes, bool), np.zeros(lanes, np.int32))


class Judgement(NamedTuple):
    """What an iteration's objective says.

    Attributes:
        converged: nothing worth having is left to gain.
        decreased: the objective fell by more than rounding.
        progress: what the next test needs to know.
    """

    converged: jax.Array
    decreased: jax.Array
    progress: Progress


def convergence_test(evidence: Evidence) -> Callable[..., Judgement]:
    """The test for a kind of evidence.

    Args:
        evidence: what the objective is.

    Returns:
        ``test(objective, progress, iteration, amplification, tolerance) -> Judgement``.
    """
    return _TESTS[evidence]


def _exact(objective, progress: Progress, iteration, amplification, tolerance) -> Judgement:
    """Aitken: gains that shrink by the factor ``ratio`` leave ``gain * ratio / (1 - ratio)`` to come.

    That holds once the ratio has settled. Before, while a first fast change dies away, it says nothing about slower
    changes that have not shown yet (leaving a nearly symmetric start), so it must hold twice, with nearly one ratio.

    Args:
        objective: log-likelihood plus log prior, in nats.
        progress: what the test before this one left.
        iteration: number of M-steps made.
        amplification: how much larger than the log-probabilities the terms are that were added up.
        tolerance: in nats, on the gain that is left.

    Returns:
        The judgement.
    """
    eps = jnp.finfo(objective.dtype).eps
    size = 1 + jnp.abs(objective)
    gain = objective - progress.objective
    decreased = jnp.isfinite(objective) & (gain < -(256 * eps * size + eps * amplification))
    stalls = jnp.where(jnp.abs(gain) <= 8 * eps * size, progress.stalls + 1, jnp.zeros_like(progress.stalls))
    ratio = gain / progress.gain
    shrinking = (ratio > 0) & (ratio < 1) & (iteration >= 2)
    remaining = jnp.where(shrinking, gain * ratio / jnp.where(shrinking, 1 - ratio, 1), jnp.inf)
    near = remaining <= tolerance
    settled = near & progress.near & (jnp.abs(ratio - progress.ratio) <= _SETTLED)
    converged = jnp.isfinite(objective) & (settled | (stalls >= 3))
    return Judgement(converged, decreased, Progress(objective, gain, ratio, near, stalls))


_SETTLED = 0.1
"""Largest difference of two successive ratios of gains that counts as one ratio."""


def _approximate(objective, progress: Progress, iteration, amplification, tolerance) -> Judgement:
    """As with exact evidence, but a step down by less than the approximation moves is no defect.

    Where an approximation takes the place of the log-likelihood, the M-step need not raise it: near the end it may fall
    by as much as its error changes. Such a step, small beside what was gained before, ends the iterations when it comes
    three times in a row.

    Args:
        objective: log-likelihood plus log prior, in nats, approximately.
        progress: what the test before this one left.
        iteration: number of M-steps made.
        amplification: as in the exact test.
        tolerance: in nats, on the gain that is left.

    Returns:
        The judgement.
    """
    said = _exact(objective, progress, iteration, amplification, tolerance)
    gain = objective - progress.objective
    small = jnp.abs(gain) <= jnp.maximum(tolerance, _DRIFT * (1 + jnp.abs(objective)))
    falling = said.decreased & small
    stalls = jnp.where((gain <= 0) & small, progress.stalls + 1, said.progress.stalls)
    converged = said.converged | (jnp.isfinite(objective) & (stalls >= 3))
    return Judgement(converged, said.decreased & ~falling, said.progress._replace(stalls=stalls))


_DRIFT = 1e-4
"""Largest fall, relative to the objective, that an approximation of the log-likelihood may show."""

_TESTS = {Evidence.EXACT: _exact, Evidence.QUADRATURE: _approximate, Evidence.APPROXIMATE: _approximate}

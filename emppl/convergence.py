"""When a fit has converged: one test for each kind of evidence, chosen in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emppl.strategies import Evidence


class Judgement(NamedTuple):
    """What an iteration's objective says.

    Attributes:
        converged: nothing worth having is left to gain.
        decreased: the objective fell by more than rounding.
        gain: rise of the objective, in nats.
        stalls: number of successive gains that are only rounding.
    """

    converged: jax.Array
    decreased: jax.Array
    gain: jax.Array
    stalls: jax.Array


def convergence_test(evidence: Evidence) -> Callable[..., Judgement]:
    """The test for a kind of evidence.

    Args:
        evidence: what the objective is.

    Returns:
        ``test(objective, before, gain_before, stalls, iteration, amplification, tolerance) -> Judgement``.
    """
    return _TESTS[evidence]


def _exact(objective, before, gain_before, stalls, iteration, amplification, tolerance) -> Judgement:
    """Aitken: gains that shrink by the factor ``ratio`` leave ``gain * ratio / (1 - ratio)`` to come.

    Args:
        objective: log-likelihood plus log prior, in nats.
        before: the same one iteration earlier.
        gain_before: the gain one iteration earlier.
        stalls: how many gains in a row were only rounding.
        iteration: number of M-steps made.
        amplification: how much larger than the log-probabilities the terms are that were added up.
        tolerance: in nats, on the gain that is left.

    Returns:
        The judgement.
    """
    eps = jnp.finfo(objective.dtype).eps
    size = 1 + jnp.abs(objective)
    finite = jnp.isfinite(objective)
    gain = objective - before
    decreased = finite & (gain < -(256 * eps * size + eps * amplification))
    stalls = jnp.where(jnp.abs(gain) <= 8 * eps * size, stalls + 1, jnp.zeros_like(stalls))
    ratio = gain / gain_before
    shrinking = (ratio > 0) & (ratio < 1) & (iteration >= 2)
    remaining = jnp.where(shrinking, gain * ratio / jnp.where(shrinking, 1 - ratio, 1), jnp.inf)
    return Judgement(finite & ((remaining <= tolerance) | (stalls >= 3)), decreased, gain, stalls)


_TESTS = {Evidence.EXACT: _exact}

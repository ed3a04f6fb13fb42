"""The plain twin: the log-space forward recursion by one scan, differentiated by JAX as often as one likes.

It keeps every intermediate (T x K x K numbers when differentiated) and is several times slower than the other
kernels; it is what they are tested against, and what second derivatives go through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from emppl.elimination.chain.tiles import mask_table
from emppl.numerics.guarded import logsumexp

ReduceAxis: TypeAlias = Callable[[jax.Array, int, jax.Array | int | None], jax.Array]
"""``(table, axis, time) -> table``: reduces an axis, which keeps size 1, as log-sum-exp does."""


def step_by_step(
    log_initial: jax.Array,
    log_transition: jax.Array,
    log_emission: jax.Array,
    present: jax.Array | None = None,
    reduce_axis: ReduceAxis = lambda table, axis, time: logsumexp(table, axis),
) -> jax.Array:
    """Log evidence by ``alpha_t(j) = b_t(j) + lse_i(alpha_{t-1}(i) + A(i, j))``, or with another reduction than lse.

    With a maximum, or a draw, whose derivative points at one state, the gradient is the best path, or a draw of one.

    Args:
        log_initial: (K, *B).
        log_transition: (T-1 or 1, K, K, *B).
        log_emission: (T, K, *B).
        present: (T, *B) boolean or None.
        reduce_axis: reduces the states. ``time`` counts the sums: t for the state before step t, T for the last.

    Returns:
        (*B).
    """
    steps = log_emission.shape[0]
    log_emission = mask_table(log_emission, present)

    def step(alpha: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        emission, transition, exists, time = inputs
        transition = log_transition[0] if transition is None else transition
        onwards = reduce_axis(alpha[:, None] + transition, 0, time)[0]
        if exists is not None:
            onwards = jnp.where(exists[None], onwards, alpha)
        return _centred(onwards + emission)

    alpha, first = _centred(log_initial + log_emission[0])
    transitions = log_transition if log_transition.shape[0] > 1 else None
    inputs = (log_emission[1:], transitions, None if present is None else present[1:], jnp.arange(1, steps))
    alpha, levels = jax.lax.scan(step, alpha, inputs)
    return reduce_axis(alpha, 0, steps)[0] + first + jnp.sum(levels, 0)


def _centred(alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keep numbers small: a running total would lose digits. The levels are summed up pairwise, after the loop."""
    level = jax.lax.stop_gradient(jnp.max(alpha, 0))
    level = jnp.where(jnp.isfinite(level), level, 0)
    return alpha - level[None], level

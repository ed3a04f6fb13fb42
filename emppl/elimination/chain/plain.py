"""The plain twin: the log-space forward recursion by one scan, differentiated by JAX as often as one likes.

It keeps every intermediate (T x K x K numbers when differentiated) and is several times slower than the other
kernels; it is what they are tested against, and what second derivatives go through.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from emppl.elimination.chain.problem import Chain, Layout, few_lanes, tile_table
from emppl.numerics.guarded import logsumexp

SumOut = Callable[..., jax.Array]
"""``(table, axis, time) -> table``: what takes the place of the sum over a state; the axis is kept with size 1."""


def plain_log_evidence(layout: Layout, chain: Chain) -> jax.Array:
    """Log evidence of every lane.

    ``log sum_z p(z_0) b_0(z_0) prod_t p(z_t | z_{t-1}) b_t(z_t)`` by
    ``alpha_t(j) = b_t(j) + lse_i(alpha_{t-1}(i) + A(i, j))``.

    Args:
        layout: static facts.
        chain: the arrays.

    Returns:
        (N,), natural log.
    """
    table = tile_table(layout, chain.emission_params, chain.slices)
    if few_lanes(layout.lanes):
        table = jnp.transpose(table, (2, 0, 1))
    return step_by_step(chain.log_initial, chain.log_transition, table, chain.present)


def step_by_step(log_initial, log_transition, log_emission, present=None, sum_out: SumOut | None = None) -> jax.Array:
    """Log evidence with any ``sum_out`` in the place of the sum over states.

    With a maximum, or a draw, whose derivative points at one state, the gradient is the best path, or a draw of one.

    Args:
        log_initial: (K, *B).
        log_transition: (T-1 or 1, K, K, *B).
        log_emission: (T, K, *B).
        present: (T, *B) boolean or None.
        sum_out: default log-sum-exp. ``time`` counts the sums: t for the state before step t, T for the last.

    Returns:
        (*B).
    """
    over = _log_sum if sum_out is None else sum_out
    steps, moving = log_emission.shape[0], log_transition.shape[0] > 1
    if present is not None:
        log_emission = jnp.where(present[:, None], log_emission, 0)

    def step(alpha, inputs):
        emission, transition, exists, time = inputs
        transition = log_transition[0] if transition is None else transition
        onwards = over(alpha[:, None] + transition, 0, time)[0]
        if exists is not None:
            onwards = jnp.where(exists[None], onwards, alpha)
        return _centred(onwards + emission)

    alpha, first = _centred(log_initial + log_emission[0])
    moves = None if present is None else present[1:]
    inputs = (log_emission[1:], log_transition if moving else None, moves, jnp.arange(1, steps))
    alpha, levels = jax.lax.scan(step, alpha, inputs)
    return over(alpha, 0, steps)[0] + first + jnp.sum(levels, 0)


def _log_sum(table, axis, time):
    del time
    return logsumexp(table, axis)


def _centred(alpha):
    """Keep numbers small: a running total would lose digits. The levels are summed up pairwise, after the loop."""
    level = jax.lax.stop_gradient(jnp.max(alpha, 0))
    level = jnp.where(jnp.isfinite(level), level, 0)
    return alpha - level[None], level

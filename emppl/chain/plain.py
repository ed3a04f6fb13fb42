"""The plain twin: the log-space forward recursion by one scan, differentiated by JAX as often as one likes.

It keeps every intermediate (T x K x K numbers when differentiated) and is several times slower than the other
kernels; it is what they are tested against, and what second derivatives go through.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from emppl.chain.problem import Chain, Layout, few_lanes, tile_table
from emppl.numerics import logsumexp


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
    if chain.present is not None:
        table = jnp.where(chain.present[:, None], table, 0)
    transitions = chain.log_transition if chain.varies else None
    moves = None if chain.present is None else chain.present[1:]

    def normalise(alpha):
        # Per-step logs are added up after the scan: a running total loses digits in float32.
        total = logsumexp(alpha, 0)
        return alpha - jnp.where(jnp.isfinite(total), total, 0), total[0]

    def step(alpha, inputs):
        emission, transition, moved = inputs
        if transition is None:
            transition = chain.log_transition[0]
        onwards = logsumexp(alpha[:, None] + transition, 0)[0]
        if moved is not None:
            onwards = jnp.where(moved[None], onwards, alpha)
        return normalise(onwards + emission)

    alpha, first = normalise(chain.log_initial + table[0])
    _, totals = jax.lax.scan(step, alpha, (table[1:], transitions, moves))
    evidence = first + jnp.sum(totals, 0)
    # An impossible sequence says nothing about its possible part: gradient zero.
    return jnp.where(evidence > -jnp.inf, evidence, -jnp.inf)

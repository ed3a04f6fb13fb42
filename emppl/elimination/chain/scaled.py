"""Sequential scaled recursion over tiles: the evidence, then its gradient as an explicit backward pass.

The forward pass keeps u_t (T x K numbers) and its scales; the backward pass recomputes a tile's emissions, so that
with a fused emission no T x K table exists besides, and sums expected counts tile by tile.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

import emppl.elimination.chain.associative as associative
import emppl.elimination.chain.recursion as recursion
from emppl.elimination.chain.problem import Chain, Gradients, Static
from emppl.elimination.chain.recursion import pair_counts
from emppl.elimination.chain.tiles import (
    Start,
    Tiles,
    as_table,
    initial_joint,
    initial_marginals,
    join_time,
    transition_peaks,
)

Residual: TypeAlias = Any


def _steps(static: Static) -> ModuleType:
    return associative if static.kernel.name == "associative" else recursion


def forward(static: Static, chain: Chain) -> tuple[jax.Array, jax.Array, Residual]:
    """Log evidence by the scaled recursion.

    Returns:
        (N,) log evidence, (N,) the smallest scale met (what that is for: :mod:`emppl.elimination.chain.evidence`),
        and what the backward pass needs.
    """
    tiles = Tiles(static, chain)
    start, evidence = initial_joint(static, chain)
    joint = start

    def filter_from(joint: jax.Array, start: Start, size: int) -> tuple[jax.Array, tuple]:
        emission, peaks = tiles.emissions(start, size, tiles.table(start, size, chain.emission_params))
        stack, scales, last = _steps(static).filter_tile(tiles.tile(start, size, emission), joint)
        # Sums of logs within a tile, then over tiles: pairwise, never a running total.
        logs = jnp.sum(jnp.log(scales[:, 0]) + peaks, 0)
        return last, ((stack, scales), logs, jnp.min(scales[:, 0], 0))

    full = tail = None
    worst = jnp.full_like(evidence, jnp.inf)
    if tiles.full:
        joint, (full, logs, least) = jax.lax.scan(
            lambda u, start: filter_from(u, start, tiles.size), joint, tiles.starts
        )
        evidence, worst = evidence + jnp.sum(logs, 0), jnp.min(least, 0)
    if tiles.rest:
        joint, (tail, logs, least) = filter_from(joint, tiles.full * tiles.size, tiles.rest)
        evidence, worst = evidence + logs, jnp.minimum(worst, least)
    scale = jnp.sum(joint, 0)
    evidence = evidence + jnp.log(scale) + transition_peaks(static, chain)
    return evidence, jnp.minimum(worst, scale), (start, full, tail)


def _renew(joint: jax.Array, beta: jax.Array, weight: jax.Array) -> jax.Array:
    """Beta scaled so that marginals sum to the weight again: rounding drifts over a million steps."""
    total = jnp.sum(joint, 0)
    mass = jnp.sum(joint * beta, 0)
    return beta * jnp.where(mass != 0, weight * total / jnp.where(mass != 0, mass, 1), 1)[None]


def backward(static: Static, chain: Chain, residual: Residual, weight: jax.Array) -> Gradients:
    """Gradient of ``sum_n weight[n] log_evidence[n]``: expected counts; ``weight`` is (N,)."""
    tiles = Tiles(static, chain)
    first_joint, full, tail = residual
    shape = chain.log_transition.shape

    def last_of(tile_before: Start) -> jax.Array:
        # u of the step before a tile: the last of the tile before, or the first step's.
        if not tiles.full:
            return first_joint
        return jnp.where(tile_before < 0, first_joint, full[0][jnp.maximum(tile_before, 0), -1])

    def smooth_from(carry: tuple, start: Start, size: int, before: jax.Array, stored: tuple) -> tuple[tuple, tuple]:
        beta, counts, gradient = carry
        table, pull = jax.vjp(lambda params: tiles.table(start, size, params), chain.emission_params)
        tile = tiles.tile(start, size, tiles.emissions(start, size, table)[0])
        if size >= 16:
            beta = _renew(stored[0][-1], beta, weight)
        marginals, filtered, v, beta = _steps(static).smooth_tile(tile, before, *stored, beta)
        pairs: Any = pair_counts(tile, filtered, v, (size if chain.varies else 1, *shape[1:]))
        gradient = jax.tree.map(jnp.add, gradient, pull(as_table(marginals))[0])
        if not chain.varies:
            counts, pairs = counts + pairs, None
        return (beta, counts, gradient), (tiles.table_gradient(marginals, start, size), pairs)

    beta = jnp.broadcast_to(weight, (static.num_states, static.lanes))
    counts: Any = None if chain.varies else jnp.zeros(shape, beta.dtype)
    carry: Any = (beta, counts, jax.tree.map(jnp.zeros_like, chain.emission_params))
    late: tuple = (None, None)
    early: tuple = (None, None)
    if tiles.rest:
        carry, late = smooth_from(carry, tiles.full * tiles.size, tiles.rest, last_of(tiles.full - 1), tail)
    if tiles.full:
        carry, early = jax.lax.scan(
            lambda carry, at: smooth_from(carry, at[0] * tiles.size, tiles.size, last_of(at[0] - 1), at[1]),
            carry,
            (jnp.arange(tiles.full), full),
            reverse=True,
        )
    beta, counts, gradient = carry
    first, gradient, first_table = initial_marginals(static, chain, beta, gradient)
    table = join_time(first_table, early[0], late[0])
    if chain.varies:
        counts = join_time(None, early[1], late[1])
    return first, counts, gradient, table

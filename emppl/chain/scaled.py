"""Sequential scaled recursion over tiles: the evidence, then its gradient as an explicit backward pass.

The forward pass keeps q_t (T x K numbers) and nothing else; the backward pass recomputes a tile's emissions, so
that with a fused emission no T x K table exists besides, and sums expected counts tile by tile.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from emppl.chain import recursion
from emppl.chain.problem import Chain, Layout, scaled_emissions, slice_time, split_peak, tile_table
from emppl.chain.recursion import Tile

Residual = Any


def tiles_of(layout: Layout, varies: bool) -> tuple[int, int]:
    """(number of full tiles, steps in the tile that is left over, maybe 0).

    With transitions that vary over time the last step, which has none, stays out of the full tiles.
    """
    steps = layout.num_steps - 1 if varies else layout.num_steps
    size = min(layout.kernel.chunk, layout.num_steps)
    full = steps // size
    return full, layout.num_steps - full * size


class Tiles:
    """Cuts a chain into tiles of consecutive steps, all lanes side by side."""

    def __init__(self, layout: Layout, chain: Chain):
        self.layout, self.chain = layout, chain
        self.full, self.rest = tiles_of(layout, chain.varies)
        self.size = min(layout.kernel.chunk, layout.num_steps)
        self.moved = chain.moved
        if not chain.varies:
            self.transition, self.peak = split_peak(chain.log_transition, (1, 2))

    def table(self, start, size, emission_params) -> jax.Array:
        """(C, K, N) log emissions of a tile; zero where a step does not exist."""
        table = tile_table(self.layout, emission_params, slice_time(self.chain.slices, start, size))
        present = self.present(start, size)
        if present is not None:
            table = jnp.where(present[:, None], table, 0)
        return table

    def present(self, start, size):
        """(C, N or 1) or None."""
        return None if self.chain.present is None else slice_time(self.chain.present, start, size)

    def masked(self, marginals, start, size):
        """Zero where a step does not exist."""
        present = self.present(start, size)
        return marginals if present is None else jnp.where(present[:, None], marginals, 0)

    def tile(self, start, size, emission) -> Tile:
        """Everything else about a tile."""
        moved = moved_before = None
        before = jnp.maximum(start - 1, 0)
        if self.moved is not None:
            moved = slice_time(self.moved, start, size)
            moved_before = jnp.concatenate([slice_time(self.moved, before, 1), moved[:-1]])
        if not self.chain.varies:
            return Tile(emission, self.transition, self.transition, moved, moved_before)
        last = start is not None and isinstance(start, int) and start + size == self.layout.num_steps
        logs = slice_time(self.chain.log_transition, start, size - 1 if last else size)
        if last:
            logs = jnp.concatenate([logs, slice_time(self.chain.log_transition, self.layout.num_steps - 2, 1)])
        logs_before = jnp.concatenate([slice_time(self.chain.log_transition, before, 1), logs[:-1]])
        transition, _ = split_peak(logs, (1, 2))
        transition_before, _ = split_peak(logs_before, (1, 2))
        return Tile(emission, transition, transition_before, moved, moved_before)


def transition_peaks(chain: Chain, num_steps: int) -> jax.Array:
    """(N or 1,): sum over counted transitions of the peaks that the kernels leave out."""
    _, peak = split_peak(chain.log_transition, (1, 2))
    peak = peak[:, 0, 0]
    if chain.present is None:
        return jnp.sum(peak, 0) * (1 if chain.varies else num_steps - 1)
    moved = chain.present[1:]
    if not chain.varies:
        return jnp.sum(moved, 0) * peak[0]
    return jnp.sum(jnp.where(moved, peak, 0), 0)


def split_initial(log_initial: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(K, N) initial probabilities with largest entry 1, and the (N,) logs of what they were divided by."""
    initial, peak = split_peak(log_initial, 0)
    return initial, peak[0]


def forward(layout: Layout, chain: Chain) -> tuple[jax.Array, jax.Array, Residual]:
    """Log evidence by the scaled recursion.

    Args:
        layout: static facts.
        chain: the arrays.

    Returns:
        (N,) log evidence, (N,) the smallest scale met (see :mod:`emppl.chain.evidence`), and what the backward pass needs.
    """
    tiles = Tiles(layout, chain)
    initial, peak = split_initial(chain.log_initial)

    def one(predicted, start, size):
        emission, peaks = scaled_emissions(tiles.table(start, size, chain.emission_params))
        tile = tiles.tile(start, size, emission)
        stack, scales, after = recursion.filter_tile(tile, predicted)
        # Sums of logs within a tile, then over tiles: pairwise, never a running total.
        logs = jnp.sum(jnp.log(scales[:, 0]) + peaks, 0)
        return after, ((stack, scales), logs, jnp.min(scales[:, 0], 0))

    starts = jnp.arange(tiles.full) * tiles.size
    after, (stacks, logs, least) = jax.lax.scan(lambda q, start: one(q, start, tiles.size), initial, starts)
    evidence, worst = jnp.sum(logs, 0), jnp.min(least, 0, initial=jnp.inf)
    last = None
    if tiles.rest:
        _, (last, logs, least) = one(after, tiles.full * tiles.size, tiles.rest)
        evidence, worst = evidence + logs, jnp.minimum(worst, least)
    return evidence + peak + transition_peaks(chain, layout.num_steps), worst, (stacks, last)


def backward(layout: Layout, chain: Chain, residual: Residual, weight: jax.Array):
    """Gradient of ``sum_n weight[n] log_evidence[n]``: expected counts.

    Args:
        layout: static facts.
        chain: the arrays.
        residual: from :func:`forward`.
        weight: (N,).

    Returns:
        (gradient of log_initial (K, N), of log_transition, of emission_params or None, of the table or None).
    """
    tiles = Tiles(layout, chain)
    stacks, last = residual
    fused = layout.emission is not None
    shape = chain.log_transition.shape

    def one(carry, start, size, stored):
        stack, scales = stored
        beta, v_after, counts, gradient = carry
        table, pull = jax.vjp(lambda params: tiles.table(start, size, params), chain.emission_params)
        tile = tiles.tile(start, size, scaled_emissions(table)[0])
        filtered, factor = recursion.filtered_and_factor(tile, stack, scales)
        v, beta = recursion.backward_tile(tile, factor, beta)
        v_next = jnp.concatenate([v[1:], v_after[None]])
        pairs = recursion.pair_counts(tile, filtered, v_next, (size if chain.varies else 1, *shape[1:]))
        marginals = stack * v
        first = marginals[0]
        if fused:
            gradient = jax.tree.map(jnp.add, gradient, pull(marginals)[0])
        else:
            marginals = tiles.masked(marginals, start, size)
        if not chain.varies:
            counts, pairs = counts + pairs, None
        return (beta, v[0], counts, gradient), (None if fused else marginals, pairs, first)

    lanes = (layout.num_states, layout.lanes)
    beta = jnp.broadcast_to(weight, lanes)
    counts = None if chain.varies else jnp.zeros(shape, beta.dtype)
    carry = (beta, jnp.zeros_like(beta), counts, jax.tree.map(jnp.zeros_like, chain.emission_params))
    tails: tuple = (None, None)
    first = None
    if tiles.rest:
        carry, (*tails, first) = one(carry, tiles.full * tiles.size, tiles.rest, last)
    heads: tuple = (None, None)
    if tiles.full:
        starts = jnp.arange(tiles.full) * tiles.size
        carry, (*heads, firsts) = jax.lax.scan(
            lambda carry, inputs: one(carry, inputs[0], tiles.size, inputs[1]), carry, (starts, stacks), reverse=True
        )
        first = firsts[0]
    table = _join(heads[0], tails[0])
    pairs = _join(heads[1], tails[1])
    return first, carry[2] if pairs is None else pairs[: shape[0]], carry[3] if fused else None, table


def _join(heads, tail):
    if heads is not None:
        heads = jnp.reshape(heads, (-1, *heads.shape[2:]))
    if heads is None or tail is None:
        return tail if heads is None else heads
    return jnp.concatenate([heads, tail])

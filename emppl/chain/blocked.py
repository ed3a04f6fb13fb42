"""Two-level blocked recursion: a long chain cut into blocks that run side by side as lanes.

With constant transitions, block g maps the predicted probabilities at its first step to those at the next block's::

    P_g = diag(b_0) A diag(b_1) A ... diag(b_{L-1}) A        q_{g+1} = q_g P_g / c_g,    v_g = P_g v_{g+1}

Three passes: the products of all blocks (K filters a block, one from each start state), a short scan over blocks,
and, when gradients are wanted, forward and backward inside all blocks at once from their known ends. Groups of
blocks are finished one after the other, so tables stay in the cache and no T x K table is ever kept. The last few
steps, which do not fill a group, run sequentially.

Reference:
    Särkkä and García-Fernández (2021), Temporal parallelization of Bayesian smoothers (the same products in a tree).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from emppl.chain import recursion
from emppl.chain.problem import (
    Chain,
    Layout,
    scaled_emissions,
    slice_time,
    tile_table,
    tile_untable,
)
from emppl.chain.recursion import Tile, inverse, propagate
from emppl.chain.scaled import Tiles, split_initial, transition_peaks


class Groups(Tiles):
    """Cuts a chain into groups of blocks; a tail of at least one step stays over."""

    def __init__(self, layout: Layout, chain: Chain):
        super().__init__(layout, chain)
        self.blocks, self.steps = layout.kernel.blocks, layout.kernel.chunk
        self.group = self.blocks * self.steps
        self.count = (layout.num_steps - 1) // self.group
        self.tail = layout.num_steps - self.count * self.group
        self.wide = self.transition
        if self.transition.shape[3] > 1:
            self.wide = jnp.tile(self.transition, (1, 1, 1, self.blocks))

    def lanes(self, array: jax.Array) -> jax.Array:
        """(blocks * C, N or 1) to (C, blocks * N)."""
        wide = jnp.broadcast_to(array, (array.shape[0], self.layout.lanes))
        cut = jnp.reshape(wide, (self.blocks, self.steps, self.layout.lanes))
        return jnp.reshape(jnp.swapaxes(cut, 0, 1), (self.steps, self.blocks * self.layout.lanes))

    def group_table(self, start, emission_params) -> jax.Array:
        """(C, K, blocks * N) log emissions."""
        table = tile_table(self.layout, emission_params, slice_time(self.chain.slices, start, self.group), self.blocks)
        if self.chain.present is not None:
            table = jnp.where(self.lanes(slice_time(self.chain.present, start, self.group))[:, None], table, 0)
        return table

    def group_tile(self, start, emission) -> Tile:
        """Everything else; the move before a block's first step is never used."""
        moved = moved_before = None
        if self.moved is not None:
            moved = self.lanes(slice_time(self.moved, start, self.group))
            moved_before = jnp.concatenate([moved[:1], moved[:-1]])
        return Tile(emission, self.wide, self.wide, moved, moved_before)


def block_products(tile: Tile) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Products of all blocks of a group.

    Args:
        tile: the group's tile, M lanes.

    Returns:
        (K, K, M) scaled products [to, from, lane], (C, 1, 1, M) scales, and the smallest scale.
    """
    num_states, lanes = tile.emission.shape[1:]
    start = jnp.broadcast_to(jnp.eye(num_states, dtype=tile.emission.dtype)[:, :, None], (num_states, num_states, lanes))
    moves = tile.moved

    def step(product, inputs):
        emission, moved = inputs
        joint = product * emission[:, None]
        onwards = _propagate_all(tile.transition[0], joint)
        if moved is not None:
            onwards = jnp.where(moved[None, None], onwards, joint)
        scale = jnp.sum(joint, (0, 1), keepdims=True)
        return onwards * inverse(scale), scale

    product, scales = jax.lax.scan(step, start, (tile.emission, moves))
    return product, scales, jnp.min(scales)


def _propagate_all(transition, weights):
    """``sum_i transition[i, j, n] weights[i, s, n]`` for every start state s."""
    num_states, starts, lanes = weights.shape
    if num_states > 12 and transition.shape[2] == 1:
        flat = transition[:, :, 0].T @ jnp.reshape(weights, (num_states, starts * lanes))
        return jnp.reshape(flat, weights.shape)
    total = transition[0][:, None] * weights[:1]
    for state in range(1, num_states):
        total = total + transition[state][:, None] * weights[state : state + 1]
    return total


def forward(layout: Layout, chain: Chain) -> tuple[jax.Array, jax.Array, Any]:
    """Log evidence; see :func:`emppl.chain.scaled.forward`."""
    groups = Groups(layout, chain)
    num_states, lanes = layout.num_states, layout.lanes
    initial, peak = split_initial(chain.log_initial)

    def products(_, start):
        emission, peaks = scaled_emissions(groups.group_table(start, chain.emission_params))
        product, scales, _ = block_products(groups.group_tile(start, emission))
        logs = jnp.sum(jnp.log(scales[:, 0, 0]) + peaks, 0)
        cut = jnp.reshape(product, (num_states, num_states, groups.blocks, lanes))
        return None, (jnp.transpose(cut, (2, 0, 1, 3)), jnp.reshape(logs, (groups.blocks, lanes)))

    starts = jnp.arange(groups.count) * groups.group
    _, (matrices, logs) = jax.lax.scan(products, None, starts)
    matrices = jnp.reshape(matrices, (groups.count * groups.blocks, num_states, num_states, lanes))

    def over_blocks(predicted, matrix):
        after = jnp.sum(matrix * predicted[None], 1)
        scale = jnp.sum(after, 0, keepdims=True)
        return after * inverse(scale), (predicted, scale[0])

    predicted, (entries, scales) = jax.lax.scan(over_blocks, initial, matrices)
    evidence = jnp.sum(logs, (0, 1)) + jnp.sum(jnp.log(scales), 0)

    start = groups.count * groups.group
    emission, peaks = scaled_emissions(groups.table(start, groups.tail, chain.emission_params))
    tail = groups.tile(start, groups.tail, emission)
    stack, tail_scales, _ = recursion.filter_tile(tail, predicted)
    evidence = evidence + jnp.sum(jnp.log(tail_scales[:, 0]) + peaks, 0)
    worst = jnp.minimum(jnp.min(scales, 0), jnp.min(tail_scales[:, 0], 0))
    evidence = evidence + peak + transition_peaks(chain, layout.num_steps)
    return evidence, worst, (matrices, entries, stack, tail_scales)


def backward(layout: Layout, chain: Chain, residual, weight: jax.Array):
    """Expected counts; see :func:`emppl.chain.scaled.backward`."""
    groups = Groups(layout, chain)
    matrices, entries, stack, tail_scales = residual
    num_states, lanes = layout.num_states, layout.lanes
    fused = layout.emission is not None
    shape = chain.log_transition.shape

    # The tail, sequentially.
    start = groups.count * groups.group
    table, pull = jax.vjp(lambda params: groups.table(start, groups.tail, params), chain.emission_params)
    tile = groups.tile(start, groups.tail, scaled_emissions(table)[0])
    filtered, factor = recursion.filtered_and_factor(tile, stack, tail_scales)
    v, _ = recursion.backward_tile(tile, factor, jnp.broadcast_to(weight, (num_states, lanes)))
    counts = recursion.pair_counts(
        tile, filtered, jnp.concatenate([v[1:], jnp.zeros_like(v[:1])]), (1, *shape[1:])
    )
    tail_marginals = stack * v
    gradient = pull(tail_marginals)[0]
    tail_marginals = groups.masked(tail_marginals, start, groups.tail)

    # Values at the first step of every block.
    def over_blocks(v_after, inputs):
        matrix, predicted = inputs
        v = jnp.where(predicted > 0, jnp.sum(matrix * v_after[:, None], 0), 0)
        scale = jnp.sum(v * predicted, 0, keepdims=True)
        return v * inverse(scale), v_after

    _, exits = jax.lax.scan(over_blocks, v[0] * (jnp.sign(weight) * inverse(jnp.abs(weight)))[None], (matrices, entries), reverse=True)

    def side_by_side(array):
        cut = jnp.reshape(array, (groups.count, groups.blocks, num_states, lanes))
        return jnp.reshape(jnp.transpose(cut, (0, 2, 1, 3)), (groups.count, num_states, groups.blocks * lanes))

    wide_weight = jnp.reshape(
        jnp.broadcast_to(weight, (groups.blocks, lanes)), (1, groups.blocks * lanes)
    )
    back = jnp.swapaxes(groups.wide[0], 0, 1)

    def one(carry, inputs):
        counts, gradient = carry
        start, predicted, v_after = inputs
        table, pull = jax.vjp(lambda params: groups.group_table(start, params), chain.emission_params)
        tile = groups.group_tile(start, scaled_emissions(table)[0])
        stack, scales, _ = recursion.filter_tile(tile, predicted)
        filtered, factor = recursion.filtered_and_factor(tile, stack, scales)
        beta = propagate(back, v_after)
        if tile.moved is not None:
            beta = jnp.where(tile.moved[-1:], beta, v_after)
        rescale = wide_weight * inverse(jnp.sum(filtered[-1] * beta, 0, keepdims=True))
        v, _ = recursion.backward_tile(tile, factor, beta * rescale)
        v_next = jnp.concatenate([v[1:], (v_after * rescale)[None]])
        pairs = recursion.pair_counts(tile, filtered, v_next, (1, num_states, num_states, tile.transition.shape[3]))
        if pairs.shape[3] > 1:
            pairs = jnp.sum(jnp.reshape(pairs, (1, num_states, num_states, groups.blocks, lanes)), 3)
        marginals = stack * v
        first = marginals[0, :, :lanes]
        if fused:
            gradient = jax.tree.map(jnp.add, gradient, pull(marginals)[0])
            marginals = None
        else:
            marginals = groups.masked(tile_untable(layout, marginals, groups.blocks), start, groups.group)
        return (counts + pairs, gradient), (marginals, first)

    starts = jnp.arange(groups.count) * groups.group
    (counts, gradient), (marginals, firsts) = jax.lax.scan(
        one, (counts, gradient), (starts, side_by_side(entries), side_by_side(exits))
    )
    if fused:
        return firsts[0], counts, gradient, None
    head = jnp.reshape(marginals, (groups.count * groups.group, num_states, lanes))
    return firsts[0], counts, None, jnp.concatenate([head, tail_marginals])

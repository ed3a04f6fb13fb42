"""Two-level blocked recursion: a long chain cut into blocks that run side by side as lanes.

With constant transitions, block g maps u at the step before its first to u at its last step, and values back::

    P_g = A diag(b_1) A diag(b_2) ... A diag(b_L)        u_{g+1} = u_g P_g / c_g        w_g = P_g w_{g+1} / c_g

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

from emppl.elimination.chain.problem import Chain, Gradients, Static, slice_time
from emppl.elimination.chain.recursion import Tile, filter_tile, inverse, pair_counts, propagate, smooth_tile
from emppl.elimination.chain.tiles import (
    Start,
    Tiles,
    as_table,
    blocks_first,
    initial_joint,
    initial_marginals,
    join_time,
    mask_table,
    scaled_emissions,
    tile_table,
    transition_peaks,
)


class Groups(Tiles):
    """Cuts all steps but the first into groups of blocks; what does not fill a group is one sequential tile."""

    def __init__(self, static: Static, chain: Chain):
        super().__init__(static, chain)
        assert self.transition is not None
        self.blocks = static.kernel.blocks
        self.steps = static.kernel.chunk
        self.size = self.blocks * self.steps
        self.full = (static.num_steps - 1) // self.size
        self.rest = static.num_steps - 1 - self.full * self.size
        self.starts = jnp.arange(self.full) * self.size
        self.wide = self.transition if self.transition.shape[3] == 1 else jnp.repeat(self.transition, self.blocks, 3)

    def lanes(self, array: jax.Array) -> jax.Array:
        """(blocks * C, N or 1) to (C, N * blocks)."""
        wide = jnp.broadcast_to(array, (array.shape[0], self.static.lanes))
        cut = jnp.moveaxis(jnp.reshape(wide, (self.blocks, self.steps, self.static.lanes)), 0, -1)
        return jnp.reshape(cut, (self.steps, self.static.lanes * self.blocks))

    def group_present(self, start: Start) -> jax.Array | None:
        """(C, N * blocks), or None."""
        present = self.present(start, self.size)
        return None if present is None else self.lanes(present)

    def group_table(self, start: Start, emission_params: Any) -> jax.Array:
        """(C, K, N * blocks) log emissions."""
        slices = slice_time(self.chain.slices, start + 1, self.size)
        table = tile_table(self.static, emission_params, slices, self.blocks)
        return mask_table(table, self.group_present(start))

    def side_by_side(self, array: jax.Array) -> jax.Array:
        """(groups * blocks, K, N) to (groups, K, N * blocks)."""
        states, lanes = self.static.num_states, self.static.lanes
        cut = jnp.reshape(array, (self.full, self.blocks, states, lanes))
        return jnp.reshape(jnp.moveaxis(cut, 1, -1), (self.full, states, lanes * self.blocks))


def block_products(tile: Tile) -> tuple[jax.Array, jax.Array]:
    """Products of all blocks of a group, whose tile has M lanes.

    Returns:
        (K, K, M) scaled products [to, from, lane], and (M,) the logs of what they were divided by.
    """
    num_states, lanes = tile.emission.shape[1:]
    identity = jnp.eye(num_states, dtype=tile.emission.dtype)[:, :, None]

    def step(product: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        emission, present = inputs
        scale = jnp.sum(product, (0, 1))
        if present is None:
            factor = emission * inverse(scale)[None]
            return propagate(tile.transition[0], product) * factor[:, None], scale
        onwards = propagate(tile.transition[0], product) * emission[:, None]
        return jnp.where(present[None, None], onwards, product) * inverse(scale)[None, None], scale

    start = jnp.broadcast_to(identity, (num_states, num_states, lanes))
    product, scales = jax.lax.scan(step, start, (tile.emission, tile.present))
    scale = jnp.sum(product, (0, 1))
    return product * inverse(scale)[None, None], jnp.sum(jnp.log(scales), 0) + jnp.log(scale)


def forward(static: Static, chain: Chain) -> tuple[jax.Array, jax.Array, Any]:
    """Log evidence; see :func:`emppl.elimination.chain.scaled.forward`."""
    groups = Groups(static, chain)
    states, lanes = static.num_states, static.lanes
    joint, evidence = initial_joint(static, chain)

    def products(_: None, start: jax.Array) -> tuple[None, tuple]:
        emission, peaks = scaled_emissions(groups.group_table(start, chain.emission_params), False)
        product, logs = block_products(Tile(emission, groups.wide, groups.group_present(start)))
        logs = jnp.reshape(logs + jnp.sum(peaks, 0), (lanes, groups.blocks))
        return None, (jnp.moveaxis(jnp.reshape(product, (states, states, lanes, groups.blocks)), -1, 0), logs)

    def over_blocks(joint: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple]:
        after = jnp.sum(matrix * joint[None], 1)
        scale = jnp.sum(after, 0, keepdims=True)
        return after * inverse(scale), (joint, scale[0])

    _, (matrices, logs) = jax.lax.scan(products, None, groups.starts)
    matrices = jnp.reshape(matrices, (groups.full * groups.blocks, states, states, lanes))
    total = jnp.sum(joint, 0, keepdims=True)
    joint, (entries, scales) = jax.lax.scan(over_blocks, joint * inverse(total), matrices)
    evidence = evidence + jnp.log(total[0]) + jnp.sum(logs, (0, 2)) + jnp.sum(jnp.log(scales), 0)
    worst = jnp.minimum(total[0], jnp.min(scales, 0))

    tail = None
    if groups.rest:
        start = groups.full * groups.size
        emission, peaks = scaled_emissions(groups.table(start, groups.rest, chain.emission_params), groups.few)
        stack, tail_scales, last = filter_tile(groups.tile(start, groups.rest, emission), joint)
        tail = (joint, stack, tail_scales)
        # joint is normalised already, so the first scale is 1.
        evidence = evidence + jnp.sum(jnp.log(tail_scales[:, 0]) + peaks, 0) + jnp.log(jnp.sum(last, 0))
        worst = jnp.minimum(worst, jnp.minimum(jnp.min(tail_scales[:, 0], 0), jnp.sum(last, 0)))
        joint = last
    return evidence + transition_peaks(static, chain), worst, (matrices, entries, joint, tail)


def backward(static: Static, chain: Chain, residual: Any, weight: jax.Array) -> Gradients:
    """Expected counts; see :func:`emppl.elimination.chain.scaled.backward`."""
    groups = Groups(static, chain)
    matrices, entries, last, tail = residual
    states, lanes = static.num_states, static.lanes
    shape = chain.log_transition.shape
    beta = jnp.broadcast_to(weight, (states, lanes))
    counts = jnp.zeros(shape, beta.dtype)
    gradient = jax.tree.map(jnp.zeros_like, chain.emission_params)

    late = None
    if groups.rest:
        start = groups.full * groups.size
        table, pull = jax.vjp(lambda params: groups.table(start, groups.rest, params), chain.emission_params)
        tile = groups.tile(start, groups.rest, scaled_emissions(table, groups.few)[0])
        marginals, filtered, v, beta = smooth_tile(tile, tail[0], tail[1], tail[2], beta)
        counts = counts + pair_counts(tile, filtered, v, shape)
        gradient = pull(as_table(marginals))[0]
        late = groups.table_gradient(marginals, start, groups.rest)
        last = tail[0]

    def over_blocks(value: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        matrix, joint = inputs
        before = jnp.where(joint > 0, jnp.sum(matrix * value[:, None], 0), 0)
        return before * inverse(jnp.sum(before * joint, 0, keepdims=True)), value

    # Values are known up to a positive factor here; inside the blocks the filter fixes it.
    direction = beta * (jnp.sign(weight) * inverse(jnp.abs(weight)))[None]
    direction = jnp.where(last > 0, direction, 0)
    value, exits = jax.lax.scan(over_blocks, direction, (matrices, entries), reverse=True)
    wide_weight = jnp.repeat(weight, groups.blocks)[None]

    def smooth_group(carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array | None]:
        counts, gradient = carry
        start, joint, beta = inputs
        table, pull = jax.vjp(lambda params: groups.group_table(start, params), chain.emission_params)
        tile = Tile(scaled_emissions(table, False)[0], groups.wide, groups.group_present(start))
        stack, scales, last = filter_tile(tile, joint)
        mass = jnp.sum(last * beta, 0, keepdims=True)
        beta = beta * (wide_weight * jnp.sum(last, 0, keepdims=True) * inverse(mass))
        marginals, filtered, v, _ = smooth_tile(tile, joint, stack, scales, beta)
        pairs = pair_counts(tile, filtered, v, groups.wide.shape)
        if pairs.shape[3] > 1:
            pairs = jnp.sum(jnp.reshape(pairs, (1, states, states, lanes, groups.blocks)), 4)
        gradient = jax.tree.map(jnp.add, gradient, pull(marginals)[0])
        marginals = blocks_first(marginals, groups.blocks)
        return (counts + pairs, gradient), groups.table_gradient(marginals, start, groups.size)

    inputs = (groups.starts, groups.side_by_side(entries), groups.side_by_side(exits))
    (counts, gradient), early = jax.lax.scan(smooth_group, (counts, gradient), inputs)
    first = jnp.sum(entries[0] * value, 0, keepdims=True)
    beta = value * (weight[None] * jnp.sum(entries[0], 0, keepdims=True) * inverse(first))
    first, gradient, first_table = initial_marginals(static, chain, beta, gradient)
    return first, counts, gradient, join_time(first_table, early, late)

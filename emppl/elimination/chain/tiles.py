"""Tiles: some consecutive steps of a chain at a time, cut, laid out and scaled for the recursions."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from emppl.elimination.chain.problem import Chain, Static, Symbols, first_step, slice_time
from emppl.elimination.chain.recursion import Tile, inverse

Start: TypeAlias = int | jax.Array
"""The step before a tile's first."""


def tile_table(static: Static, emission_params: Any, slices: Any, blocks: int = 1) -> jax.Array:
    """Log emissions of one tile, the long axis last, because loops vectorise over the last axis only.

    Args:
        static: static facts.
        emission_params: parameters of the emission.
        slices: the tile's slices, leading axis ``blocks * C``.
        blocks: number of blocks that the steps are cut into, each a set of lanes.

    Returns:
        (C, K, N * blocks), or (K, N, C) when there are few lanes (see :func:`few_lanes`).
    """
    states, lanes = static.num_states, static.lanes
    if blocks > 1:
        slices = jax.tree.map(lambda array: _blocks_last(array, blocks), slices)
        table = slices
        if static.emission is not None:
            table = jax.vmap(jax.vmap(static.emission, (None, -1), -1), (None, 0))(emission_params, slices)
        return jnp.reshape(table, (table.shape[0], states, lanes * blocks))
    if few_lanes(lanes):
        slices = jax.tree.map(lambda array: jnp.moveaxis(array, 0, -1), slices)
        table = slices
        if static.emission is not None:
            table = jax.vmap(static.emission, (None, -1), -1)(emission_params, slices)
        return jnp.reshape(table, (states, lanes, table.shape[-1]))
    if static.emission is None:
        return jnp.reshape(slices, (-1, states, lanes))
    if jax.tree.leaves(slices)[0].shape[0] == 1:
        # One step: a gather stays a plain gather, whose transpose is a faster scatter than a batched one's.
        table = static.emission(emission_params, first_step(slices))
    else:
        table = jax.vmap(static.emission, (None, 0))(emission_params, slices)
    return jnp.reshape(table, (-1, states, lanes))


def few_lanes(lanes: int) -> bool:
    """Whether there are too few lanes for a vector register: time is then the last axis of tables."""
    return lanes < 8


def as_table(marginals: jax.Array) -> jax.Array:
    """State marginals (C, K, N) in the layout of :func:`tile_table`."""
    return jnp.transpose(marginals, (1, 2, 0)) if few_lanes(marginals.shape[2]) else marginals


def mask_table(table: jax.Array, present: jax.Array | None, few: bool = False) -> jax.Array:
    """A table (C, K, N), or (K, N, C) if ``few``, with zeros at steps that do not exist; ``present`` is (C, N or 1)."""
    if present is None:
        return table
    return jnp.where(present.T[None] if few else present[:, None], table, 0)


def _blocks_last(array: jax.Array, blocks: int) -> jax.Array:
    cut = jnp.reshape(array, (blocks, array.shape[0] // blocks, *array.shape[1:]))
    return jnp.moveaxis(cut, 0, -1)


def blocks_first(marginals: jax.Array, blocks: int) -> jax.Array:
    """(C, K, N * blocks) back to (blocks * C, K, N)."""
    steps, states, lanes = marginals.shape
    cut = jnp.moveaxis(jnp.reshape(marginals, (steps, states, lanes // blocks, blocks)), -1, 0)
    return jnp.reshape(cut, (blocks * steps, states, lanes // blocks))


def split_peak(table: jax.Array, axis: int | tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """``(exp(table - peak), peak)`` with the peak over ``axis`` kept; where all is impossible, zeros and 0."""
    peak = jnp.max(table, axis, keepdims=True)
    peak = jnp.where(peak == -jnp.inf, 0, peak)
    return jnp.exp(table - peak), peak


def scaled_emissions(table: jax.Array, few: bool) -> tuple[jax.Array, jax.Array]:
    """Emission densities of a tile, scaled so that the largest of each step is 1.

    Args:
        table: log densities, from :func:`tile_table`.
        few: which of its layouts.

    Returns:
        (C, K, N) scaled densities, and (C, N) the logs of what they were divided by.
    """
    states = table if few else jnp.swapaxes(table, 0, 1)
    if few or len(states) > 12:
        peak = jnp.max(states, 0)
    else:
        # Written out, because XLA:CPU does not vectorise a reduction over a short middle axis. For many states the
        # chain of maxima costs K times K: it is computed again for every state that it is fused into.
        peak = states[0]
        for state in range(1, len(states)):
            peak = jnp.maximum(peak, states[state])
    peak = jnp.where(peak == -jnp.inf, 0, peak)
    scaled = jnp.exp(states - peak[None])
    return (jnp.transpose(scaled, (2, 0, 1)), peak.T) if few else (jnp.swapaxes(scaled, 0, 1), peak)


def transition_peaks(static: Static, chain: Chain) -> jax.Array:
    """(N or 1,): sum over counted transitions of the peaks that the kernels leave out."""
    _, peak = split_peak(chain.log_transition, (1, 2))
    peak = peak[:, 0, 0]
    if chain.present is None:
        return jnp.sum(peak, 0) * (1 if chain.varies else static.num_steps - 1)
    return jnp.sum(jnp.where(chain.present[1:], peak, 0), 0)


def initial_joint(static: Static, chain: Chain) -> tuple[jax.Array, jax.Array]:
    """(K, N) u of the first step, and (N,) the log of what it was divided by."""
    table = _first_table(static, chain, chain.emission_params)
    emission, peaks = scaled_emissions(table, few_lanes(static.lanes))
    initial, peak = split_peak(chain.log_initial, 0)
    return initial * emission[0], peak[0] + peaks[0]


def initial_marginals(
    static: Static, chain: Chain, beta: jax.Array, gradient: Any
) -> tuple[jax.Array, Any, jax.Array | None]:
    """Marginals of the first step.

    Args:
        static: static facts.
        chain: the arrays.
        beta: (K, N), of the first step.
        gradient: of the emission's parameters, from all later steps.

    Returns:
        (K, N) marginals, the whole gradient of the emission's parameters, and (1, K, N) that of the table or None.
    """
    joint, _ = initial_joint(static, chain)
    marginals = joint * inverse(jnp.sum(joint, 0, keepdims=True))
    marginals = jnp.where(marginals > 0, marginals * beta, 0)
    _, pull = jax.vjp(lambda params: _first_table(static, chain, params), chain.emission_params)
    gradient = jax.tree.map(jnp.add, gradient, pull(as_table(marginals[None]))[0])
    exists = None if chain.present is None else chain.present[:1]
    return marginals, gradient, None if static.emission is not None else mask_table(marginals[None], exists)


def _first_table(static: Static, chain: Chain, emission_params: Any) -> jax.Array:
    table = tile_table(static, emission_params, slice_time(chain.slices, 0, 1))
    return mask_table(table, None if chain.present is None else chain.present[:1], few_lanes(static.lanes))


class Tiles:
    """Cuts all steps but the first into tiles; the tile at ``start`` begins with step start + 1."""

    def __init__(self, static: Static, chain: Chain):
        self.static, self.chain = static, chain
        self.few = few_lanes(static.lanes)
        later = static.num_steps - 1
        self.size = min(static.kernel.chunk, later)
        self.full = later // self.size if later else 0
        self.rest = later - self.full * self.size
        self.starts = jnp.arange(self.full) * self.size
        self.prepared = None
        if isinstance(static.emission, Symbols) and not self.few:
            self.prepared = static.emission.prepare(chain.emission_params)
        self.transition = None if chain.varies else split_peak(chain.log_transition, (1, 2))[0]

    def present(self, start: Start, size: int) -> jax.Array | None:
        """(C, N or 1), or None."""
        return None if self.chain.present is None else slice_time(self.chain.present, start + 1, size)

    def table(self, start: Start, size: int, emission_params: Any) -> jax.Array:
        """Log emissions of a tile, laid out as :func:`tile_table` does; zero where a step does not exist."""
        table = tile_table(self.static, emission_params, slice_time(self.chain.slices, start + 1, size))
        return mask_table(table, self.present(start, size), self.few)

    def emissions(self, start: Start, size: int, table: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(C, K, N) scaled densities and (C, N) logs of their scales; ``table`` from :meth:`table`."""
        static = self.static
        if self.prepared is None or not isinstance(static.emission, Symbols):
            return scaled_emissions(table, self.few)
        slices = slice_time(self.chain.slices, start + 1, size)
        if size == 1:
            densities, peak = static.emission.scaled(self.prepared, first_step(slices))
        else:
            densities, peak = jax.vmap(static.emission.scaled, (None, 0))(self.prepared, slices)
        densities = jnp.reshape(densities, (size, static.num_states, static.lanes))
        peak = jnp.reshape(peak, (size, static.lanes))
        present = self.present(start, size)
        if present is None:
            return densities, peak
        return jnp.where(present[:, None], densities, 1), jnp.where(present, peak, 0)

    def table_gradient(self, marginals: jax.Array, start: Start, size: int) -> jax.Array | None:
        """Gradient of a table: the marginals of steps that exist. None for a fused emission."""
        if self.static.emission is not None:
            return None
        return mask_table(marginals, self.present(start, size))

    def tile(self, start: Start, size: int, emission: jax.Array) -> Tile:
        """A tile, of scaled emissions."""
        transition = self.transition
        if transition is None:
            transition, _ = split_peak(slice_time(self.chain.log_transition, start, size), (1, 2))
        return Tile(emission, transition, self.present(start, size))


def join_time(*parts: jax.Array | None) -> jax.Array | None:
    """Concatenate over time; the second part comes as (tiles, C, ...). None if all parts are."""
    first, tiled, last = parts
    if tiled is not None:
        tiled = jnp.reshape(tiled, (-1, *tiled.shape[2:]))
    present = [part for part in (first, tiled, last) if part is not None]
    if len(present) < 2:
        return present[0] if present else None
    return jnp.concatenate(present)

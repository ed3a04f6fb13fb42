"""The canonical form of a chain: one lane axis instead of batch axes, emissions one tile at a time.

Everything that sums gradients back over broadcast batch axes happens here, outside the kernels, by JAX's own rules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination.chain.choose import Kernel
from emppl.elimination.chain.recursion import Tile

Emission = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static facts about a chain.

    Attributes:
        num_steps: T.
        num_states: K.
        batch_shape: the batch axes, whose product is the number of lanes N.
        emission: an :data:`Emission`; None when the slices are the log-emission table itself, (T, K, N).
        kernel: how it is computed.
    """

    num_steps: int
    num_states: int
    batch_shape: tuple[int, ...]
    emission: Any
    kernel: Kernel

    @property
    def lanes(self) -> int:
        """Number of independent sequences."""
        return math.prod(self.batch_shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chain:
    """The arrays of a chain in canonical form.

    Attributes:
        log_initial: (K, N).
        log_transition: (T-1 or 1, K, K, N or 1).
        emission_params: what the emission is a function of; None for a table.
        slices: arrays with leading time axis.
        present: (T, N or 1) boolean, or None when every step exists.
    """

    log_initial: jax.Array
    log_transition: jax.Array
    emission_params: Any
    slices: Any
    present: jax.Array | None

    @property
    def varies(self) -> bool:
        """Does the transition vary over time?"""
        return self.log_transition.shape[0] > 1


def canonical(log_initial, log_transition, present, batch_shape) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Fold the batch axes into one lane axis; an array that varies over no batch axis keeps size 1 there."""
    lanes = math.prod(batch_shape)

    def fold(array, leading):
        trailing = array.shape[leading:]
        if len(trailing) != len(batch_shape):
            raise ValueError(f"Expected {leading} + {len(batch_shape)} axes; got shape {array.shape}.")
        if math.prod(trailing) == 1:
            return jnp.reshape(array, array.shape[:leading] + (1,))
        full = jnp.broadcast_to(array, array.shape[:leading] + tuple(batch_shape))
        return jnp.reshape(full, array.shape[:leading] + (lanes,))

    initial = fold(log_initial, 1)
    initial = jnp.broadcast_to(initial, (initial.shape[0], lanes))
    return initial, fold(log_transition, 3), None if present is None else fold(present, 1)


def check(num_steps, num_states, log_initial, log_transition, present) -> None:
    """Refuse shapes that do not fit together.

    Raises:
        ValueError: with the shapes expected and received.
    """
    if log_initial.shape[0] != num_states:
        raise ValueError(f"Expected log_initial of shape ({num_states}, ...); got {log_initial.shape}.")
    times = log_transition.shape[0]
    if log_transition.shape[1:3] != (num_states, num_states) or times not in (1, num_steps - 1):
        raise ValueError(
            f"Expected log_transition of shape ({num_steps - 1} or 1, {num_states}, {num_states}, ...); "
            f"got {log_transition.shape}."
        )
    if present is not None and present.shape[0] != num_steps:
        raise ValueError(f"Expected present of shape ({num_steps}, ...); got {present.shape}.")


def slice_time(tree: Any, start, size: int) -> Any:
    """Steps ``start`` to ``start + size`` of every array."""
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, start, size), tree)


def tile_table(layout: Layout, emission_params, slices, blocks: int = 1) -> jax.Array:
    """Log emissions of one tile, the long axis last, because loops vectorise over the last axis only.

    Args:
        layout: static facts.
        emission_params: parameters of the emission.
        slices: the tile's slices, leading axis ``blocks * C``.
        blocks: number of blocks that the steps are cut into, each a set of lanes.

    Returns:
        (C, K, N * blocks), or (K, N, C) when there are few lanes (see :func:`few_lanes`).
    """
    states, lanes = layout.num_states, layout.lanes
    if blocks > 1:
        slices = jax.tree.map(lambda array: _blocks_last(array, blocks), slices)
        table = slices
        if layout.emission is not None:
            table = jax.vmap(jax.vmap(layout.emission, (None, -1), -1), (None, 0))(emission_params, slices)
        return jnp.reshape(table, (table.shape[0], states, lanes * blocks))
    if few_lanes(lanes):
        slices = jax.tree.map(lambda array: jnp.moveaxis(array, 0, -1), slices)
        table = slices
        if layout.emission is not None:
            table = jax.vmap(layout.emission, (None, -1), -1)(emission_params, slices)
        return jnp.reshape(table, (states, lanes, table.shape[-1]))
    if layout.emission is None:
        return jnp.reshape(slices, (-1, states, lanes))
    if jax.tree.leaves(slices)[0].shape[0] == 1:
        # One step: a gather stays a plain gather, whose transpose is a faster scatter than a batched one's.
        table = layout.emission(emission_params, jax.tree.map(lambda array: array[0], slices))
    else:
        table = jax.vmap(layout.emission, (None, 0))(emission_params, slices)
    return jnp.reshape(table, (-1, states, lanes))


def few_lanes(lanes: int) -> bool:
    """Too few lanes for a vector register: time is then the last axis of tables."""
    return lanes < 8


def as_table(marginals: jax.Array) -> jax.Array:
    """State marginals (C, K, N) in the layout of :func:`tile_table`."""
    return jnp.transpose(marginals, (1, 2, 0)) if few_lanes(marginals.shape[2]) else marginals


def mask_table(table: jax.Array, present: jax.Array | None, few: bool) -> jax.Array:
    """Zero the log emissions of steps that do not exist; ``present`` is (C, N or 1)."""
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


def transition_peaks(layout: Layout, chain: Chain) -> jax.Array:
    """(N or 1,): sum over counted transitions of the peaks that the kernels leave out."""
    _, peak = split_peak(chain.log_transition, (1, 2))
    peak = peak[:, 0, 0]
    if chain.present is None:
        return jnp.sum(peak, 0) * (1 if chain.varies else layout.num_steps - 1)
    return jnp.sum(jnp.where(chain.present[1:], peak, 0), 0)


def initial_joint(layout: Layout, chain: Chain) -> tuple[jax.Array, jax.Array]:
    """(K, N) u of the first step, and (N,) the log of what it was divided by."""
    table = _first_table(layout, chain, chain.emission_params)
    emission, peaks = scaled_emissions(table, few_lanes(layout.lanes))
    initial, peak = split_peak(chain.log_initial, 0)
    return initial * emission[0], peak[0] + peaks[0]


def initial_marginals(layout: Layout, chain: Chain, beta, gradient):
    """Marginals of the first step.

    Args:
        layout: static facts.
        chain: the arrays.
        beta: (K, N), of the first step.
        gradient: of the emission's parameters, from all later steps.

    Returns:
        (K, N) marginals, the whole gradient of the emission's parameters, and (1, K, N) that of the table or None.
    """
    joint, _ = initial_joint(layout, chain)
    marginals = joint * (1 / jnp.maximum(jnp.sum(joint, 0, keepdims=True), jnp.finfo(joint.dtype).tiny))
    marginals = jnp.where(marginals > 0, marginals * beta, 0)
    _, pull = jax.vjp(lambda params: _first_table(layout, chain, params), chain.emission_params)
    gradient = jax.tree.map(jnp.add, gradient, pull(as_table(marginals[None]))[0])
    table = None
    if layout.emission is None:
        table = marginals[None]
        if chain.present is not None:
            table = jnp.where(chain.present[:1, None], table, 0)
    return marginals, (None if layout.emission is None else gradient), table


def _first_table(layout: Layout, chain: Chain, emission_params):
    table = tile_table(layout, emission_params, slice_time(chain.slices, 0, 1))
    return mask_table(table, None if chain.present is None else chain.present[:1], few_lanes(layout.lanes))


class Tiles:
    """Cuts all steps but the first into tiles; the tile at ``start`` begins with step start + 1."""

    def __init__(self, layout: Layout, chain: Chain):
        self.layout, self.chain = layout, chain
        self.few = few_lanes(layout.lanes)
        later = layout.num_steps - 1
        self.size = min(layout.kernel.chunk, later)
        self.full = later // self.size if later else 0
        self.rest = later - self.full * self.size
        self.starts = jnp.arange(self.full) * self.size
        self.prepared = None
        if hasattr(layout.emission, "scaled") and not self.few:
            self.prepared = layout.emission.prepare(chain.emission_params)
        self.transition = None if chain.varies else split_peak(chain.log_transition, (1, 2))[0]

    def present(self, start, size) -> jax.Array | None:
        """(C, N or 1), or None."""
        return None if self.chain.present is None else slice_time(self.chain.present, start + 1, size)

    def table(self, start, size, emission_params) -> jax.Array:
        """Log emissions of a tile, laid out as :func:`tile_table` does; zero where a step does not exist."""
        table = tile_table(self.layout, emission_params, slice_time(self.chain.slices, start + 1, size))
        return mask_table(table, self.present(start, size), self.few)

    def emissions(self, start, size, table) -> tuple[jax.Array, jax.Array]:
        """(C, K, N) scaled densities and (C, N) logs of their scales; ``table`` from :meth:`table`."""
        if self.prepared is None:
            return scaled_emissions(table, self.few)
        slices = slice_time(self.chain.slices, start + 1, size)
        layout = self.layout
        emission: Any = layout.emission
        if size == 1:
            densities, peak = emission.scaled(self.prepared, jax.tree.map(lambda array: array[0], slices))
        else:
            densities, peak = jax.vmap(emission.scaled, (None, 0))(self.prepared, slices)
        densities = jnp.reshape(densities, (size, layout.num_states, layout.lanes))
        peak = jnp.reshape(peak, (size, layout.lanes))
        present = self.present(start, size)
        if present is None:
            return densities, peak
        return jnp.where(present[:, None], densities, 1), jnp.where(present, peak, 0)

    def table_gradient(self, marginals, start, size) -> jax.Array | None:
        """Gradient of a table: the marginals of steps that exist. None for a fused emission."""
        if self.layout.emission is not None:
            return None
        present = self.present(start, size)
        return marginals if present is None else jnp.where(present[:, None], marginals, 0)

    def tile(self, start, size, emission) -> Tile:
        """Everything else about a tile."""
        transition = self.transition
        if transition is None:
            transition, _ = split_peak(slice_time(self.chain.log_transition, start, size), (1, 2))
        return Tile(emission, transition, self.present(start, size))


def join_time(*parts: jax.Array | None) -> jax.Array | None:
    """Concatenate over time; the second part comes as (tiles, C, ...). None where all parts are."""
    first, tiled, last = parts
    if tiled is not None:
        tiled = jnp.reshape(tiled, (-1, *tiled.shape[2:]))
    present = [part for part in (first, tiled, last) if part is not None]
    if len(present) < 2:
        return present[0] if present else None
    return jnp.concatenate(present)

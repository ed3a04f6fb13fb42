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

from emppl.chain.choose import Kernel

Emission = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static facts about a chain.

    Attributes:
        num_steps: T.
        num_states: K.
        batch_shape: the batch axes, whose product is the number of lanes N.
        emission: None when the slices are the log-emission table itself, (T, K, N).
        kernel: how it is computed.
    """

    num_steps: int
    num_states: int
    batch_shape: tuple[int, ...]
    emission: Emission | None
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

    @property
    def moved(self) -> jax.Array | None:
        """(T, N or 1) boolean, whether a transition follows each step."""
        if self.present is None:
            return None
        return jnp.concatenate([self.present[1:], jnp.zeros_like(self.present[:1])])


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
    """Log emissions of one tile.

    Args:
        layout: static facts.
        emission_params: parameters of the emission.
        slices: the tile's slices, leading axis ``blocks * C``.
        blocks: number of blocks that the steps are cut into, each a set of lanes.

    Returns:
        (C, K, blocks * N).
    """
    if layout.emission is None:
        table = slices
    else:
        table = jax.vmap(layout.emission, (None, 0))(emission_params, slices)
    steps = table.shape[0] // blocks
    if blocks == 1:
        return jnp.reshape(table, (steps, layout.num_states, layout.lanes))
    table = jnp.reshape(table, (blocks, steps, layout.num_states, layout.lanes))
    return jnp.reshape(jnp.transpose(table, (1, 2, 0, 3)), (steps, layout.num_states, blocks * layout.lanes))


def tile_untable(layout: Layout, marginals: jax.Array, blocks: int) -> jax.Array:
    """The transpose of a table's layout: (C, K, blocks * N) to (blocks * C, K, N)."""
    steps = marginals.shape[0]
    if blocks == 1:
        return marginals
    cut = jnp.reshape(marginals, (steps, layout.num_states, blocks, layout.lanes))
    return jnp.reshape(jnp.transpose(cut, (2, 0, 1, 3)), (blocks * steps, layout.num_states, layout.lanes))


def split_peak(table: jax.Array, axis: int | tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """``(exp(table - peak), peak)`` with the peak over ``axis`` kept; where all is impossible, zeros and 0."""
    peak = jnp.max(table, axis, keepdims=True)
    peak = jnp.where(peak == -jnp.inf, 0, peak)
    return jnp.exp(table - peak), peak


def scaled_emissions(table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Emission densities of a tile, scaled so that the largest of each step is 1.

    Args:
        table: (C, K, N), log densities.

    Returns:
        (C, K, N) scaled densities and their log scales, of any shape with C * N entries... (N, C) or (C, N).
    """
    if table.shape[2] >= _WIDE:
        peak = table[:, :1]
        for state in range(1, table.shape[1]):
            peak = jnp.maximum(peak, table[:, state : state + 1])
        peak = jnp.where(peak == -jnp.inf, 0, peak)
        return jnp.exp(table - peak), peak[:, 0]
    # Few lanes: time is the long axis, and loops vectorise over the last axis only.
    wide = jnp.transpose(table, (1, 2, 0))
    peak = wide[0]
    for state in range(1, wide.shape[0]):
        peak = jnp.maximum(peak, wide[state])
    peak = jnp.where(peak == -jnp.inf, 0, peak)
    return jnp.transpose(jnp.exp(wide - peak[None]), (2, 0, 1)), peak.T


_WIDE = 8

"""The canonical form of a chain: one lane axis instead of batch axes.

Everything that sums gradients back over broadcast batch axes happens here, outside the kernels, by JAX's own rules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from emppl.elimination.chain.choose import Kernel

EmissionFunction: TypeAlias = Callable[[Any, Any], jax.Array]
"""``emission(parameters, slice) -> (K, *B)``: log-densities of one step."""

Gradients: TypeAlias = tuple[jax.Array, jax.Array, Any, jax.Array | None]
"""Expected counts: gradients of log_initial (K, N), of log_transition, of the emission's parameters (None for a table),
and of the table (T, K, N) (None for a fused emission)."""


@dataclasses.dataclass(frozen=True)
class Static:
    """Static facts about a chain.

    Attributes:
        num_steps: T.
        num_states: K.
        batch_shape: the batch axes, whose product is the number of lanes N.
        emission: log-densities of one step; None when the slices are the log-emission table itself, (T, K, N).
        kernel: how it is computed.
    """

    num_steps: int
    num_states: int
    batch_shape: tuple[int, ...]
    emission: EmissionFunction | None
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
        """Whether the transition varies over time."""
        return self.log_transition.shape[0] > 1


def canonical(
    num_steps: int,
    one_step: Sequence[int],
    log_initial: jax.Array,
    log_transition: jax.Array,
    present: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Fold the batch axes into one lane axis; an array that varies over no batch axis keeps size 1 there.

    Args:
        num_steps: T.
        one_step: (K, *B), the shape of one step's emissions.
        log_initial: (K, *B), where batch axes may have size 1.
        log_transition: (T-1 or 1, K, K, *B), likewise.
        present: (T, *B), likewise, or None.

    Returns:
        (K, N), (T-1 or 1, K, K, N or 1), and (T, N or 1) or None.

    Raises:
        ValueError: the shapes do not fit together.
    """
    num_states, *batch = one_step
    if log_initial.shape[0] != num_states:
        raise ValueError(f"Expected log_initial of shape ({num_states}, ...); got {log_initial.shape}.")
    if log_transition.shape[1:3] != (num_states, num_states) or log_transition.shape[0] not in (1, num_steps - 1):
        raise ValueError(
            f"Expected log_transition of shape ({num_steps - 1} or 1, {num_states}, {num_states}, ...); "
            f"got {log_transition.shape}."
        )
    if present is not None and present.shape[0] != num_steps:
        raise ValueError(f"Expected present of shape ({num_steps}, ...); got {present.shape}.")
    lanes = math.prod(batch)

    def fold(array: jax.Array, leading: int) -> jax.Array:
        trailing = array.shape[leading:]
        if len(trailing) != len(batch):
            raise ValueError(f"Expected {leading} + {len(batch)} axes; got shape {array.shape}.")
        if math.prod(trailing) == 1:
            return jnp.reshape(array, array.shape[:leading] + (1,))
        full = jnp.broadcast_to(array, array.shape[:leading] + tuple(batch))
        return jnp.reshape(full, array.shape[:leading] + (lanes,))

    initial = jnp.broadcast_to(fold(log_initial, 1), (num_states, lanes))
    return initial, fold(log_transition, 3), None if present is None else fold(present, 1)


def slice_time(tree: Any, start: int | jax.Array, size: int) -> Any:
    """Steps ``start`` to ``start + size`` of every array."""
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, start, size), tree)


def first_step(tree: Any) -> Any:
    """The first step of every array, without the time axis."""
    return jax.tree.map(lambda array: array[0], tree)


@dataclasses.dataclass(frozen=True)
class Symbols:
    """Categorical emission: ``log p(x_t = m | z_t = k) = log_table[k, m]``, slices are the symbols x_t, (T, *B).

    As a function it is a gather like any other. ``prepare`` and ``scaled`` let the kernels exponentiate the K x M
    table once instead of K numbers at every step of every sequence.
    """

    def __call__(self, log_table: jax.Array, symbols: jax.Array) -> jax.Array:
        """(K, *B) log densities."""
        return log_table[:, symbols]

    def prepare(self, log_table: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Densities (K, M), the largest of each symbol 1, and the logs (M,) of what they were divided by."""
        peak = jnp.max(log_table, 0)
        peak = jnp.where(peak == -jnp.inf, 0, peak)
        return jnp.exp(log_table - peak[None]), peak

    def scaled(self, prepared: tuple[jax.Array, jax.Array], symbols: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(K, *B) scaled densities and (*B) logs of the scales."""
        table, peak = prepared
        return table[:, symbols], peak[symbols]

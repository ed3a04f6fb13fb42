"""A block of parameters as vectors, one per group of entries that never meet: its Hessian costs few probes.

``beta`` of shape ``(K, P)`` whose rows never meet has a Hessian of ``K`` blocks ``P x P``. A Hessian-vector product
with the unit vector of entry ``j`` of *every* row at once gives column ``j`` of every block: ``P`` probes instead of
``K P``. Parameters that meet every group (a common slope) are probed one by one and give the border of an arrow matrix.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.jaxpr.groups import SHARED, Meeting
from emppl.jaxpr.separation import Separation
from emppl.numerics.curvature import hessian_product

Block = Mapping[str, jax.Array]

_PROBES_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the entries of a block go.

    Attributes:
        shapes: by parameter.
        grouped: by parameter whose entries fall into groups, the axes that number the groups.
        groups: how many groups.
    """

    shapes: Mapping[str, tuple[int, ...]]
    grouped: Mapping[str, tuple[int, ...]]
    groups: int

    @property
    def shared(self) -> list[str]:
        """Parameters that meet every group."""
        return [name for name in self.shapes if name not in self.grouped]

    @property
    def per_group(self) -> int:
        """Entries in one group."""
        return sum(math.prod(self.shapes[name]) for name in self.grouped) // max(self.groups, 1)

    @property
    def in_common(self) -> int:
        """Entries that meet every group."""
        return sum(math.prod(self.shapes[name]) for name in self.shared)

    @property
    def probes(self) -> int:
        """Hessian-vector products that give the whole Hessian."""
        return self.per_group + self.in_common

    @property
    def entries(self) -> int:
        """Order of the matrices that have to be factorised."""
        return self.per_group if not self.in_common else self.per_group * self.groups + self.in_common

    def split(self, block: Block) -> tuple[jax.Array, jax.Array]:
        """The entries by group ``(groups, per_group)``, and those in common ``(in_common,)``."""
        rows = [
            jnp.reshape(jnp.moveaxis(block[name], axes, range(len(axes))), (self.groups, -1))
            for name, axes in self.grouped.items()
        ]
        dtype = jnp.result_type(*(block[name] for name in self.shapes))
        common = [jnp.ravel(block[name]) for name in self.shared]
        return (
            jnp.concatenate([jnp.zeros((self.groups, 0), dtype), *rows], 1),
            jnp.concatenate([jnp.zeros(0, dtype), *common]),
        )

    def join(self, rows: jax.Array, common: jax.Array) -> dict[str, jax.Array]:
        """Inverse of :meth:`split`."""
        block, start = {}, 0
        for name, axes in self.grouped.items():
            lead = tuple(self.shapes[name][axis] for axis in axes)
            rest = tuple(size for axis, size in enumerate(self.shapes[name]) if axis not in axes)
            size = math.prod(rest)
            part = jnp.reshape(rows[:, start : start + size], lead + rest)
            block[name], start = jnp.moveaxis(part, range(len(axes)), axes), start + size
        start = 0
        for name in self.shared:
            size = math.prod(self.shapes[name])
            block[name], start = jnp.reshape(common[start : start + size], self.shapes[name]), start + size
        return {name: block[name] for name in self.shapes}

    def pack(self, block: Block) -> jax.Array:
        """The block as vectors ``(matrices, entries)``: one per group, or a single one if groups have a border."""
        rows, common = self.split(block)
        return rows if not self.in_common else jnp.concatenate([jnp.ravel(rows), common])[None]

    def unpack(self, vectors: jax.Array) -> dict[str, jax.Array]:
        """Inverse of :meth:`pack`."""
        if not self.in_common:
            return self.join(vectors, jnp.zeros(0, vectors.dtype))
        size = self.groups * self.per_group
        return self.join(jnp.reshape(vectors[0, :size], (self.groups, self.per_group)), vectors[0, size:])

    def hessian(self, gradient: Callable[[Block], Block], at: Block) -> jax.Array:
        """Second derivatives of a function of the block, as matrices that match :meth:`pack`.

        Args:
            gradient: its gradient.
            at: where.

        Returns:
            Shape ``(number of matrices, entries, entries)``.
        """
        own = self.per_group
        product = hessian_product(lambda block: dict(gradient(block)), dict(at))
        unit = jnp.eye(self.probes, dtype=jnp.result_type(*at.values()))

        def probe(vector: jax.Array) -> jax.Array:
            rows = jnp.broadcast_to(vector[None, :own], (self.groups, own))
            rows, common = self.split(product(self.join(rows, vector[own:])))
            return jnp.concatenate([jnp.ravel(rows), common])

        columns = jax.lax.map(probe, unit, batch_size=min(_PROBES_AT_ONCE, self.probes))
        rows = jnp.reshape(columns[:, : self.groups * own], (self.probes, self.groups, own))
        common = columns[:, self.groups * own :]
        within = jnp.moveaxis(rows[:own], 0, -1)  # (groups, own, own)
        if not self.in_common:
            return within
        size = self.groups * own
        full = jnp.zeros((size + self.in_common,) * 2, unit.dtype)
        for group in range(self.groups):
            there = slice(group * own, (group + 1) * own)
            full = full.at[there, there].set(within[group])
        border = jnp.reshape(jnp.moveaxis(rows[own:], 0, -1), (size, self.in_common))
        full = full.at[:size, size:].set(border).at[size:, :size].set(border.T)
        return full.at[size:, size:].set(common[own:])[None]


def find_layout(function: Callable, shapes: Mapping[str, tuple[int, ...]], *arguments: Any) -> Layout:
    """The finest grouping of a block under which no two groups meet in one cell of a function's outputs.

    Args:
        function: ``(block, *arguments) -> arrays``.
        shapes: by parameter of the block.
        *arguments: shapes of everything else.

    Returns:
        The layout; without any group if entries meet everywhere.
    """
    separation = Separation(function, shapes, *arguments)
    grouped: dict[str, tuple[int, ...]] = {}
    groups = 0
    for name in sorted(shapes, key=lambda name: -math.prod(shapes[name])):
        for axes in _candidates(shapes[name]):
            number = math.prod(shapes[name][axis] for axis in axes)
            if grouped and number != groups:
                continue
            trial = {**grouped, name: axes}
            numbers = {other: group_numbers(shapes[other], trial.get(other)) for other in shapes}
            if not any(isinstance(found, Meeting) for found in separation.groups(numbers)):
                grouped, groups = trial, number
                break
    return Layout(dict(shapes), {name: grouped[name] for name in shapes if name in grouped}, groups)


def _candidates(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Sets of axes that may number the groups, the finest grouping first."""
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    found = [chosen for count in range(1, len(axes) + 1) for chosen in itertools.combinations(axes, count)]
    return sorted(found, key=lambda chosen: -math.prod(shape[axis] for axis in chosen))


def group_numbers(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> np.ndarray:
    """The group of every entry of an array whose groups are numbered by some axes."""
    if axes is None:
        return np.full(shape, SHARED)
    count = math.prod(shape[axis] for axis in axes)
    numbers = np.arange(count).reshape(tuple(size if axis in axes else 1 for axis, size in enumerate(shape)))
    return np.broadcast_to(numbers, shape)

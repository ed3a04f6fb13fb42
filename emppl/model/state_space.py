"""How the continuous latents of a scan are laid out: as windows of neighbouring steps, and as one vector per chain."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from emppl.parameters.layout import Block, Layout
from emppl.trace import Scan


@dataclasses.dataclass(frozen=True)
class StateSpace:
    """The continuous latents of a scan: every later step depends on a window of itself and the steps before.

    Attributes:
        scan: the scan.
        firsts: the latents of the first steps, which are no window, by cell: all of them together.
        windows: the latents of a window, the oldest step first, by step and cell.
    """

    scan: Scan
    firsts: Layout
    windows: Layout

    @property
    def steps(self) -> int:
        """Number of steps, the first ones included."""
        return self.scan.length + self.scan.order

    @property
    def cells(self) -> int:
        """Number of chains."""
        return max(self.firsts.groups, 1)

    @property
    def dimensions(self) -> int:
        """Numbers in one step's state."""
        return self.firsts.entries // self.scan.order

    def split(self, values: Block) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Values of the first steps, and of the windows."""
        firsts, windows = ({name: values[name] for name in layout.shapes} for layout in (self.firsts, self.windows))
        return firsts, windows

    def values(self, steps: jax.Array) -> dict[str, jax.Array]:
        """Values of the latents, windows included, from the state of every step, ``(steps, cells, d)``."""
        firsts, windows = self.first_vectors(steps), self.window_vectors(steps)
        return {**self.firsts.unpack(firsts), **self.windows.unpack(windows)}

    def first_vectors(self, steps: jax.Array) -> jax.Array:
        """The first steps of every chain together, ``(cells, order * d)``."""
        return jnp.reshape(jnp.moveaxis(steps[: self.scan.order], 0, 1), (self.cells, -1))

    def window_vectors(self, steps: jax.Array) -> jax.Array:
        """Entries of every window, ``(windows * cells, ...)``."""
        number = self.scan.length
        lags = jnp.stack([steps[lag : lag + number] for lag in range(self.scan.order + 1)], 2)
        return self.seen(jnp.reshape(lags, (number * self.cells, -1)), (-1,))

    def whole(self, array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        """Entries of windows among those of whole states, zeros elsewhere (slices and pads: a scatter is slow)."""
        width = (self.scan.order + 1) * self.dimensions

        def zeros(axis: int, size: int) -> list[jax.Array]:
            shape = list(array.shape)
            shape[axis] = size
            return [jnp.zeros(shape, array.dtype)] * (size > 0)

        for axis in axes:
            parts, taken, end = [], 0, 0
            for start, stop in self._runs:
                parts += zeros(axis, start - end)
                parts.append(jax.lax.slice_in_dim(array, taken, taken + stop - start, axis=array.ndim + axis))
                taken, end = taken + stop - start, stop
            array = jnp.concatenate(parts + zeros(axis, width - end), axis)
        return array

    def seen(self, array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        """Entries that windows see, of whole states: the inverse of :meth:`whole`."""
        for axis in axes:
            parts = [jax.lax.slice_in_dim(array, *run, axis=array.ndim + axis) for run in self._runs]
            array = jnp.concatenate(parts, axis) if len(parts) > 1 else parts[0]
        return array

    @property
    def _runs(self) -> list[tuple[int, int]]:
        """Where the entries of a window lie among those of ``order + 1`` whole states: runs ``(start, stop)``."""
        hidden = self.scan.hidden
        firsts = list(self.firsts.shapes.values())[: len(hidden)]
        sizes = {name: math.prod(shape) // self.cells for name, shape in zip(hidden, firsts, strict=True)}
        offsets = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1], strict=True))
        places: list[int] = []
        for step, lag in enumerate(range(self.scan.order, -1, -1)):
            for name, depth in hidden.items():
                if lag <= depth:
                    begin = step * self.dimensions + offsets[name]
                    places += range(begin, begin + sizes[name])
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        return [(int(run[0]), int(run[-1]) + 1) for run in np.split(np.array(places), breaks)]


@dataclasses.dataclass(frozen=True)
class TrajectoryLayout(Layout):
    """A layout whose vectors are whole chains, the first step first.

    A trajectory is a vector like any other, for ways of integrating that need not be exact. Its Hessian is banded, so
    that the few probes of a window give all of it.

    Attributes:
        states: how steps follow each other.
    """

    states: StateSpace

    @property
    def per_group(self) -> int:
        """Numbers of one trajectory."""
        return self.states.steps * self.states.dimensions

    @property
    def in_common(self) -> int:
        """Zero: chains have no shared entries."""
        return 0

    def pack(self, block: Block) -> jax.Array:
        """Trajectories ``(chains, steps * dimensions)`` from first steps and windows, which repeat themselves."""
        states = self.states
        first_block, window_block = states.split(block)
        firsts, windows = states.firsts.pack(first_block), states.windows.pack(window_block)
        newest = states.whole(windows, (-1,))[:, -states.dimensions :]
        later = jnp.reshape(newest, (states.scan.length, states.cells, states.dimensions))
        return jnp.concatenate([firsts, jnp.reshape(jnp.moveaxis(later, 1, 0), (states.cells, -1))], 1)

    def unpack(self, vectors: jax.Array) -> dict[str, jax.Array]:
        """Inverse of :meth:`pack`."""
        states = self.states
        steps = jnp.reshape(vectors, (states.cells, states.steps, states.dimensions))
        return states.values(jnp.moveaxis(steps, 1, 0))

    def hessian(self, gradient: Callable[[Block], Block], at: Block) -> jax.Array:
        """Second derivatives, ``(chains, entries, entries)``: the sum of those of all windows."""
        states, order, size = self.states, self.states.scan.order, self.states.dimensions

        def curvature(layout: Layout) -> jax.Array:
            def own(block: Block) -> dict[str, jax.Array]:
                slope = gradient({**at, **block})
                return {name: slope[name] for name in block}

            return layout.hessian(own, {name: at[name] for name in layout.shapes})

        number, cells = states.scan.length, states.cells
        windows = states.whole(curvature(states.windows), (-2, -1))
        windows = jnp.reshape(windows, (number, cells, order + 1, size, order + 1, size))
        firsts = jnp.reshape(curvature(states.firsts), (cells, order, size, order, size))
        dense = jnp.zeros((cells, states.steps, size, states.steps, size), windows.dtype)
        dense = dense.at[:, :order, :, :order].set(firsts)
        steps = jnp.arange(number)
        for row in range(order + 1):
            for column in range(order + 1):
                dense = dense.at[:, steps + row, :, steps + column].add(windows[:, :, row, :, column])
        return jnp.reshape(dense, (cells, self.per_group, self.per_group))

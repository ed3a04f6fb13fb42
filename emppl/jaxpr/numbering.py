"""Which group every cell depends on, computed from the data: the run-time side of :mod:`emppl.jaxpr.separation`.

Where an index among the data picks the group (``b[subject]``), separation knows that every cell depends on one group
only; which one it is comes out of the same computation with group numbers in the place of values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.jaxpr.equations import Equation, OperandAxes, shape_of
from emppl.jaxpr.groups import SHARED
from emppl.jaxpr.walk import Computation, Values, entry_of, interpret


def number_cells(function: Callable[[Any], Any], numbers: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The group of every cell of a function's outputs.

    Args:
        function: from a block of arrays to arrays by name; :class:`Separation` has found that no cell depends on two
            groups.
        numbers: by array of the block, the group of every entry.

    Returns:
        By output, the group of every cell; ``SHARED`` where it depends on none.
    """
    block = {name: jax.ShapeDtypeStruct(array.shape, jnp.result_type(float)) for name, array in numbers.items()}
    closed, shape = jax.make_jaxpr(function, return_shape=True)(block)
    computation = Computation(closed)
    start = [jnp.asarray(numbers[name], jnp.int32) for name in sorted(numbers)]
    environment = interpret(computation, dict(zip(computation.inputs, start, strict=True)), _CellNumbers(computation))
    found = [entry_of(environment, atom) for atom in computation.outputs]
    flat, treedef = jax.tree.flatten(shape)
    filled = [jnp.full(one.shape, SHARED) if n is None else n for n, one in zip(found, flat, strict=True)]
    return jax.tree.unflatten(treedef, filled)


class _CellNumbers(Values[jax.Array]):
    """Values of what does not depend on the block, group numbers of what does."""

    def apply(self, equation: Equation, entries: list[jax.Array | None]) -> jax.Array | list[jax.Array | None]:
        """The largest number that meets in a cell; of what only moves, the number that arrives."""
        axes, numbers = equation.axes.operands, dict(self.tracked(entries))
        sources = set(equation.row.sources(equation))
        is_whole = len(sources) == 1 and all(len(axes[p].whole) == number.ndim for p, number in numbers.items())
        if numbers.keys() <= sources and not is_whole:
            return self._moved(equation, entries)
        return functools.reduce(jnp.maximum, (_placed(n, axes[p], equation.shape) for p, n in numbers.items()))

    def _moved(self, equation: Equation, entries: list[jax.Array | None]) -> list[jax.Array | None]:
        operands, sources = list(entries), equation.row.sources(equation)
        for position, atom in enumerate(equation.operands):
            if position not in sources:
                operands[position] = self.value(atom)
            elif entries[position] is None:
                operands[position] = jnp.full(shape_of(atom), SHARED, jnp.int32)
        changed = {"fill_value": SHARED} if equation.name == "gather" else {}
        return list(equation.bind(*operands, **changed))


def _placed(number: jax.Array, axes: OperandAxes, shape: tuple[int, ...]) -> jax.Array:
    """An operand's numbers where they enter a result: the largest along what is combined."""
    gone = tuple(axis for axis in range(number.ndim) if axis not in axes.whole)
    places = sorted(axes.whole.values())
    order = sorted(axes.whole, key=lambda axis: axes.whole[axis])
    kept = jnp.transpose(jnp.max(number, gone, keepdims=True), (*order, *gone))
    sizes = [shape[place] if place in places else 1 for place in range(len(shape))]
    return jnp.broadcast_to(jnp.reshape(kept, sizes), shape)

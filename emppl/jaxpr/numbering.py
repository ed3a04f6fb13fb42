"""Which group every cell depends on, computed from the data: the run-time side of :mod:`emppl.jaxpr.separation`.

Where an index among the data picks the group (``b[subject]``), separation knows that every cell depends on one group
only; which one it is comes out of the same computation with group numbers in the place of values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from emppl.jaxpr.groups import SHARED
from emppl.jaxpr.selection import INLINE, searched_for

_SAME = (
    "broadcast_in_dim reshape transpose squeeze slice rev gather dynamic_slice copy copy_p expand_dims split"
).split()


def number_cells(function: Callable, numbers: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The group of every cell of a function's outputs.

    Args:
        function: from a block of arrays to arrays by name; :class:`Separation` has found that no cell depends on two
            groups.
        numbers: by array of the block, the group of every entry.

    Returns:
        By output, the group of every cell; ``SHARED`` where it depends on none.
    """
    block = {name: jax.ShapeDtypeStruct(one.shape, jnp.result_type(float)) for name, one in numbers.items()}
    closed, shape = jax.make_jaxpr(function, return_shape=True)(block)
    start = [jnp.asarray(numbers[name], jnp.int32) for name in sorted(numbers)]
    run = _Numbers(dict(zip(closed.jaxpr.constvars, closed.consts, strict=True)))
    run.numbers.update(zip(closed.jaxpr.invars, start, strict=True))
    run.equations(closed.jaxpr)
    found = [run.numbers.get(atom) if not isinstance(atom, Literal) else None for atom in closed.jaxpr.outvars]
    flat, treedef = jax.tree.flatten(shape)
    filled = [jnp.full(one.shape, SHARED) if n is None else n for n, one in zip(found, flat, strict=True)]
    return jax.tree.unflatten(treedef, filled)


class _Numbers:
    """Values of what does not depend on the block, group numbers of what does."""

    def __init__(self, values: dict[Any, Any]):
        self.values = values
        self.numbers: dict[Any, jax.Array] = {}

    def value(self, atom):
        return atom.val if isinstance(atom, Literal) else self.values[atom]

    def number(self, atom):
        return None if isinstance(atom, Literal) else self.numbers.get(atom)

    def equations(self, jaxpr) -> None:
        for equation in jaxpr.eqns:
            numbers = [self.number(atom) for atom in equation.invars]
            query = searched_for(equation)
            if query is not None and self.number(query) is not None:
                self.numbers[equation.outvars[0]] = self.numbers[query]
                continue
            if equation.primitive.name in INLINE and self._inline(equation):
                continue
            if all(one is None for one in numbers):
                out = equation.primitive.bind(*map(self.value, equation.invars), **equation.params)
                outputs = out if equation.primitive.multiple_results else [out]
                self.values.update(zip(equation.outvars, outputs, strict=True))
                continue
            out = self._apply(equation, numbers)
            outputs = out if isinstance(out, list) else [out] * len(equation.outvars)
            self.numbers.update(zip(equation.outvars, outputs, strict=True))

    def _inline(self, equation) -> bool:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is None:
            return False
        consts = getattr(inner, "consts", ())
        inner = getattr(inner, "jaxpr", inner)
        scope = _Numbers(dict(zip(inner.constvars, consts, strict=True)))
        for variable, atom in zip(inner.invars, equation.invars, strict=True):
            self._copy(atom, scope, variable)
        scope.equations(inner)
        for variable, atom in zip(equation.outvars, inner.outvars, strict=True):
            scope._copy(atom, self, variable)
        return True

    def _copy(self, atom, scope: _Numbers, variable) -> None:
        number = self.number(atom)
        if number is None:
            scope.values[variable] = self.value(atom)
        else:
            scope.numbers[variable] = number

    def _apply(self, equation, numbers):
        name, shape = equation.primitive.name, equation.outvars[0].aval.shape
        if name in _SAME:
            rest = [self.value(atom) for atom in equation.invars[1:]]
            params = dict(equation.params)
            if name == "gather":
                params["fill_value"] = SHARED
            return equation.primitive.bind(numbers[0], *rest, **params)
        if name.startswith(("reduce_", "arg")):
            return jnp.max(numbers[0], equation.params["axes"])
        if name in ("concatenate", "stack"):
            parts = [
                jnp.full(atom.aval.shape, SHARED, jnp.int32) if one is None else one
                for atom, one in zip(equation.invars, numbers, strict=True)
            ]
            if name == "stack":
                return jnp.stack(parts, equation.params["axis"])
            return jnp.concatenate(parts, equation.params["dimension"])
        if name == "dot_general":
            return self._dot(equation, numbers)
        if name == "triangular_solve":  # right-hand sides do not meet
            across = -2 if equation.params["left_side"] else -1
            axes: list[Any] = [(-2, -1), across]
            largest = [jnp.max(one, axes[side], keepdims=True) for side, one in enumerate(numbers) if one is not None]
            return _largest([jnp.broadcast_to(one, shape) for one in largest])
        if name == "cholesky":
            return jnp.broadcast_to(jnp.max(numbers[0], (-2, -1), keepdims=True), shape)
        known = [one for one in numbers if one is not None]
        return _largest([jnp.broadcast_to(one, shape) for one in known])

    def _dot(self, equation, numbers):
        contracted, batched = equation.params["dimension_numbers"]
        shape = equation.outvars[0].aval.shape
        placed = []
        for side, one in enumerate(numbers):
            if one is None:
                continue
            rank = len(equation.invars[side].aval.shape)
            free = [axis for axis in range(rank) if axis not in (*contracted[side], *batched[side])]
            moved = jnp.transpose(one, (*batched[side], *free, *contracted[side]))
            kept = jnp.max(moved, tuple(range(len(batched[side]) + len(free), rank)))
            batch, mine = kept.shape[: len(batched[side])], kept.shape[len(batched[side]) :]
            others = (1,) * (len(shape) - len(batch) - len(mine))
            placed.append(jnp.reshape(kept, batch + (mine + others if side == 0 else others + mine)))
        return _largest([jnp.broadcast_to(one, shape) for one in placed])


def _largest(arrays: list[jax.Array]) -> jax.Array:
    found = arrays[0]
    for other in arrays[1:]:
        found = jnp.maximum(found, other)
    return found

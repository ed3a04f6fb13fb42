"""Indices: where a computation picks entries of an array, and whether what is picked lies inside that array.

JAX clamps an index out of bounds where it computes a value and drops it where it computes a derivative, so that a model
with one is two models. Whether that matters is asked of the computation: entries that such an index picks are
*poisoned*, and a density that stays what it was does not see them (its cell is masked, or ``where`` chose otherwise).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, Var
from jax.lax import GatherScatterMode

from emppl.jaxpr.equations import Equation, dtype_of, shape_of
from emppl.jaxpr.walk import Computation, Label, Labels, LabelSets, entry_of, interpret

_POISON = -(2**30)
"""In the place of a whole number that an index out of bounds picked: an index made of it is out of bounds too."""


@dataclasses.dataclass(frozen=True)
class Pick:
    """One operation that picks entries of an array.

    Attributes:
        equation: the operation.
        array: what the array depends on.
        index: what the index depends on.
    """

    equation: Equation
    array: Labels
    index: Labels

    @property
    def largest(self) -> dict[int, int]:
        """By axis of the array from which single entries are picked, the largest index."""
        sizes = self.equation.params["slice_sizes"]
        return {
            axis: shape_of(self.equation.operands[0])[axis] - 1
            for axis in sorted(self.equation.row.picks(self.equation))
            if sizes[axis] == 1
        }

    def column(self, axis: int, indices: Sequence[Any]) -> Any:
        """What is picked along an axis, for values of the operands that hold indices."""
        position, column = self.equation.row.picks(self.equation)[axis]
        return indices[position - 1] if column is None else indices[position - 1][..., column]


class Picks:
    """Every operation of a computation that picks entries by an index that parameters do not move.

    Args:
        closed: the computation.
        labels: what its inputs are.
        known: those of which values can be given.
    """

    def __init__(self, closed: ClosedJaxpr, labels: Sequence[Label], known: frozenset[Label]):
        self.computation = Computation(closed)
        self._labels = labels
        start = {v: frozenset([label]) for v, label in zip(self.computation.inputs, labels, strict=True)}
        depends = interpret(self.computation, start, LabelSets(self.computation))
        self.found = []
        for equation in self.computation.equations:
            if _is_checked(equation):
                array, *index = (entry_of(depends, atom) or frozenset() for atom in equation.operands)
                pick = Pick(equation, array, frozenset().union(*index))
                if pick.index <= known and pick.largest:
                    self.found.append(pick)

    def ranges(self, inputs: Mapping[Label, Any]) -> list[dict[int, jax.Array]]:
        """The smallest and the largest index by pick and axis of its array.

        Args:
            inputs: values of the inputs that are known.
        """
        wanted = [atom for pick in self.found for atom in pick.equation.operands[1:]]
        given = {v: inputs.get(label) for v, label in zip(self.computation.inputs, self._labels, strict=True)}
        values = _evaluate(self.computation, wanted, given)
        ranges = []
        for pick in self.found:
            indices = [_value(values, atom) for atom in pick.equation.operands[1:]]
            columns = {axis: pick.column(axis, indices) for axis in pick.largest}
            ranges.append({axis: jnp.stack([jnp.min(c), jnp.max(c)]) for axis, c in columns.items() if jnp.size(c)})
        return ranges

    def poisoned(self, poisoned: Pick | None) -> ClosedJaxpr:
        """The computation in which every index is clamped, but what one of them picks out of bounds is poisoned."""

        def run(*values: Any) -> list[Any]:
            known: dict[Var, Any] = dict(zip(self.computation.inputs, values, strict=True)) | self.computation.constants
            for equation in self.computation.equations:
                operands = [_value(known, atom) for atom in equation.operands]
                if _is_checked(equation):
                    is_poisoned = poisoned is not None and equation is poisoned.equation
                    results = [_picked(equation, operands, is_poisoned)]
                else:
                    results = equation.bind(*operands)
                known.update(zip(equation.results, results, strict=True))
            return [_value(known, atom) for atom in self.computation.outputs]

        return jax.make_jaxpr(run)(*(variable.aval for variable in self.computation.inputs))


def _is_checked(equation: Equation) -> bool:
    """Whether it picks entries by an index that should be in bounds.

    It need not be where the model itself said ``mode="clip"``, or cuts a window out (``lax.dynamic_slice``).
    """
    if equation.name == "dynamic_slice":
        return True
    if equation.name != "gather":
        return False
    # One entry at a time under vmap clamps, and keeps the axes from which it picks.
    is_clipped = equation.params["mode"] is GatherScatterMode.CLIP
    return not (is_clipped and equation.params["dimension_numbers"].collapsed_slice_dims)


def _picked(equation: Equation, operands: Sequence[Any], is_poisoned: bool) -> Any:
    """What an operation picks, with poison where an index is out of bounds, or came of poison itself."""
    changed = {"mode": GatherScatterMode.CLIP} if equation.name == "gather" else {}
    (result,) = equation.bind(*operands, **changed)
    if not jnp.issubdtype(result.dtype, jnp.number) and result.dtype != bool:
        return result
    bad = jnp.zeros((), bool)
    pick = Pick(equation, frozenset(), frozenset())
    for axis, largest in pick.largest.items():
        index = pick.column(axis, operands[1:])
        bad = bad | ((index < 0) | (index > largest) if is_poisoned else index < _POISON // 4)
    if equation.name == "gather":
        windows = equation.params["dimension_numbers"].offset_dims
        sizes = iter(bad.shape)
        bad = jnp.reshape(bad, [1 if axis in windows or not bad.ndim else next(sizes) for axis in range(result.ndim)])
    else:
        bad = jnp.reshape(bad, (1,) * result.ndim)
    poison = ~result if result.dtype == bool else _poison_of(result.dtype)
    return jnp.where(bad, poison, result)


def _poison_of(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(jnp.nan, dtype)
    least = jnp.iinfo(dtype).min
    return jnp.asarray(max(least, _POISON) if least else jnp.iinfo(dtype).max, dtype)


def _evaluate(computation: Computation, wanted: Sequence[Any], inputs: Mapping[Var, Any]) -> dict[Var, Any]:
    """Values of some variables, by the equations that they need."""
    needed = {id(atom) for atom in wanted}
    equations = []
    for equation in reversed(computation.equations):
        if any(id(result) in needed for result in equation.results):
            equations.append(equation)
            needed.update(map(id, equation.operands))
    values: dict[Var, Any] = {**computation.constants, **inputs}
    for equation in reversed(equations):
        values.update(
            zip(equation.results, equation.bind(*(_value(values, a) for a in equation.operands)), strict=True)
        )
    return values


def _value(values: Mapping[Var, Any], atom: Any) -> Any:
    return jnp.asarray(atom.val, dtype_of(atom)) if isinstance(atom, Literal) else values[atom]

"""Which entries of a block of parameters never meet in one cell: the computation is run on *group numbers*.

Give every entry of ``beta`` the number of its row. Then ``(beta[z] * x).sum(-1)`` carries, for every cell of the table,
the number of the only row it depends on, and two rows never share a cell: the Hessian of Q is block-diagonal. Numbers
go through the operations of the jaxpr as values would; where two different ones meet, the answer is "they meet". The
atoms of latents are known, so an index made of them is a number too. Nothing of the data is looked at: an index made of
data picks some group, of which only is known that the same index picks the same group.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Var

from emppl.jaxpr.equations import Atom, Equation, Kind, shape_of
from emppl.jaxpr.groups import MOST_CELLS, SHARED, Grouped, Meeting, compact, form, merged, moved, together
from emppl.jaxpr.walk import Computation, Domain, column_of, entry_of, interpret

Entry: TypeAlias = Grouped | Meeting


class Separation:
    """A function of a block, ready to be run on group numbers.

    Args:
        function: ``(block, *arguments) -> arrays``; atoms of latents are constants in it.
        shapes: by parameter of the block; with a dtype where it is not floating.
        *arguments: shapes of everything else.
    """

    def __init__(self, function: Callable, shapes: Mapping[str, Any], *arguments: Any):
        self.names = sorted(shapes)
        block = {name: _struct(shape) for name, shape in shapes.items()}
        self.computation = Computation(jax.make_jaxpr(function)(block, *arguments))

    def groups(self, numbers: Mapping[str, np.ndarray]) -> list[Entry | None]:
        """Which group every cell of every output depends on.

        Args:
            numbers: by parameter of the block, the group of every entry, in the parameter's full shape.

        Returns:
            For every output: its groups, or that they meet, or None if it does not depend on the block.
        """
        start: dict[Var, Entry] = {}
        for variable, name in zip(self.computation.inputs, self.names, strict=False):
            own = compact(numbers[name])
            # Along an axis of group numbers the function is one and the same: entry k of group k is itself.
            varies = tuple(size > 1 and own.shape[axis] == 1 for axis, size in enumerate(numbers[name].shape))
            start[variable] = Grouped(own, varies)
        environment = interpret(self.computation, start, GroupNumbers(self.computation))
        return [entry_of(environment, atom) for atom in self.computation.outputs]


def _struct(shape: Any) -> jax.ShapeDtypeStruct:
    return shape if isinstance(shape, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(shape, jnp.result_type(float))


class GroupNumbers(Domain[Entry]):
    """Group numbers through the operations of a computation.

    Args:
        computation: where.
    """

    def __init__(self, computation: Computation):
        super().__init__(computation)
        self._constants: dict[Var, np.ndarray] = {}
        self._expressions: dict[Any, int] = {}
        self._expression_of: dict[Var, int] = {}
        self._picked: dict[Any, int] = {}
        for variable, value in computation.constants.items():
            self._remember(variable, value)

    def apply(self, equation: Equation, entries: list[Entry | None]) -> Entry:
        """What is known of the result."""
        for _, entry in self.tracked(entries):
            if isinstance(entry, Meeting):
                return entry
        operands = [
            entry if isinstance(entry, Grouped) else self._outside(atom)
            for entry, atom in zip(entries, equation.operands, strict=True)
        ]
        if equation.row.kind is Kind.UNKNOWN:
            return Meeting(f"it goes through `{equation.name}`")
        if equation.name == "gather":
            if entries[1] is None:
                return self._gathered(equation, operands[0])
            # A table that all groups share, indexed by an array of the block: every group picks for itself.
            is_shared = bool(np.all(operands[0].numbers == SHARED))
            return self._combined(equation, operands) if is_shared else Meeting("it is used as an index")
        if equation.name == "select_n" and entries[0] is None and self._is_one_value(equation.operands[0]):
            # A `where` whose condition is one known value is the branch that it takes.
            return operands[1 + int(np.ravel(self._value(equation.operands[0]))[0])]
        if equation.row.kind is Kind.MOVES:
            sources = equation.row.sources(equation)
            is_index = any(entry is not None and position not in sources for position, entry in enumerate(entries))
            return Meeting("it is used as an index") if is_index else self._moved(equation, operands, sources)
        return self._combined(equation, operands)

    def untouched(self, equation: Equation) -> None:
        """Fold what is known, and number the expression: what is computed in the same way is the same."""
        params = id(equation) if "jaxpr" in equation.params else str(equation.params)
        operands = tuple(map(self._expression, equation.operands))
        for position, result in enumerate(equation.results):
            key = (position, equation.name, params, operands)
            self._expression_of[result] = self._expressions.setdefault(key, len(self._expressions))
        fold, size = equation.row.fold, np.prod(equation.shape, dtype=int)
        if fold is not None and size <= MOST_CELLS and all(map(self._is_known, equation.operands)):
            values = map(self._value, equation.operands)
            self._constants[equation.results[0]] = np.asarray(fold(equation.params, *values))

    # ------------------------------------------------------------------------------------------------ operations

    def _combined(self, equation: Equation, operands: list[Grouped]) -> Entry:
        """Entries that meet: of one group along what is combined, of one group in every cell."""
        rank = len(equation.shape)
        placed = []
        for operand, own in zip(operands, equation.axes.operands, strict=True):
            entry = moved(operand, own, rank)
            if entry is None:
                return Meeting("different groups are added up")
            placed.append(entry)
        found = together(placed)
        if isinstance(found, Meeting):
            return found
        return Grouped(found.numbers, self._varying(equation, found), found.picks)

    def _moved(self, equation: Equation, operands: list[Grouped], sources: Sequence[int]) -> Entry:
        """Entries that only move; where they do not move with whole axes, their numbers are moved as they are."""
        own = [equation.axes.operands[position] for position in sources]
        entries = [operands[position] for position in sources]
        strays = [[a for a in entry.along if a not in o.whole] for entry, o in zip(entries, own, strict=True)]
        if len(sources) == 1 and not strays[0]:
            return self._combined(equation, operands)
        is_picked = any(entry.picks[a] is not None for entry, gone in zip(entries, strays, strict=True) for a in gone)
        if equation.row.fold is None or is_picked:
            return Meeting(f"it goes through `{equation.name}`")
        spread = []
        for position, entry, o, gone in zip(sources, entries, own, strays, strict=True):
            full = equation.shapes[position]
            # Axes that only come apart are spread out; otherwise, as in a reshape, all are.
            cut = o.cut.keys() if set(gone) <= o.cut.keys() else range(len(full))
            if cut != o.cut.keys() and math.prod(full) > MOST_CELLS:
                return Meeting(f"it goes through a `{equation.name}` of a large array")
            sizes = [full[axis] if axis in cut else size for axis, size in enumerate(entry.numbers.shape)]
            spread.append(np.broadcast_to(entry.numbers, sizes))
        common = np.broadcast_shapes(
            *([1 if a in o.cut else n for a, n in enumerate(s.shape)] for s, o in zip(spread, own, strict=True))
        )
        parts = [
            np.broadcast_to(s, [s.shape[a] if a in o.cut else n for a, n in enumerate(common)])
            for s, o in zip(spread, own, strict=True)
        ]
        numbers = compact(np.asarray(equation.row.fold(equation.params, *parts)))
        placed = [moved(form(entry), o, numbers.ndim) for entry, o in zip(entries, own, strict=True)]
        found = together([entry for entry in placed if entry is not None])
        if isinstance(found, Meeting):
            return found
        return Grouped(numbers, self._varying(equation, found), found.picks)

    @staticmethod
    def _varying(equation: Equation, found: Grouped) -> tuple[bool, ...]:
        varying = equation.axes.varying
        return tuple(v or (a in varying and equation.shape[a] > 1) for a, v in enumerate(found.varies))

    def _gathered(self, equation: Equation, entry: Grouped) -> Entry:
        """What an index picks from an array of the block."""
        indices, dims, axes = equation.operands[1], equation.params["dimension_numbers"], equation.axes.operands[0]
        columns = {a: column or 0 for a, (_, column) in equation.row.picks(equation).items() if a not in axes.whole}
        strays = [axis for axis in entry.along if axis not in axes.whole]
        unknown = [axis for axis in strays if axis in columns and not self._is_known(indices)]
        places = [place for place in range(len(equation.shape)) if place not in dims.offset_dims]
        varies = [False] * len(equation.shape)
        picks: list[int | None] = [None] * len(equation.shape)
        for axis, place in {**axes.whole, **axes.cut}.items():
            varies[place], picks[place] = entry.varies[axis], entry.picks[axis]
        if unknown or dims.operand_batching_dims or any(entry.varies[axis] for axis in columns):
            for place in places:  # which entry is picked may differ
                varies[place] = equation.shape[place] > 1
        if any(entry.picks[axis] is not None for axis in strays):
            return Meeting(_ACROSS)
        if unknown and unknown == entry.along and not axes.cut.keys() & unknown and not dims.operand_batching_dims:
            # Which group is picked is for the data to say.
            for batch, place in enumerate(places):
                picks[place] = batch if equation.shape[place] > 1 else None
            number = self._picked_by(indices, [columns[axis] for axis in unknown])
            return Grouped(np.full((1,) * len(varies), number), tuple(varies), tuple(picks))
        numbers = merged(entry.numbers, unknown)
        if numbers is None:
            return Meeting(_ACROSS)
        positions = self._positions(equation, [a for a, size in enumerate(numbers.shape) if size > 1])
        picked = numbers[tuple(positions.get(axis, 0) for axis in range(numbers.ndim))]
        numbers = picked if positions else np.reshape(picked, (1,) * len(varies))
        return Grouped(compact(numbers), tuple(varies), tuple(picks))

    def _positions(self, equation: Equation, wanted: list[int]) -> dict[int, np.ndarray]:
        """By axis of the operand of a gather, the entry that every cell picks; cells along all axes, or size one."""
        dims, axes, rank = equation.params["dimension_numbers"], equation.axes.operands[0], len(equation.shape)
        sizes, shape, picks = equation.params["slice_sizes"], equation.shapes[0], equation.row.picks(equation)
        lead = [1 if place in dims.offset_dims else size for place, size in enumerate(equation.shape)]
        positions = {}
        for axis in wanted:
            place = {**axes.whole, **axes.cut}.get(axis)
            along = [1] * rank
            if place is not None:
                along[place] = equation.shape[place]
            positions[axis] = np.arange(1 if place is None else equation.shape[place]).reshape(along)
            if axis in picks and axis not in axes.whole:
                start = self._value(equation.operands[1])[..., picks[axis][1]]
                positions[axis] = positions[axis] + np.clip(start, 0, shape[axis] - sizes[axis]).reshape(lead)
        return positions

    def _picked_by(self, indices: Atom, columns: list[int]) -> int:
        """The number of the groups that some columns of an index made of data pick."""
        key = []
        for column in columns:
            part = column_of(self.computation, indices, column)
            is_alone = shape_of(part)[-1] == 1
            key.append((self._expression(part), 0) if is_alone else (self._expression(indices), column))
        return self._picked.setdefault(tuple(key), SHARED - 1 - len(self._picked))

    # ------------------------------------------------------------------------------ what the block does not touch

    def _outside(self, atom: Atom) -> Grouped:
        """An array that the block does not touch, as one of no group in particular."""
        shape, along = shape_of(atom), self.computation.varying_axes(atom)
        if self._is_known(atom):
            value = self._value(atom)
            along = frozenset(axis for axis in along if np.any(value != np.take(value, [0], axis)))
        return Grouped(np.full((1,) * len(shape), SHARED), tuple(axis in along for axis in range(len(shape))))

    def _expression(self, atom: Atom) -> int:
        """A number for how an array is computed."""
        if isinstance(atom, Literal):
            return self._expressions.setdefault(f"{atom.val} {atom.aval}", len(self._expressions))
        found = self._expression_of.get(atom)
        return self._expressions.setdefault(atom, len(self._expressions)) if found is None else found

    def _is_known(self, atom: Atom) -> bool:
        return isinstance(atom, Literal) or atom in self._constants

    def _is_one_value(self, atom: Atom) -> bool:
        return self._is_known(atom) and np.size(self._value(atom)) == 1

    def _value(self, atom: Atom) -> np.ndarray:
        return np.asarray(atom.val) if isinstance(atom, Literal) else self._constants[atom]

    def _remember(self, variable: Var, value: Any) -> None:
        if isinstance(value, jax.core.Tracer):
            return
        with contextlib.suppress(TypeError):  # a random key is no array of numbers
            array = np.asarray(value)
            same = (array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).digest())
            self._expression_of[variable] = self._expressions.setdefault(same, len(self._expressions))
            if array.size <= MOST_CELLS:
                self._constants[variable] = array


_ACROSS = "it is indexed by data across groups"

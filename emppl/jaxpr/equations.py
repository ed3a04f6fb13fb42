"""Operations of a traced computation, and the form of what is known of each."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from jax.extend.core import Literal, Primitive, Var

from emppl.jaxpr.maps import Step

Atom: TypeAlias = Var | Literal

_Value = TypeVar("_Value")
Known: TypeAlias = "_Value | Callable[[Equation], _Value]"

RISES = 1
FALLS = -1
ONE_WAY = 0
"""It rises or falls in every entry; which, depends on values that are not known here."""


class Kind(enum.Enum):
    """What becomes of entries."""

    ELEMENTWISE = "an entry of the result is made of the entries at its place"
    MOVES = "every entry of the result is an entry of a source, or a constant"
    MIXES = "entries along some axes are combined, which go or stay"
    UNKNOWN = "nothing is known"


@dataclasses.dataclass(frozen=True)
class OperandAxes:
    """Where the axes of one operand go; those in neither mapping are combined, or go because an index picks from them.

    Attributes:
        whole: by axis of the operand, the axis of the result along which its entries lie in the same order.
        cut: by axis of the operand, the axis of the result along which some of its entries lie, or in another order.
    """

    whole: Mapping[int, int] = dataclasses.field(default_factory=dict)
    cut: Mapping[int, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AxisMap:
    """Where the axes of all operands go.

    Attributes:
        operands: one for each.
        varying: axes of the result along which entries may differ even where those of the operands do not.
    """

    operands: tuple[OperandAxes, ...]
    varying: frozenset[int] = frozenset()


def shape_of(atom: Atom) -> tuple[int, ...]:
    """The shape of a variable or a number."""
    return atom.aval.shape  # type: ignore[attr-defined]


def dtype_of(atom: Atom) -> Any:
    """The type of the entries of a variable or a number."""
    return atom.aval.dtype  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """An operation of a traced computation, or a call of a function of JAX that has a row of its own."""

    name: str
    operands: tuple[Atom, ...]
    results: tuple[Var, ...]
    params: Mapping[str, Any]
    primitive: Primitive
    row: Row

    @functools.cached_property
    def axes(self) -> AxisMap:
        """Where the axes of the operands go."""
        return self.row.axes(self)

    @property
    def is_identity(self) -> bool:
        """Whether the result is the operand."""
        return self._known(self.row.identity)

    @property
    def jumps(self) -> bool:
        """Whether the result jumps where an operand moves."""
        return self._known(self.row.jumps)

    @property
    def directions(self) -> tuple[int | None, ...]:
        """For every operand, whether the result rises or falls with it; None if that is not known."""
        if self.row.kind is Kind.MOVES:
            sources = self.row.sources(self)
            return tuple(RISES if position in sources else None for position in range(len(self.operands)))
        direction = self._known(self.row.direction)
        return direction if isinstance(direction, tuple) else (direction,) * len(self.operands)

    def _known(self, column: Any) -> Any:
        return column(self) if callable(column) else column

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        return shape_of(self.results[0])

    @functools.cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the operands."""
        return [shape_of(atom) for atom in self.operands]

    def bind(self, *values: Any, **changed: Any) -> list[Any]:
        """The results, for values of the operands."""
        params = self.primitive.get_bind_params({**self.params, **changed})
        result = self.primitive.bind(*values, **params)
        return list(result) if self.primitive.multiple_results else [result]


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of one primitive; a function of the equation where it depends on that.

    Attributes:
        kind: what becomes of entries.
        axes: where axes go.
        sources: of what moves entries, the operands whose entries they are; the others are indices.
        picks: by axis of the first operand, which operand says what is picked from it, and which column of that.
        identity: whether the result is the operand.
        direction: whether the result rises or falls with its operands: one for all, or one for each.
        jumps: whether the result jumps where an operand moves.
        has_slope: whether it has a slope between its jumps.
        map: of the parameters and the constant operands (None for the one that is not), the invertible map of the rest.
        fold: of the parameters and the operands, the result with NumPy. Axes that stay whole may have size one.
        is_call: whether it is a function of JAX, known by its name.
    """

    kind: Kind
    axes: Callable[[Equation], AxisMap]
    sources: Callable[[Equation], Sequence[int]] = lambda equation: ()
    picks: Callable[[Equation], Mapping[int, tuple[int, int | None]]] = lambda equation: {}
    identity: Known[bool] = False
    direction: Known[int | tuple[int | None, ...] | None] = None
    jumps: Known[bool] = False
    has_slope: bool = True
    map: Callable[[Mapping[str, Any], Sequence[float | None]], Step | None] | None = None
    fold: Callable[..., np.ndarray] | None = None
    is_call: bool = False

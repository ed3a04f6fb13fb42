"""What every primitive of JAX does to axes, and what else is known of it: one row of one table.

The domains that follow something through a traced computation (labels, axes, selections, directions, jumps, groups)
ask the row, never the name. A primitive without a row is *unknown*: whatever goes through it takes the general path.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, Primitive, Var

from emppl.jaxpr import maps
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

    @functools.cached_property
    def row(self) -> Row:
        """What is known of the operation."""
        return ROWS.get(self.name, UNKNOWN)

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
        """Whether the result jumps where an operand moves; of an unknown operation it is to be assumed."""
        return self.row.kind is Kind.UNKNOWN or self._known(self.row.jumps)

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


# ------------------------------------------------------------------------------------------------ where axes go


def _same_place(equation: Equation) -> AxisMap:
    """Operands that are shorter in some axis are repeated along it."""
    return AxisMap(tuple(_aligned(shape, equation.shape) for shape in equation.shapes))


def _aligned(shape: tuple[int, ...], target: tuple[int, ...]) -> OperandAxes:
    first = len(target) - len(shape)
    return OperandAxes({axis: first + axis for axis, size in enumerate(shape) if size == target[first + axis]})


def _looked_up(position: int) -> Callable[[Equation], AxisMap]:
    """Every entry of one operand is looked for in the others."""

    def axes(equation: Equation) -> AxisMap:
        own = [OperandAxes()] * len(equation.operands)
        own[position] = _aligned(equation.shapes[position], equation.shape)
        return AxisMap(tuple(own))

    return axes


def _nowhere(equation: Equation) -> AxisMap:
    rank = max((len(shape_of(result)) for result in equation.results), default=0)
    return AxisMap((OperandAxes(),) * len(equation.operands), frozenset(range(rank)))


def _broadcast(equation: Equation) -> AxisMap:
    before, places = equation.shapes[0], equation.params["broadcast_dimensions"]
    whole = {axis: place for axis, place in enumerate(places) if before[axis] == equation.shape[place]}
    return AxisMap((OperandAxes(whole), *(OperandAxes() for _ in equation.operands[1:])))


def _reshape(equation: Equation) -> AxisMap:
    """An axis stays whole beside another of its size with as many entries before it."""
    before, after = equation.shapes[0], equation.shape
    places = {(size, math.prod(after[:place])): place for place, size in reversed(list(enumerate(after)))}
    keys = ((axis, (size, math.prod(before[:axis]))) for axis, size in enumerate(before))
    whole = {axis: places[key] for axis, key in keys if key in places}
    return AxisMap((OperandAxes(whole),), frozenset(range(len(after))) - set(whole.values()))


def _transpose(equation: Equation) -> AxisMap:
    return AxisMap((OperandAxes({axis: place for place, axis in enumerate(equation.params["permutation"])}),))


def _without(parameter: str) -> Callable[[Equation], AxisMap]:
    """Axes that go, the later ones moving up."""

    def axes(equation: Equation) -> AxisMap:
        gone = equation.params[parameter]
        kept = [axis for axis in range(len(equation.shapes[0])) if axis not in gone]
        return AxisMap((OperandAxes({axis: place for place, axis in enumerate(kept)}),) * len(equation.operands))

    return axes


def _along(parameter: str) -> Callable[[Equation], AxisMap]:
    """Axes that are mixed, or put in another order, and stay where they are."""

    def axes(equation: Equation) -> AxisMap:
        mixed = equation.params[parameter]
        mixed = mixed if isinstance(mixed, tuple) else (mixed,)
        rank = range(len(equation.shape))
        own = OperandAxes({axis: axis for axis in rank if axis not in mixed}, {axis: axis for axis in mixed})
        return AxisMap((own,) * len(equation.operands), frozenset(mixed))

    return axes


def _reverse(equation: Equation) -> AxisMap:
    return dataclasses.replace(_along("dimensions")(equation), varying=frozenset())


def _cut_out(equation: Equation) -> AxisMap:
    """A piece keeps the axes that stay whole."""
    before, after = equation.shapes[0], equation.shape
    whole = {axis: axis for axis, size in enumerate(before) if size == after[axis]}
    piece = OperandAxes(whole, {axis: axis for axis in range(len(before)) if axis not in whole})
    return AxisMap((piece, *(OperandAxes() for _ in equation.operands[1:])))


def _stack(equation: Equation) -> AxisMap:
    new = equation.params["axis"]
    own = OperandAxes({axis: axis + (axis >= new) for axis in range(len(equation.shape) - 1)})
    return AxisMap((own,) * len(equation.operands), frozenset([new]))


def _pad(equation: Equation) -> AxisMap:
    padded = frozenset(axis for axis, amounts in enumerate(equation.params["padding_config"]) if any(amounts))
    rank = range(len(equation.shape))
    own = OperandAxes({axis: axis for axis in rank if axis not in padded}, {axis: axis for axis in padded})
    return AxisMap((own, OperandAxes()), padded)


def _written_over(equation: Equation) -> AxisMap:
    """The written-over array keeps its axes; what is written into it lies elsewhere."""
    rank = range(len(equation.shape))
    return AxisMap(
        (OperandAxes({axis: axis for axis in rank}), *(OperandAxes() for _ in equation.operands[1:])), frozenset(rank)
    )


def _gather(equation: Equation) -> AxisMap:
    dims, sizes, shape = equation.params["dimension_numbers"], equation.params["slice_sizes"], equation.shapes[0]
    gone = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    windows = dict(zip(kept, dims.offset_dims, strict=True))
    places = [axis for axis in range(len(equation.shape)) if axis not in dims.offset_dims]
    whole = {axis: place for axis, place in windows.items() if sizes[axis] == shape[axis]}
    cut = {axis: place for axis, place in windows.items() if axis not in whole}
    batches = zip(dims.operand_batching_dims, dims.start_indices_batching_dims, strict=True)
    whole |= {axis: places[batch] for axis, batch in batches}
    return AxisMap((OperandAxes(whole, cut), OperandAxes(dict(enumerate(places)))))


def _gather_columns(equation: Equation) -> Mapping[int, tuple[int, int | None]]:
    columns = equation.params["dimension_numbers"].start_index_map
    return {axis: (1, column) for column, axis in enumerate(columns)}


def _dot_general(equation: Equation) -> AxisMap:
    contracted, batches = equation.params["dimension_numbers"]
    operands, start = [], len(batches[0])
    for side in (0, 1):
        rank = len(equation.shapes[side])
        free = [axis for axis in range(rank) if axis not in (*contracted[side], *batches[side])]
        whole = {axis: place for place, axis in enumerate(batches[side])}
        operands.append(OperandAxes(whole | {axis: place for place, axis in enumerate(free, start)}))
        start += len(free)
    return AxisMap(tuple(operands))


def _matrices(equation: Equation) -> AxisMap:
    """Linear algebra on the last two axes of a stack of matrices."""
    rank = len(equation.shape)
    own = OperandAxes({axis: axis for axis in range(rank - 2)})
    return AxisMap((own,) * len(equation.operands), frozenset((rank - 2, rank - 1)))


def _triangular_solve(equation: Equation) -> AxisMap:
    """One matrix, many right-hand sides, which do not meet."""
    rank = len(equation.shape)
    along, across = (rank - 2, rank - 1) if equation.params["left_side"] else (rank - 1, rank - 2)
    batch = {axis: axis for axis in range(rank - 2)}
    return AxisMap((OperandAxes(batch), OperandAxes({**batch, across: across})), frozenset([along]))


# ------------------------------------------------------------------------------- with NumPy, maps, directions, jumps


def _fold_broadcast(params: Mapping[str, Any], value: np.ndarray) -> np.ndarray:
    shape = [1] * len(params["shape"])
    for axis, place in enumerate(params["broadcast_dimensions"]):
        shape[place] = value.shape[axis]
    return np.broadcast_to(value.reshape(shape), params["shape"])


def _fold_iota(params: Mapping[str, Any]) -> np.ndarray:
    shape = [1] * len(params["shape"])
    shape[params["dimension"]] = -1
    return np.broadcast_to(np.arange(params["shape"][params["dimension"]]).reshape(shape), params["shape"])


def _fold_slice(params: Mapping[str, Any], value: np.ndarray) -> np.ndarray:
    starts, stops = params["start_indices"], params["limit_indices"]
    return value[tuple(map(slice, starts, stops, params["strides"] or (1,) * len(starts)))]


def _constant_map(operation: maps.Operation, constant: float | None = None) -> Callable[..., Step]:
    return lambda params, constants: Step(operation, constant)


def _subtracted(params: Mapping[str, Any], constants: Sequence[float | None]) -> Step:
    left, right = constants
    return Step(maps.SUBTRACT_FROM, left) if right is None else Step(maps.ADD, -right)


def _multiplied(params: Mapping[str, Any], constants: Sequence[float | None]) -> Step | None:
    factor = _the_constant(constants)
    return Step(maps.MULTIPLY, factor) if factor else None


def _divided(params: Mapping[str, Any], constants: Sequence[float | None]) -> Step | None:
    numerator, divisor = constants
    if divisor is None:
        return Step(maps.DIVIDE, numerator)
    return Step(maps.MULTIPLY, 1 / divisor) if divisor else None


def _the_constant(constants: Sequence[float | None]) -> float | None:
    return next(constant for constant in constants if constant is not None)


def _added(params: Mapping[str, Any], constants: Sequence[float | None]) -> Step:
    return Step(maps.ADD, _the_constant(constants))


def _raised(params: Mapping[str, Any], constants: Sequence[float | None]) -> Step | None:
    return Step(maps.POWER, constants[1]) if constants[0] is None else None


def _conversion_rises(equation: Equation) -> int | None:
    """Whole numbers may wrap round."""
    before, after = dtype_of(equation.operands[0]), dtype_of(equation.results[0])
    return RISES if not jnp.issubdtype(before, jnp.integer) or bool(np.can_cast(before, after)) else None


def _becomes_whole(equation: Equation) -> bool:
    before, after = dtype_of(equation.operands[0]), dtype_of(equation.results[0])
    return jnp.issubdtype(before, jnp.inexact) and not jnp.issubdtype(after, jnp.inexact)


def _condition_rises(equation: Equation) -> int | None:
    return RISES if jnp.issubdtype(dtype_of(equation.results[0]), jnp.bool_) else None


def _odd_power_rises(equation: Equation) -> int | None:
    return RISES if equation.params["y"] % 2 == 1 and equation.params["y"] > 0 else None


def _first(equation: Equation) -> Sequence[int]:
    return (0,)


def _all(equation: Equation) -> Sequence[int]:
    return range(len(equation.operands))


def _elementwise(direction: Any = None, **known: Any) -> Row:
    return Row(Kind.ELEMENTWISE, _same_place, direction=direction, **known)


def _moves(axes: Callable[[Equation], AxisMap], sources: Callable = _first, **known: Any) -> Row:
    return Row(Kind.MOVES, axes, sources, **known)


def _mixes(axes: Callable[[Equation], AxisMap], **known: Any) -> Row:
    return Row(Kind.MIXES, axes, **known)


def _each(names: str, row: Row) -> Iterator[tuple[str, Row]]:
    return ((name, row) for name in names.split())


_SAME = _elementwise(RISES, identity=True, fold=lambda params, value: value)
_ADDED = _elementwise(RISES, map=_added, fold=lambda params, a, b: a + b)
_GREATER = _elementwise((RISES, FALLS), jumps=True, has_slope=False)
_LESS = _elementwise((FALLS, RISES), jumps=True, has_slope=False)
_STEPS = _elementwise(RISES, jumps=True, has_slope=False)
_JUMPS = _elementwise(jumps=True, has_slope=False)
_STAIRS = _elementwise((ONE_WAY, None), jumps=True, has_slope=False, is_call=True)

UNKNOWN = Row(Kind.UNKNOWN, _nowhere)

ROWS: dict[str, Row] = {
    # Elementwise. Functions that are monotone on a part of the line only have no direction.
    **dict(
        _each(
            "abs acos acosh asin atan2 atanh bessel_i0e bessel_i1e cos cosh digamma erf_inv erfc igamma igamma_grad_a "
            "igammac imag lgamma nextafter polygamma random_gamma_grad real regularized_incomplete_beta sin tan xor "
            "zeta",
            _elementwise(),
        )
    ),
    **dict(_each("erf asinh sinh atan", _elementwise(RISES))),
    **dict(_each("copy copy_p reduce_precision", _SAME)),
    **dict(_each("floor ceil round sign", _STEPS)),
    **dict(_each("is_finite stop_gradient ne", _JUMPS)),
    **dict(_each("gt ge gt_to ge_to", _GREATER)),
    **dict(_each("le lt_to le_to", _LESS)),
    "lt": dataclasses.replace(_LESS, fold=lambda params, a, b: a < b),
    **dict(_each("eq eq_to", dataclasses.replace(_JUMPS, fold=lambda params, a, b: a == b))),
    **dict(_each("and or", _elementwise(_condition_rises))),
    **dict(_each("add add_any", _ADDED)),
    "rem": _elementwise(jumps=True),
    "not": _elementwise(FALLS),
    "convert_element_type": _elementwise(
        _conversion_rises,
        identity=lambda equation: not _becomes_whole(equation),
        jumps=_becomes_whole,
        fold=lambda params, value: value.astype(params["new_dtype"]),
    ),
    "neg": _elementwise(FALLS, map=_constant_map(maps.NEGATE)),
    "sub": _elementwise((RISES, FALLS), map=_subtracted, fold=lambda params, a, b: a - b),
    "mul": _elementwise(map=_multiplied, fold=lambda params, a, b: a * b),
    "div": _elementwise(map=_divided),
    "max": _elementwise(RISES, fold=lambda params, a, b: np.maximum(a, b)),
    "min": _elementwise(RISES, fold=lambda params, a, b: np.minimum(a, b)),
    "clamp": _elementwise(RISES, fold=lambda params, low, value, high: np.clip(value, low, high)),
    "select_n": _elementwise(fold=lambda params, which, *cases: np.choose(which.astype(int), cases)),
    "exp": _elementwise(RISES, map=_constant_map(maps.EXP)),
    "exp2": _elementwise(RISES, map=_constant_map(maps.EXP2)),
    "expm1": _elementwise(RISES, map=_constant_map(maps.EXPM1)),
    "log": _elementwise(map=_constant_map(maps.LOG)),
    "log1p": _elementwise(map=_constant_map(maps.LOG1P)),
    "logistic": _elementwise(RISES, map=_constant_map(maps.LOGISTIC)),
    "tanh": _elementwise(RISES, map=_constant_map(maps.TANH)),
    "sqrt": _elementwise(map=_constant_map(maps.POWER, 0.5)),
    "rsqrt": _elementwise(map=_constant_map(maps.POWER, -0.5)),
    "square": _elementwise(map=_constant_map(maps.POWER, 2.0)),
    "cbrt": _elementwise(RISES, map=_constant_map(maps.POWER, 1 / 3)),
    "integer_pow": _elementwise(_odd_power_rises, map=lambda params, _: Step(maps.POWER, float(params["y"]))),
    "pow": _elementwise(map=_raised),
    # Functions of JAX.
    "softplus": _elementwise(RISES, map=_constant_map(maps.SOFTPLUS), is_call=True),
    "floor_divide": _STAIRS,
    "digitize": dataclasses.replace(_STAIRS, axes=_looked_up(0)),
    "searchsorted": dataclasses.replace(_STAIRS, axes=_looked_up(1), direction=(None, ONE_WAY)),
    # Entries that only move.
    "iota": _moves(_nowhere, fold=_fold_iota),
    "broadcast_in_dim": _moves(_broadcast, fold=_fold_broadcast),
    "reshape": _moves(_reshape, fold=lambda params, value: value.reshape(params["new_sizes"])),
    "transpose": _moves(_transpose, fold=lambda params, value: np.transpose(value, params["permutation"])),
    "squeeze": _moves(_without("dimensions"), fold=lambda params, value: np.squeeze(value, params["dimensions"])),
    "slice": _moves(_cut_out, fold=_fold_slice),
    "split": _moves(_cut_out),
    "dynamic_slice": _moves(_cut_out, picks=lambda equation: {a: (a + 1, None) for a in range(len(equation.shape))}),
    "rev": _moves(_reverse, fold=lambda params, value: np.flip(value, params["dimensions"])),
    "concatenate": _moves(
        _along("dimension"), _all, fold=lambda params, *parts: np.concatenate(parts, params["dimension"])
    ),
    "stack": _moves(_stack, _all, fold=lambda params, *parts: np.stack(parts, params["axis"])),
    "pad": _moves(_pad, _all),
    "gather": _moves(_gather, picks=_gather_columns),
    "scatter": _moves(_written_over, lambda equation: (0, 2)),
    # Entries that meet.
    **dict(_each("reduce_sum reduce_max reduce_min reduce_and reduce_or", _mixes(_without("axes"), direction=RISES))),
    **dict(_each("reduce_prod reduce_xor", _mixes(_without("axes")))),
    **dict(_each("argmax argmin", _mixes(_without("axes"), jumps=True, has_slope=False))),
    **dict(_each("cumsum cumprod cummax cummin cumlogsumexp", _mixes(_along("axis")))),
    "sort": _mixes(_along("dimension"), jumps=True),
    "dot_general": _mixes(_dot_general),
    "cholesky": _mixes(_matrices),
    "triangular_solve": _mixes(_triangular_solve),
    **dict(_each("scatter-add scatter_add scatter-mul dynamic_update_slice", _mixes(_written_over))),
}

_JAX_FOLDER = os.path.dirname(jax.__file__)


def is_known_call(name: str | None, jaxpr: Any) -> bool:
    """Whether a call is one of JAX's own functions that has a row, not a function of the user's by that name."""
    row = ROWS.get(name or "")
    return row is not None and row.is_call and _JAX_FOLDER in str(jaxpr.debug_info.func_src_info)

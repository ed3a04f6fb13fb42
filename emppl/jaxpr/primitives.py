"""What every primitive of JAX does to axes, and what else is known of it: one row of one table.

The domains that follow something through a traced computation (labels, axes, selections, directions, jumps, groups)
ask the row. A primitive without a row is *unknown*: whatever goes through it takes the general path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.jaxpr import maps, places
from emppl.jaxpr.equations import FALLS, ONE_WAY, RISES, AxisMap, Equation, Kind, Row, dtype_of
from emppl.jaxpr.maps import Step


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
    return Row(Kind.ELEMENTWISE, places.same_place, direction=direction, **known)


def _moves(axes: Callable[[Equation], AxisMap], sources: Callable = _first, **known: Any) -> Row:
    return Row(Kind.MOVES, axes, sources, **known)


def _mixes(axes: Callable[[Equation], AxisMap], **known: Any) -> Row:
    return Row(Kind.MIXES, axes, **known)


def _looked_up(query: int) -> Row:
    """A function that looks for the entries of one of two operands in the other."""
    direction = (ONE_WAY, None) if query == 0 else (None, ONE_WAY)
    return Row(
        Kind.ELEMENTWISE, places.looked_up(query), direction=direction, jumps=True, has_slope=False, is_call=True
    )


UNKNOWN = Row(Kind.UNKNOWN, places.nowhere, jumps=True)
"""The row of a primitive that has none: it may mix everything, and jump."""

_SMOOTH = Row(Kind.UNKNOWN, places.nowhere)

_STACKED = Row(Kind.UNKNOWN, places.stacked)

_TABLE: dict[str, Row] = {
    # Elementwise. Functions that are monotone on a part of the line only have no direction.
    "abs acos acosh asin atan2 atanh cos cosh imag nextafter real sin tan xor": _elementwise(),
    "bessel_i0e bessel_i1e digamma erf_inv erfc igamma igamma_grad_a igammac lgamma polygamma": _elementwise(),
    "random_gamma_grad regularized_incomplete_beta zeta": _elementwise(),
    "erf asinh sinh atan": _elementwise(RISES),
    "copy copy_p": _elementwise(RISES, identity=True, fold=lambda params, value: value),
    "reduce_precision": _elementwise(RISES, identity=True),
    "floor ceil round sign": _elementwise(RISES, jumps=True, has_slope=False),
    "is_finite stop_gradient ne": _elementwise(jumps=True, has_slope=False),
    "eq eq_to": _elementwise(jumps=True, has_slope=False, fold=lambda params, a, b: a == b),
    "gt ge gt_to ge_to": _elementwise((RISES, FALLS), jumps=True, has_slope=False),
    "le lt_to le_to": _elementwise((FALLS, RISES), jumps=True, has_slope=False),
    "lt": _elementwise((FALLS, RISES), jumps=True, has_slope=False, fold=lambda params, a, b: a < b),
    "and or": _elementwise(_condition_rises),
    "not": _elementwise(FALLS),
    "rem": _elementwise(jumps=True),
    "convert_element_type": _elementwise(
        _conversion_rises,
        identity=lambda equation: not _becomes_whole(equation),
        jumps=_becomes_whole,
        has_slope=False,
        fold=lambda params, value: value.astype(params["new_dtype"]),
    ),
    "add add_any": _elementwise(RISES, map=_added, fold=lambda params, a, b: a + b),
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
    "floor_divide": _elementwise((ONE_WAY, None), jumps=True, has_slope=False, is_call=True),
    "digitize": _looked_up(0),
    "searchsorted": _looked_up(1),
    # Entries that only move.
    "iota": _moves(places.nowhere, fold=_fold_iota),
    "broadcast_in_dim": _moves(places.broadcast, fold=_fold_broadcast),
    "reshape": _moves(places.reshape, fold=lambda params, value: value.reshape(params["new_sizes"])),
    "transpose": _moves(places.transpose, fold=lambda params, value: np.transpose(value, params["permutation"])),
    "squeeze": _moves(places.without("dimensions"), fold=lambda params, value: np.squeeze(value, params["dimensions"])),
    "slice": _moves(places.cut_out, fold=_fold_slice),
    "split": _moves(places.cut_out),
    "dynamic_slice": _moves(places.cut_out, picks=places.slice_starts),
    "rev": _moves(places.reverse, fold=lambda params, value: np.flip(value, params["dimensions"])),
    "concatenate": _moves(
        places.along("dimension"), _all, fold=lambda params, *parts: np.concatenate(parts, params["dimension"])
    ),
    "stack": _moves(places.stack, _all, fold=lambda params, *parts: np.stack(parts, params["axis"])),
    "pad": _moves(places.pad, _all),
    "gather": _moves(places.gather, picks=places.gather_columns),
    "scatter": _moves(places.written_over, lambda equation: (0, 2)),
    # Entries that meet.
    "reduce_sum reduce_max reduce_min reduce_and reduce_or": _mixes(places.without("axes"), direction=RISES),
    "reduce_prod reduce_xor": _mixes(places.without("axes")),
    "argmax argmin": _mixes(places.without("axes"), jumps=True, has_slope=False),
    "cumsum cumprod cummax cummin cumlogsumexp": _mixes(places.along("axis")),
    "sort": _mixes(places.along("dimension"), jumps=True),
    "dot_general": _mixes(places.dot_general),
    "cholesky": _mixes(places.matrices),
    "triangular_solve": _mixes(places.triangular_solve),
    "scatter-add scatter_add scatter-mul dynamic_update_slice": _mixes(places.written_over),
    # Nothing is known of these, except whether they make steps.
    "conv_general_dilated custom_linear_solve fft optimization_barrier reduce_window_sum tile": _SMOOTH,
    "complex conj": _SMOOTH,
    # Nor of these, except that matrices in a stack are apart.
    "eigh householder_product lu qr svd tridiagonal_solve": _STACKED,
    "bitcast_convert_type": Row(Kind.UNKNOWN, places.nowhere, jumps=True, has_slope=False),
}

ROWS: dict[str, Row] = {name: row for names, row in _TABLE.items() for name in names.split()}
"""By name of a primitive, or of a function of JAX."""

_JAX_FOLDER = os.path.dirname(jax.__file__)


def call_row(name: Any, jaxpr: Any) -> Row | None:
    """The row of a call of one of JAX's own functions; None for a function of the user's, whatever its name is."""
    row = ROWS.get(name)
    is_known = row is not None and row.is_call and _JAX_FOLDER in str(jaxpr.debug_info.func_src_info)
    return row if is_known else None

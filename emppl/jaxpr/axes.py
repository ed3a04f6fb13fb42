"""Where the axes of a parameter run in everything computed from it, and which latents index them.

``beta[z]`` runs over the states of ``z`` along the first axis of ``beta``, and so does ``X @ jnp.exp(beta)[z]``:
an elementwise operation keeps every axis where it is, a sum or a matrix product drops the axis it mixes and
keeps the others. An operation that is not known here drops every axis, so that nothing is claimed of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emppl.jaxpr.selection import Label, Walk, gather_axes, reshaped_axis

AxisPositions = tuple[frozenset[int], ...]
"""For every axis of the parameter, the axes of an array along which it runs (entry i beside entry i)."""


class AxisWalk(Walk):
    """Follows the axes of one parameter through a jaxpr.

    Args:
        labels: labels of the variables.
        rank: number of axes of the parameter.

    Attributes:
        indexed: for every axis of the parameter, the labels of everything that indexes it.
    """

    def __init__(self, labels: Mapping[Any, frozenset[Label]], rank: int):
        super().__init__(labels)
        self.nowhere: AxisPositions = (frozenset(),) * rank
        self.indexed: list[frozenset[Label]] = [frozenset()] * rank

    def apply(self, equation, tracked: list) -> AxisPositions:
        """Axes of the outputs of one equation."""
        name = equation.primitive.name
        if name in _ELEMENTWISE:
            return self.union(tracked)
        rule = _RULES.get(name)
        return self.nowhere if rule is None else rule(self, equation, tracked)

    def union(self, entries) -> AxisPositions:
        """Axes that any of the arrays has."""
        present = [entry for entry in entries if entry is not None]
        return tuple(frozenset().union(*axes) for axes in zip(*present, strict=True)) if present else self.nowhere

    def index(self, entry: AxisPositions, by_axis: Mapping[int, frozenset[Label]]) -> None:
        """Record what indexes the axes of an array."""
        for number, axes in enumerate(entry):
            self.indexed[number] = self.indexed[number].union(*(by_axis.get(axis, frozenset()) for axis in axes))


def _moved(entry: AxisPositions, move) -> AxisPositions:
    return tuple(frozenset(new for axis in axes if (new := move(axis)) is not None) for axes in entry)


def _without(entry: AxisPositions, gone) -> AxisPositions:
    """Axes that disappear, the later ones moving up."""
    return _moved(entry, lambda axis: None if axis in gone else axis - sum(other < axis for other in gone))


def _broadcast(walk, equation, tracked):
    dims = equation.params["broadcast_dimensions"]
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return _moved(tracked[0], lambda axis: dims[axis] if before[axis] == after[dims[axis]] else None)


def _reshape(walk, equation, tracked):
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return _moved(tracked[0], lambda axis: reshaped_axis(before, after, axis))


def _transpose(walk, equation, tracked):
    return _moved(tracked[0], equation.params["permutation"].index)


def _squeeze(walk, equation, tracked):
    return _without(tracked[0], equation.params["dimensions"])


def _reduce(walk, equation, tracked):
    return _without(walk.union(tracked), equation.params["axes"])


def _along(parameter: str):
    """An operation that mixes the axis or axes named by one of its parameters and keeps the shape."""

    def rule(walk, equation, tracked):
        mixed = equation.params[parameter]
        mixed = mixed if isinstance(mixed, tuple) else (mixed,)
        return _moved(walk.union(tracked), lambda axis: None if axis in mixed else axis)

    return rule


def _same_size(walk, equation, tracked):
    """Cutting out a piece keeps the axes that stay whole."""
    if tracked[0] is None:
        return walk.nowhere
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    if equation.primitive.name == "dynamic_slice":
        starts = {axis: walk.labels_of(atom) for axis, atom in enumerate(equation.invars[1:])}
        walk.index(tracked[0], {axis: labels for axis, labels in starts.items() if before[axis] != after[axis]})
    return _moved(tracked[0], lambda axis: axis if before[axis] == after[axis] else None)


def _stack(walk, equation, tracked):
    new = equation.params["axis"]
    return _moved(walk.union(tracked), lambda axis: axis + (axis >= new))


def _pad(walk, equation, tracked):
    padded = [axis for axis, amounts in enumerate(equation.params["padding_config"]) if any(amounts)]
    return _moved(walk.union(tracked[:1]), lambda axis: None if axis in padded else axis)


def _first(walk, equation, tracked):
    """The written-over array keeps its axes; what is written into it lies elsewhere."""
    return walk.union(tracked[:1])


def _gather(walk, equation, tracked):
    if tracked[0] is None:
        return walk.nowhere
    whole, columns = gather_axes(equation)
    labels = walk.column_labels(equation.invars[1], len(columns))
    by_axis = {axis: found for axis, found in zip(columns, labels, strict=True) if axis not in whole}
    walk.index(tracked[0], by_axis)
    return _moved(tracked[0], whole.get)


def _dot_general(walk, equation, tracked):
    (left_contracted, right_contracted), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left_rank = len(equation.invars[0].aval.shape)
    right_rank = len(equation.invars[1].aval.shape)
    left_free = [a for a in range(left_rank) if a not in (*left_contracted, *left_batch)]
    right_free = [a for a in range(right_rank) if a not in (*right_contracted, *right_batch)]
    shared = len(left_batch)
    places = (
        {**{a: i for i, a in enumerate(left_batch)}, **{a: shared + i for i, a in enumerate(left_free)}},
        {
            **{a: i for i, a in enumerate(right_batch)},
            **{a: shared + len(left_free) + i for i, a in enumerate(right_free)},
        },
    )
    moved = [None if t is None else _moved(t, place.get) for t, place in zip(tracked, places, strict=True)]
    return walk.union(moved)


def _matrices(walk, equation, tracked):
    """Linear algebra on the last two axes of a stack of matrices."""
    rank = len(equation.invars[0].aval.shape)
    return _moved(walk.union(tracked), lambda axis: axis if axis < rank - 2 else None)


_ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp "
    "convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma "
    "igamma_grad_a igammac integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not "
    "or polygamma pow real reduce_precision regularized_incomplete_beta rem round rsqrt "
    "select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta".split()
)

_RULES = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    **dict.fromkeys(
        ("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin".split()),
        _reduce,
    ),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), _along("axis")),
    "rev": _along("dimensions"),
    "sort": _along("dimension"),
    "concatenate": _along("dimension"),
    **dict.fromkeys(("slice", "split", "dynamic_slice"), _same_size),
    "stack": _stack,
    "pad": _pad,
    **dict.fromkeys(("dynamic_update_slice", "scatter", "scatter-add", "scatter_add", "scatter-mul"), _first),
    "gather": _gather,
    "dot_general": _dot_general,
    **dict.fromkeys(("cholesky", "triangular_solve"), _matrices),
}

"""Walking a jaxpr: which inputs every variable depends on, and following one parameter through the equations.

A :class:`Walk` carries something about one parameter (how its entries are selected, where its axes lie) from
the inputs to the outputs; nested calls are entered. What is carried is the subclass's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.extend.core import Literal

Label = tuple[str, str]

INLINE = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
"""Calls of an inner jaxpr that is run once, as if it were written out."""

_SEARCHES = {"digitize": 0, "searchsorted": 1}
"""Nested calls that are known by their names: which operand they look for. Inside is a loop."""

_UNIFORM = frozenset("not and or xor eq ne lt le gt ge convert_element_type copy".split())
"""Operations on conditions, entry by entry: the result varies along no axis but those of the operands."""


def propagate(jaxpr, labels: dict[Any, frozenset[Label]]) -> None:
    """Add to ``labels`` the inputs that every variable of the equations depends on."""
    for equation in jaxpr.eqns:
        found = frozenset().union(*(labels_of(labels, atom) for atom in equation.invars))
        for variable in equation.outvars:
            labels[variable] = found


def labels_of(labels: Mapping[Any, frozenset[Label]], atom) -> frozenset[Label]:
    """Labels of one jaxpr variable or literal."""
    return frozenset() if isinstance(atom, Literal) else labels.get(atom, frozenset())


class Walk:
    """Follows one parameter through a jaxpr.

    Args:
        labels: labels of the variables of the outermost jaxpr.
    """

    def __init__(self, labels: Mapping[Any, frozenset[Label]]):
        self.labels = dict(labels)
        self.producers: dict[Any, Any] = {}

    def apply(self, equation, tracked: list) -> Any:
        """What the outputs of one equation carry, given what its inputs do (None: nothing of the parameter)."""
        raise NotImplementedError

    def whole(self, equation, tracked: list) -> Any:
        """What the outputs of a nested call carry if it is known as a whole, or None to enter it."""
        del equation, tracked

    def run(self, jaxpr, environment: dict[Any, Any]) -> None:
        """Fill ``environment`` for every variable that depends on the parameter."""
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                self.producers[variable] = equation
            tracked = [None if isinstance(atom, Literal) else environment.get(atom) for atom in equation.invars]
            if all(entry is None for entry in tracked):
                continue
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            known = self.whole(equation, tracked)
            if known is None and equation.primitive.name in INLINE and inner is not None:
                self._inline(equation, getattr(inner, "jaxpr", inner), tracked, environment)
                continue
            result = self.apply(equation, tracked) if known is None else known
            for variable in equation.outvars:
                environment[variable] = result

    def _inline(self, equation, inner, tracked, environment) -> None:
        nested = {}
        for variable, atom, entry in zip(inner.invars, equation.invars, tracked, strict=True):
            if entry is not None:
                nested[variable] = entry
            self.labels[variable] = self.labels_of(atom)
            # One jaxpr object may be called several times: what an earlier call left behind goes first.
            self.producers.pop(variable, None)
            if not isinstance(atom, Literal) and atom in self.producers:
                self.producers[variable] = self.producers[atom]
        propagate(inner, self.labels)
        self.run(inner, nested)
        for variable, result in zip(equation.outvars, inner.outvars, strict=True):
            if not isinstance(result, Literal) and result in nested:
                environment[variable] = nested[result]

    def labels_of(self, atom) -> frozenset[Label]:
        """Labels of one variable or literal, wherever it is nested."""
        return labels_of(self.labels, atom)

    def scalar(self, atom) -> float | None:
        """The value of a constant that is one number everywhere, or None."""
        if isinstance(atom, Literal):
            return float(atom.val) if not getattr(atom.aval, "shape", ()) else None
        producer = self.producers.get(atom)
        if producer is not None and producer.primitive.name in ("broadcast_in_dim", "convert_element_type"):
            return self.scalar(producer.invars[0])
        return None

    def varying_axes(self, atom) -> frozenset[int]:
        """Axes along which an array may vary: not those along which it was broadcast."""
        shape = getattr(atom.aval, "shape", ())
        along = frozenset(axis for axis, size in enumerate(shape) if size > 1)
        producer = None if isinstance(atom, Literal) else self.producers.get(atom)
        if producer is None:
            return along
        name = producer.primitive.name
        if name == "broadcast_in_dim":  # a scan's later steps are batched: one broadcast after another
            dims, before = producer.params["broadcast_dimensions"], self.varying_axes(producer.invars[0])
            return along & {dims[axis] for axis in before}
        if name in _UNIFORM:
            return along & frozenset().union(*(self.varying_axes(operand) for operand in producer.invars))
        return along

    def column_labels(self, atom, columns: int) -> list[frozenset[Label]]:
        """Labels of every column of an index array (the last axis), where they were concatenated."""
        producer = None if isinstance(atom, Literal) else self.producers.get(atom)
        if producer is not None and producer.primitive.name == "concatenate":
            parts: list[frozenset[Label]] = []
            for part in producer.invars:
                parts += [self.labels_of(part)] * part.aval.shape[-1]
            if len(parts) == columns:
                return parts
        return [self.labels_of(atom)] * columns


def searched_for(equation) -> Any:
    """What is looked up, entry by entry, in a sorted array by a nested call; None for any other equation."""
    position = _SEARCHES.get(equation.params.get("name"))
    return None if position is None or len(equation.invars) <= position else equation.invars[position]


def gather_axes(equation) -> tuple[dict[int, int], list[int]]:
    """Axes of a gather's operand that survive whole, with their place in the output, and the axes that are indexed.

    Returns:
        ``(whole, indexed)``: ``{operand axis: output axis}``, and the operand axis of every column of the index.
    """
    dims = equation.params["dimension_numbers"]
    sizes = equation.params["slice_sizes"]
    shape = equation.invars[0].aval.shape
    gone = set(dims.collapsed_slice_dims) | set(dims.operand_batching_dims)
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    place = dict(zip(kept, dims.offset_dims, strict=True))
    whole = {axis: place[axis] for axis in kept if sizes[axis] == shape[axis]}
    return whole, list(dims.start_index_map)


def reshaped_axis(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """Where an axis lies after a reshape that keeps it whole, or None."""
    left = _product(before[:axis])
    for candidate, size in enumerate(after):
        if size == before[axis] and _product(after[:candidate]) == left:
            return candidate
    return None


def _product(sizes) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result

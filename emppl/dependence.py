"""What each traced quantity depends on, read off the jaxpr; and whether it merely *selects* parameter entries.

Both questions are structural: no arithmetic is done and no data is needed, so they can be answered under
``jit`` too. ``selection`` is sound but not complete: what it accepts is a selection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal

Label = tuple[str, str]

_INLINE = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
_ELEMENTWISE_IDENTITY = ("convert_element_type", "copy", "copy_p", "reduce_precision", "optimization_barrier")


class Dependence:
    """For every variable of a traced computation, the set of inputs it depends on.

    Args:
        jaxpr: the traced computation.
        inputs: one label per input, such as ``("parameter", "mu")``.
    """

    def __init__(self, jaxpr: ClosedJaxpr, inputs: tuple[Label, ...]):
        self.jaxpr = jaxpr.jaxpr
        self.inputs = inputs
        self.labels: dict[Any, frozenset[Label]] = {}
        for variable, label in zip(self.jaxpr.invars, inputs, strict=True):
            self.labels[variable] = frozenset([label])
        for equation in self.jaxpr.eqns:
            found = frozenset().union(*(self.of_atom(atom) for atom in equation.invars))
            for variable in equation.outvars:
                self.labels[variable] = found

    def of_atom(self, atom) -> frozenset[Label]:
        """Labels of one jaxpr variable or literal."""
        return frozenset() if isinstance(atom, Literal) else self.labels.get(atom, frozenset())

    def of_output(self, position: int) -> frozenset[Label]:
        """Labels of one output."""
        return self.of_atom(self.jaxpr.outvars[position])

    def indexing_latents(self, parameter: str) -> frozenset[str]:
        """Latents whose values index into a parameter anywhere in the model."""
        tracker, _ = self._follow(parameter)
        return frozenset(name for kind, name in tracker.indexing if kind == "latent")

    def indexed(self, parameter: str) -> tuple[frozenset[str], ...]:
        """For every axis of a parameter, the latents that index it anywhere in the model."""
        source = self.jaxpr.invars[self.inputs.index(("parameter", parameter))]
        found: list[frozenset[str]] = [frozenset()] * len(source.aval.shape)
        for position in range(len(self.jaxpr.outvars)):
            selection = self.selection(parameter, position)
            if isinstance(selection, Selection):
                latents = [frozenset(name for kind, name in labels if kind == "latent") for labels in selection.indexed]
                found = [known | new for known, new in zip(found, latents, strict=True)]
        return tuple(found)

    def _follow(self, parameter: str):
        source = self.jaxpr.invars[self.inputs.index(("parameter", parameter))]
        tracker = _Tracker(self.labels)
        rank = len(source.aval.shape)
        environment: dict[Any, Selection | _Mixed] = {source: Selection(tuple(range(rank)), (frozenset(),) * rank)}
        tracker.run(self.jaxpr, environment)
        return tracker, environment

    def selection(self, parameter: str, position: int) -> Selection | str:
        """Is an output a pure selection of a parameter's entries (``mu[z]``, broadcast, reshape)?

        Args:
            parameter: name of the parameter.
            position: which output.

        Returns:
            A :class:`Selection`, or the reason why it is none.
        """
        _, environment = self._follow(parameter)
        target = self.jaxpr.outvars[position]
        if isinstance(target, Literal) or target not in environment:
            return "it does not depend on the parameter"
        found = environment[target]
        return found if isinstance(found, Selection) else found.reason


@dataclasses.dataclass(frozen=True)
class Selection:
    """How a parameter's axes appear in an array that selects its entries.

    Attributes:
        position: for every parameter axis, the axis of the array that holds it whole, or None.
        indexed: for every parameter axis, the labels of what indexes it.
    """

    position: tuple[int | None, ...]
    indexed: tuple[frozenset[Label], ...]


@dataclasses.dataclass(frozen=True)
class _Mixed:
    reason: str


class _Tracker:
    """Follows one parameter through a jaxpr, recording where its axes end up."""

    def __init__(self, labels: Mapping[Any, frozenset[Label]]):
        self.labels = dict(labels)
        self.producers: dict[Any, Any] = {}
        self.indexing: set[Label] = set()

    def run(self, jaxpr, environment) -> None:
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                self.producers[variable] = equation
            tracked = [None if isinstance(atom, Literal) else environment.get(atom) for atom in equation.invars]
            if all(entry is None for entry in tracked):
                continue
            mixed = next((entry for entry in tracked if isinstance(entry, _Mixed)), None)
            name = equation.primitive.name
            if name in _INLINE:
                self._inline(equation, tracked, environment)
                continue
            if name in ("gather", "dynamic_slice") and tracked[0] is not None:
                self.indexing.update(*(self.labels_of(atom) for atom in equation.invars[1:]))
            if mixed is not None:
                result = mixed
            else:
                rule = _RULES.get(name)
                result = _Mixed(f"it goes through `{name}`") if rule is None else rule(self, equation, tracked)
            for variable in equation.outvars:
                environment[variable] = result

    def _inline(self, equation, tracked, environment) -> None:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is None:
            for variable in equation.outvars:
                environment[variable] = _Mixed(f"it goes through `{equation.primitive.name}`")
            return
        inner = getattr(inner, "jaxpr", inner)
        nested = {}
        for variable, atom, entry in zip(inner.invars, equation.invars, tracked, strict=True):
            if entry is not None:
                nested[variable] = entry
            self.labels[variable] = frozenset() if isinstance(atom, Literal) else self.labels.get(atom, frozenset())
        for inner_equation in inner.eqns:
            found = frozenset().union(
                *(self.labels.get(a, frozenset()) for a in inner_equation.invars if not isinstance(a, Literal))
            )
            for variable in inner_equation.outvars:
                self.labels[variable] = found
        self.run(inner, nested)
        for variable, result in zip(equation.outvars, inner.outvars, strict=True):
            if not isinstance(result, Literal) and result in nested:
                environment[variable] = nested[result]

    def labels_of(self, atom) -> frozenset[Label]:
        return frozenset() if isinstance(atom, Literal) else self.labels.get(atom, frozenset())

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


def _moved(selection: Selection, move) -> Selection:
    return dataclasses.replace(
        selection, position=tuple(None if axis is None else move(axis) for axis in selection.position)
    )


def _identity(tracker, equation, tracked):
    return next(entry for entry in tracked if entry is not None)


def _broadcast(tracker, equation, tracked):
    dims = equation.params["broadcast_dimensions"]
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return _moved(tracked[0], lambda axis: dims[axis] if before[axis] == after[dims[axis]] else None)


def _reshape(tracker, equation, tracked):
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape

    def move(axis):
        left = _product(before[:axis])
        for candidate, size in enumerate(after):
            if size == before[axis] and _product(after[:candidate]) == left:
                return candidate
        return None

    return _moved(tracked[0], move)


def _product(sizes) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def _transpose(tracker, equation, tracked):
    order = equation.params["permutation"]
    return _moved(tracked[0], lambda axis: order.index(axis))


def _squeeze(tracker, equation, tracked):
    dropped = equation.params["dimensions"]
    return _moved(tracked[0], lambda axis: None if axis in dropped else axis - sum(gone < axis for gone in dropped))


def _same_size_axes(tracker, equation, tracked):
    if any(entry is not None for entry in tracked[1:]):
        return _Mixed(f"it is also an index of `{equation.primitive.name}`")
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return _moved(tracked[0], lambda axis: axis if before[axis] == after[axis] else None)


def _reverse(tracker, equation, tracked):
    return _moved(tracked[0], lambda axis: None if axis in equation.params["dimensions"] else axis)


def _concatenate(tracker, equation, tracked):
    dimension = equation.params["dimension"]
    return _agree([_moved(entry, lambda a: None if a == dimension else a) for entry in tracked if entry is not None])


def _select(tracker, equation, tracked):
    if tracked[0] is not None:
        return _Mixed("it decides a `where`")
    return _agree([entry for entry in tracked[1:] if entry is not None])


def _agree(entries):
    first = entries[0]
    position = tuple(
        axis if all(entry.position[number] == axis for entry in entries) else None
        for number, axis in enumerate(first.position)
    )
    indexed = tuple(
        frozenset().union(*(entry.indexed[number] for entry in entries)) for number in range(len(first.indexed))
    )
    return Selection(position, indexed)


def _gather(tracker, equation, tracked):
    if tracked[0] is None or tracked[1] is not None:
        return _Mixed("it is used as an index")
    dims = equation.params["dimension_numbers"]
    sizes = equation.params["slice_sizes"]
    operand, indices = equation.invars
    shape = operand.aval.shape
    gone = set(dims.collapsed_slice_dims) | set(dims.operand_batching_dims)
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    place = dict(zip(kept, dims.offset_dims, strict=True))
    whole = {axis: place[axis] for axis in kept if sizes[axis] == shape[axis]}
    columns = tracker.column_labels(indices, len(dims.start_index_map))
    by_axis = {axis: columns[number] for number, axis in enumerate(dims.start_index_map) if axis not in whole}
    indexed = tuple(
        labels if axis is None else labels | by_axis.get(axis, frozenset())
        for axis, labels in zip(tracked[0].position, tracked[0].indexed, strict=True)
    )
    position = tuple(None if axis is None else whole.get(axis) for axis in tracked[0].position)
    return Selection(position, indexed)


_RULES = {
    **dict.fromkeys(_ELEMENTWISE_IDENTITY, _identity),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "slice": _same_size_axes,
    "split": _same_size_axes,
    "dynamic_slice": _same_size_axes,
    "rev": _reverse,
    "concatenate": _concatenate,
    "select_n": _select,
    "gather": _gather,
}

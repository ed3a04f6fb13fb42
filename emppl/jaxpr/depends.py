"""What each traced quantity depends on, read off the jaxpr; and whether it merely *selects* parameter entries.

Both questions are structural: no arithmetic is done and no data is needed, so they can be answered under
``jit`` too. ``selection`` is sound but not complete: what it accepts is a selection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal

from emppl.jaxpr.axes import AxisPositions, AxisWalk
from emppl.jaxpr.maps import ElementMap, step_of
from emppl.jaxpr.selection import Label, Walk, gather_axes, labels_of, propagate, reshaped_axis
from emppl.names import model_name

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
        self._axis_walks: dict[str, Any] = {}
        for variable, label in zip(self.jaxpr.invars, inputs, strict=True):
            self.labels[variable] = frozenset([label])
        propagate(self.jaxpr, self.labels)

    def of_atom(self, atom) -> frozenset[Label]:
        """Labels of one jaxpr variable or literal."""
        return labels_of(self.labels, atom)

    def of_output(self, position: int) -> frozenset[Label]:
        """Labels of one output."""
        return self.of_atom(self.jaxpr.outvars[position])

    def indexing_latents(self, parameter: str) -> frozenset[str]:
        """Latents whose values index into a parameter anywhere in the model."""
        tracker, _ = self._follow(parameter)
        return _latents(tracker.indexing)

    def indexed(self, parameter: str) -> tuple[frozenset[str], ...]:
        """For every axis of a parameter, the latents that index it anywhere in the model.

        Unlike :meth:`selection` this looks through elementwise operations, and through sums and matrix products
        along other axes: the first axis of ``beta`` is indexed by ``z`` in ``X @ jnp.exp(beta)[z]``.

        Args:
            parameter: name of the parameter.

        Returns:
            One set of latents per axis.
        """
        walk, _ = self._axes(parameter)
        return tuple(map(_latents, walk.indexed))

    def axis_positions(self, parameter: str, position: int) -> tuple[frozenset[int], ...]:
        """For every axis of a parameter, the axes of an output that run along it (looking through as `indexed`)."""
        _, environment = self._axes(parameter)
        target = self.jaxpr.outvars[position]
        if isinstance(target, Literal) or target not in environment:
            return (frozenset(),) * len(self._source(parameter).aval.shape)
        return environment[target]

    def _axes(self, parameter: str):
        if parameter not in self._axis_walks:
            source = self._source(parameter)
            rank = len(source.aval.shape)
            walk = AxisWalk(self.labels, rank)
            environment: dict[Any, AxisPositions] = {source: tuple(frozenset([axis]) for axis in range(rank))}
            walk.run(self.jaxpr, environment)
            self._axis_walks[parameter] = walk, environment
        return self._axis_walks[parameter]

    def _source(self, parameter: str):
        return self.jaxpr.invars[self.inputs.index(("parameter", parameter))]

    def _follow(self, parameter: str):
        source = self._source(parameter)
        tracker = _SelectionWalk(self.labels)
        rank = len(source.aval.shape)
        environment: dict[Any, Selection | _Mixed] = {source: Selection(tuple(range(rank)), (frozenset(),) * rank)}
        tracker.run(self.jaxpr, environment)
        return tracker, environment

    def selection(self, parameter: str, position: int) -> Selection | str:
        """Is an output a pure selection of a parameter's entries (``mu[z]``, broadcast, reshape)?

        An elementwise invertible map of the entries commutes with the selection and is recorded beside it.

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


def _latents(labels) -> frozenset[str]:
    """The latents among labels; all steps of a scan are one latent."""
    return frozenset(model_name(name) for kind, name in labels if kind == "latent")


@dataclasses.dataclass(frozen=True)
class Selection:
    """How a parameter's axes appear in an array that selects its entries.

    Attributes:
        position: for every parameter axis, the axis of the array that holds it whole, or None.
        indexed: for every parameter axis, the labels of what indexes it.
        map: what was done to every entry (``exp`` in ``exp(log_sigma)[z]``).
        masked: was it multiplied by an array of constants? Zeros and ones would leave a selection.
        scaled: was it multiplied by data, or divided by them (``rate[z] * exposure``)?
        bent: did a map follow that (``exp(slope[z] * x)``), so that what came out is no multiple of the entries?
    """

    position: tuple[int | None, ...]
    indexed: tuple[frozenset[Label], ...]
    map: ElementMap = ElementMap()
    masked: bool = False
    scaled: bool = False
    bent: bool = False

    @property
    def is_multiple(self) -> bool:
        """Are its entries those of the parameter, through the map, times something that is known?"""
        return (self.masked or self.scaled) and not self.bent

    @property
    def is_plain(self) -> bool:
        """Are its entries those of the parameter, nothing done to them?"""
        return not self.map and not self.masked and not self.scaled


@dataclasses.dataclass(frozen=True)
class _Mixed:
    reason: str


class _SelectionWalk(Walk):
    """Records where a parameter's axes end up while its entries are only selected."""

    def __init__(self, labels: Mapping[Any, frozenset[Label]]):
        super().__init__(labels)
        self.indexing: set[Label] = set()

    def apply(self, equation, tracked):
        name = equation.primitive.name
        if name in ("gather", "dynamic_slice") and tracked[0] is not None:
            self.indexing.update(*(self.labels_of(atom) for atom in equation.invars[1:]))
        mixed = next((entry for entry in tracked if isinstance(entry, _Mixed)), None)
        if mixed is not None:
            return mixed
        mapped = self._mapped(equation, tracked)
        if mapped is not None:
            return mapped
        rule = _RULES.get(name)
        return _Mixed(_words(name)) if rule is None else rule(self, equation, tracked)

    def whole(self, equation, tracked):
        """Softplus is one map, not the operations it is made of."""
        return self._mapped(equation, tracked) if equation.params.get("name") == "softplus" else None

    def _mapped(self, equation, tracked) -> Selection | _Mixed | None:
        """The selection after an elementwise invertible operation with constants."""
        selections = [entry for entry in tracked if isinstance(entry, Selection)]
        others = [self.scalar(a) for a, t in zip(equation.invars, tracked, strict=True) if t is None]
        if len(selections) != 1 or None in others:
            return None
        step = step_of(
            equation, [None if t is not None else self.scalar(a) for a, t in zip(equation.invars, tracked, strict=True)]
        )
        if step is None:
            return None
        (found,) = selections
        bends = step.operation != "multiply by"
        if found.scaled and bends:
            return _Mixed(f"it is multiplied by data before it goes through a map ({step})")
        bent = found.bent or (found.masked and bends)
        return dataclasses.replace(found, map=found.map.then(step), bent=bent)


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
    return _moved(tracked[0], lambda axis: reshaped_axis(before, after, axis))


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


def _stack(tracker, equation, tracked):
    new = equation.params["axis"]
    return _agree([_moved(entry, lambda a: a + (a >= new)) for entry in tracked if entry is not None])


def _select(tracker, equation, tracked):
    if tracked[0] is not None:
        return _Mixed("it decides a `where`")
    # Where the condition varies along an axis, the axis is cut: some of its entries are replaced by others.
    cut = tracker.varying_axes(equation.invars[0])
    return _agree([_moved(entry, lambda a: None if a in cut else a) for entry in tracked[1:] if entry is not None])


def _multiply(tracker, equation, tracked):
    if all(entry is not None for entry in tracked):
        return _Mixed("it is multiplied by itself")
    (selection,) = (entry for entry in tracked if entry is not None)
    (other,) = (atom for atom, entry in zip(equation.invars, tracked, strict=True) if entry is None)
    if equation.primitive.name == "div" and tracked[0] is None:
        return _Mixed("other values are divided by it")
    labels = tracker.labels_of(other)
    if any(kind != "data" for kind, _ in labels):
        return _Mixed("it is multiplied by other values")
    cut = tracker.varying_axes(other)
    scaled = dataclasses.replace(selection, scaled=True) if labels else dataclasses.replace(selection, masked=True)
    return _moved(scaled, lambda a: None if a in cut else a)


def _pad(tracker, equation, tracked):
    if tracked[0] is None or tracked[1] is not None:
        return _Mixed("it fills up an array")
    amounts = equation.params["padding_config"]
    return _moved(tracked[0], lambda axis: None if any(amounts[axis]) else axis)


def _scatter(tracker, equation, tracked):
    if tracked[1] is not None:
        return _Mixed("it is used as an index")
    placed = [dataclasses.replace(entry, position=(None,) * len(entry.position)) for entry in tracked if entry]
    return _agree(placed)


def _agree(entries):
    first = entries[0]
    done = {kind: any(getattr(entry, kind) for entry in entries) for kind in ("masked", "scaled", "bent")}
    if any(entry.map != first.map for entry in entries):
        return _Mixed("its entries go through different maps")
    position = tuple(
        axis if all(entry.position[number] == axis for entry in entries) else None
        for number, axis in enumerate(first.position)
    )
    indexed = tuple(
        frozenset().union(*(entry.indexed[number] for entry in entries)) for number in range(len(first.indexed))
    )
    return Selection(position, indexed, first.map, **done)


def _gather(tracker, equation, tracked):
    if tracked[0] is None or tracked[1] is not None:
        return _Mixed("it is used as an index")
    whole, columns = gather_axes(equation)
    labels_by_column = tracker.column_labels(equation.invars[1], len(columns))
    by_axis = {axis: labels for axis, labels in zip(columns, labels_by_column, strict=True) if axis not in whole}
    indexed = tuple(
        labels if axis is None else labels | by_axis.get(axis, frozenset())
        for axis, labels in zip(tracked[0].position, tracked[0].indexed, strict=True)
    )
    position = tuple(None if axis is None else whole.get(axis) for axis in tracked[0].position)
    return dataclasses.replace(tracked[0], position=position, indexed=indexed)


def _words(primitive: str) -> str:
    """What an operation that mixes entries does, and how a model avoids it, where that is known."""
    for names, words in _MIXING.items():
        if primitive in names.split():
            return f"{words} (`{primitive}`)"
    return f"it goes through `{primitive}`"


_MIXING = {
    "add add_any sub": "it is added to other values",
    "reduce_sum reduce_max cumsum": "its entries are summed or compared; constrain what sums to one to a simplex",
    "dot_general": "a matrix product mixes its entries",
}

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
    "stack": _stack,
    **dict.fromkeys(("mul", "div"), _multiply),
    "pad": _pad,
    "scatter": _scatter,
    "select_n": _select,
    "gather": _gather,
}

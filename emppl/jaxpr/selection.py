"""Whether an array merely *selects* entries of a parameter (``mu[z]``, broadcast, reshape), and through which map.

Sound but not complete: what is accepted is a selection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

from jax.extend.core import Var

from emppl.errors import Refusal
from emppl.jaxpr.equations import Equation, Kind
from emppl.jaxpr.maps import MULTIPLY, ElementMap
from emppl.jaxpr.walk import Computation, Domain, Labels, entry_of, picking_labels


@dataclasses.dataclass(frozen=True)
class Selection:
    """How a parameter's axes appear in an array that selects its entries.

    Attributes:
        position: for every parameter axis, the axis of the array that holds it whole, or None.
        indexed: for every parameter axis, the labels of what indexes it.
        map: what was done to every entry (``exp`` in ``exp(log_sigma)[z]``).
        masked: whether it was multiplied by an array of constants. Zeros and ones would leave a selection.
        scaled: whether it was multiplied by data, or divided by them (``rate[z] * exposure``).
        bent: whether a map followed that (``exp(slope[z] * x)``), so that what came out is no multiple of the entries.
    """

    position: tuple[int | None, ...]
    indexed: tuple[Labels, ...]
    map: ElementMap = ElementMap()
    masked: bool = False
    scaled: bool = False
    bent: bool = False

    @property
    def is_multiple(self) -> bool:
        """Whether its entries are those of the parameter, through the map, times something that is known."""
        return (self.masked or self.scaled) and not self.bent

    @property
    def is_plain(self) -> bool:
        """Whether its entries are those of the parameter, nothing done to them."""
        return not self.map and not self.masked and not self.scaled


Entry: TypeAlias = Selection | Refusal


class SelectionDomain(Domain[Entry]):
    """Records where a parameter's axes end up while its entries are only selected.

    Args:
        computation: where.
        labels: what its variables depend on.
    """

    def __init__(self, computation: Computation, labels: Mapping[Var, Labels]):
        super().__init__(computation)
        self.labels = labels

    def apply(self, equation: Equation, entries: list[Entry | None]) -> Entry:
        """The selection after one operation, or why it is none."""
        found: dict[int, Selection] = {}
        for position, entry in self.tracked(entries):
            if isinstance(entry, Refusal):
                return entry
            found[position] = entry
        mapped = self._mapped(equation, found)
        if mapped is not None:
            return mapped
        if equation.is_identity:
            return found[0]
        if equation.name == "select_n":
            return self._decided(equation, found)
        if equation.name in ("mul", "div"):
            return self._multiplied(equation, found)
        if equation.row.kind is Kind.MOVES:
            return self._moved(equation, found)
        return Refusal(_words(equation.name))

    def _mapped(self, equation: Equation, found: Mapping[int, Selection]) -> Entry | None:
        """The selection after an elementwise invertible operation with constants."""
        scalar = self.computation.scalar
        constants = [None if p in found else scalar(atom) for p, atom in enumerate(equation.operands)]
        if equation.row.map is None or len(found) != 1 or constants.count(None) != 1:
            return None
        step = equation.row.map(equation.params, constants)
        if step is None:
            return None
        (selection,) = found.values()
        bends = step.operation is not MULTIPLY
        if selection.scaled and bends:
            return Refusal(f"it is multiplied by data before it goes through a map ({step})")
        bent = selection.bent or (selection.masked and bends)
        return dataclasses.replace(selection, map=selection.map.then(step), bent=bent)

    def _moved(self, equation: Equation, found: Mapping[int, Selection]) -> Entry:
        axes = equation.axes
        if not set(found) <= set(equation.row.sources(equation)):
            return Refusal(f"it is used as an index (`{equation.name}`)")
        picked = picking_labels(self.computation, self.labels, equation)
        placed = []
        for position, selection in found.items():
            indexed = [
                labels if axis is None or position else labels | picked.get(axis, frozenset())
                for axis, labels in zip(selection.position, selection.indexed, strict=True)
            ]
            whole = axes.operands[position].whole
            # An axis along which others are written is not whole.
            kept = {axis: place for axis, place in whole.items() if place not in axes.varying}
            placed.append(dataclasses.replace(_placed(selection, kept.get), indexed=tuple(indexed)))
        return _agreed(placed)

    def _decided(self, equation: Equation, found: Mapping[int, Selection]) -> Entry:
        if 0 in found:
            return Refusal("it decides a `where`")
        # Where the condition varies along an axis, the axis is cut: some of its entries are replaced by others.
        cut = self.computation.varying_axes(equation.operands[0])
        return _agreed([_placed(selection, _except(cut)) for selection in found.values()])

    def _multiplied(self, equation: Equation, found: Mapping[int, Selection]) -> Entry:
        if len(found) > 1:
            return Refusal("it is multiplied by itself")
        ((position, selection),) = found.items()
        if equation.name == "div" and position == 1:
            return Refusal("other values are divided by it")
        factor = equation.operands[1 - position]
        labels = entry_of(self.labels, factor)
        if labels and any(kind != "data" for kind, _ in labels):
            return Refusal("it is multiplied by other values")
        multiple = dataclasses.replace(
            selection, scaled=selection.scaled or bool(labels), masked=selection.masked or not labels
        )
        return _placed(multiple, _except(self.computation.varying_axes(factor)))


def _placed(selection: Selection, place: Callable[[int], int | None]) -> Selection:
    return dataclasses.replace(
        selection, position=tuple(None if axis is None else place(axis) for axis in selection.position)
    )


def _except(cut: frozenset[int]) -> Callable[[int], int | None]:
    return lambda axis: None if axis in cut else axis


def _agreed(selections: list[Selection]) -> Entry:
    """Entries of several selections side by side."""
    first = selections[0]
    if any(selection.map != first.map for selection in selections):
        return Refusal("its entries go through different maps")
    positions = zip(*(selection.position for selection in selections), strict=True)
    indexed = zip(*(selection.indexed for selection in selections), strict=True)
    return Selection(
        tuple(axes[0] if len(set(axes)) == 1 else None for axes in positions),
        tuple(frozenset().union(*labels) for labels in indexed),
        first.map,
        *(any(getattr(one, fact) for one in selections) for fact in ("masked", "scaled", "bent")),
    )


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

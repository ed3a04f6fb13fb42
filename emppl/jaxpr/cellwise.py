"""Where axes of inputs lie in everything computed from them, as long as every operation keeps their entries apart.

Entry i along such an axis depends on entry i of the input only. An operation that adds entries up, moves them, picks
some, or is unknown mixes the axis. What an operation does to axes that the inputs do not have is no matter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from emppl.jaxpr.equations import Equation
from emppl.jaxpr.walk import Computation, Domain, Label, entry_of, interpret


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Entries along some axis of an input may meet, or lie in another order.

    Attributes:
        label: of the axis.
        operation: what did that.
    """

    label: Label
    operation: str

    @property
    def words(self) -> str:
        """What was done, for messages."""
        return _WORDS.get(self.operation, f"it goes through `{self.operation}`")


class Place(NamedTuple):
    """Where an axis of an input lies: entry i along it is at ``(position // stride) % size`` along an axis of an array.

    Attributes:
        axis: of the array.
        stride: 1, unless several axes were put into one.
        size: number of entries.
    """

    axis: int
    stride: int
    size: int


@dataclasses.dataclass(frozen=True)
class Apart:
    """An array computed from inputs whose axes are all apart in it.

    Attributes:
        axes: by label of an axis of an input, where in the array it is.
        varies: axes of the array along which it may differ even where the inputs do not.
    """

    axes: Mapping[Label, Place]
    varies: frozenset[int] = frozenset()


Entry = Apart | Mixed

_WORDS = {
    "rev": "its order is reversed",
    "slice": "some of its cells are cut out",
    "dynamic_slice": "some of its cells are cut out",
    "gather": "an index picks among its cells",
    "concatenate": "its cells are put in another order, or beside others",
    "sort": "its cells are sorted",
    "reshape": "it is reshaped together with other axes",
    "scatter": "it is written into an array",
    "dot_general": "its cells are summed in a product of arrays",
    "scan": "a `lax.scan` runs along it",
}
_WORDS |= {f"reduce_{name}": f"it is reduced (`{name}`) over its cells" for name in ("sum", "max", "min", "and", "or")}
_WORDS |= {f"cum{name}": f"it is accumulated (`cum{name}`) over its cells" for name in ("sum", "prod", "max", "min")}


class Cellwise(Domain[Entry]):
    """Axes of several inputs through the operations of a computation."""

    def apply(self, equation: Equation, entries: list[Entry | None]) -> Entry | list[Entry | None]:
        """The axes of the operands that the results have too."""
        known = []
        for entry, atom in zip(entries, equation.operands, strict=True):
            if isinstance(entry, Mixed):
                return entry
            known.append(Apart({}, self.computation.varying_axes(atom)) if entry is None else entry)
        if equation.name == "scan":
            return _scanned(equation, known)
        if equation.name == "custom_linear_solve":
            lengths = equation.params["const_lengths"]
            begin = lengths.matvec + lengths.vecmat
            right_side = begin + lengths.solve + lengths.transpose_solve
            # The solution is what the function `solve` says.
            return lanes(equation.params["jaxprs"].solve, known[begin : begin + lengths.solve] + known[right_side:])
        together: dict[Label, Place] = {}
        varies = {axis for axis in equation.axes.varying if axis < len(equation.shape) and equation.shape[axis] > 1}
        for operand, own in zip(known, equation.axes.operands, strict=True):
            for label, place in operand.axes.items():
                if equation.name == "reshape":
                    after = _reshaped(place, equation.shapes[0], equation.shape)
                else:
                    after = place._replace(axis=own.whole[place.axis]) if place.axis in own.whole else None
                if after is None or together.setdefault(label, after) != after:
                    return Mixed(label, equation.name)
            places = {**own.whole, **own.cut}
            varies |= {places[axis] for axis in operand.varies if axis in places}
        return Apart(together, frozenset(varies))


def lanes(closed: Any, entries: Sequence[Entry | None]) -> list[Entry | None]:
    """The axes that the outputs of a computation have from its inputs.

    Args:
        closed: a jaxpr.
        entries: by input, its axes that are followed; None for one that is not.
    """
    computation = Computation(closed)
    start = {v: entry for v, entry in zip(computation.inputs, entries, strict=True) if entry is not None}
    environment = interpret(computation, start, Cellwise(computation))
    return [entry_of(environment, atom) for atom in computation.outputs]


def _scanned(equation: Equation, entries: Sequence[Apart]) -> Entry | list[Entry | None]:
    """A ``lax.scan``: the first axis of what is scanned over is that of the steps."""
    consts, count = equation.params["num_consts"], equation.params["num_carry"]
    for entry in entries[consts + count :]:
        for label, place in entry.axes.items():
            if place.axis == 0:
                return Mixed(label, "scan")
    carry: list[Entry] = list(entries[consts : consts + count])
    data = [_shifted(entry, -1) for entry in entries[consts + count :]]
    free = [Apart({}, frozenset(range(len(aval.shape)))) for aval in equation.params["jaxpr"].out_avals]
    while True:
        results = lanes(equation.params["jaxpr"], [*entries[:consts], *carry, *data])
        after: list[Entry] = [other if own is None else own for own, other in zip(results, free, strict=True)]
        joined = [_joined(old, new) for old, new in zip(carry, after[:count], strict=True)]
        if joined == carry:
            return [*carry, *(_shifted(entry, 1) for entry in after[count:])]
        carry = joined


def _reshaped(place: Place, before: tuple[int, ...], after: tuple[int, ...]) -> Place | None:
    """Where an axis comes to lie; None if it falls apart."""
    stride = place.stride * math.prod(before[place.axis + 1 :])
    for axis, size in enumerate(after):
        behind = math.prod(after[axis + 1 :])
        if size > 1 and stride % behind == 0 and stride * place.size <= behind * size:
            return Place(axis, stride // behind, place.size)
    return None


def _shifted(entry: Entry | None, by: int) -> Entry | None:
    """An array without its first axis, or with a new one, along which it varies."""
    if not isinstance(entry, Apart):
        return entry
    varies = {axis + by for axis in entry.varies} | {0} if by > 0 else {axis + by for axis in entry.varies - {0}}
    axes = {label: place._replace(axis=place.axis + by) for label, place in entry.axes.items()}
    return Apart(axes, frozenset(varies))


def _joined(old: Entry, new: Entry) -> Entry:
    """What is known of an array that is one or the other."""
    if isinstance(old, Mixed) or isinstance(new, Mixed):
        return old if isinstance(old, Mixed) else new
    together = dict(old.axes)
    for label, place in new.axes.items():
        if together.setdefault(label, place) != place:
            return Mixed(label, "scan")
    return Apart(together, old.varies | new.varies)

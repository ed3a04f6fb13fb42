"""Group numbers of the cells of arrays, and what becomes of them where arrays meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from emppl.jaxpr.equations import OperandAxes

SHARED = -1
"""Number of an entry that may meet every group. Smaller numbers are groups picked by the data, one for every index."""

MOST_CELLS = 2_000_000
"""Larger arrays are not spread out to be numbered."""


@dataclasses.dataclass(frozen=True)
class Grouped:
    """An array each of whose cells depends on one group only.

    Attributes:
        numbers: the group of every cell (``SHARED`` for none in particular); axes along which it is constant have size
            one.
        varies: for every axis, whether cells may differ along it otherwise than by their group. If not, all groups
            enter through one and the same function.
        picks: for every axis, the axis of the index in the data along which the groups were picked, None if the group
            is the same along it. Which groups those are is unknown: they do not stay apart if the axis does not stay
            whole.
    """

    numbers: np.ndarray
    varies: tuple[bool, ...]
    picks: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "picks", self.picks or (None,) * len(self.varies))

    @property
    def along(self) -> list[int]:
        """Axes along which the group may change."""
        return [a for a, pick in enumerate(self.picks) if pick is not None or self.numbers.shape[a] > 1]


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Entries of different groups may meet here."""

    reason: str


def compact(numbers: np.ndarray) -> np.ndarray:
    """One copy along every axis along which the numbers are constant."""
    for axis, size in enumerate(numbers.shape):
        first = np.take(numbers, [0], axis) if size > 1 else numbers
        if size > 1 and (numbers.strides[axis] == 0 or np.all(numbers == first)):
            numbers = first
    return numbers


def together(operands: Sequence[Grouped], reason: str = "entries of different groups meet") -> Grouped | Meeting:
    """What an elementwise operation makes of its operands."""
    numbers, picks = operands[0].numbers, operands[0].picks
    for other in operands[1:]:
        left, right = np.broadcast_arrays(numbers, other.numbers)
        picked = bool(np.any(left < SHARED)), bool(np.any(right < SHARED))
        if np.any((left != right) & (left != SHARED) & (right != SHARED)) or (all(picked) and picks != other.picks):
            return Meeting(reason)
        numbers = np.where(left == SHARED, right, left)
        picks = other.picks if picked[1] else picks
    varies = tuple(any(operand.varies[axis] for operand in operands) for axis in range(numbers.ndim))
    return Grouped(compact(numbers), varies, picks)


def moved(entry: Grouped, axes: OperandAxes, rank: int) -> Grouped | None:
    """An operand where it enters a result of some rank; None if different groups meet there.

    Args:
        entry: the operand.
        axes: where its axes go.
        rank: number of axes of the result.
    """
    gone = [axis for axis in range(len(entry.varies)) if axis not in axes.whole]
    numbers = merged(entry.numbers, gone)
    if numbers is None or any(entry.picks[axis] is not None for axis in gone):
        return None
    shape, varies = [1] * rank, [False] * rank
    picks: list[int | None] = [None] * rank
    for axis, place in axes.cut.items():
        varies[place] = entry.varies[axis] or entry.numbers.shape[axis] > 1
    for axis, place in axes.whole.items():
        shape[place] = max(shape[place], numbers.shape[axis])
        varies[place] = varies[place] or entry.varies[axis]
        picks[place] = picks[place] if entry.picks[axis] is None else entry.picks[axis]
    order = sorted(axes.whole, key=lambda axis: axes.whole[axis])
    return Grouped(np.transpose(numbers, [*order, *gone]).reshape(shape), tuple(varies), tuple(picks))


def form(entry: Grouped) -> Grouped:
    """An array without its numbers: along which axes it varies, and those picked by data lie."""
    number = SHARED - 1 if np.any(entry.numbers < SHARED) else SHARED
    return dataclasses.replace(entry, numbers=np.full((1,) * entry.numbers.ndim, number))


def merged(numbers: np.ndarray, axes: Iterable[int]) -> np.ndarray | None:
    """The one group along some axes, which become of size one, beside entries of none in particular; None for several.

    The logits of an ordinal item are a constant for its first category and a sum of steps for every other.
    """
    for axis in axes:
        if numbers.shape[axis] == 1:
            continue
        own = numbers != SHARED
        first = np.take_along_axis(numbers, np.argmax(own, axis, keepdims=True), axis)
        if np.any(own & (numbers != first)):
            return None
        numbers = first
    return numbers

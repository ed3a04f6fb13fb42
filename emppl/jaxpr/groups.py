"""Group numbers of the cells of arrays, and what becomes of them where arrays meet."""

from __future__ import annotations

import dataclasses

import numpy as np

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
        varies: for every axis, may cells differ along it otherwise than by their group? If not, all groups enter
            through one and the same function.
    """

    numbers: np.ndarray
    varies: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Entries of different groups may meet here."""

    reason: str


def compact(numbers: np.ndarray) -> np.ndarray:
    """One copy along every axis along which the numbers are constant."""
    for axis, size in enumerate(numbers.shape):
        first = np.take(numbers, [0], axis) if size > 1 else numbers
        if size > 1 and np.all(numbers == first):
            numbers = first
    return numbers


def together(operands: list[Grouped]) -> Grouped | Meeting:
    """What an elementwise operation makes of its operands."""
    numbers = operands[0].numbers
    for other in operands[1:]:
        left, right = np.broadcast_arrays(numbers, other.numbers)
        if np.any((left != right) & (left != SHARED) & (right != SHARED)):
            return Meeting("entries of different groups meet")
        numbers = np.where(left == SHARED, right, left)
    varies = tuple(any(one.varies[axis] for one in operands) for axis in range(numbers.ndim))
    return Grouped(compact(numbers), varies)


def drop(entry: Grouped, axes) -> Grouped | Meeting:
    """The entry without some axes, along which it is added up or of size one."""
    axes = tuple(axes)
    numbers = merged(entry.numbers, axes)
    if numbers is None:
        return Meeting("different groups are added up")
    varies = tuple(v for axis, v in enumerate(entry.varies) if axis not in axes)
    return Grouped(np.squeeze(numbers, axes), varies)


def merged(numbers: np.ndarray, axes) -> np.ndarray | None:
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

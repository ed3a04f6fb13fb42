"""Whether an array is, entry by entry, a monotone function of one input; read off the jaxpr, without arithmetic.

``jnp.maximum(w, 0)``, ``w > c``, ``jnp.clip``, ``jnp.floor``, ``jnp.digitize`` are. Constants may be anything that does
not depend on the input: a factor ``c`` makes ``c * w`` rise or fall, whichever sign it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TypeAlias

from jax.extend.core import Var

from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.equations import FALLS, ONE_WAY, RISES, Equation, Kind
from emppl.jaxpr.walk import Domain, Label, entry_of, interpret


@dataclasses.dataclass(frozen=True)
class Turns:
    """Not known to be monotone.

    Attributes:
        operation: after which operation.
    """

    operation: str


Direction: TypeAlias = int | Turns


def direction(dependence: Dependence, source: Label, position: int) -> Direction | None:
    """How every entry of an output changes when the input grows.

    Args:
        dependence: the traced computation.
        source: the input.
        position: which output.

    Returns:
        ``RISES``, ``FALLS``, ``ONE_WAY``, the operation after which that is not known, or None if the output does not
        depend on the input.
    """
    computation = dependence.computation
    start: dict[Var, Direction] = {dependence.source(source): RISES}
    return entry_of(interpret(computation, start, _Monotone(computation)), computation.outputs[position])


class _Monotone(Domain[Direction]):
    """Carries the direction of every array that depends on the input."""

    def apply(self, equation: Equation, entries: list[Direction | None]) -> Direction:
        """The direction after one operation."""
        moving: dict[int, int] = {}
        for position, entry in self.tracked(entries):
            if isinstance(entry, Turns):
                return entry
            moving[position] = entry
        if equation.name in ("mul", "div"):
            found = self._scaled(equation, moving)
        elif equation.name == "select_n":
            found = self._selected(equation, moving)
        else:
            ways = ((equation.directions[position], way) for position, way in moving.items())
            found = _agreed(None if own is None else own * way for own, way in ways)
            if found == ONE_WAY and equation.row.kind is Kind.MIXES:  # of the entries one may rise and another fall
                found = None
        return Turns(equation.name) if found is None else found

    def _scaled(self, equation: Equation, moving: dict[int, int]) -> int | None:
        """After multiplication by something constant, or division by it."""
        ((position, way), *others) = moving.items()
        if others or (equation.name == "div" and position == 1):
            return None
        factor = self.computation.scalar(equation.operands[1 - position])
        return ONE_WAY if factor is None else way * (RISES if factor >= 0 else FALLS)

    def _selected(self, equation: Equation, moving: dict[int, int]) -> int | None:
        """``where(x > c, x, c)`` is a maximum; ``where(condition, c, d)`` goes one way if the condition does."""
        if len(equation.operands) != 3:
            return None
        if 0 not in moving:
            ways = set(moving.values())
            return ways.pop() if len(ways) == 1 else None
        if len(moving) == 1:
            low, high = map(self.computation.scalar, equation.operands[1:])
            return ONE_WAY if low is None or high is None else moving[0] * (RISES if high >= low else FALLS)
        return self._bounded(equation, moving) if len(moving) == 2 else None

    def _bounded(self, equation: Equation, moving: dict[int, int]) -> int | None:
        """``where(x > c, x, c)`` and its like: the moving case is what is compared, the other what with."""
        comparison = self.computation.producer(equation.operands[0])
        if comparison is None or not comparison.jumps or set(comparison.directions) != {RISES, FALLS}:
            return None
        position = max(moving)
        moved, fixed = equation.operands[position], self.computation.scalar(equation.operands[3 - position])
        for x, c in (comparison.operands, comparison.operands[::-1]):
            if x is moved and fixed is not None and self.computation.scalar(c) == fixed:
                return moving[position]
        return None


def _agreed(ways: Iterable[int | None]) -> int | None:
    """The one direction of several operands; opposite ones, and two that may be, give none."""
    every = list(ways)
    same = len(set(every)) == 1 and (len(every) == 1 or every[0] != ONE_WAY)
    return every[0] if same else None

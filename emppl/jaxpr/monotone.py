"""Is an array, entry by entry, a monotone function of one input? Read off the jaxpr, without arithmetic.

``jnp.maximum(w, 0)``, ``w > c``, ``jnp.clip``, ``jnp.floor``, ``jnp.digitize`` are. Constants may be anything that does
not depend on the input: a factor ``c`` makes ``c * w`` rise or fall, whichever sign it has.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.selection import Label, Walk, searched_for

RISES = 1
FALLS = -1
ONE_WAY = 0
"""It rises or falls in every entry; which, depends on values that are not known here."""


@dataclasses.dataclass(frozen=True)
class Turns:
    """Not known to be monotone.

    Attributes:
        operation: after which operation.
    """

    operation: str


_RISING = frozenset(
    "exp exp2 expm1 tanh logistic erf asinh sinh atan cbrt floor ceil round sign convert_element_type copy copy_p "
    "reduce_precision broadcast_in_dim reshape squeeze transpose slice expand_dims rev".split()
)
_FALLING = frozenset(("neg", "not"))
_SUMS = frozenset("add add_any max min concatenate clamp stack".split())
_CONDITIONS = frozenset(("and", "or"))
_OVER_ENTRIES = frozenset("reduce_sum reduce_max reduce_min reduce_or reduce_and".split())
_GATHERS = frozenset(("gather", "dynamic_slice"))
_COMPARISONS = {"gt": RISES, "ge": RISES, "lt": FALLS, "le": FALLS}


def direction(dependence: Dependence, source: Label, position: int) -> int | Turns | None:
    """How every entry of an output changes when the input grows.

    Args:
        dependence: the traced computation.
        source: the input.
        position: which output.

    Returns:
        ``RISES``, ``FALLS``, ``ONE_WAY``, the operation after which that is not known, or None if the output does not
        depend on the input.
    """
    variable = dependence.jaxpr.invars[dependence.inputs.index(source)]
    environment: dict[Any, Any] = {variable: RISES}
    _MonotoneWalk(dependence.labels).run(dependence.jaxpr, environment)
    target = dependence.jaxpr.outvars[position]
    return None if isinstance(target, Literal) else environment.get(target)


class _MonotoneWalk(Walk):
    """Carries the direction of every array that depends on the input."""

    def __init__(self, labels):
        super().__init__(labels)
        self.names: dict[Any, Any] = {}

    def _inline(self, equation, inner, tracked, environment) -> None:
        self.names.update(zip(inner.invars, equation.invars, strict=True))
        super()._inline(equation, inner, tracked, environment)

    def scalar(self, atom) -> float | None:
        """Inside nested calls too."""
        return super().scalar(self._origin(atom))

    def whole(self, equation, tracked):
        """Searches in a sorted array, and rounding down to multiples, are known by their names."""
        name = equation.params.get("name")
        moves = equation.invars[0] if name == "floor_divide" else searched_for(equation)
        if moves is None or any(isinstance(one, Turns) for one in tracked):
            return None
        touched = [atom for atom, one in zip(equation.invars, tracked, strict=True) if one is not None]
        return ONE_WAY if touched == [moves] else Turns(name)

    def apply(self, equation, tracked):
        """The direction after one operation."""
        name = equation.primitive.name
        turned = next((one for one in tracked if isinstance(one, Turns)), None)
        if turned is not None:
            return turned
        moving = [one for one in tracked if one is not None]
        same = moving[0] if len(set(moving)) == 1 and (len(moving) == 1 or moving[0] != ONE_WAY) else None
        found: int | None = None
        if name in _SUMS or (name in _GATHERS and tracked[0] is not None and len(moving) == 1):
            found = same
        elif name in _RISING and (name != "convert_element_type" or _keeps_order(equation)):
            found = same
        elif name in _CONDITIONS and equation.outvars[0].aval.dtype == bool:
            found = same
        elif name in _OVER_ENTRIES:  # one of which may rise and another fall
            found = same or None
        elif name in _FALLING:
            found = None if same is None else -same
        elif name in ("sub", *_COMPARISONS):
            # left - right, left > right: as the sum of one and the opposite of the other
            both = {one if side == 0 else -one for side, one in enumerate(tracked) if one is not None}
            sign = both.pop() if len(both) == 1 and (len(moving) == 1 or ONE_WAY not in both) else None
            found = None if sign is None else sign * _COMPARISONS.get(name, RISES)
        elif name in ("mul", "div") and len(moving) == 1 and (name == "mul" or tracked[0] is not None):
            found = self._scaled(equation, tracked)
        elif name == "integer_pow" and equation.params["y"] % 2 == 1 and equation.params["y"] > 0:
            found = same
        elif name == "select_n":
            found = self._selected(equation, tracked)
        return Turns(name) if found is None else found

    def _scaled(self, equation, tracked) -> int:
        """After multiplication by something constant, or division by it."""
        side = 0 if tracked[0] is not None else 1
        factor = self.scalar(equation.invars[1 - side])
        if factor is None:
            return ONE_WAY
        return tracked[side] * (RISES if factor >= 0 else FALLS)

    def _selected(self, equation, tracked) -> int | None:
        """``where(x > c, x, c)`` is a maximum; ``where(condition, c, d)`` goes one way if the condition does."""
        condition, *cases = tracked
        if len(cases) != 2:
            return None
        if condition is None:
            moving = {one for one in cases if one is not None}
            return moving.pop() if len(moving) == 1 else None
        if cases == [None, None]:
            low, high = (self.scalar(atom) for atom in equation.invars[1:])
            if low is None or high is None:
                return ONE_WAY
            return condition * (RISES if high >= low else FALLS)
        return self._bounded(equation, tracked)

    def _bounded(self, equation, tracked) -> int | None:
        """``where(x > c, x, c)`` and its like: the moving case is what is compared, the other what with."""
        producer = self.producers.get(equation.invars[0])
        if producer is None or producer.primitive.name not in _COMPARISONS:
            return None
        left, right = producer.invars
        side = 1 if tracked[1] is not None else 2
        if tracked[3 - side] is not None:
            return None
        moving, fixed = equation.invars[side], equation.invars[3 - side]
        for x, c in ((left, right), (right, left)):
            same = self._origin(x) is self._origin(moving)
            if same and self.scalar(c) is not None and self.scalar(c) == self.scalar(fixed):
                return tracked[side]
        return None

    def _origin(self, atom):
        """What a nested call calls by a name of its own."""
        while not isinstance(atom, Literal) and atom in self.names:
            atom = self.names[atom]
        return atom


def _keeps_order(equation) -> bool:
    """Is a conversion between types one that does not wrap round?"""
    before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    return not jnp.issubdtype(before, jnp.integer) or bool(np.can_cast(before, after))

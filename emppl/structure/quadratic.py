"""Is a function quadratic? Asked of its gradient, and of its operations for jumps, without arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from emppl.structure.jaxpr_walk import Walk

_JUMPS = frozenset(
    "gt ge lt le eq ne gt_to ge_to lt_to le_to eq_to floor ceil round sign rem argmax argmin sort is_finite "
    "while".split()
)


def affine_gradient(gradient: Callable, block: Mapping[str, jax.ShapeDtypeStruct]) -> str | None:
    """Is a function's gradient affine, so that the function is quadratic? Answered without arithmetic.

    Args:
        gradient: the gradient as a function of the block.
        block: shapes of the block.

    Returns:
        None if it is, else the operation that is not.
    """
    try:
        jax.eval_shape(lambda cotangent: jax.linear_transpose(gradient, block)(cotangent), block)
    except Exception as error:  # noqa: BLE001  jax raises many kinds, all meaning "not linear"
        words = str(error).split("\n")[0]
        return words.split("'")[1] if "'" in words else "a non-linear operation"
    return None


def jump(function: Callable, block: Mapping[str, jax.ShapeDtypeStruct]) -> str | None:
    """An operation that makes steps of what depends on the block, which no gradient shows; None if there is not one.

    Args:
        function: of the block.
        block: its shapes.
    """
    closed = jax.make_jaxpr(function)(block)
    walk = _Steps({})
    walk.run(closed.jaxpr, dict.fromkeys(closed.jaxpr.invars, True))
    return walk.found[0] if walk.found else None


class _Steps(Walk):
    """Collects operations on the block whose results are piecewise constant."""

    def __init__(self, labels):
        super().__init__(labels)
        self.found: list[str] = []

    def apply(self, equation, tracked: list) -> Any:
        """Everything computed from the block depends on it."""
        name = equation.primitive.name
        if name in _JUMPS or (name == "convert_element_type" and _becomes_whole(equation)):
            self.found.append(name)
        if name == "scan":
            body = equation.params["jaxpr"].jaxpr
            # The carry may come to depend on the block.
            self.run(body, dict.fromkeys(body.invars[equation.params["num_consts"] :], True))
        return True


def _becomes_whole(equation) -> bool:
    before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    return jax.numpy.issubdtype(before, jax.numpy.inexact) and not jax.numpy.issubdtype(after, jax.numpy.inexact)

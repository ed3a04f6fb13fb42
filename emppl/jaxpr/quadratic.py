"""Is a function quadratic? Asked of its gradient, and of its operations for jumps, without arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import Literal

from emppl.jaxpr.selection import INLINE, Walk

_JUMPS = frozenset(
    "gt ge lt le eq ne gt_to ge_to lt_to le_to eq_to floor ceil round sign rem argmax argmin sort is_finite "
    "while stop_gradient bitcast_convert_type".split()
)

_SLOPED = ("sort", "rem", "while")
"""Those of them that have a slope between the steps."""


def why_not_quadratic(function: Callable, block: Mapping[str, jax.ShapeDtypeStruct]) -> str | None:
    """The operation for which a function is not quadratic, or None: its gradient shows all of them but jumps.

    Args:
        function: a number, of the block.
        block: its shapes.
    """
    return _affine(jax.grad(function), block) or _jump(function, block)


def _affine(gradient: Callable, block: Mapping[str, jax.ShapeDtypeStruct]) -> str | None:
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


def _jump(function: Callable, block: Mapping[str, jax.ShapeDtypeStruct]) -> str | None:
    """An operation that makes steps of what depends on the block, which no gradient shows; None if there is not one.

    Args:
        function: of the block.
        block: its shapes.
    """
    closed = jax.make_jaxpr(function)(block)
    walk = _Steps({})
    walk.run(closed.jaxpr, dict.fromkeys(closed.jaxpr.invars, True))
    return walk.found[0] if walk.found else None


def only_jumps(function: Callable, block: Mapping[str, jax.ShapeDtypeStruct]) -> str | None:
    """The operation, if a function depends on the block through steps alone; None if some slope shows it, or nothing.

    Args:
        function: of the block.
        block: its shapes.
    """
    closed = jax.make_jaxpr(function)(block)
    walk = _Slopes({})
    environment: dict[Any, Any] = dict.fromkeys(closed.jaxpr.invars, True)
    walk.run(closed.jaxpr, environment)
    seen = any(environment.get(atom) for atom in closed.jaxpr.outvars if not isinstance(atom, Literal))
    return None if seen or not walk.found else walk.found[0]


def with_gaps_fixed(function: Callable) -> Callable:
    """The same function, with the pattern of NaN among its inputs taken as given: ``isnan`` answers a constant.

    Args:
        function: of a pytree, to a pytree.
    """

    def fixed(block):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(block)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(block))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return fixed


def _evaluate(jaxpr, consts, inputs) -> list:
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name == "ne" and equation.invars[0] is equation.invars[1]:
            outputs: Any = [jax.numpy.zeros(equation.outvars[0].aval.shape, bool)]
        elif equation.primitive.name in INLINE and inner is not None:
            outputs = _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands)
        else:
            outputs = equation.primitive.bind(*operands, **equation.params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


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


class _Slopes(_Steps):
    """Follows only what has a slope."""

    def apply(self, equation, tracked: list) -> Any:
        """Behind a step nothing depends on the block."""
        before = len(self.found)
        super().apply(equation, tracked)
        return True if len(self.found) == before or equation.primitive.name in _SLOPED else None


def _becomes_whole(equation) -> bool:
    before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    return jax.numpy.issubdtype(before, jax.numpy.inexact) and not jax.numpy.issubdtype(after, jax.numpy.inexact)

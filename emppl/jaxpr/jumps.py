"""Whether a function is quadratic: asked of its gradient, and of its operations for jumps, without arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from emppl.jaxpr.equations import Equation
from emppl.jaxpr.walk import Computation, Domain, Values, entry_of, interpret

Shapes: TypeAlias = Mapping[str, jax.ShapeDtypeStruct]


def why_not_quadratic(function: Callable[[Any], jax.Array], block: Shapes) -> str | None:
    """The operation for which a function is not quadratic, or None: its gradient shows all of them but jumps.

    Args:
        function: a number, of the block.
        block: its shapes.
    """
    return _affine(jax.grad(function), block) or _jump(function, block)


def _affine(gradient: Callable[[Any], Any], block: Shapes) -> str | None:
    """The operation for which a gradient is not affine, or None if it is: then the function is quadratic."""
    try:
        jax.eval_shape(lambda cotangent: jax.linear_transpose(gradient, block)(cotangent), block)
    except Exception as error:  # noqa: BLE001  jax raises many kinds, all meaning "not linear"
        words = str(error).split("\n")[0]
        return words.split("'")[1] if "'" in words else "a non-linear operation"
    return None


def _jump(function: Callable[[Any], Any], block: Shapes) -> str | None:
    """An operation that makes steps of what depends on the block, which no gradient shows; None if there is not one."""
    computation = Computation(jax.make_jaxpr(function)(block))
    domain = _Steps(computation)
    interpret(computation, dict.fromkeys(computation.inputs, True), domain)
    return domain.found[0] if domain.found else None


def only_jumps(function: Callable[[Any], Any], block: Shapes) -> str | None:
    """The operation, if a function depends on the block through steps alone; None if some slope shows it, or nothing.

    Args:
        function: of the block.
        block: its shapes.
    """
    computation = Computation(jax.make_jaxpr(function)(block))
    domain = _Slopes(computation)
    environment = interpret(computation, dict.fromkeys(computation.inputs, True), domain)
    is_sloped = any(entry_of(environment, atom) for atom in computation.outputs)
    return None if is_sloped or not domain.found else domain.found[0]


class _Steps(Domain[bool]):
    """Collects operations on the block that jump, or that are unknown."""

    def __init__(self, computation: Computation):
        super().__init__(computation)
        self.found: list[str] = []

    def apply(self, equation: Equation, entries: list[bool | None]) -> bool | None:
        """Everything computed from the block depends on it."""
        if equation.name == "scan":
            return self._scanned(equation)
        if equation.name == "cond" and entries[0] is None:  # which branch is taken does not depend on the block
            for branch in equation.params["branches"]:
                body = Computation(branch)
                operands = zip(body.inputs, entries[1:], strict=True)
                interpret(body, {variable: True for variable, entry in operands if entry}, self)
            return True
        if equation.jumps:
            self.found.append(equation.name)
        return True

    def _scanned(self, equation: Equation) -> bool | None:
        """The operations of the body."""
        body = Computation(equation.params["jaxpr"])
        carried = body.inputs[equation.params["num_consts"] :]  # may come to depend on the block
        environment = interpret(body, dict.fromkeys(carried, True), self)
        return any(entry_of(environment, atom) for atom in body.outputs) or None


class _Slopes(_Steps):
    """Follows only what has a slope."""

    def apply(self, equation: Equation, entries: list[bool | None]) -> bool | None:
        """Behind a step nothing depends on the block; an unknown operation may have a slope."""
        depends = super().apply(equation, entries)
        return None if equation.jumps and not equation.row.has_slope else depends


def with_gaps_fixed(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function, with the pattern of NaN among its inputs taken as given: ``isnan`` answers a constant.

    Args:
        function: of a pytree, to a pytree.
    """

    def fixed(block: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(block)
        computation = Computation(closed)
        values = _WithoutGaps(computation, dict(zip(computation.inputs, jax.tree.leaves(block), strict=True)))
        interpret(computation, {}, values)
        return jax.tree.unflatten(jax.tree.structure(shape), map(values.value, computation.outputs))

    return fixed


class _WithoutGaps(Values[bool]):
    """The evaluation of a function whose pattern of NaN is taken as fixed."""

    def untouched(self, equation: Equation) -> None:
        """``x != x`` is False: no input is NaN."""
        if equation.name == "ne" and equation.operands[0] is equation.operands[1]:
            self.values[equation.results[0]] = jnp.zeros(equation.shape, bool)
        else:
            super().untouched(equation)

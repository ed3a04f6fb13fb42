"""Products of a Hessian with vectors, in whichever way a function can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

Point = TypeVar("Point")


def hessian_product(gradient: Callable[[Point], Point], at: Point) -> Callable[[Point], Point]:
    """The product of the Hessian with a vector, as a function of the vector.

    Forwards over the gradient; backwards where a function in it has a rule for that direction alone
    (``jax.custom_vjp``: solutions of differential equations). The Hessian is symmetric.

    Args:
        gradient: of the function.
        at: where.
    """
    _, product = jax.linearize(gradient, at)
    if not _only_backwards(jax.make_jaxpr(product)(at).jaxpr):
        return product
    _, pull_back = jax.vjp(gradient, at)
    return lambda vector: pull_back(vector)[0]


def _only_backwards(jaxpr: Jaxpr) -> bool:
    """Whether a derivative holds the place of one that has no rule: JAX refuses it when it is evaluated."""
    return any(
        equation.primitive.name == "custom_lin" or any(map(_only_backwards, _inside(equation.params)))
        for equation in jaxpr.eqns
    )


def _inside(params: dict[str, Any]) -> list[Jaxpr]:
    parts = [part for value in params.values() for part in (value if isinstance(value, tuple) else (value,))]
    closed = [part.jaxpr if isinstance(part, ClosedJaxpr) else part for part in parts]
    return [part for part in closed if isinstance(part, Jaxpr)]

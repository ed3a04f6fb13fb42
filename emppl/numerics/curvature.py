"""Products of a Hessian with vectors, in whichever way a function can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

Point = TypeVar("Point")

_SHARE_OF_WAY = 1e-3
"""Step of a difference of second derivatives: right to 1e-6, and so is it if these are right to 1e-9 themselves."""


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


def third_derivative(gradient: Callable[[jax.Array], jax.Array], at: jax.Array, along: jax.Array) -> jax.Array:
    """The third derivative of a function, twice along a direction.

    Where it can be differentiated backwards alone, by a difference of second derivatives: solvers of differential
    equations do not go backwards three times.

    Args:
        gradient: of the function.
        at: where.
        along: the direction, as long as the function changes its curvature over.
    """
    if not _only_backwards(jax.make_jaxpr(jax.linearize(gradient, at)[1])(at).jaxpr):
        return jax.jvp(lambda point: jax.jvp(gradient, (point,), (along,))[1], (at,), (along,))[1]
    before, after = (hessian_product(gradient, at + sign * _SHARE_OF_WAY * along)(along) for sign in (-1, 1))
    return (after - before) / (2 * _SHARE_OF_WAY)


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

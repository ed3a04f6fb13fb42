"""A quadratic block: Q is quadratic in the parameter, so that one exact linear solve maximises it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from emppl.mstep.maximisation import Maximisation
from emppl.parameters import constraint_name
from emppl.rules import Rule, RuleContext


@dataclasses.dataclass(frozen=True)
class Quadratic(Rule):
    """One Newton step, exact because Q is quadratic."""

    kind: ClassVar[str] = "quadratic"
    exact: ClassVar[bool] = True

    @property
    def order(self) -> int:
        """After the closed forms."""
        return 10

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Solve for the stationary point."""
        (name,) = self.parameters
        return {name: _stationary_point(lambda value: step.q({name: value}), step.params[name])}


def propose(context: RuleContext, name: str) -> Quadratic | str:
    """The quadratic rule, or the reason why it does not apply."""
    constraint = constraint_name(context.trace.sites[name].constraint)
    if not constraint.startswith("real"):
        return f"its constraint {constraint!r} may bind"
    reason = context.why_not_quadratic(name)
    return Quadratic((name,), "Q is quadratic in it: one exact linear solve") if reason is None else reason


def affine_gradient(gradient: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], dtype) -> str | None:
    """Is a function's gradient affine, so that the function is quadratic? Answered without arithmetic.

    Args:
        gradient: the gradient as a function of the parameter.
        shape: shape of the parameter.
        dtype: its dtype.

    Returns:
        None if it is, else the reason.
    """
    struct = jax.ShapeDtypeStruct(shape, dtype)
    try:
        jax.eval_shape(lambda cotangent: jax.linear_transpose(gradient, struct)(cotangent), struct)
    except Exception as error:  # noqa: BLE001  jax raises many kinds, all meaning "not linear"
        words = str(error).split("\n")[0]
        primitive = words.split("'")[1] if "'" in words else "a non-linear operation"
        return f"the gradient of Q is not affine in it ({primitive})"
    return None


def _stationary_point(objective: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    """Exact maximiser of a quadratic: one Newton step, with a minimum-norm step in flat directions.

    A quadratic without a maximum (convex, or sloping along a flat direction) gives NaN, which the loop reports.
    """
    flat = lambda vector: objective(vector.reshape(value.shape))  # noqa: E731
    start = value.ravel()
    gradient, hessian = jax.grad(flat)(start), jax.hessian(flat)(start)
    unit = jnp.sqrt(jnp.maximum(-jnp.diagonal(hessian), jnp.finfo(start.dtype).tiny))
    scaled = -hessian / (unit[:, None] * unit[None, :])
    wanted = gradient / unit
    step = jnp.linalg.lstsq(scaled, wanted)[0]
    slack = jnp.finfo(start.dtype).eps ** 0.5
    solved = jnp.linalg.norm(scaled @ step - wanted) <= slack * (1 + jnp.linalg.norm(wanted))
    concave = jnp.all(jnp.diagonal(hessian) <= 0) & (jnp.linalg.eigvalsh(scaled)[0] >= -slack * start.size)
    return jnp.where(solved & concave, start + step / unit, jnp.nan).reshape(value.shape)

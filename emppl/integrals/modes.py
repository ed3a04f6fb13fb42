"""Conditional modes of all groups at once, and roots of the precisions there, by automatic differentiation only."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from emppl.integrals.joint import Joint
from emppl.numerics.small_matrices import lower_root, solve_root

_NEWTON_STEPS = 50
_HALVINGS = 60


def conditional(joint: Joint, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and root of the precision of the normal distribution that a quadratic log joint stands for.

    One Newton step solves it; the second recovers the digits that a far start loses.

    Args:
        joint: the log joint density.
        start: where to begin, ``(groups, dimensions)``.

    Returns:
        ``(mean, root)``, the root lower triangular.
    """
    root = lower_root(-joint.hessian(start))
    mean = start + solve_root(root, joint.gradient(start))
    return mean + solve_root(root, joint.gradient(mean)), root


def approximation(joint: Joint, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Modes of all groups and roots of the precisions there."""
    mode = find_modes(joint, start)
    return mode, climbing_root(-joint.hessian(mode))


def fixed_approximation(joint: Joint, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Modes and roots as constants for derivatives: for rules whose integral does not depend on where atoms lie."""
    return approximation(joint.at(jax.lax.stop_gradient(joint.params)), start)


def differentiable_modes(joint: Joint, start: jax.Array) -> jax.Array:
    """Modes of all groups, with their derivatives of every order with respect to parameters (implicit function)."""

    def solve(_: Any, start: jax.Array) -> jax.Array:
        return find_modes(joint, start)

    def tangent_solve(product: Any, right: jax.Array) -> jax.Array:
        unit = jnp.eye(right.shape[-1], dtype=right.dtype)
        columns = jax.lax.map(lambda vector: product(jnp.broadcast_to(vector, right.shape)), unit)
        # The precision is positive at a mode; where none was found, NaN says so.
        return -solve_root(lower_root(-jnp.moveaxis(columns, 0, -1)), right)

    return jax.lax.custom_root(joint.gradient, jax.lax.stop_gradient(start), solve, tangent_solve)


def find_modes(joint: Joint, start: jax.Array) -> jax.Array:
    """Modes of all groups at once, by Newton steps that every group halves until it climbs.

    Args:
        joint: the log joint density.
        start: where to begin, ``(groups, dimensions)``.

    Returns:
        The modes.
    """
    eps = jnp.finfo(start.dtype).eps
    tolerance = 64 * eps

    def worse(there: jax.Array, value: jax.Array) -> jax.Array:
        return ~(there >= value - tolerance * (1 + jnp.abs(value)))

    def keep_going(carry: Any) -> jax.Array:
        _, _, number, settled = carry
        return (number < _NEWTON_STEPS) & ~settled

    def advance(carry: Any) -> Any:
        mode, value, number, _ = carry
        slope, hessian = joint.gradient_and_hessian(mode)
        step = solve_root(climbing_root(-hessian), slope)
        promise = jnp.sum(step * slope, -1)
        # Where the density is flat to rounding a step may promise anything.
        step = step * jnp.minimum(1, (1 + jnp.abs(value)) / (jnp.sqrt(eps) * promise))[:, None]

        def too_far(inner: Any) -> jax.Array:
            _, there, halvings = inner
            return (halvings < _HALVINGS) & jnp.any(worse(there, value))

        def halve(inner: Any) -> Any:
            scale, there, halvings = inner
            scale = jnp.where(worse(there, value), scale / 2, scale)
            return scale, joint.by_group(mode + scale[:, None] * step), halvings + 1

        scale, there, _ = jax.lax.while_loop(too_far, halve, (jnp.ones_like(value), joint.by_group(mode + step), 0))
        stuck = worse(there, value)
        mode = jnp.where(stuck[:, None], mode, mode + scale[:, None] * step)
        # What a step promises is its squared length: where it was rounding, the step itself gave the last digits.
        settled = jnp.all((promise <= tolerance * (1 + jnp.abs(value))) | stuck)
        return mode, jnp.where(stuck, value, there), number + 1, settled

    start = jax.lax.stop_gradient(start)
    mode, *_ = jax.lax.while_loop(keep_going, advance, (start, joint.by_group(start), 0, jnp.asarray(False)))
    return mode


def climbing_root(precision: jax.Array) -> jax.Array:
    """Lower triangular root of a precision; where that is not positive, of one that makes a step climb all the same.

    Twice the most negative Gershgorin bound is added to the diagonal: in one dimension, the sign is turned round.
    """
    root = lower_root(precision)
    diagonal = jnp.diagonal(precision, axis1=-2, axis2=-1)
    size = jnp.abs(precision)
    lowest = jnp.min(diagonal - jnp.sum(size, -1) + jnp.abs(diagonal), -1)
    limits = jnp.finfo(precision.dtype)
    floor = limits.eps * jnp.max(size, (-2, -1)) + limits.tiny**0.5
    shift = 2 * jnp.maximum(-lowest, 0) + floor
    unit = jnp.broadcast_to(jnp.eye(precision.shape[-1], dtype=precision.dtype), precision.shape)
    positive = lower_root(precision + shift[..., None, None] * unit)
    fails = jnp.any(jnp.isnan(root), (-2, -1), keepdims=True)
    return jnp.where(fails, positive, root)

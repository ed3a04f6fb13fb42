"""Numerical operations guarded against structural zeros, in one place.

A log-probability may be minus infinity: an impossible state gets a weight of exactly zero, never NaN, in the value and
in every derivative.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp

ArrayTuple: TypeAlias = tuple[jax.Array, ...]


def logsumexp(table: jax.Array, axis: int) -> jax.Array:
    """Log of the sum of exponentials over one axis, which is kept with size one.

    ``log(sum(exp(table)))``, minus infinity where every entry is; its derivative (the posterior weight) is zero there
    instead of NaN. The guard is part of the value, not a derivative rule of its own: JAX forgets such rules where it
    differentiates a loop twice.

    Args:
        table: log-probabilities (natural log), any shape.
        axis: the axis to sum out.

    Returns:
        An array like ``table`` with size one along ``axis``.
    """
    peak = jnp.max(jax.lax.stop_gradient(table), axis, keepdims=True)
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    total = jnp.sum(jnp.exp(table - peak), axis, keepdims=True)
    impossible = total == 0
    return jnp.where(impossible, -jnp.inf, peak + jnp.log(jnp.where(impossible, 1, total)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def maximum_out(table: jax.Array, axis: int) -> jax.Array:
    """Maximum over one axis (kept); its derivative points at the first maximiser."""
    return jnp.max(table, axis, keepdims=True)


@maximum_out.defjvp
def _maximum_out_jvp(axis: int, primals: ArrayTuple, tangents: ArrayTuple) -> tuple[jax.Array, jax.Array]:
    (table,), (tangent,) = primals, tangents
    chosen = _one_hot_along(jnp.argmax(table, axis), table, axis)
    return jnp.max(table, axis, keepdims=True), jnp.sum(chosen * tangent, axis, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def sample_out(table: jax.Array, noise: jax.Array, axis: int) -> jax.Array:
    """``logsumexp`` whose derivative points at one draw from the softmax instead of the softmax itself.

    With it the gradient of the log normaliser is one exact joint draw from the posterior: the elimination filters
    forwards, its transpose samples backwards.

    Args:
        table: log-probabilities.
        noise: standard Gumbel draws of the same shape.
        axis: the axis to sum out.

    Returns:
        The same value as :func:`logsumexp`.
    """
    return logsumexp(table, axis)


@sample_out.defjvp
def _sample_out_jvp(axis: int, primals: ArrayTuple, tangents: ArrayTuple) -> tuple[jax.Array, jax.Array]:
    (table, noise), (tangent, _) = primals, tangents
    chosen = _one_hot_along(jnp.argmax(table + noise, axis), table, axis)
    return logsumexp(table, axis), jnp.sum(chosen * tangent, axis, keepdims=True)


def _one_hot_along(index: jax.Array, like: jax.Array, axis: int) -> jax.Array:
    return jax.nn.one_hot(index, like.shape[axis], axis=axis % like.ndim, dtype=like.dtype)


def weighted(weight: jax.Array, log_prob: jax.Array) -> jax.Array:
    """``weight * log_prob`` with ``0 * -inf = 0``, in the value and in the gradient."""
    used = weight != 0
    return jnp.where(used, weight * jnp.where(used, log_prob, 0), 0)


def safe_divide(numerator: jax.Array, denominator: jax.Array, otherwise: jax.Array) -> jax.Array:
    """``numerator / denominator``, or ``otherwise`` where the denominator is zero."""
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1), otherwise)


def finite_log(probability: jax.Array) -> jax.Array:
    """Natural log with a huge finite stand-in for ``log 0``, so that ``0 * log 0`` is 0, without derivatives there."""
    impossible = probability <= 0  # NaN stays NaN
    return jnp.where(impossible, IMPOSSIBLE, jnp.log(jnp.where(impossible, 1, probability)))


def finite_log_complement(probability: jax.Array) -> jax.Array:
    """``log(1 - probability)``, with the same stand-in where the probability is one."""
    certain = probability >= 1
    return jnp.where(certain, IMPOSSIBLE, jnp.log1p(-jnp.where(certain, 0, probability)))


IMPOSSIBLE = -1e30
"""Stand-in for log 0 inside matrix products: no state this improbable ever gets weight beside a possible one."""

IMPOSSIBLE_SUM = -1e25
"""A log-probability below it can only come from a stand-in for log 0, weighted or not."""


def impossible_to_infinite(log_probability: jax.Array) -> jax.Array:
    """Minus infinity where a log-probability contains a stand-in for log 0."""
    return jnp.where(log_probability < IMPOSSIBLE_SUM, -jnp.inf, log_probability)


def matrix_transpose(matrix: jax.Array) -> jax.Array:
    """Swap the last two axes."""
    return jnp.swapaxes(matrix, -1, -2)


def symmetrize(matrix: jax.Array) -> jax.Array:
    """Average of a square matrix and its transpose."""
    return (matrix + matrix_transpose(matrix)) / 2

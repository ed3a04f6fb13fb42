"""Emissions that know a faster way to their densities than the exponential of their logs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Symbols:
    """Categorical emission: ``log p(x_t = m | z_t = k) = log_table[k, m]``, slices are the symbols x_t, (T, *B).

    As a function it is a gather like any other. ``prepare`` and ``scaled`` let the kernels exponentiate the K x M
    table once instead of K numbers at every step of every sequence; any emission may offer the same two methods.
    """

    def __call__(self, log_table: jax.Array, symbols: jax.Array) -> jax.Array:
        """(K, *B) log densities."""
        return log_table[:, symbols]

    def prepare(self, log_table: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Densities (K, M), the largest of each symbol 1, and the logs (M,) of what they were divided by."""
        peak = jnp.max(log_table, 0)
        peak = jnp.where(peak == -jnp.inf, 0, peak)
        return jnp.exp(log_table - peak[None]), peak

    def scaled(self, prepared: tuple[jax.Array, jax.Array], symbols: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(K, *B) scaled densities and (*B) logs of the scales."""
        table, peak = prepared
        return table[:, symbols], peak[symbols]

"""Explicit forward-backward in log space: slower than the scaled recursions, and safe where they underflow.

Scaled probabilities lose a state once it is 1e-38 (float32) or 1e-308 (float64) times less probable than another.
If only that state can go on, they see an impossible sequence where this module sees an improbable one. It also
serves the posterior quantities asked for once per fit. It keeps several T x K tables; T x K x K numbers only when
asked for.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from emppl.chain.problem import Chain, Layout, few_lanes, mask_table, tile_table
from emppl.numerics import logsumexp


def full_table(layout: Layout, chain: Chain, emission_params) -> jax.Array:
    """(T, K, N) log emissions; zero where a step does not exist."""
    table = tile_table(layout, emission_params, chain.slices)
    if few_lanes(layout.lanes):
        table = jnp.transpose(table, (2, 0, 1))
    return mask_table(table, chain.present, False)


def _finite(total):
    return jnp.where(jnp.isfinite(total), total, 0)


def _inputs(chain: Chain):
    transitions = chain.log_transition if chain.varies else None
    return transitions, None if chain.present is None else chain.present[1:]


def filter_log(chain: Chain, table: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Filtered log probabilities (T, K, N), and log p(x_t | x_{<t}) (T, N), the log evidence in parts."""

    def normalise(alpha):
        total = logsumexp(alpha, 0)
        alpha = alpha - _finite(total)
        return alpha, (alpha, total[0])

    def step(alpha, inputs):
        emission, transition, present = inputs
        if transition is None:
            transition = chain.log_transition[0]
        onwards = logsumexp(alpha[:, None] + transition, 0)[0]
        if present is not None:
            onwards = jnp.where(present[None], onwards, alpha)
        return normalise(onwards + emission)

    alpha, (first, total) = normalise(chain.log_initial + table[0])
    _, (rest, totals) = jax.lax.scan(step, alpha, (table[1:], *_inputs(chain)))
    return jnp.concatenate([first[None], rest]), jnp.concatenate([total[None], totals])


def forward(layout: Layout, chain: Chain) -> jax.Array:
    """(N,) log evidence."""
    _, totals = filter_log(chain, full_table(layout, chain, chain.emission_params))
    return jnp.sum(totals, 0)


def smooth_log(chain: Chain, table: jax.Array, keep_pairs: bool):
    """State marginals and pairwise marginals.

    Args:
        chain: the arrays.
        table: (T, K, N) log emissions, from :func:`full_table`.
        keep_pairs: return all pairwise marginals.

    Returns:
        (T, K, N) probabilities, and (T-1, K, K, N) pairwise ones; else their sum over the steps that exist
        (K, K, N), or None when the transition varies over time.
    """
    filtered, totals = filter_log(chain, table)
    # A running sum of a million terms loses digits in float32: sums are moved to a second total now and then.
    carry_counts = not keep_pairs
    shape = (*filtered.shape[1:2], *filtered.shape[1:])

    def step(carry, inputs):
        beta, recent, counts = carry
        index, alpha, emission, total, transition, present = inputs
        if transition is None:
            transition = chain.log_transition[0]
        v = emission + beta - _finite(total)[None]
        pairs = jnp.exp(alpha[:, None] + transition + v[None])
        before = logsumexp(transition + v[None], 1)[:, 0]
        if present is not None:
            before = jnp.where(present[None], before, v)
            stay = jnp.eye(len(beta), dtype=beta.dtype)[:, :, None] * jnp.exp(alpha + v)[None] if keep_pairs else 0
            pairs = jnp.where(present[None, None], pairs, stay)
        # An excluded state contributes to nothing earlier; its value may be huge and must not meet minus infinity.
        before = jnp.where(alpha > -jnp.inf, before, -jnp.inf)
        if carry_counts:
            recent = recent + pairs
            flush = index % 1024 == 0
            counts, recent = counts + jnp.where(flush, recent, 0), jnp.where(flush, 0, recent)
        return (before, recent, counts), (before, pairs if keep_pairs else None)

    last = jnp.where(filtered[-1] > -jnp.inf, 0.0, -jnp.inf).astype(filtered.dtype)
    zeros: Any = jnp.zeros(shape, filtered.dtype) if carry_counts else None
    indices = jnp.arange(filtered.shape[0] - 1)
    inputs = (indices, filtered[:-1], table[1:], totals[1:], *_inputs(chain))
    (_, recent, counts), (betas, pairs) = jax.lax.scan(step, (last, zeros, zeros), inputs, reverse=True)
    marginals = jnp.exp(filtered + jnp.concatenate([betas, last[None]]))
    possible = jnp.all(totals > -jnp.inf, 0)
    marginals = jnp.where(possible[None, None], marginals, 0)
    if keep_pairs:
        return marginals, jnp.where(possible[None, None, None], pairs, 0)
    return marginals, jnp.where(possible[None, None], recent + counts, 0)


def backward(layout: Layout, chain: Chain, weight: jax.Array):
    """Expected counts; see :func:`emppl.chain.scaled.backward`."""
    table, pull = jax.vjp(lambda params: full_table(layout, chain, params), chain.emission_params)
    marginals, pairs = smooth_log(chain, table, chain.varies)
    if chain.varies:
        if chain.present is not None:
            pairs = jnp.where(chain.present[1:, None, None], pairs, 0)
        pairs = pairs * weight[None, None, None]
    else:
        pairs = (pairs * weight[None, None])[None]
    if chain.log_transition.shape[3] == 1:
        pairs = jnp.sum(pairs, 3, keepdims=True)
    marginals = marginals * weight[None, None]
    if layout.emission is not None:
        return marginals[0], pairs, pull(marginals)[0], None
    table = marginals if chain.present is None else jnp.where(chain.present[:, None], marginals, 0)
    return marginals[0], pairs, None, table

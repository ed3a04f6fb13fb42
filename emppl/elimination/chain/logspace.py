"""Explicit forward-backward in log space: slower than the scaled recursions, and safe where they underflow.

Scaled probabilities lose a state once it is 1e-38 (float32) or 1e-308 (float64) times less probable than another.
If only that state can go on, they see an impossible sequence where this module sees an improbable one. It also
serves the posterior quantities asked for once per fit.

It is compiled into every program as the repair of the fast kernels, so it keeps little: the filtered table, and
emissions one step at a time. (Buffers that a program reserves but does not use are not free: past 32 MB the C library
maps fresh memory at every call.)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination.chain.problem import Chain, Layout, slice_time
from emppl.numerics.guarded import logsumexp


def _emission(layout: Layout, chain: Chain, emission_params, time) -> jax.Array:
    """(K, N) log emissions of one step; zero where it does not exist."""
    here = jax.tree.map(lambda array: array[0], slice_time(chain.slices, time, 1))
    table = here if layout.emission is None else layout.emission(emission_params, here)
    table = jnp.reshape(table, (layout.num_states, layout.lanes))
    return table if chain.present is None else jnp.where(_present(chain, time), table, 0)


def _present(chain: Chain, time) -> jax.Array:
    """(1, N or 1) boolean."""
    assert chain.present is not None
    return slice_time(chain.present, time, 1)


def _transition(chain: Chain, time) -> jax.Array:
    """(K, K, N or 1) log transition that leads to a step (any at the first)."""
    return slice_time(chain.log_transition, jnp.maximum(time - 1, 0), 1)[0] if chain.varies else chain.log_transition[0]


def _finite(total):
    return jnp.where(jnp.isfinite(total), total, 0)


def filter_log(layout: Layout, chain: Chain) -> tuple[jax.Array, jax.Array]:
    """Filtered log probabilities (T, K, N), and log p(x_t | x_{<t}) (T, N), the log evidence in parts."""

    def step(alpha, time):
        onwards = logsumexp(alpha[:, None] + _transition(chain, time), 0)[0]
        if chain.present is not None:
            onwards = jnp.where(_present(chain, time), onwards, alpha)
        onwards = jnp.where(time == 0, chain.log_initial, onwards)
        alpha = onwards + _emission(layout, chain, chain.emission_params, time)
        total = logsumexp(alpha, 0)
        alpha = alpha - _finite(total)
        return alpha, (alpha, total[0])

    return jax.lax.scan(step, chain.log_initial, jnp.arange(layout.num_steps))[1]


def forward(layout: Layout, chain: Chain) -> jax.Array:
    """(N,) log evidence."""
    return jnp.sum(filter_log(layout, chain)[1], 0)


def smooth_log(layout: Layout, chain: Chain, weight: jax.Array, marginals_wanted: bool, pairs_wanted: bool):
    """Expected counts and, if wanted, all marginals.

    Args:
        layout: static facts.
        chain: the arrays.
        weight: (N,), multiplies everything.
        marginals_wanted: return (T, K, N) state marginals, also of steps that do not exist.
        pairs_wanted: return (T, K, K, N) pairwise marginals of each step and the one before (the first is void),
            instead of their sum over the steps that exist.

    Returns:
        (K, N) marginals of the first step, transition counts (1, K, K, N) or None, gradient of the emission's
        parameters, state marginals or None, pairwise marginals or None.
    """
    filtered, totals = filter_log(layout, chain)
    # Past a step that is impossible nothing is known: all weights are zero.
    weight = jnp.where(jnp.all(totals > -jnp.inf, 0), weight, 0)

    def step(carry, time):
        beta, recent, total = carry
        alpha = slice_time(filtered, time, 1)[0]
        before = slice_time(filtered, jnp.maximum(time - 1, 0), 1)[0]
        emission, pull = jax.vjp(lambda params: _emission(layout, chain, params, time), chain.emission_params)
        marginals = jnp.exp(alpha + beta) * weight[None]
        transition = _transition(chain, time)
        v = emission + beta - _finite(slice_time(totals, time, 1))
        pairs = jnp.exp(before[:, None] + transition + v[None]) * weight[None, None]
        earlier = logsumexp(transition + v[None], 1)[:, 0]
        if chain.present is not None:
            present = _present(chain, time)
            stay = jnp.eye(len(v), dtype=v.dtype)[:, :, None] * marginals[None]
            pairs = jnp.where(present[None], pairs, stay if pairs_wanted else 0)
            earlier = jnp.where(present, earlier, v)
        # An excluded state contributes to nothing earlier; its value may be huge and must not meet minus infinity.
        earlier = jnp.where(before > -jnp.inf, earlier, -jnp.inf)
        counts = None if pairs_wanted else jnp.where(time > 0, pairs, 0)[None]
        # A running sum of a million terms loses digits in float32: it is moved to a second total now and then.
        recent = jax.tree.map(jnp.add, recent, (counts, pull(marginals)[0]))
        flush = time % 1024 == 0
        total = jax.tree.map(lambda a, b: a + jnp.where(flush, b, 0), total, recent)
        recent = jax.tree.map(lambda b: jnp.where(flush, 0, b), recent)
        outputs = (marginals if marginals_wanted else None, pairs if pairs_wanted else None)
        return (earlier, recent, total), (marginals, outputs)

    last = jnp.where(filtered[-1] > -jnp.inf, 0.0, -jnp.inf).astype(filtered.dtype)
    states, lanes = last.shape
    counts = None if pairs_wanted else jnp.zeros((1, states, states, lanes), last.dtype)
    zeros = (counts, jax.tree.map(jnp.zeros_like, chain.emission_params))

    def keep_first(carry, time):
        carry, _ = carry
        carry, (marginals, outputs) = step(carry, time)
        return (carry, marginals), outputs

    start: Any = ((last, zeros, zeros), jnp.zeros_like(last))
    ((_, _, sums), first), outputs = jax.lax.scan(keep_first, start, jnp.arange(layout.num_steps), reverse=True)
    return first, *sums, *outputs


def backward(layout: Layout, chain: Chain, weight: jax.Array):
    """Expected counts; see :func:`emppl.elimination.chain.scaled.backward`."""
    table_wanted = layout.emission is None
    first, counts, gradient, table, pairs = smooth_log(layout, chain, weight, table_wanted, chain.varies)
    if chain.varies:
        counts = pairs[1:]
        if chain.present is not None:
            counts = jnp.where(chain.present[1:, None, None], counts, 0)
    if chain.log_transition.shape[3] == 1:
        counts = jnp.sum(counts, 3, keepdims=True)
    if table_wanted and chain.present is not None:
        table = jnp.where(chain.present[:, None], table, 0)
    return first, counts, None if table_wanted else gradient, table

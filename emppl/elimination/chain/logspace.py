"""Explicit forward-backward in log space: slower than the scaled recursions, and safe where they underflow.

Scaled probabilities lose a state once it is 1e-38 (float32) or 1e-308 (float64) times less probable than another.
If only that state can go on, they see an impossible sequence where this module sees an improbable one. Filters
and draws of paths, asked for once per fit, run here too.

It is compiled into every program as the repair of the fast kernels, so it keeps little: the filtered table, and
emissions one step at a time. (Buffers that a program reserves but does not use are not free: past 32 MB the C library
maps fresh memory at every call.)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination.chain.problem import Chain, Gradients, Static, first_step, slice_time
from emppl.elimination.chain.tiles import mask_table
from emppl.numerics.guarded import logsumexp


def _emission(static: Static, chain: Chain, emission_params: Any, time: jax.Array) -> jax.Array:
    """(K, N) log emissions of one step; zero where it does not exist."""
    table = first_step(slice_time(chain.slices, time, 1))
    if static.emission is not None:
        table = static.emission(emission_params, table)
    table = jnp.reshape(table, (static.num_states, static.lanes))
    return table if chain.present is None else jnp.where(_present(chain, time), table, 0)


def _present(chain: Chain, time: jax.Array) -> jax.Array:
    """(1, N or 1) boolean."""
    assert chain.present is not None
    return slice_time(chain.present, time, 1)


def _transition(chain: Chain, time: jax.Array) -> jax.Array:
    """(K, K, N or 1) log transition that leads to a step (any at the first)."""
    return slice_time(chain.log_transition, jnp.maximum(time - 1, 0), 1)[0] if chain.varies else chain.log_transition[0]


def _finite(total: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(total), total, 0)


def filter_log(static: Static, chain: Chain) -> tuple[jax.Array, jax.Array]:
    """Filtered log probabilities (T, K, N), and log p(x_t | x_{<t}) (T, N), the log evidence in parts."""

    def step(alpha: jax.Array, time: jax.Array) -> tuple[jax.Array, tuple]:
        onwards = logsumexp(alpha[:, None] + _transition(chain, time), 0)[0]
        if chain.present is not None:
            onwards = jnp.where(_present(chain, time), onwards, alpha)
        onwards = jnp.where(time == 0, chain.log_initial, onwards)
        alpha = onwards + _emission(static, chain, chain.emission_params, time)
        total = logsumexp(alpha, 0)
        alpha = alpha - _finite(total)
        return alpha, (alpha, total[0])

    return jax.lax.scan(step, chain.log_initial, jnp.arange(static.num_steps))[1]


def forward(static: Static, chain: Chain) -> jax.Array:
    """(N,) log evidence."""
    return jnp.sum(filter_log(static, chain)[1], 0)


def backward(static: Static, chain: Chain, weight: jax.Array) -> Gradients:
    """Expected counts of ``sum_n weight[n] log_evidence[n]``; ``weight`` is (N,)."""
    filtered, totals = filter_log(static, chain)
    # Past a step that is impossible nothing is known: all weights are zero.
    weight = jnp.where(jnp.all(totals > -jnp.inf, 0), weight, 0)
    is_table = static.emission is None

    def step(carry: tuple, time: jax.Array) -> tuple[tuple, tuple]:
        beta, recent, total = carry
        alpha = slice_time(filtered, time, 1)[0]
        before = slice_time(filtered, jnp.maximum(time - 1, 0), 1)[0]
        emission, pull = jax.vjp(lambda params: _emission(static, chain, params, time), chain.emission_params)
        marginals = jnp.exp(alpha + beta) * weight[None]
        transition = _transition(chain, time)
        v = emission + beta - _finite(slice_time(totals, time, 1))
        pairs = jnp.exp(before[:, None] + transition + v[None]) * weight[None, None]
        earlier = logsumexp(transition + v[None], 1)[:, 0]
        if chain.present is not None:
            present = _present(chain, time)
            pairs = jnp.where(present[None], pairs, 0)
            earlier = jnp.where(present, earlier, v)
        # An excluded state contributes to nothing earlier; its value may be huge and must not meet minus infinity.
        earlier = jnp.where(before > -jnp.inf, earlier, -jnp.inf)
        counts = None if chain.varies else jnp.where(time > 0, pairs, 0)[None]
        # A running sum of a million terms loses digits in float32: it is moved to a second total now and then.
        recent = jax.tree.map(jnp.add, recent, (counts, pull(marginals)[0]))
        flush = time % 1024 == 0
        total = jax.tree.map(lambda a, b: a + jnp.where(flush, b, 0), total, recent)
        recent = jax.tree.map(lambda b: jnp.where(flush, 0, b), recent)
        outputs = (marginals if is_table else None, pairs if chain.varies else None)
        return (earlier, recent, total), (marginals, outputs)

    last = jnp.where(filtered[-1] > -jnp.inf, 0.0, -jnp.inf).astype(filtered.dtype)
    states, lanes = last.shape
    counts = None if chain.varies else jnp.zeros((1, states, states, lanes), last.dtype)
    zeros = (counts, jax.tree.map(jnp.zeros_like, chain.emission_params))

    def keep_first(carry: tuple, time: jax.Array) -> tuple[tuple, tuple]:
        carry, (marginals, outputs) = step(carry[0], time)
        return (carry, marginals), outputs

    start: Any = ((last, zeros, zeros), jnp.zeros_like(last))
    steps = jnp.arange(static.num_steps)
    ((_, _, (counts, gradient)), first), (table, pairs) = jax.lax.scan(keep_first, start, steps, reverse=True)
    counts = pairs[1:] if chain.varies else counts
    if chain.log_transition.shape[3] == 1:
        counts = jnp.sum(counts, 3, keepdims=True)
    return first, counts, gradient, mask_table(table, chain.present) if is_table else None

"""One path of states, the most probable one or a draw from the posterior: log evidence whose gradient marks that path.

The gradient is what lets a chain be part of a larger sum: whatever replaces the sum over the chain's surroundings
(a maximum, a draw) picks lanes, and the weights of the picked ones come back as ``weight``. Everything runs in log
space, one step after the other.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination.chain.evidence import prepare
from emppl.elimination.chain.logspace import filter_log
from emppl.elimination.chain.problem import Chain, Static
from emppl.elimination.chain.tiles import mask_table


def path_evidence(
    log_initial: jax.Array,
    log_transition: jax.Array,
    log_emission: jax.Array,
    present: jax.Array | None = None,
    rng_key: jax.Array | None = None,
) -> jax.Array:
    """Log probability of the best path (no key), or of all paths (with a key); its gradient marks one path.

    The gradient with respect to ``log_emission`` is one at the states of the best path, or of a draw, and zero
    elsewhere and at steps that do not exist; to the other arguments likewise, summed where they have size 1.
    Differentiable once, in reverse mode. Ties go to the lower state (of the last step first).

    Args:
        log_initial: as in :func:`emppl.elimination.chain.evidence.log_evidence`.
        log_transition: as there.
        log_emission: as there.
        present: as there.
        rng_key: random key of the draw; None for the most probable path.

    Returns:
        (*B).

    Reference:
        Viterbi (1967), Error bounds for convolutional codes. Chib (1996), Calculating posterior distributions and
        modal estimates in Markov mixture models.
    """
    static, chain = prepare(log_initial, log_transition, log_emission, present)
    arrays = (chain.log_initial, chain.log_transition, chain.slices, chain.present, rng_key)
    return jnp.reshape(_evidence(static, *arrays), static.batch_shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _evidence(static: Static, *arrays: Any) -> jax.Array:
    return _forward(static, *arrays)[0]


def _forward(
    static: Static,
    log_initial: jax.Array,
    log_transition: jax.Array,
    table: jax.Array,
    present: jax.Array | None,
    rng_key: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    chain = Chain(log_initial, log_transition, None, table, present)
    evidence, path = _best(static, chain) if rng_key is None else _drawn(static, chain, rng_key)
    return evidence, (path, present, log_transition)


def _backward(static: Static, saved: tuple, weight: jax.Array) -> tuple:
    path, present, log_transition = saved
    visited = jax.nn.one_hot(path, static.num_states, axis=1, dtype=weight.dtype)  # (T, K, N)
    counted = mask_table(visited * weight[None, None], present)
    if log_transition.shape[0] == 1:
        pairs = jnp.einsum("tin,tjn->ijn", visited[:-1], counted[1:])[None]
    else:
        pairs = visited[:-1, :, None] * counted[1:, None]
    if log_transition.shape[3] == 1:
        pairs = jnp.sum(pairs, 3, keepdims=True)
    return visited[0] * weight[None], pairs, counted, None, None


_evidence.defvjp(_forward, _backward)


def _moves(chain: Chain) -> tuple[jax.Array | None, jax.Array | None]:
    """Transitions, if they vary, and which of them exist, to be scanned over."""
    return chain.log_transition if chain.varies else None, None if chain.present is None else chain.present[1:]


def _best(static: Static, chain: Chain) -> tuple[jax.Array, jax.Array]:
    """(N,) log probability of the best path, and the path (T, N)."""
    table = mask_table(chain.slices, chain.present)
    pointer = jnp.uint8 if static.num_states <= 256 else jnp.int32
    stay = jnp.arange(static.num_states, dtype=pointer)[:, None]

    def lowered(best: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Only differences matter; large totals would lose them in float32.
        peak = jnp.max(best, 0)
        peak = jnp.where(jnp.isfinite(peak), peak, 0)
        return best - peak[None], peak

    def step(best: jax.Array, inputs: tuple) -> tuple[jax.Array, tuple]:
        emission, transition, present = inputs
        candidates = best[:, None] + (chain.log_transition[0] if transition is None else transition)
        onwards = jnp.max(candidates, 0)
        back = jnp.argmax(candidates, 0).astype(pointer)
        if present is not None:
            onwards, back = jnp.where(present[None], onwards, best), jnp.where(present[None], back, stay)
        best, peak = lowered(onwards + emission)
        return best, (back, peak)

    start, first_peak = lowered(chain.log_initial + table[0])
    best, (pointers, peaks) = jax.lax.scan(step, start, (table[1:], *_moves(chain)))
    last = jnp.argmax(best, 0).astype(jnp.int32)

    def follow(state: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
        before = jnp.take_along_axis(back, state[None], 0)[0].astype(jnp.int32)
        return before, before

    _, path = jax.lax.scan(follow, last, pointers, reverse=True)
    return jnp.max(best, 0) + first_peak + jnp.sum(peaks, 0), jnp.concatenate([path, last[None]])


def _drawn(static: Static, chain: Chain, rng_key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(N,) log evidence, and a draw of the path (T, N): filter forwards, sample backwards."""
    states, totals = filter_log(static, chain)
    uniforms = jax.random.uniform(rng_key, (static.num_steps, static.lanes), states.dtype)

    def draw(logits: jax.Array, uniform: jax.Array) -> jax.Array:
        weights = jnp.exp(logits - jnp.max(logits, 0, keepdims=True))
        cumulative = jnp.cumsum(weights, 0)
        chosen = jnp.sum(cumulative <= (uniform * cumulative[-1])[None], 0)
        # Rounding may push the product up to the total itself: stay on the last state that is possible.
        possible = static.num_states - 1 - jnp.argmax(weights[::-1] > 0, 0)
        return jnp.minimum(chosen, possible).astype(jnp.int32)

    def step(later: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        logits, uniform, transition, present = inputs
        transition = chain.log_transition[0] if transition is None else transition
        wide = jnp.broadcast_to(transition, (*transition.shape[:2], static.lanes))
        state = draw(logits + jnp.take_along_axis(wide, later[None, None], 1)[:, 0], uniform)
        if present is not None:
            state = jnp.where(present, state, later)
        return state, state

    last = draw(states[-1], uniforms[-1])
    _, path = jax.lax.scan(step, last, (states[:-1], uniforms[:-1], *_moves(chain)), reverse=True)
    return jnp.sum(totals, 0), jnp.concatenate([path, last[None]])

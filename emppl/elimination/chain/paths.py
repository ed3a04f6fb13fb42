"""One path of states, the most probable one or a draw from the posterior, and log evidence whose gradient is that path.

The gradient is what lets a chain be part of a larger sum: whatever replaces the sum over the chain's surroundings
(a maximum, a draw) picks lanes, and the weights of the picked ones come back as ``weight``. Arguments are those of
:func:`emppl.elimination.chain.evidence.log_evidence`; everything runs in log space, one step after the other.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from emppl.elimination.chain.evidence import prepare
from emppl.elimination.chain.logspace import filter_log
from emppl.elimination.chain.problem import Chain, Layout, check


def viterbi(log_initial, log_transition, log_emission, present=None) -> jax.Array:
    """The jointly most probable path; ties go to the lower state (of the last step first).

    Args:
        log_initial: (K, *B).
        log_transition: (T-1 or 1, K, K, *B).
        log_emission: (T, K, *B).
        present: (T, *B) boolean or None.

    Returns:
        (T, *B) states.

    Reference:
        Viterbi (1967), Error bounds for convolutional codes.
    """
    layout, chain = _canonical(log_initial, log_transition, log_emission, present)
    return jnp.reshape(_best(layout, chain)[1], (layout.num_steps, *layout.batch_shape))


def sample_paths(rng_key: jax.Array, log_initial, log_transition, log_emission, present=None) -> jax.Array:
    """One exact draw of every sequence's path from its posterior: filter forwards, sample backwards.

    Args:
        rng_key: random key.
        log_initial: (K, *B).
        log_transition: (T-1 or 1, K, K, *B).
        log_emission: (T, K, *B).
        present: (T, *B) boolean or None.

    Returns:
        (T, *B) states.

    Reference:
        Chib (1996), Calculating posterior distributions and modal estimates in Markov mixture models.
    """
    layout, chain = _canonical(log_initial, log_transition, log_emission, present)
    return jnp.reshape(_drawn(layout, chain, rng_key)[1], (layout.num_steps, *layout.batch_shape))


def path_evidence(rng_key: jax.Array | None, log_initial, log_transition, log_emission, present=None) -> jax.Array:
    """Log probability of the best path (no key), or of all paths (with a key); its gradient marks one path.

    The gradient with respect to ``log_emission`` is one at the states of the best path, or of a draw, and zero
    elsewhere and at steps that do not exist; to the other arguments likewise, summed where they have size 1.
    Differentiable once, in reverse mode.

    Args:
        rng_key: random key of the draw; None for the most probable path.
        log_initial: (K, *B).
        log_transition: (T-1 or 1, K, K, *B).
        log_emission: (T, K, *B).
        present: (T, *B) boolean or None.

    Returns:
        (*B).
    """
    layout, chain = _canonical(log_initial, log_transition, log_emission, present)
    arrays = (chain.log_initial, chain.log_transition, chain.slices, chain.present, rng_key)
    return jnp.reshape(_evidence(layout, *arrays), layout.batch_shape)


def _canonical(log_initial, log_transition, log_emission, present) -> tuple[Layout, Chain]:
    check(log_emission.shape[0], log_emission.shape[1], log_initial, log_transition, present)
    return prepare(log_initial, log_transition, log_emission, present, "plain")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _evidence(layout: Layout, *arrays):
    return _forward(layout, *arrays)[0]


def _forward(layout: Layout, log_initial, log_transition, table, present, rng_key):
    chain = Chain(log_initial, log_transition, None, table, present)
    evidence, path = _best(layout, chain) if rng_key is None else _drawn(layout, chain, rng_key)
    return evidence, (path, present, log_transition)


def _backward(layout: Layout, saved, weight):
    path, present, log_transition = saved
    visited = jax.nn.one_hot(path, layout.num_states, axis=1, dtype=weight.dtype)  # (T, K, N)
    here = visited * weight[None, None]
    if present is not None:
        here = jnp.where(present[:, None], here, 0)
    if log_transition.shape[0] == 1:
        pairs = jnp.einsum("tin,tjn->ijn", visited[:-1], here[1:])[None]
    else:
        pairs = visited[:-1, :, None] * here[1:, None]
    if log_transition.shape[3] == 1:
        pairs = jnp.sum(pairs, 3, keepdims=True)
    return visited[0] * weight[None], pairs, here, None, None


_evidence.defvjp(_forward, _backward)


def _best(layout: Layout, chain: Chain) -> tuple[jax.Array, jax.Array]:
    """(N,) log probability of the best path, and the path (T, N)."""
    table = chain.slices if chain.present is None else jnp.where(chain.present[:, None], chain.slices, 0)
    pointer = jnp.uint8 if layout.num_states <= 256 else jnp.int32
    stay = jnp.arange(layout.num_states, dtype=pointer)[:, None]

    def lowered(best):
        # Only differences matter; large totals would lose them in float32.
        peak = jnp.max(best, 0)
        peak = jnp.where(jnp.isfinite(peak), peak, 0)
        return best - peak[None], peak

    def step(best, inputs):
        emission, transition, present = inputs
        if transition is None:
            transition = chain.log_transition[0]
        candidates = best[:, None] + transition
        onwards = jnp.max(candidates, 0)
        back = jnp.argmax(candidates, 0).astype(pointer)
        if present is not None:
            onwards, back = jnp.where(present[None], onwards, best), jnp.where(present[None], back, stay)
        best, peak = lowered(onwards + emission)
        return best, (back, peak)

    transitions = chain.log_transition if chain.varies else None
    moves = None if chain.present is None else chain.present[1:]
    start, first_peak = lowered(chain.log_initial + table[0])
    best, (pointers, peaks) = jax.lax.scan(step, start, (table[1:], transitions, moves))
    last = jnp.argmax(best, 0).astype(jnp.int32)

    def follow(state, back):
        before = jnp.take_along_axis(back, state[None], 0)[0].astype(jnp.int32)
        return before, before

    _, path = jax.lax.scan(follow, last, pointers, reverse=True)
    return jnp.max(best, 0) + first_peak + jnp.sum(peaks, 0), jnp.concatenate([path, last[None]])


def _drawn(layout: Layout, chain: Chain, rng_key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(N,) log evidence, and a draw of the path (T, N)."""
    states, totals = filter_log(layout, chain)
    uniforms = jax.random.uniform(rng_key, (layout.num_steps, layout.lanes), states.dtype)

    def draw(logits, uniform):
        weights = jnp.exp(logits - jnp.max(logits, 0, keepdims=True))
        cumulative = jnp.cumsum(weights, 0)
        chosen = jnp.sum(cumulative <= (uniform * cumulative[-1])[None], 0)
        # Rounding may push the product up to the total itself: stay on the last state that is possible.
        possible = layout.num_states - 1 - jnp.argmax(weights[::-1] > 0, 0)
        return jnp.minimum(chosen, possible).astype(jnp.int32)

    def step(later, inputs):
        logits, uniform, transition, present = inputs
        if transition is None:
            transition = chain.log_transition[0]
        into = jnp.take_along_axis(
            jnp.broadcast_to(transition, (*transition.shape[:2], layout.lanes)), later[None, None], 1
        )[:, 0]
        state = draw(logits + into, uniform)
        if present is not None:
            state = jnp.where(present, state, later)
        return state, state

    last = draw(states[-1], uniforms[-1])
    transitions = chain.log_transition if chain.varies else None
    moves = None if chain.present is None else chain.present[1:]
    _, path = jax.lax.scan(step, last, (states[:-1], uniforms[:-1], transitions, moves), reverse=True)
    return jnp.sum(totals, 0), jnp.concatenate([path, last[None]])

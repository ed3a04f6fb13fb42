"""What the states were: filtered, smoothed and pairwise marginals, the best path, posterior draws of paths.

Asked for once per fit, so everything here runs in log space, where nothing underflows, one step after the other and
all sequences side by side. Arguments are those of :func:`emppl.chain.evidence.log_evidence`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from emppl.chain.evidence import prepare
from emppl.chain.logspace import filter_log, smooth_log
from emppl.chain.problem import check


def _canonical(log_initial, log_transition, log_emission, present):
    check(log_emission.shape[0], log_emission.shape[1], log_initial, log_transition, present)
    layout, chain = prepare(log_initial, log_transition, log_emission, present, "plain")
    return layout, chain


def filtered(log_initial, log_transition, log_emission, present=None) -> tuple[jax.Array, jax.Array]:
    """Filter: what the past says about each state, and how well it predicted each observation.

    Args:
        log_initial: (K, *B).
        log_transition: (T-1 or 1, K, K, *B).
        log_emission: (T, K, *B).
        present: (T, *B) boolean or None.

    Returns:
        (T, K, *B) log p(z_t | x_0..x_t), and (T, *B) log p(x_t | x_0..x_{t-1}), whose sum over time is the log
        evidence (0 at steps that do not exist).
    """
    layout, chain = _canonical(log_initial, log_transition, log_emission, present)
    states, predictive = filter_log(layout, chain)
    return jnp.reshape(states, log_emission.shape), jnp.reshape(predictive, (layout.num_steps, *layout.batch_shape))


def smoothed(log_initial, log_transition, log_emission, present=None) -> jax.Array:
    """State marginals ``p(z_t | everything)``.

    At steps that do not exist, those of the state that is carried over. Zero for impossible sequences.

    Args:
        log_initial: (K, *B).
        log_transition: (T-1 or 1, K, K, *B).
        log_emission: (T, K, *B).
        present: (T, *B) boolean or None.

    Returns:
        (T, K, *B) probabilities.
    """
    layout, chain = _canonical(log_initial, log_transition, log_emission, present)
    ones = jnp.ones(layout.lanes, log_emission.dtype)
    return jnp.reshape(smooth_log(layout, chain, ones, True, False)[3], log_emission.shape)


def pairwise(log_initial, log_transition, log_emission, present=None) -> jax.Array:
    """Pairwise marginals ``p(z_t, z_{t+1} | everything)``.

    Diagonal where step t+1 does not exist (the state is carried over). Needs T x K x K numbers; expected
    transition counts do not: they are the gradient of the log evidence.

    Args:
        log_initial: (K, *B).
        log_transition: (T-1 or 1, K, K, *B).
        log_emission: (T, K, *B).
        present: (T, *B) boolean or None.

    Returns:
        (T-1, K, K, *B) probabilities [time, from, to].
    """
    layout, chain = _canonical(log_initial, log_transition, log_emission, present)
    pairs = smooth_log(layout, chain, jnp.ones(layout.lanes, log_emission.dtype), False, True)[4][1:]
    return jnp.reshape(pairs, (*pairs.shape[:3], *layout.batch_shape))


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
    table = chain.slices if chain.present is None else jnp.where(chain.present[:, None], chain.slices, 0)
    pointer = jnp.uint8 if layout.num_states <= 256 else jnp.int32
    stay = jnp.arange(layout.num_states, dtype=pointer)[:, None]

    def step(best, inputs):
        emission, transition, present = inputs
        if transition is None:
            transition = chain.log_transition[0]
        candidates = best[:, None] + transition
        onwards = jnp.max(candidates, 0)
        back = jnp.argmax(candidates, 0).astype(pointer)
        if present is not None:
            onwards, back = jnp.where(present[None], onwards, best), jnp.where(present[None], back, stay)
        onwards = onwards + emission
        # Only differences matter; large totals would lose them in float32.
        peak = jnp.max(onwards, 0, keepdims=True)
        return onwards - jnp.where(jnp.isfinite(peak), peak, 0), back

    transitions = chain.log_transition if chain.varies else None
    moves = None if chain.present is None else chain.present[1:]
    best, pointers = jax.lax.scan(step, chain.log_initial + table[0], (table[1:], transitions, moves))
    last = jnp.argmax(best, 0).astype(jnp.int32)

    def follow(state, back):
        before = jnp.take_along_axis(back, state[None], 0)[0].astype(jnp.int32)
        return before, before

    _, path = jax.lax.scan(follow, last, pointers, reverse=True)
    path = jnp.concatenate([path, last[None]])
    return jnp.reshape(path, (layout.num_steps, *layout.batch_shape))


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
    states, _ = filter_log(layout, chain)
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
    path = jnp.concatenate([path, last[None]])
    return jnp.reshape(path, (layout.num_steps, *layout.batch_shape))

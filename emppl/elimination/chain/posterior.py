"""What the states were: filtered, smoothed and pairwise marginals.

Asked for once per fit, so everything here runs in log space, where nothing underflows, one step after the other and
all sequences side by side. Arguments are those of :func:`emppl.elimination.chain.evidence.log_evidence`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from emppl.elimination.chain.evidence import prepare
from emppl.elimination.chain.logspace import filter_log, smooth_log
from emppl.elimination.chain.problem import check


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

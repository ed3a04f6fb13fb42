"""One tile of a chain: some consecutive steps of many independent lanes, forwards and backwards.

A lane is one sequence, or one block of a long one. With ``predicted`` q_t = p(z_t | x_{<t}), b_t the density of
step t's emission (scaled so that its largest entry is 1) and A the transition matrix, the filter is::

    c_t = sum_k q_t(k) b_t(k)          q_{t+1}(j) = sum_k q_t(k) b_t(k) A(k, j) / c_t

with log evidence sum_t log c_t. Backwards, with beta_t(i) = p(x_{>t} | z_t = i) / p(x_{>t} | x_{<=t})::

    v_t = b_t beta_t / c_t             beta_{t-1}(i) = sum_j A(i, j) v_t(j)

so that ``q_t v_t`` is the state marginal and ``a_t(i) A(i, j) v_{t+1}(j)``, with a_t = q_t b_t / c_t, the pairwise
one. Only q is stored. Everything that is not a dependence from step to step is done for the tile at once, because
XLA:CPU runs a scan at full speed only while its body is tiny.

Steps that do not exist (``present`` false) have b_t = 1, and no transition leads to them: the state is carried over.

Reference:
    Rabiner (1989), A tutorial on hidden Markov models, section V.A (scaling).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tile:
    """What one tile needs to know besides the states.

    Attributes:
        emission: (C, K, N), scaled densities b_t, largest entry 1 (or 0 where nothing is possible).
        transition: (C or 1, K, K, N or 1), the transition that follows each step.
        transition_before: the same, one step earlier: the transition that leads to each step.
        moved: (C, N or 1) boolean or None, whether a transition follows each step.
        moved_before: whether a transition leads to each step.
    """

    emission: jax.Array
    transition: jax.Array
    transition_before: jax.Array
    moved: jax.Array | None
    moved_before: jax.Array | None


def propagate(transition: jax.Array, weights: jax.Array) -> jax.Array:
    """``sum_i transition[i, j, n] weights[i, n]``, in the formulation that XLA:CPU runs fastest.

    Measured on x86: for one lane a product and a sum, which fuse into one small loop (a matrix product is a library call,
    5 times slower at K = 16); for many lanes a sum of K terms written out, which vectorises over lanes (``sum`` over
    a leading axis does not, and is up to 50 times slower); a matrix product once K is large.

    Args:
        transition: (K, K, N or 1).
        weights: (K, N).

    Returns:
        (K, N).
    """
    num_states, lanes = weights.shape
    if lanes == 1:
        return jnp.sum(transition[:, :, 0] * weights, 0)[:, None]
    if num_states > _WRITTEN_OUT:
        if transition.shape[2] == 1:
            return transition[:, :, 0].T @ weights
        if num_states > 4 * _WRITTEN_OUT:
            return jnp.sum(transition * weights[:, None], 0)
    total = transition[0] * weights[:1]
    for state in range(1, num_states):
        total = total + transition[state] * weights[state : state + 1]
    return total


_WRITTEN_OUT = 12


def _over_time(array: jax.Array | None, length: int):
    """Split what varies over the tile's steps (scanned) from what does not (captured)."""
    if array is None or (array.shape[0] == 1 and length > 1):
        return None
    return array


def inverse(scale: jax.Array) -> jax.Array:
    """``1 / scale``; an impossible step has scale 0 and weights 0, which must stay 0."""
    return 1 / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)


def filter_tile(tile: Tile, predicted: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Forward recursion.

    Args:
        tile: the tile.
        predicted: (K, N), p(state of the first step | everything before).

    Returns:
        (C, K, N) predicted probabilities of every step, (C, 1, N) scales c_t (the density of each step's scaled
        emission given everything before), and (K, N) the predicted probabilities of the step after the tile.
    """
    length = tile.emission.shape[0]
    transitions = _over_time(tile.transition, length)
    moves = _over_time(tile.moved, length)

    def step(predicted, inputs):
        emission, transition, moved = inputs
        if transition is None:
            transition = tile.transition[0]
        joint = predicted * emission
        onwards = propagate(transition, joint)
        if moved is not None:
            onwards = jnp.where(moved[None], onwards, joint)
        scale = jnp.sum(joint, 0, keepdims=True)
        return onwards * inverse(scale), (predicted, scale)

    after, (stack, scales) = jax.lax.scan(step, predicted, (tile.emission, transitions, moves))
    return stack, scales, after


def backward_tile(tile: Tile, factor: jax.Array, beta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Backward recursion.

    Args:
        tile: the tile.
        factor: (C, K, N), b_t / c_t, zero for states that the filter excludes.
        beta: (K, N), of the tile's last step.

    Returns:
        (C, K, N) v_t of every step, and (K, N) beta of the step before the tile.
    """
    length = tile.emission.shape[0]
    transposed = jnp.swapaxes(tile.transition_before, 1, 2)
    transitions = _over_time(transposed, length)
    moves = _over_time(tile.moved_before, length)

    def step(beta, inputs):
        factor, transition, moved = inputs
        if transition is None:
            transition = transposed[0]
        v = factor * beta
        before = propagate(transition, v)
        if moved is not None:
            before = jnp.where(moved[None], before, v)
        return before, v

    before, stack = jax.lax.scan(step, beta, (factor, transitions, moves), reverse=True)
    return stack, before


def filtered_and_factor(tile: Tile, predicted: jax.Array, scales: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(C, K, N) twice: filtered probabilities a_t and the factors b_t / c_t of the backward recursion.

    The factor is zero where the filter gives a state no weight: such a state contributes to nothing earlier, and
    its unbounded beta would overflow.
    """
    factor = tile.emission * inverse(scales)
    filtered = predicted * factor
    return filtered, jnp.where(filtered > 0, factor, 0)


def pair_counts(tile: Tile, filtered: jax.Array, v_after: jax.Array, like: tuple[int, ...]) -> jax.Array:
    """Expected transition counts, summed over what the transition does not vary over.

    Args:
        tile: the tile.
        filtered: (C, K, N), a_t.
        v_after: (C, K, N), v_{t+1}.
        like: shape of the transition for this tile, (C or 1, K, K, N or 1).

    Returns:
        An array of shape ``like``.
    """
    if tile.moved is not None:
        filtered = jnp.where(tile.moved[:, None], filtered, 0)
    if like[3] == 1 and v_after.shape[2] > 1:
        # One small matrix product a step: contracting steps and lanes together would have to transpose them first.
        counts = jnp.einsum("cin,cjn->cij", filtered, v_after)[..., None]
        if like[0] == 1:
            counts = jnp.sum(counts, 0, keepdims=True)
    elif like[3] == 1 and like[0] == 1:
        counts = (filtered[:, :, 0].T @ v_after[:, :, 0])[None, :, :, None]
    elif like[0] == 1:
        counts = jnp.sum(filtered[:, :, None] * v_after[:, None], 0, keepdims=True)
    else:
        counts = filtered[:, :, None] * v_after[:, None]
    return counts * tile.transition

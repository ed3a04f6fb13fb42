"""One tile of a chain: some consecutive steps of many independent lanes, forwards and backwards.

A lane is one sequence, or one block of a long one. With b_s the density of step s's emission (scaled so that its
largest entry is 1), A the transition that leads to step s and u the filter before its normalisation::

    u_s(j) = b_s(j) sum_i u_{s-1}(i) A(i, j) / c_{s-1}          c_s = sum_j u_s(j)

the log evidence is sum_s log c_s and ``a_s = u_s / c_s`` the filtered probabilities. Backwards, with
beta_s(i) = p(x_{>s} | z_s = i) / p(x_{>s} | x_{<=s})::

    v_s = b_s beta_s / c_s          beta_{s-1}(i) = sum_j A(i, j) v_s(j)

so that ``u_s v_s / b_s`` is the state marginal and ``a_{s-1}(i) A(i, j) v_s(j)`` the pairwise one.

What XLA:CPU makes of this decides its form. A scan runs at full speed only while its body is tiny, so everything that
is not a dependence from step to step is done for the whole tile at once; and a sum over states recomputes whatever
is fused into its terms, so the loops carry u and v, which enter the sums as they are (carrying predicted
probabilities or beta instead is twice as slow, in the products of blocks three times).

Steps that do not exist (``present`` false) have b = 1 and no transition: the state is carried over.

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
    """What one tile of C steps and N lanes needs to know besides the states.

    Attributes:
        emission: (C, K, N), scaled densities, largest entry 1 (or 0 where nothing is possible).
        transition: (C or 1, K, K, N or 1), the transition that leads to each step.
        present: (C, N or 1) boolean, or None when every step exists.
    """

    emission: jax.Array
    transition: jax.Array
    present: jax.Array | None


def propagate(transition: jax.Array, weights: jax.Array) -> jax.Array:
    """``sum_i transition[i, j, n] weights[i, n]``, in the formulation that XLA:CPU runs fastest.

    Measured on x86: for one lane a product and a sum, which fuse into one small loop (a matrix product is a library
    call, 5 times slower at K = 16); for many lanes a sum of K terms written out, which vectorises over lanes (``sum``
    over a leading axis does not, and is up to 50 times slower); a matrix product once K is large.

    Args:
        transition: (K, K, N or 1).
        weights: (K, N), or (K, S, N) for S start states each.

    Returns:
        Like ``weights``.
    """
    num_states, lanes = weights.shape[0], weights.shape[-1]
    if weights.ndim == 2 and lanes == 1:
        return jnp.sum(transition[:, :, 0] * weights, 0)[:, None]
    if num_states > _MAX_STATES_WRITTEN_OUT and transition.shape[2] == 1:
        flat = transition[:, :, 0].T @ jnp.reshape(weights, (num_states, -1))
        return jnp.reshape(flat, weights.shape)
    if weights.ndim == 3:
        transition = transition[:, :, None]
    if num_states > 4 * _MAX_STATES_WRITTEN_OUT:
        return jnp.sum(transition * weights[:, None], 0)
    total = transition[0] * weights[:1]
    for state in range(1, num_states):
        total = total + transition[state] * weights[state : state + 1]
    return total


_MAX_STATES_WRITTEN_OUT = 12


def _over_time(array: jax.Array, length: int) -> jax.Array | None:
    """What varies over the tile's steps, to be scanned; None for what does not."""
    return None if array.shape[0] == 1 and length > 1 else array


def inverse(scale: jax.Array) -> jax.Array:
    """``1 / scale``; an impossible step has scale 0 and weights 0, which must stay 0."""
    return 1 / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)


def filter_tile(tile: Tile, joint: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Forward recursion.

    Args:
        tile: the tile.
        joint: (K, N), u of the step before the tile.

    Returns:
        (C, K, N) u of the tile's steps, (C, 1, N) scales c of the steps before them, and (K, N) u of the last step.
    """
    transitions = _over_time(tile.transition, tile.emission.shape[0])

    def step(joint: jax.Array, inputs: tuple) -> tuple[jax.Array, tuple]:
        emission, transition, present = inputs
        if transition is None:
            transition = tile.transition[0]
        scale = jnp.sum(joint, 0, keepdims=True)
        if present is None:
            onwards = propagate(transition, joint) * (emission * inverse(scale))
        else:
            onwards = jnp.where(present[None], propagate(transition, joint) * emission, joint) * inverse(scale)
        return onwards, (onwards, scale)

    inputs = (tile.emission, transitions, tile.present)
    if tile.emission.shape[0] == 1:
        last, (_, scale) = step(joint, jax.tree.map(lambda array: array[0], inputs))
        return last[None], scale[None], last
    last, (stack, scales) = jax.lax.scan(step, joint, inputs)
    return stack, scales, last


def smooth_tile(
    tile: Tile, before: jax.Array, stack: jax.Array, scales: jax.Array, beta: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Backward recursion.

    Args:
        tile: the tile.
        before: (K, N), u of the step before the tile.
        stack: from :func:`filter_tile`.
        scales: from :func:`filter_tile`.
        beta: (K, N), of the tile's last step, times the lane's weight.

    Returns:
        (C, K, N) state marginals, (C, K, N) filtered probabilities of the step before each, (C, K, N) v, and (K, N)
        beta of the step before the tile.
    """
    length = stack.shape[0]
    last = jnp.sum(stack[-1:], 1, keepdims=True)
    factor = tile.emission * inverse(jnp.concatenate([scales[1:], last]))
    # A state that the filter excludes contributes to nothing earlier, and its unbounded beta would overflow.
    factor = jnp.where(stack > 0, factor, 0)
    transposed = jnp.swapaxes(tile.transition, 1, 2)
    transitions = _over_time(transposed, length)
    later = (factor[:-1], *(None if x is None else x[1:] for x in (transitions, tile.present)))

    def back(v: jax.Array, transition: jax.Array | None, present: jax.Array | None) -> jax.Array:
        beta = propagate(transposed[0] if transition is None else transition, v)
        return beta if present is None else jnp.where(present[None], beta, v)

    def step(v: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        factor, transition, present = inputs
        v = factor * back(v, transition, present)
        return v, v

    final = factor[-1] * beta
    if length == 1:
        v = final[None]
        marginals = jnp.where(stack > 0, stack * inverse(last) * beta[None], 0)
    else:
        _, v = jax.lax.scan(step, final, later, reverse=True)
        v = jnp.concatenate([v, final[None]])
    earlier = back(
        v[0], None if transitions is None else transitions[0], None if tile.present is None else tile.present[0]
    )
    if length > 1:
        marginals = jnp.where(stack > 0, stack / jnp.where(stack > 0, tile.emission, 1), 0) * v
    filtered = jnp.concatenate([before[None], stack[:-1]]) * inverse(scales)
    return marginals, filtered, v, earlier


def pair_counts(tile: Tile, filtered: jax.Array, v: jax.Array, like: tuple[int, ...]) -> jax.Array:
    """Expected transition counts, summed over what the transition does not vary over.

    Args:
        tile: the tile.
        filtered: (C, K, N), filtered probabilities of the step before each.
        v: (C, K, N).
        like: shape of the transition for this tile, (C or 1, K, K, N or 1).

    Returns:
        An array of shape ``like``.
    """
    if tile.present is not None:
        v = jnp.where(tile.present[:, None], v, 0)
    if like[3] == 1 and v.shape[2] > 1:
        # One small matrix product a step: contracting steps and lanes together would have to transpose them first.
        counts = jnp.einsum("cin,cjn->cij", filtered, v)[..., None]
        if like[0] == 1:
            counts = jnp.sum(counts, 0, keepdims=True)
    elif like[3] == 1 and like[0] == 1:
        counts = (filtered[:, :, 0].T @ v[:, :, 0])[None, :, :, None]
    elif like[0] == 1:
        counts = jnp.sum(filtered[:, :, None] * v[:, None], 0, keepdims=True)
    else:
        counts = filtered[:, :, None] * v[:, None]
    return counts * tile.transition

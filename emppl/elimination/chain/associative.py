"""The tile recursions with logarithmic depth, for accelerators: products of K x K matrices in a tree.

Same inputs and outputs as :func:`emppl.elimination.chain.recursion.filter_tile` and ``smooth_tile``. Forwards the
matrices are transition times emission, scaled in every product; backwards they are the smoothing kernels
``p(z_{s-1} | z_s, x_{<s})``, whose columns sum to 1, so that nothing can overflow. Costs K^3 a step where the scan
costs K^2.

Reference:
    Särkkä and García-Fernández (2021), Temporal parallelization of Bayesian smoothers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from emppl.elimination.chain.recursion import Tile, inverse


def filter_tile(tile: Tile, joint: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Forward recursion; see :func:`emppl.elimination.chain.recursion.filter_tile`."""
    steps, states, lanes = tile.emission.shape
    moves = jnp.broadcast_to(tile.transition * tile.emission[:, None], (steps, states, states, lanes))
    moves = _or_identity(moves, tile.present)

    def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
        product = jnp.einsum("cijn,cjkn->cikn", left, right)
        return product * inverse(jnp.max(product, (1, 2), keepdims=True))

    products = jax.lax.associative_scan(multiply, moves)
    total = inverse(jnp.sum(joint, 0, keepdims=True))
    direction = jnp.einsum("in,cijn->cjn", joint * total, products)
    filtered = direction * inverse(jnp.sum(direction, 1, keepdims=True))
    before = jnp.concatenate([(joint * total)[None], filtered[:-1]])
    stack = jnp.einsum("cin,cijn->cjn", before, moves)
    scales = jnp.concatenate([jnp.sum(joint, 0)[None, None], jnp.sum(stack[:-1], 1, keepdims=True)])
    return stack, scales, stack[-1]


def smooth_tile(
    tile: Tile, before: jax.Array, stack: jax.Array, scales: jax.Array, beta: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Backward recursion; see :func:`emppl.elimination.chain.recursion.smooth_tile`."""
    filtered = jnp.concatenate([before[None], stack[:-1]]) * inverse(scales)
    possible = stack > 0
    predicted = jnp.where(possible, stack / jnp.where(possible, tile.emission, 1), 0)
    back = filtered[:, :, None] * tile.transition * inverse(predicted)[:, None]
    back = _or_identity(jnp.where(possible[:, None], back, 0), tile.present)
    last = stack[-1] * inverse(jnp.sum(stack[-1], 0, keepdims=True))
    final = jnp.where(last > 0, last * beta, 0)

    def multiply(right: jax.Array, left: jax.Array) -> jax.Array:
        return jnp.einsum("cijn,cjkn->cikn", left, right)

    products = jax.lax.associative_scan(multiply, back, reverse=True)
    earlier = jnp.einsum("cijn,jn->cin", products, final)
    marginals = jnp.concatenate([earlier[1:], final[None]])
    v = jnp.where(predicted > 0, marginals * inverse(predicted), 0)
    start = filtered[0]
    return marginals, filtered, v, jnp.where(start > 0, earlier[0] * inverse(start), 0)


def _or_identity(matrices: jax.Array, present: jax.Array | None) -> jax.Array:
    if present is None:
        return matrices
    identity = jnp.eye(matrices.shape[1], dtype=matrices.dtype)[None, :, :, None]
    return jnp.where(present[:, None, None], matrices, identity)

"""Normal distributions whose precision is block tridiagonal: log normaliser, means, covariances of neighbours.

Long chains are cut into lanes. Between two cuts, blocks are eliminated one after the other, in all lanes side by side;
the blocks at the cuts are a shorter chain of the same kind, solved in turn; then the lanes are filled in backwards. The
density is::

    p(x) = exp(sum_i h_i . x_i - x_i' D_i x_i / 2 - sum_i x_i' O_i x_{i-1}) / Z

Blocks come as ``(d, d, n, cells)``: the many small matrices side by side, so that their entries are contiguous.

Reference:
    Polizzi and Sameh (2006), A parallel hybrid banded system solver: the SPIKE algorithm, Parallel Comput. 32:177-194.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emppl.numerics.guarded import ArrayTuple
from emppl.numerics.small_matrices import half_log_det, lower_inverse, lower_root

_MAX_UNROLLED_SIZE = 8
_MIN_LANED_BLOCKS = 512
_MIN_CELLS_IN_TURN = 32


class Smoothed(NamedTuple):
    """Moments of a block tridiagonal normal distribution.

    Attributes:
        log_normalizer: log of the integral, ``(cells,)``.
        mean: ``(d, n, cells)``.
        covariance: of every block, ``(d, d, n, cells)``.
        cross: covariance of block ``i`` with block ``i - 1``, ``(d, d, n, cells)``; zero for the first.
    """

    log_normalizer: jax.Array
    mean: jax.Array
    covariance: jax.Array
    cross: jax.Array


def smooth(diagonal: jax.Array, off: jax.Array, linear: jax.Array) -> Smoothed:
    """Moments and log normaliser of every cell, in lanes where that is faster.

    Args:
        diagonal: ``D``, ``(d, d, n, cells)``, symmetric.
        off: ``O``, ``(d, d, n, cells)``; the first block is ignored.
        linear: ``h``, ``(d, n, cells)``.
    """
    number, cells = diagonal.shape[-2:]
    if number < _MIN_LANED_BLOCKS or cells >= _MIN_CELLS_IN_TURN:
        return smooth_in_turn(diagonal, off, linear)
    return smooth_in_lanes(diagonal, off, linear, math.isqrt(number))


# One recursion forwards and one backwards that share a dozen arrays.
def smooth_in_lanes(  # noqa: PLR0915
    diagonal: jax.Array, off: jax.Array, linear: jax.Array, lanes: int
) -> Smoothed:
    """Moments and log normaliser, the chain cut into a number of lanes."""
    size, _, number, cells = diagonal.shape
    length = max(2, -(-(number - 1) // lanes))
    lanes = -(-(number - 1) // length)
    extra = lanes * length + 1 - number
    diagonal, off, linear = _padded(diagonal, off, linear, extra)

    def cut(part: jax.Array) -> jax.Array:
        """A lane's own blocks: ``(length, ..., lanes * cells)``."""
        apart = jnp.reshape(part[..., :-1, :], (*part.shape[:-2], lanes, length, cells))
        return jnp.reshape(jnp.moveaxis(apart, -2, 0), (length, *part.shape[:-2], lanes * cells))

    def sew(parts: jax.Array) -> jax.Array:
        """Inverse of :func:`cut`, the last block left out."""
        apart = jnp.moveaxis(jnp.reshape(parts, (*parts.shape[:-1], lanes, cells)), 0, -2)
        return jnp.reshape(apart, (*apart.shape[:-3], lanes * length, cells))

    inside, couplings, own = cut(diagonal), cut(off), cut(linear)
    # The coupling of a lane's last block is with the cut after it, whose own terms are added later.
    after = jnp.concatenate([couplings[2:], jnp.reshape(off[..., length::length, :], couplings.shape[1:])[None]])
    following = jnp.concatenate([inside[2:], jnp.zeros_like(inside[:1])])
    following_own = jnp.concatenate([own[2:], jnp.zeros_like(own[:1])])

    def forward(carry: ArrayTuple, step: ArrayTuple) -> tuple[ArrayTuple, ArrayTuple]:
        precision, information, to_left, left, left_own, value = carry
        coupling, block, vector = step
        inverse, log_root = _inverse(precision)
        across, down = _multiply(inverse, _transpose(coupling)), _multiply(inverse, to_left)
        solved = _apply(inverse, information)
        value = value + jnp.sum(information * solved, 0) / 2 - log_root
        left = left - _multiply(_transpose(to_left), down)
        left_own = left_own - _apply(_transpose(to_left), solved)
        precision = _symmetric(block - _multiply(coupling, across))
        return (
            (precision, vector - _apply(coupling, solved), -_multiply(coupling, down), left, left_own, value),
            (inverse, across, down, solved),
        )

    nothing = jnp.zeros_like(inside[0])
    start: ArrayTuple = (inside[1], own[1], couplings[1], nothing, jnp.zeros_like(own[0]), jnp.zeros_like(own[0, 0]))
    end, kept = jax.lax.scan(forward, start, (after, following, following_own))
    right, right_own, joined, left, left_own, value = (
        jnp.reshape(part, (*part.shape[:-1], lanes, cells)) for part in end
    )
    at_cuts = diagonal[..., ::length, :].at[..., :-1, :].add(left).at[..., 1:, :].add(right)
    own_cuts = linear[..., ::length, :].at[..., :-1, :].add(left_own).at[..., 1:, :].add(right_own)
    coarse = smooth_in_turn(at_cuts, _first_zero(joined), own_cuts)
    flat = lambda part: jnp.reshape(part, (*part.shape[:-2], lanes * cells))  # noqa: E731
    left_mean, left_covariance = flat(coarse.mean[..., :-1, :]), flat(coarse.covariance[..., :-1, :])

    def backward(carry: ArrayTuple, step: ArrayTuple) -> tuple[ArrayTuple, ArrayTuple]:
        mean, covariance, with_left = carry  # of the block after, and its covariance with the cut before the lane
        inverse, across, down, solved = step
        own_mean = solved - _apply(across, mean) - _apply(down, left_mean)
        with_after = -_multiply(across, covariance) - _multiply(down, _transpose(with_left))
        with_cut = -_multiply(across, with_left) - _multiply(down, left_covariance)
        own = inverse - _multiply(with_after, _transpose(across)) - _multiply(with_cut, _transpose(down))
        return (own_mean, _symmetric(own), with_cut), (own_mean, _symmetric(own), _transpose(with_after))

    last = tuple(flat(part[..., 1:, :]) for part in (coarse.mean, coarse.covariance, coarse.cross))
    (_, _, with_cut), (means, covariances, crosses) = jax.lax.scan(backward, last, kept, reverse=True)
    mean = sew(jnp.concatenate([left_mean[None], means]))
    covariance = sew(jnp.concatenate([left_covariance[None], covariances]))
    # ``crosses`` belong to the block after; the first block of a lane has its covariance with the cut.
    to_cut = jnp.reshape(crosses[-1], (size, size, lanes, cells))
    between = jnp.concatenate([jnp.zeros_like(with_cut)[None], with_cut[None], crosses[:-1]])
    cross = sew(between).at[..., length::length, :].set(to_cut[..., :-1, :])
    value = coarse.log_normalizer + jnp.sum(value, 0) + lanes * (length - 1) * size / 2 * math.log(2 * math.pi)
    value = value - extra * size / 2 * math.log(2 * math.pi)
    end_mean, end_covariance = coarse.mean[..., -1:, :], coarse.covariance[..., -1:, :]
    return Smoothed(
        value,
        jnp.concatenate([mean, end_mean], -2)[..., :number, :],
        jnp.concatenate([covariance, end_covariance], -2)[..., :number, :],
        jnp.concatenate([cross, to_cut[..., -1:, :]], -2)[..., :number, :],
    )


def smooth_in_turn(diagonal: jax.Array, off: jax.Array, linear: jax.Array) -> Smoothed:
    """Moments and log normaliser, one block after the other: fast for short or many chains, and the plain twin."""
    size, number = diagonal.shape[0], diagonal.shape[-2]
    blocks, couplings, own = (jnp.moveaxis(part, -2, 0) for part in (diagonal, off, linear))

    def forward(carry: ArrayTuple, step: ArrayTuple) -> tuple[ArrayTuple, ArrayTuple]:
        precision, information, value = carry  # of the block before, given everything up to it
        block, coupling, vector = step
        inverse, log_root = _inverse(precision)
        across, solved = _multiply(inverse, _transpose(coupling)), _apply(inverse, information)
        value = value + jnp.sum(information * solved, 0) / 2 - log_root
        after = _symmetric(block - _multiply(coupling, across)), vector - _apply(coupling, solved), value
        return after, (inverse, across, solved)

    start: ArrayTuple = blocks[0], own[0], jnp.zeros_like(own[0, 0])
    (precision, information, value), kept = jax.lax.scan(forward, start, (blocks[1:], couplings[1:], own[1:]))
    covariance, log_root = _inverse(precision)
    mean = _apply(covariance, information)
    value = value + jnp.sum(information * mean, 0) / 2 - log_root + number * size / 2 * math.log(2 * math.pi)

    def backward(carry: ArrayTuple, step: ArrayTuple) -> tuple[ArrayTuple, ArrayTuple]:
        mean, covariance = carry
        inverse, across, solved = step
        cross = -_multiply(covariance, _transpose(across))  # of the later block with the earlier one
        moments = solved - _apply(across, mean), _symmetric(inverse - _multiply(across, cross))
        return moments, (*moments, cross)

    last: ArrayTuple = mean, covariance
    _, (means, covariances, crosses) = jax.lax.scan(backward, last, kept, reverse=True)
    join = lambda parts, end: jnp.moveaxis(jnp.concatenate([parts, end[None]]), 0, -2)  # noqa: E731
    cross = jnp.moveaxis(jnp.concatenate([jnp.zeros_like(covariance)[None], crosses]), 0, -2)
    return Smoothed(value, join(means, mean), join(covariances, covariance), cross)


def _padded(diagonal: jax.Array, off: jax.Array, linear: jax.Array, extra: int) -> ArrayTuple:
    """The chain with extra blocks at its end, independent of the others and standard normal."""
    size, cells = diagonal.shape[0], diagonal.shape[-1]
    unit = jnp.eye(size, dtype=diagonal.dtype)[..., None, None]
    units = jnp.broadcast_to(unit, (size, size, extra, cells))
    zeros = jnp.zeros_like(units)
    return (
        jnp.concatenate([diagonal, units], -2),
        jnp.concatenate([off, zeros], -2),
        jnp.concatenate([linear, zeros[0]], -2),
    )


def _first_zero(parts: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.zeros_like(parts[..., :1, :]), parts], -2)


def _transpose(matrices: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrices, 0, 1)


def _symmetric(matrices: jax.Array) -> jax.Array:
    return (matrices + _transpose(matrices)) / 2


def _multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    if left.shape[0] > _MAX_UNROLLED_SIZE:
        return jnp.einsum("ij...,jk...->ik...", left, right)
    return jnp.sum(left[:, :, None] * right[None], 1)


def _apply(matrices: jax.Array, vectors: jax.Array) -> jax.Array:
    return jnp.sum(matrices * vectors[None], 1)


def _inverse(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inverse and half the log-determinant of positive definite matrices ``(d, d, cells)``."""
    root = lower_root(jnp.moveaxis(matrices, (0, 1), (-2, -1)))
    inverse = jnp.moveaxis(lower_inverse(root), (-2, -1), (0, 1))
    return _multiply(_transpose(inverse), inverse), half_log_det(root)

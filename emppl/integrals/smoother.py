"""Normal latents of a ``scan``, exactly: the smoother of a linear state space model, read off its log joint density.

A site of a later step sees a window of the state; second derivatives of all windows at once give a banded precision,
which is block tridiagonal in blocks of ``order`` steps. Kalman filter and smoother are what its solution amounts to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emppl.errors import Refusal
from emppl.integrals.integrated import Integrated
from emppl.integrals.joint import Joint
from emppl.integrals.way import Question, Way
from emppl.model.integral import Integral
from emppl.model.scans import ChainIntegral
from emppl.model.state_space import StateSpace
from emppl.numerics.block_tridiagonal import Smoothed, smooth
from emppl.numerics.guarded import impossible_to_infinite
from emppl.numerics.small_matrices import lower_root
from emppl.parameters.layout import Block, Layout
from emppl.strategies import Gaussian


class Smoother(Way):
    """Sigma points of the first steps and of every window, with the moments that the smoother finds."""

    strategies = (Gaussian,)
    looks_for_modes = False
    is_by_step = True

    @classmethod
    def propose(cls, question: Question) -> Way | Refusal:
        """It needs a chain with a quadratic log joint."""
        if not isinstance(question.integral, ChainIntegral):
            return Refusal("it lies outside of scans")
        return question.not_quadratic or cls(question.asked or Gaussian(), question.reason)

    def integrate(self, joint: Joint, start: jax.Array) -> Integrated:
        """Wherever it starts, two solutions of the linear equations."""
        states, number = states_of(joint), joint.integral.atoms
        found = smooth_states(joint)
        firsts = sigma_points(found.first_mean, found.first_covariance, number)
        windows = sigma_points(found.window_mean, found.window_covariance, number)
        atoms = {**jax.vmap(states.firsts.unpack)(firsts), **jax.vmap(states.windows.unpack)(windows)}
        shares = jnp.full((1,) * joint.rank, 1 / number)
        return Integrated(impossible_to_infinite(found.evidence), atoms, shares, found.mean, None, found.cancelled)

    def draw(self, joint: Joint, integrated: Integrated, key: jax.Array) -> jax.Array:
        """One joint draw of all steps of all chains.

        The precision ``P`` is a sum over windows, so that noise of covariance ``P`` is drawn window by window; added to
        the linear term ``h`` it makes the mean ``P^-1 (h + noise)`` a draw.
        """
        states = states_of(joint)
        precisions = first_precision, window_precision = state_precisions(joint)
        first_slope, window_slope = state_slopes(joint, joint.zeros())
        first_key, window_key = jax.random.split(key)
        first_slope = first_slope + _noise(first_precision, first_key)
        window_slope = window_slope + _noise(window_precision, window_key)
        smoothed = smooth(*_blocks(states, *precisions, first_slope, window_slope))
        return _trajectories(_by_step(states, smoothed.mean))

    def atoms(self, integral: Integral) -> int:
        """Two for every dimension of a window.

        States differ in scale by many orders (a variance next to zero, a diffuse start): points along one column of a
        root each keep the digits that the corners of a simplex mix.
        """
        assert isinstance(integral, ChainIntegral)
        return 2 * max(integral.states.windows.per_group, integral.states.firsts.entries)


class StateMoments(NamedTuple):
    """Conditional moments of all chains of one scan.

    Attributes:
        evidence: log evidence of every cell, with the common axes.
        first_mean: of the first steps together, ``(cells, order * d)``.
        first_covariance: their covariance.
        window_mean: of every window, ``(windows * cells, ...)``.
        window_covariance: their covariance.
        mean: of every chain, ``(cells, steps * d)``.
        cancelled: sum of the terms that cancel in the evidence: a diffuse start makes it large.
    """

    evidence: jax.Array
    first_mean: jax.Array
    first_covariance: jax.Array
    window_mean: jax.Array
    window_covariance: jax.Array
    mean: jax.Array
    cancelled: jax.Array


def smooth_states(joint: Joint, precisions: tuple[jax.Array, jax.Array] | None = None) -> StateMoments:
    """Evidence and moments of all chains of one scan.

    Args:
        joint: the log joint density, quadratic in the latents.
        precisions: from :func:`state_precisions`, if they are known.

    Returns:
        The moments.
    """
    states = states_of(joint)
    precisions = state_precisions(joint) if precisions is None else precisions

    def solve(slopes: tuple[jax.Array, jax.Array]) -> tuple[Smoothed, jax.Array]:
        smoothed = smooth(*_blocks(states, *precisions, *slopes))
        return smoothed, _by_step(states, smoothed.mean)

    slopes = state_slopes(joint, joint.zeros())
    smoothed, mean = solve(slopes)
    linear = _linear(states, *slopes)
    volume = smoothed.log_normalizer - jnp.sum(linear * mean, (0, 2)) / 2
    # Numbers are added to fill the last block.
    volume = volume - (-states.steps % states.scan.order) * states.dimensions * math.log(2 * math.pi) / 2
    # From the mean the slopes are small, and a second solution recovers the digits that the first one lost.
    _, correction = solve(state_slopes(joint, states.values(mean)))
    mean = mean + correction
    evidence = joint.by_cell(joint.tables(states.values(mean))) + joint.to_cells(volume)
    return StateMoments(
        evidence,
        states.first_vectors(mean),
        jnp.moveaxis(smoothed.covariance[:, :, 0], -1, 0),
        states.window_vectors(mean),
        _window_covariance(states, smoothed),
        _trajectories(mean),
        jnp.sum(jnp.abs(linear * mean)),
    )


def sigma_points(mean: jax.Array, covariance: jax.Array, number: int) -> jax.Array:
    """Equally weighted points with these moments, ``(number, groups, d)``, in pairs along the columns of a root.

    Args:
        mean: ``(groups, d)``.
        covariance: ``(groups, d, d)``.
        number: how many: ``2 d``, or more, the rest of them at the mean.
    """
    columns = math.sqrt(number / 2) * jnp.moveaxis(lower_root(covariance), -1, 0)
    missing = jnp.zeros((number // 2 - len(columns), *columns.shape[1:]), columns.dtype)
    deviations = jnp.concatenate([columns, missing])
    return jnp.concatenate([mean[None] + deviations, mean[None] - deviations])


def states_of(joint: Joint) -> StateSpace:
    """How the steps of a chain follow each other."""
    assert isinstance(joint.integral, ChainIntegral)
    return joint.integral.states


def state_precisions(joint: Joint) -> tuple[jax.Array, jax.Array]:
    """Precision of the first steps, and of every window."""
    states = states_of(joint)
    firsts, windows = states.split(joint.zeros())

    def curvature(layout: Layout, part: Block, rest: Block) -> jax.Array:
        def gradient(block: Block) -> dict[str, jax.Array]:
            slope = joint.gradient_of_values({**rest, **block})
            return {name: slope[name] for name in block}

        return -layout.hessian(gradient, part)

    return curvature(states.firsts, firsts, windows), curvature(states.windows, windows, firsts)


def state_slopes(joint: Joint, values: Block) -> tuple[jax.Array, jax.Array]:
    """Gradient in the first steps, and in every window."""
    states = states_of(joint)
    first, window = states.split(joint.gradient_of_values(values))
    return states.firsts.pack(first), states.windows.pack(window)


def _trajectories(steps: jax.Array) -> jax.Array:
    """From the state of every step, ``(steps, cells, d)``, to one vector per chain."""
    return jnp.reshape(jnp.moveaxis(steps, 1, 0), (steps.shape[1], -1))


def _noise(precision: jax.Array, rng_key: jax.Array) -> jax.Array:
    """Normal noise whose covariance these matrices, which may be singular, are."""
    values, vectors = jnp.linalg.eigh(precision)
    noise = jax.random.normal(rng_key, values.shape, values.dtype) * jnp.sqrt(jnp.maximum(values, 0))
    return jnp.squeeze(vectors @ noise[..., None], -1)


def _linear(states: StateSpace, first_slope: jax.Array, window_slope: jax.Array) -> jax.Array:
    """Linear terms of every step, ``(steps, cells, d)``."""
    order, size, number = states.scan.order, states.dimensions, states.scan.length
    full = jnp.reshape(states.whole(window_slope, (-1,)), (number, states.cells, order + 1, size))
    linear = jnp.zeros((states.steps, states.cells, size), full.dtype)
    for a in range(order + 1):
        linear = linear.at[a : a + number].add(full[:, :, a])
    firsts = jnp.moveaxis(jnp.reshape(first_slope, (states.cells, order, size)), 1, 0)
    return linear.at[:order].add(firsts)


def _blocks(
    states: StateSpace,
    first_precision: jax.Array,
    window_precision: jax.Array,
    first_slope: jax.Array,
    window_slope: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Blocks of ``order`` steps: ``D`` and ``O`` as ``(d, d, n, cells)``, ``h`` as ``(d, n, cells)``."""
    order, size, number, cells = states.scan.order, states.dimensions, states.scan.length, states.cells
    full = states.whole(window_precision, (-2, -1))
    full = jnp.reshape(full, (number, cells, order + 1, size, order + 1, size))
    firsts = jnp.reshape(first_precision, (cells, order, size, order, size))
    steps = -(-states.steps // order) * order
    # bands[k][t] couples step t with step t - k.
    bands = []
    for k in range(order + 1):
        band = jnp.zeros((steps, cells, size, size), full.dtype)
        for a in range(k, order + 1):
            band = band.at[a : a + number].add(full[:, :, a, :, a - k, :])
        for i in range(k, order):
            band = band.at[i].add(firsts[:, i, :, i - k, :])
        bands.append(band)
    bands[0] = bands[0].at[states.steps :].set(jnp.eye(size, dtype=full.dtype))

    def place(pick: Callable[[int, int], jax.Array]) -> jax.Array:
        rows = [jnp.concatenate([pick(i, j) for j in range(order)], -1) for i in range(order)]
        return jnp.moveaxis(jnp.concatenate(rows, -2), (0, 1), (-2, -1))

    def within(i: int, j: int) -> jax.Array:
        return bands[i - j][i::order] if i >= j else jnp.swapaxes(bands[j - i][j::order], -1, -2)

    def before(i: int, j: int) -> jax.Array:
        return bands[order + i - j][i::order] if i <= j else jnp.zeros_like(bands[0][::order])

    linear = _linear(states, first_slope, window_slope)
    linear = jnp.concatenate([linear, jnp.zeros((steps - states.steps, cells, size), linear.dtype)])
    linear = jnp.reshape(jnp.moveaxis(linear, 1, -1), (steps // order, order * size, cells))
    return place(within), place(before), jnp.moveaxis(linear, 0, 1)


def _by_step(states: StateSpace, blocks: jax.Array) -> jax.Array:
    """From blocks ``(order * d, n, cells)`` to steps ``(steps, cells, d)``."""
    order, size = states.scan.order, states.dimensions
    _, number, cells = blocks.shape
    apart = jnp.transpose(jnp.reshape(blocks, (order, size, number, cells)), (2, 0, 3, 1))
    return jnp.reshape(apart, (number * order, cells, size))[: states.steps]


def _window_covariance(states: StateSpace, smoothed: Smoothed) -> jax.Array:
    """Covariance of every window, ``(windows * cells, ...)``."""
    order, size, number, cells = states.scan.order, states.dimensions, states.scan.length, states.cells
    blocks = jnp.moveaxis(smoothed.covariance, (0, 1), (-2, -1))  # (n, cells, d, d)
    cross = jnp.moveaxis(smoothed.cross, (0, 1), (-2, -1))[1:]
    upper = jnp.concatenate([blocks[:-1], jnp.swapaxes(cross, -1, -2)], -1)
    pairs = jnp.concatenate([upper, jnp.concatenate([cross, blocks[1:]], -1)], -2)
    width = (order + 1) * size
    shifted = [pairs[..., i * size : i * size + width, i * size : i * size + width] for i in range(order)]
    every = jnp.reshape(jnp.stack(shifted, 1), (-1, cells, width, width))[:number]
    return states.seen(jnp.reshape(every, (number * cells, width, width)), (-2, -1))

"""Normal latents of a ``scan``, exactly: the smoother of a linear state space model, read off its log joint density.

A site of a later step sees a window of the state; second derivatives of all windows at once give a banded precision,
which is block tridiagonal in blocks of ``order`` steps. Kalman filter and smoother are what its solution amounts to.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl.integrals.joint import Joint
from emppl.model.integral import StateSpace
from emppl.numerics.block_tridiagonal import Smoothed, smooth
from emppl.numerics.small_matrices import lower_inverse, lower_root


class StateMoments(NamedTuple):
    """Conditional moments of all chains of one scan.

    Attributes:
        evidence: log evidence of every cell, with the common axes.
        first_mean: of the first steps together, ``(cells, order * d)``.
        first_covariance: their covariance.
        window_mean: of every window, ``(windows * cells, ...)``.
        window_covariance: their covariance.
        mean: of every step, ``(steps * cells, d)``.
        covariance: ``(steps * cells, d, d)``.
        cancelled: sum of the terms that cancel in the evidence: a diffuse start makes it large.
    """

    evidence: jax.Array
    first_mean: jax.Array
    first_covariance: jax.Array
    window_mean: jax.Array
    window_covariance: jax.Array
    mean: jax.Array
    covariance: jax.Array
    cancelled: jax.Array


def smooth_states(joint: Joint, precisions: tuple[jax.Array, jax.Array] | None = None) -> StateMoments:
    """Evidence and moments of all chains of one scan.

    Args:
        joint: the log joint density, quadratic in the latents.
        precisions: from :func:`state_precisions`, if they are known.

    Returns:
        The moments.
    """
    states = joint.integral.states
    assert states is not None
    precisions = state_precisions(joint) if precisions is None else precisions

    def solve(slopes):
        found = smooth(*_blocks(states, *precisions, *slopes))
        return found, _by_step(states, found.mean[None])[..., 0]  # (steps, cells, d)

    slopes = _slopes(joint, joint.zeros())
    smoothed, mean = solve(slopes)
    linear = _linear(states, *slopes)
    volume = smoothed.log_normalizer - jnp.sum(linear * mean, (0, 2)) / 2
    volume = volume - _extra(states) * math.log(2 * math.pi) / 2
    # From the mean the slopes are small, and a second solution recovers the digits that the first one lost.
    _, correction = solve(_slopes(joint, values_along(states, mean)))
    mean = mean + correction
    window_mean, window_covariance = _windows(states, mean, smoothed)
    first_mean = _first_mean(states, mean)
    values = {**states.firsts.unpack(first_mean), **states.windows.unpack(window_mean)}
    evidence = joint.by_cell(joint.tables(values)) + joint.to_cells(volume)
    first_covariance = jnp.moveaxis(smoothed.covariance[:, :, 0], -1, 0)
    flat, size = states.steps * states.cells, states.dimensions
    cancelled = jnp.sum(jnp.abs(linear * mean))
    covariance = jnp.reshape(_step_covariance(states, smoothed), (flat, size, size))
    flat_mean = jnp.reshape(mean, (flat, size))
    return StateMoments(
        evidence, first_mean, first_covariance, window_mean, window_covariance, flat_mean, covariance, cancelled
    )


def integrate_states(joint: Joint) -> tuple[StateMoments, dict[str, jax.Array]]:
    """Moments, and sigma points of the first steps and of every window.

    Args:
        joint: the log joint density, quadratic in the latents.

    Returns:
        ``(moments, atoms)``.
    """
    states = joint.integral.states
    assert states is not None
    found = smooth_states(joint)
    firsts = sigma_points(found.first_mean, found.first_covariance, joint.integral.atoms)
    windows = sigma_points(found.window_mean, found.window_covariance, joint.integral.atoms)
    return found, {**jax.vmap(states.firsts.unpack)(firsts), **jax.vmap(states.windows.unpack)(windows)}


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


def draw_states(joint: Joint, rng_key: jax.Array) -> dict[str, jax.Array]:
    """One joint draw of all steps of all chains, as values of the latents.

    The precision ``P`` is a sum over windows, so that noise of covariance ``P`` is drawn window by window; added to the
    linear term ``h`` it makes the mean ``P^-1 (h + noise)`` a draw.

    Args:
        joint: the log joint density, quadratic in the latents.
        rng_key: random key.
    """
    states = joint.integral.states
    assert states is not None
    first_precision, window_precision = state_precisions(joint)
    first_slope, window_slope = _slopes(joint, joint.zeros())
    one, other = jax.random.split(rng_key)
    first_slope = first_slope + _noise(first_precision, one)
    window_slope = window_slope + _noise(window_precision, other)
    smoothed = smooth(*_blocks(states, first_precision, window_precision, first_slope, window_slope))
    return values_along(states, _by_step(states, smoothed.mean[None])[..., 0])


def _noise(precision: jax.Array, rng_key: jax.Array) -> jax.Array:
    """Normal noise whose covariance these matrices, which may be singular, are."""
    values, vectors = jnp.linalg.eigh(precision)
    noise = jax.random.normal(rng_key, values.shape, values.dtype) * jnp.sqrt(jnp.maximum(values, 0))
    return jnp.squeeze(vectors @ noise[..., None], -1)


def _total(joint: Joint, values) -> jax.Array:
    return jnp.sum(joint.by_cell(joint.tables(values)))


def _slopes(joint: Joint, values) -> tuple[jax.Array, jax.Array]:
    """Gradient in the first steps, and in every window."""
    states = joint.integral.states
    assert states is not None
    first, window = _parts(states, jax.grad(lambda values: _total(joint, values))(values))
    return states.firsts.pack(first), states.windows.pack(window)


def state_precisions(joint: Joint) -> tuple[jax.Array, jax.Array]:
    """Precision of the first steps, and of every window."""
    states = joint.integral.states
    assert states is not None
    firsts, windows = _parts(states, joint.zeros())

    def curvature(layout, part, rest):
        def gradient(block):
            slope = jax.grad(lambda values: _total(joint, values))({**rest, **block})
            return {name: one for name, one in slope.items() if name in block}

        return -layout.hessian(gradient, part)

    return curvature(states.firsts, firsts, windows), curvature(states.windows, windows, firsts)


def _first_mean(states: StateSpace, mean: jax.Array) -> jax.Array:
    return jnp.reshape(jnp.moveaxis(mean[: states.chain.order], 0, 1), (states.cells, -1))


def _window_mean(states: StateSpace, mean: jax.Array) -> jax.Array:
    number = states.chain.length
    means = jnp.stack([mean[a : a + number] for a in range(states.chain.order + 1)], 2)
    return _seen(states, jnp.reshape(means, (number * states.cells, -1)), (-1,))


def values_along(states: StateSpace, mean: jax.Array) -> dict[str, jax.Array]:
    """Values of the latents when every step is at its mean, ``(steps, cells, d)``."""
    return {
        **states.firsts.unpack(_first_mean(states, mean)),
        **states.windows.unpack(_window_mean(states, mean)),
    }


def precision_root(covariance: jax.Array) -> jax.Array:
    """Lower triangular root of the inverse of every covariance."""
    inverse = lower_inverse(lower_root(covariance))
    return lower_root(jnp.matmul(jnp.swapaxes(inverse, -1, -2), inverse))


def _parts(states: StateSpace, values):
    """Values of the first steps, and of the windows."""
    return tuple({name: values[name] for name in layout.shapes} for layout in (states.firsts, states.windows))


def _places(states: StateSpace) -> np.ndarray:
    """Where the entries of a window lie among those of ``order + 1`` whole states."""
    chain = states.chain
    sizes = _sizes(states)
    offsets = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1], strict=True))
    found: list[int] = []
    for step, lag in enumerate(range(chain.order, -1, -1)):
        for name, depth in chain.hidden.items():
            if lag <= depth:
                begin = step * states.dimensions + offsets[name]
                found += range(begin, begin + sizes[name])
    return np.array(found)


def _runs(states: StateSpace) -> list[tuple[int, int]]:
    """The places as runs ``(start, stop)`` of neighbours."""
    places = _places(states)
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(places, breaks)]


def whole_states(states: StateSpace, array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Entries of windows among those of whole states, zeros elsewhere (slices and pads: a scatter is slow)."""
    width = (states.chain.order + 1) * states.dimensions
    for axis in axes:
        parts, at, end = [], 0, 0
        for start, stop in _runs(states):
            shape = list(array.shape)
            shape[axis] = start - end
            parts += [jnp.zeros(shape, array.dtype)] * (start > end)
            parts.append(jax.lax.slice_in_dim(array, at, at + stop - start, axis=array.ndim + axis))
            at, end = at + stop - start, stop
        shape = list(array.shape)
        shape[axis] = width - end
        parts += [jnp.zeros(shape, array.dtype)] * (width > end)
        array = jnp.concatenate(parts, axis)
    return array


def _seen(states: StateSpace, array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Entries that windows see, of whole states: the inverse of :func:`whole_states`."""
    for axis in axes:
        runs = _runs(states)
        parts = [jax.lax.slice_in_dim(array, start, stop, axis=array.ndim + axis) for start, stop in runs]
        array = jnp.concatenate(parts, axis) if len(parts) > 1 else parts[0]
    return array


def _sizes(states: StateSpace) -> dict[str, int]:
    """Numbers in one step's state, by latent."""
    names = list(states.chain.hidden)
    firsts = list(states.firsts.shapes.values())[: len(names)]
    return {name: math.prod(shape) // states.cells for name, shape in zip(names, firsts, strict=True)}


def _extra(states: StateSpace) -> int:
    """Numbers that are added to fill the last block."""
    return (-states.steps % states.chain.order) * states.dimensions


def _linear(states: StateSpace, first_slope: jax.Array, window_slope: jax.Array) -> jax.Array:
    """Linear terms of every step, ``(steps, cells, d)``."""
    order, size, number = states.chain.order, states.dimensions, states.chain.length
    full = jnp.reshape(whole_states(states, window_slope, (-1,)), (number, states.cells, order + 1, size))
    linear = jnp.zeros((states.steps, states.cells, size), full.dtype)
    for a in range(order + 1):
        linear = linear.at[a : a + number].add(full[:, :, a])
    firsts = jnp.moveaxis(jnp.reshape(first_slope, (states.cells, order, size)), 1, 0)
    return linear.at[:order].add(firsts)


def _blocks(states: StateSpace, first_precision, window_precision, first_slope, window_slope) -> Any:
    """Blocks of ``order`` steps: ``D`` and ``O`` as ``(d, d, n, cells)``, ``h`` as ``(d, n, cells)``."""
    order, size, number, cells = states.chain.order, states.dimensions, states.chain.length, states.cells
    full = jnp.reshape(
        whole_states(states, window_precision, (-2, -1)), (number, cells, order + 1, size, order + 1, size)
    )
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

    def place(pick):
        rows = [jnp.concatenate([pick(i, j) for j in range(order)], -1) for i in range(order)]
        return jnp.moveaxis(jnp.concatenate(rows, -2), (0, 1), (-2, -1))

    def within(i, j):
        return bands[i - j][i::order] if i >= j else jnp.swapaxes(bands[j - i][j::order], -1, -2)

    def before(i, j):
        found = bands[order + i - j][i::order] if i <= j else jnp.zeros_like(bands[0][::order])
        return found

    linear = _linear(states, first_slope, window_slope)
    linear = jnp.concatenate([linear, jnp.zeros((steps - states.steps, cells, size), linear.dtype)])
    linear = jnp.reshape(jnp.moveaxis(linear, 1, -1), (steps // order, order * size, cells))
    return place(within), place(before), jnp.moveaxis(linear, 0, 1)


def _by_step(states: StateSpace, parts: jax.Array) -> jax.Array:
    """From blocks ``(k, order * d, n, cells)`` to steps ``(steps, cells, d, k)``."""
    order, size = states.chain.order, states.dimensions
    k, _, number, cells = parts.shape
    apart = jnp.reshape(parts, (k, order, size, number, cells))
    apart = jnp.transpose(apart, (3, 1, 4, 2, 0))
    return jnp.reshape(apart, (number * order, cells, size, k))[: states.steps]


def _step_covariance(states: StateSpace, smoothed: Smoothed) -> jax.Array:
    """Covariance of every step, ``(steps, cells, d, d)``."""
    order, size = states.chain.order, states.dimensions
    blocks = smoothed.covariance
    apart = jnp.reshape(blocks, (order, size, order, size, *blocks.shape[2:]))
    own = jnp.stack([apart[i, :, i] for i in range(order)])  # (order, d, d, n, cells)
    own = jnp.transpose(own, (3, 0, 4, 1, 2))
    return jnp.reshape(own, (-1, states.cells, size, size))[: states.steps]


def _windows(states: StateSpace, mean: jax.Array, smoothed: Smoothed) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance of every window, ``(windows * cells, ...)``."""
    order, size, number, cells = states.chain.order, states.dimensions, states.chain.length, states.cells
    means = _window_mean(states, mean)
    blocks = jnp.moveaxis(smoothed.covariance, (0, 1), (-2, -1))  # (n, cells, d, d)
    cross = jnp.moveaxis(smoothed.cross, (0, 1), (-2, -1))[1:]
    upper = jnp.concatenate([blocks[:-1], jnp.swapaxes(cross, -1, -2)], -1)
    pairs = jnp.concatenate([upper, jnp.concatenate([cross, blocks[1:]], -1)], -2)
    width = (order + 1) * size
    shifted = [pairs[..., i * size : i * size + width, i * size : i * size + width] for i in range(order)]
    every = jnp.reshape(jnp.stack(shifted, 1), (-1, cells, width, width))[:number]
    every = jnp.reshape(every, (number * cells, width, width))
    return means, _seen(states, every, (-2, -1))

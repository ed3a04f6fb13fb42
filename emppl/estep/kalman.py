"""The filter of a normal chain: what the observations so far say of its state, read off the log joint density.

The log joint density of a window is that of a step given the one before. Added to what is known of the step before, and
that one integrated out, it is what is known of the step: the Kalman filter in information form.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emppl.integrals.joint import Joint
from emppl.integrals.smoother import sigma_points, smooth_states, state_precisions, state_slopes, states_of
from emppl.model.log_prob_table import log_prob_table
from emppl.names import model_name
from emppl.numerics.guarded import ArrayTuple
from emppl.numerics.small_matrices import half_log_det, lower_root, solve_root
from emppl.types import Tables


class FilteredStates(NamedTuple):
    """A filter of all chains of one scan.

    Attributes:
        atoms: by latent, equally weighted points with the moments given the observations up to each step.
        predicted: the same given the observations before each step.
        evidence: log density of every step's observations given those before, ``(steps, cells)``.
    """

    atoms: dict[str, jax.Array]
    predicted: dict[str, jax.Array]
    evidence: jax.Array


def filter_states(joint: Joint) -> FilteredStates:
    """Filter all chains of a scan of order one.

    Args:
        joint: the log joint density, quadratic in the latents.
    """
    states = states_of(joint)
    size, cells = states.dimensions, states.cells
    centre = jnp.moveaxis(jnp.reshape(smooth_states(joint).mean, (cells, states.steps, size)), 1, 0)
    hidden = [name for name in joint.integral.factors if model_name(name) in states.scan.hidden]
    of_latents = copy.copy(joint)
    of_latents.integral = dataclasses.replace(joint.integral, factors=tuple(hidden))
    of_latents.wanted = frozenset(pair for pair in joint.wanted if pair[0] in hidden)
    first, later = _terms(joint, centre)
    first_prior, later_prior = _terms(of_latents, centre)

    def advance(before: ArrayTuple, step: tuple[ArrayTuple, ArrayTuple]) -> tuple[ArrayTuple, tuple]:
        known, predicted = (_advanced(before, terms) for terms in step)
        return known, (known, predicted)

    _, (known, predicted) = jax.lax.scan(advance, first, (later, later_prior))
    known, predicted = (
        jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), begin, rest)
        for begin, rest in ((first, known), (first_prior, predicted))
    )
    total = _log_integral(known)
    evidence = jnp.concatenate([total[:1], jnp.diff(total, axis=0)]) + _without_latents(joint)
    return FilteredStates(_atoms(joint, known, centre), _atoms(joint, predicted, centre), evidence)


def _terms(joint: Joint, centre: jax.Array) -> tuple[ArrayTuple, ArrayTuple]:
    """The log joint density around a centre, of the first step and of every window: precision, slope and value."""
    states = states_of(joint)
    size, number, cells = states.dimensions, states.scan.length, states.cells
    values = states.values(centre)
    first_precision, window_precision = state_precisions(joint)
    first_slope, window_slope = state_slopes(joint, values)
    windows = jnp.reshape(states.whole(window_precision, (-2, -1)), (number, cells, 2 * size, 2 * size))
    slopes = jnp.reshape(states.whole(window_slope, (-1,)), (number, cells, 2 * size))
    value = _by_step(joint, joint.tables(values))
    return (first_precision, first_slope, value[0]), (windows, slopes, value[1:])


def _by_step(joint: Joint, tables: Tables) -> jax.Array:
    """Sums of tables of sites in the scan, ``(steps, cells)``."""
    states, sites = states_of(joint), joint.model.trace.sites
    moving = {name: table for name, table in tables.items() if sites[name].time is not None}
    still = {name: table for name, table in tables.items() if name not in moving}
    by_step = copy.copy(joint)
    by_step.integral = dataclasses.replace(joint.integral, cells=(*joint.integral.cells, states.scan.time))
    time = joint.axes.names.index(states.scan.time)
    to_cells = jax.vmap(lambda table: joint.to_groups(jnp.expand_dims(table, time)), in_axes=time)
    return jnp.concatenate([joint.to_groups(joint.by_cell(still))[None], to_cells(by_step.by_cell(moving))])


def _without_latents(joint: Joint) -> jax.Array:
    """Log density of the observations in the scan that no latent enters: those of the state before the first, say."""
    model, sites = joint.model, joint.model.trace.sites
    time = states_of(joint).scan.time
    inside = {name for name, site in sites.items() if site.time is not None and site.time.name == time}
    beside = [n for n in model.factors if model_name(n) in inside and n not in joint.integral.factors]
    arrays = model.evaluate(joint.params, joint.data)
    return _by_step(joint, {name: log_prob_table(model.factors[name], arrays) for name in beside})


def _advanced(before: ArrayTuple, terms: ArrayTuple) -> ArrayTuple:
    """What is known of a step: the terms of its window, and what is known of the step before, integrated out."""
    precision, slope, value = before
    window, window_slope, window_value = terms
    size = precision.shape[-1]
    root = lower_root(precision + window[..., :size, :size])
    information = slope + window_slope[..., :size]
    coupling = window[..., size:, :size]
    solved = solve_root(root, information)
    across = jax.vmap(solve_root, in_axes=(None, -2), out_axes=-2)(root, coupling)  # rows of coupling @ inverse
    value = value + window_value + jnp.sum(information * solved, -1) / 2 - half_log_det(root)
    precision = window[..., size:, size:] - across @ jnp.swapaxes(coupling, -1, -2)
    return (
        (precision + jnp.swapaxes(precision, -1, -2)) / 2,
        window_slope[..., size:] - jnp.squeeze(coupling @ solved[..., None], -1),
        value + size / 2 * math.log(2 * math.pi),
    )


def _log_integral(known: ArrayTuple) -> jax.Array:
    precision, slope, value = known
    root = lower_root(precision)
    quadratic = jnp.sum(slope * solve_root(root, slope), -1) / 2
    return value + quadratic - half_log_det(root) + precision.shape[-1] / 2 * math.log(2 * math.pi)


def _atoms(joint: Joint, known: ArrayTuple, centre: jax.Array) -> dict[str, jax.Array]:
    """Points with the moments of every step, by latent, a leading axis of atoms."""
    precision, slope, _ = known
    size = precision.shape[-1]
    root = lower_root(precision)
    unit = jnp.eye(size, dtype=root.dtype)
    covariance = jax.vmap(lambda column: solve_root(root, jnp.broadcast_to(column, slope.shape)), 0, -1)(unit)
    mean = centre + solve_root(root, slope)
    points = sigma_points(jnp.reshape(mean, (-1, size)), jnp.reshape(covariance, (-1, size, size)), 2 * size)
    return jax.vmap(states_of(joint).values)(jnp.reshape(points, (2 * size, *mean.shape)))

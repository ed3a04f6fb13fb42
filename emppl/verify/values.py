"""Values of all latents in the shapes of the model as it is written, and where they lie on emppl's axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from emppl.model.model import Model

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""A value of every latent, out of JAX's hands: to choose and mix them there would have to be compiled."""

_MOST_ASSIGNMENTS = 8
"""Joint states of a few cells of discrete latents that are added up one by one."""


def choose_groups(model: Model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """By integral, which of two values every group takes: booleans with the common axes."""
    shapes = {integral.axis: model.axes.shape(set(integral.cells) - model.axes.latents) for integral in model.integrals}
    return {axis: rng.random(shape) < 0.5 for axis, shape in shapes.items()}


def mixed(model: Model, taken: Mapping[str, np.ndarray], first: Arrays, second: Arrays) -> dict[str, np.ndarray]:
    """Values of all latents in which every group of an integral has its value from one of two."""
    values = dict(first)
    for integral in model.integrals:
        for name in integral.latents:
            site = model.trace.sites[name]
            event = len(site.event_shape)
            batch = first[name].ndim - event - (site.time is not None)
            by_dim = model.axes.of_site(site)
            places = [by_dim.get(dim) for dim in range(-batch, 0)]
            order = [model.axes.names.index(axis) for axis in places if axis is not None]
            rest = [axis for axis in range(model.axes.rank) if axis not in order]
            table = np.transpose(taken[integral.axis], rest + order)
            sizes = iter(table.shape[len(rest) :])
            shape = [1 if axis is None else next(sizes) for axis in places]
            values[name] = np.where(np.reshape(table, (*shape, *(1,) * event)), first[name], second[name])
    return values


def assignments(model: Model, values: Arrays, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The values at every joint state of a few cells of discrete latents, one at random of as many as can be.

    Returns:
        By site, the values with an axis of states in front.
    """
    free: dict[str, np.ndarray] = {}
    number = 1
    for name in model.model_latents:
        site = model.trace.sites[name]
        is_counted_once = model.factors[name].latents.get("cell_weight") is None
        if site.labels is None and is_counted_once and number * site.states <= _MOST_ASSIGNMENTS:
            free[name], number = np.ravel(model.trace.atoms[name]), number * site.states
    every = {name: np.repeat(value[None], number, 0) for name, value in values.items()}
    before = 1
    for name, states in free.items():
        value = values[name]
        first_step = model.factors[name].is_presence  # of a chain whose last steps may not exist
        cell = rng.integers(math.prod(value.shape[1:]) if first_step else value.size)
        own = np.argmax(states == np.ravel(value)[cell])  # the values themselves come first
        state = states[(own + np.arange(number) // before) % len(states)]
        np.reshape(every[name], (number, -1))[:, cell] = state
        before *= len(states)
    return every


def of_axis(model: Model, axis: str, value: jax.Array) -> jax.Array:
    """The part of a latent's value that lies on one of its axes: of a ``scan``, the steps there."""
    base, _, step = axis.partition("@")
    scan = next((scan for scan in model.trace.scans if base in scan.depths or base in scan.hidden), None)
    if scan is None:
        return value
    if step.isdigit():
        return value[int(step)]
    lag = int(step.removeprefix("previous") or 1) if step else 0
    return value[scan.order - lag : scan.order - lag + scan.length]


def on_axes(model: Model, latent: str, value: jax.Array) -> jax.Array:
    """A discrete latent's value with the common axes."""
    site = model.trace.sites[latent]
    if site.time is None:
        return model.axes.align(value, site, 0)
    position = model.axes.names.index(site.time.name)
    by_step = jax.vmap(lambda step: model.axes.align(step, site, 0), out_axes=position)(value)
    return jnp.squeeze(by_step, position + 1)

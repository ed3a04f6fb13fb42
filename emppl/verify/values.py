"""Values of all latents in the shapes of the model as it is written, and where they lie on emppl's axes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from emppl.model.model import Model
from emppl.trace.density import Values

_MOST_ASSIGNMENTS = 8
"""Joint states of a few cells of discrete latents that are added up one by one."""


def choose_groups(model: Model, rng_key: jax.Array) -> dict[str, jax.Array]:
    """By integral, which of two values every group takes: booleans with the common axes."""
    taken = {}
    for number, integral in enumerate(model.integrals):
        plates = set(integral.cells) - model.axes.latents
        shape = model.axes.shape(plates)
        taken[integral.axis] = jax.random.bernoulli(jax.random.fold_in(rng_key, number), shape=shape)
    return taken


def mixed(model: Model, taken: dict[str, jax.Array], first: Values, second: Values) -> dict[str, jax.Array]:
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
            table = jnp.transpose(taken[integral.axis], rest + order)
            sizes = iter(table.shape[len(rest) :])
            shape = [1 if axis is None else next(sizes) for axis in places]
            values[name] = jnp.where(jnp.reshape(table, (*shape, *(1,) * event)), first[name], second[name])
    return values


def assignments(model: Model, values: Values, rng_key: jax.Array) -> dict[str, jax.Array]:
    """The values at every joint state of a few cells of discrete latents, one at random of as many as can be.

    Returns:
        By site, the values with an axis of states in front.
    """
    free: dict[str, jax.Array] = {}
    number = 1
    for name in model.model_latents:
        site = model.trace.sites[name]
        is_counted_once = model.factors[name].latents.get("cell_weight") is None
        if site.labels is None and is_counted_once and number * site.states <= _MOST_ASSIGNMENTS:
            free[name], number = jnp.ravel(jnp.asarray(model.trace.atoms[name])), number * site.states
    every = {name: jnp.broadcast_to(value, (number, *value.shape)) for name, value in values.items()}
    before = 1
    for place, (name, states) in enumerate(free.items()):
        value, key = values[name], jax.random.fold_in(rng_key, place)
        first_step = model.factors[name].is_presence  # of a chain whose last steps may not exist
        cells = math.prod(value.shape[1:]) if first_step else value.size
        cell = jax.random.randint(key, (), 0, cells)
        own = jnp.argmax(states == jnp.ravel(value)[cell])  # the values themselves come first
        state = states[(own + jnp.arange(number) // before) % len(states)]
        flat = jnp.reshape(every[name], (number, -1))
        every[name] = jnp.reshape(flat.at[:, cell].set(state.astype(flat.dtype)), every[name].shape)
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

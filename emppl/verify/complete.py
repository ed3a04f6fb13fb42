"""emppl's side of the check: what it adds up for every site, at one value of every latent.

Discrete latents mark one cell of every table. Continuous ones take two values, and every group of an integral takes its
density from one of them: groups that are told apart wrongly, or that meet, then do not add up to NumPyro's density.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.integrals.joint import Joint
from emppl.model.integral import Integral
from emppl.model.log_prob_table import log_prob_table
from emppl.model.model import Model, prior_cells
from emppl.model.site import AlignedSite
from emppl.names import model_name
from emppl.numerics.guarded import weighted
from emppl.trace import SiteArrays
from emppl.types import Data, Params
from emppl.trace.density import Values


def choose_groups(model: Model, rng_key: jax.Array) -> dict[str, jax.Array]:
    """By integral, which of two values every group takes: booleans with the common axes."""
    taken = {}
    for number, integral in enumerate(model.integrals):
        plates = set(integral.cells) - model.axes.latents
        shape = tuple(model.axes.sizes[name] if name in plates else 1 for name in model.axes.names)
        taken[integral.axis] = jax.random.bernoulli(jax.random.fold_in(rng_key, number), shape=shape)
    return taken


def mixed(model: Model, taken: Mapping[str, jax.Array], first: Values, second: Values) -> dict[str, jax.Array]:
    """Values of all latents in which every group of an integral has its value from one of two."""
    values = dict(first)
    for integral in model.integrals:
        for name in set(map(model_name, integral.latents)):
            site = model.trace.sites[name]
            event = len(site.event_shape)
            batch = first[name].ndim - event - (site.time is not None)
            by_dim = model.axes.of_site(site)
            own = [by_dim.get(dim) for dim in range(-batch, 0)]
            table = taken[integral.axis]
            kept = [model.axes.names.index(axis) for axis in own if axis is not None]
            rest = [axis for axis in range(model.axes.rank) if axis not in kept]
            sizes = iter(jnp.transpose(table, rest + kept).shape[len(rest) :])
            shape = [1 if axis is None else next(sizes) for axis in own]
            take = jnp.reshape(jnp.transpose(table, rest + kept), (*shape, *(1,) * event))
            values[name] = jnp.where(take, first[name], second[name])
    return values


def log_probs(
    model: Model, params: Params, first: Values, second: Values, taken: Mapping[str, jax.Array], data: Data
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """What emppl adds up for every site of the model.

    Returns:
        By site ``(sum, sum of absolute values)``, in nats.
    """
    arrays = model.evaluate(params, data)
    marks = _marks(model, first)
    found: dict[str, list[tuple[jax.Array, jax.Array]]] = {}
    for name, factor in model.factors.items():
        if name not in model.integrated:
            table = _table(factor, arrays)
            cells = _counted(model, factor, arrays, _product(marks, factor.all_latents), table)
            found.setdefault(model_name(name), []).append(_sums(cells))
    for integral in model.integrals:
        for name, cells in _by_group(model, integral, params, data, (first, second), taken[integral.axis]).items():
            cells = _counted_groups(model, integral, arrays, _product(marks, integral.given), cells)
            found.setdefault(model_name(name), []).append(_sums(cells))
    if model.use_prior:
        for name in model.free:
            if model.trace.sites[name].kind == "continuous":
                found[name] = [_sums(prior_cells(arrays[name]))]
    return {name: (sum(x for x, _ in parts), sum(y for _, y in parts)) for name, parts in found.items()}


def _sums(cells: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(cells), jnp.sum(jnp.abs(cells))


def _product(marks: Mapping[str, jax.Array], axes: Any) -> Any:
    product: Any = jnp.ones(())
    for axis in axes:
        if axis in marks:
            product = product * marks[axis]
    return product


# ------------------------------------------------------------------------------------------------ discrete latents


def _marks(model: Model, values: Values) -> dict[str, jax.Array]:
    """By axis of a discrete latent, one at the state it has in every cell and zero elsewhere, with the common axes."""
    marks = {}
    for axis in model.axes.latents - model.axes.of_atoms:
        latent = axis.split("@previous")[0]
        site, atoms = model.trace.sites[latent], jnp.asarray(model.trace.atoms[axis])
        position = model.axes.names.index(axis)
        states = jnp.reshape(atoms, [-1 if place == position else 1 for place in range(model.axes.rank)])
        value = _with_labels(model, site.name, values)
        aligned = _aligned(model, latent, _of_axis(model, axis, value))
        marks[axis] = (aligned == states).astype(jnp.result_type(float))
    return marks


def _with_labels(model: Model, name: str, values: Values) -> jax.Array:
    """The value of a latent; of one that is partly observed, with its labels in their places."""
    base = model_name(name)
    if model.trace.sites[name].labels is None:
        return values[base]
    return values[base.removesuffix("_unobserved")]


def _of_axis(model: Model, axis: str, value: jax.Array) -> jax.Array:
    """The part of a latent's value that lies on one of its axes: of a ``scan``, the steps there."""
    base, _, step = axis.partition("@")
    scan = next((scan for scan in model.trace.scans if base in scan.depths or base in scan.hidden), None)
    if scan is None:
        return value
    if step.isdigit():
        return value[int(step)]
    lag = int(step.removeprefix("previous") or 1) if step else 0
    return value[scan.order - lag : scan.order - lag + scan.length]


def _aligned(model: Model, latent: str, value: jax.Array) -> jax.Array:
    site = model.trace.sites[latent]
    if site.time is None:
        return model.axes.align(value, site, 0)
    position = model.axes.names.index(site.time.name)
    by_step = jax.vmap(lambda step: model.axes.align(step, site, 0), out_axes=position)(value)
    return jnp.squeeze(by_step, position + 1)


def _table(factor: AlignedSite, arrays: Mapping[str, SiteArrays]) -> jax.Array:
    """A site's table in which masked latents, which do not exist, say nothing."""
    mask = factor.mask(arrays)
    if mask is None or factor.site.kind not in ("discrete", "integrated"):
        return log_prob_table(factor, arrays)
    unmasked = {**arrays, factor.name: _without_mask(arrays[factor.name])}
    table = log_prob_table(factor, unmasked, by_element=True)
    return jnp.sum(jnp.where(mask, table, 0), tuple(range(factor.axes.rank, table.ndim)))


def _without_mask(arrays: SiteArrays) -> SiteArrays:
    return dataclasses.replace(arrays, mask=None)


def _counted(
    model: Model, factor: AlignedSite, arrays: Mapping[str, SiteArrays], mark: jax.Array, table: jax.Array
) -> jax.Array:
    """The cells of a table at the states that latents have, times how often they count."""
    plates = model.axes.plates_of(factor.site, factor.site.batch_shape)
    if factor.is_presence:
        mark = mark * factor.presence(arrays)
    if (scale := factor.scale(arrays)) is not None:
        mark = mark * scale
    full = [
        model.axes.sizes[name] if name in plates or name in factor.all_latents else 1 for name in model.axes.names
    ]
    return weighted(*jnp.broadcast_arrays(mark, table, jnp.zeros(full))[:2])


# ---------------------------------------------------------------------------------------------- continuous latents


def _by_group(
    model: Model, integral: Integral, params: Params, data: Data, values: tuple[Values, Values], taken: jax.Array
) -> dict[str, jax.Array]:
    """By site, its share in the density of every group, each at one of two values."""
    joint = Joint(model, integral, params, data)
    constant = integral.way.constant_sites

    def at(values: Values) -> dict[str, jax.Array]:
        atoms = {}
        for name, shape in joint.zeros().items():
            value = _of_axis(model, name, values[model_name(name)])
            atoms[name] = _spread(model, name, value, shape.shape)[None]
        tables = _tables_at(joint, atoms)
        return {name: joint.by_cell({name: table}) for name, table in tables.items() if name not in constant}

    first, second = map(at, values)
    return {name: jnp.where(taken, first[name], second[name]) for name in first}


def _tables_at(joint: Joint, atoms: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    arrays = joint.model.evaluate(joint.params, joint.data, joint.wanted, atoms)
    return {name: _table(joint.model.factors[name], arrays) for name in joint.integral.factors}


def _spread(model: Model, name: str, value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A latent's value, the same for all states of the discrete latents that it is integrated for."""
    timed = model.trace.sites[model_name(name)].time is not None and not name.partition("@")[2].isdigit()
    if timed:
        extra = len(shape) - value.ndim
        value = jnp.reshape(value, (value.shape[0],) + (1,) * extra + value.shape[1:])
    return jnp.broadcast_to(value, shape)


def _counted_groups(
    model: Model, integral: Integral, arrays: Mapping[str, SiteArrays], mark: jax.Array, cells: jax.Array
) -> jax.Array:
    own = model.factors[integral.latents[0]].scale(arrays)
    if own is not None:
        mark = mark * own
    return weighted(*jnp.broadcast_arrays(mark, cells))

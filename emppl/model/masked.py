"""Masked latents: a cell that nothing else depends on is absent; any other has a flat density, and other sites give it.

The latter is NumPyro's way to impute: ``sample("x", d.mask(False))``, whose density stands in a factor, or in an
observed site that holds the latent in its value. Which cells other sites depend on follows from the data: at random
parameters their log-probabilities change with the latent's states, or have a slope in it, exactly there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.model.log_prob_table import log_prob_table
from emppl.model.model import Model
from emppl.names import model_name
from emppl.parameters.constraints import random_inside
from emppl.trace import Unseen
from emppl.types import Data


def partly_used(model: Model, latent: str, sites: Iterable[str]) -> list[str]:
    """Sites that may depend on masked cells of a latent: all of some but those that are known to have its mask.

    Args:
        latent: a latent site.
        sites: the other sites that depend on it.
    """
    outputs, factor = model.trace.outputs, model.factors[latent]
    own = outputs.get((latent, "mask"))
    is_missing_data = factor.site.labels is not None or factor.site.distribution == Unseen.__name__
    if own is None or is_missing_data or factor.is_presence:
        return []
    masks = {site: outputs.get((site, "mask")) for site in sites if site != latent}
    return [site for site, mask in masks.items() if mask is None or not model.dependence.is_same(own, mask)]


def parameters_at_random(model: Model) -> dict[str, jax.Array]:
    """A value of every parameter at which nothing cancels by chance."""
    rng, sites = np.random.default_rng(0), model.trace.sites
    return {name: random_inside(sites[name].constraint, sites[name].shape, rng) for name in model.trace.parameters}


def states_of_flat_cells(model: Model, data: Data, without: Iterable[str] = ()) -> jax.Array:
    """What the sum over states of masked discrete latents lacks where other sites depend on them.

    The table of a masked latent is ``-log(states)``, so that an absent cell adds nothing; a flat one adds no such term.

    Args:
        without: latents, by the model's own names, that are not summed over.
    """
    total = jnp.zeros((), jnp.result_type(float))
    for latent in model.latents:
        below = [name for name, factor in model.factors.items() if latent in factor.all_latents]
        below = partly_used(model, latent, below)
        if not below or model_name(latent) in without:
            continue
        arrays = model.evaluate(parameters_at_random(model), data)
        factor = model.factors[latent]
        plates = model.axes.plates_of(factor.site, factor.site.batch_shape)
        used = jnp.zeros((1,) * model.axes.rank, bool)
        for name in below:
            table = log_prob_table(model.factors[name], arrays)
            if model.factors[name].is_presence:  # a step that does not exist depends on nothing
                table = jnp.where(model.factors[name].presence(arrays), table, 0.0)
            used = used | _varies(model, table, latent, plates | factor.latents.get("mask", frozenset()))
        mask, scale = factor.mask(arrays), factor.scale(arrays)
        assert mask is not None
        shape = model.axes.shape(plates)
        present = jnp.any(mask, tuple(range(model.axes.rank, mask.ndim)))
        lacking = jnp.where(used & ~present, math.log(factor.site.states), 0.0)
        if factor.latents.get("mask"):  # a term in the sum over other latents: no number can make up for it
            total = total + jnp.where(jnp.any(lacking > 0), jnp.nan, 0.0)
            continue
        lacking = jnp.broadcast_to(lacking, shape)
        total = total + jnp.sum(lacking if scale is None else lacking * scale)
    return total


def _varies(model: Model, table: jax.Array, latent: str, kept: frozenset[str]) -> jax.Array:
    """In which cells, over some axes, a table changes with the states of a latent."""
    axis = model.axes.names.index(latent)
    first = jax.lax.slice_in_dim(table, 0, 1, axis=axis)
    changes = (table != first) & ~(jnp.isnan(table) & jnp.isnan(first))
    over = tuple(place for place, name in enumerate(model.axes.names) if name not in kept)
    return jnp.any(changes, over, keepdims=True)


def cells_with_slope(model: Model, latent: str, slope: jax.Array) -> jax.Array:
    """The cells of an integrated latent, with the common axes, in which other sites have a slope."""
    site = model.trace.sites[latent]
    events = tuple(range(slope.ndim - len(site.event_shape), slope.ndim))
    return model.axes.align(jnp.any(slope != 0, events), site, 0)


def masked_cells(model: Model, latent: str, arrays: Mapping[str, Any]) -> jax.Array:
    """The cells of a latent, with the common axes, that are masked."""
    mask = model.factors[latent].mask(arrays)
    assert mask is not None
    return ~jnp.any(mask, tuple(range(model.axes.rank, mask.ndim)))

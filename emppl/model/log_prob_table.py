"""The table of a site: the log-probability of every cell. The plain form, which every distribution has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.model.site import AlignedSite, with_equal_ranks
from emppl.parameters.constraints import constraint_name, log_jacobian, unconstrain
from emppl.trace import SiteArrays, Unseen, as_numpyro_expects, log_density


def log_prob_table(aligned: AlignedSite, arrays: Mapping[str, SiteArrays], by_element: bool = False) -> jax.Array:
    """Log-probability of every cell, with the common axes (natural log).

    Args:
        by_element: keep the ``to_event`` axes, over which it is a sum.
    """
    fields: tuple[str, ...] = ("distribution", "value", "mask", "label_mask", "log_measure", "arguments")
    if aligned.is_presence:
        fields = ("distribution", "value")
    elif aligned.site.kind != "factor":
        fields = fields[:-1]
    return aligned.over_time(arrays[aligned.name], fields, lambda step: _step(aligned, step, arrays, by_element))


def _step(aligned: AlignedSite, step: SiteArrays, arrays: Mapping[str, SiteArrays], by_element: bool) -> jax.Array:
    if aligned.labels_of is not None:
        atoms = aligned.align(arrays[aligned.labels_of].value, frozenset([aligned.labels_of]), 0)
        value, known = (aligned.align(part, frozenset(), 0) for part in with_equal_ranks(step.value, step.label_mask))
        if step.mask is not None:
            present = aligned.align(jnp.asarray(step.mask), frozenset(), 0)
            known = known & present
        matches = jnp.where(atoms == value, 0.0, -jnp.inf)
        return jnp.where(known, matches, 0.0)
    if aligned.site.kind == "factor":
        table = step.arguments["log_factor"]
    else:
        rank = len(step.distribution.event_shape)
        with as_numpyro_expects():
            value = aligned.unmasked(step, rank)
            if rank:  # NumPyro's multivariate densities do not broadcast a value against the batch
                batch = jnp.broadcast_shapes(value.shape[: value.ndim - rank], step.distribution.batch_shape)
                value = jnp.broadcast_to(value, batch + value.shape[value.ndim - rank :])
            table = log_density(step.distribution, value)
            if aligned.site.kind == "observed" and not aligned.value_has_atoms:
                # Outside its support a density is zero, which NumPyro's log_prob leaves to the caller.
                table = _zero_outside(step.distribution, value, table)
            if step.log_measure is not None:
                table = table + step.log_measure
    events = aligned.site.reinterpreted
    table = jnp.reshape(table, (1,) * max(0, events - table.ndim) + table.shape)
    table = jnp.broadcast_to(table, table.shape[: table.ndim - events] + aligned.event_sizes)
    if step.mask is not None:
        table, mask, absent = with_equal_ranks(table, step.mask, _absent(aligned, step))
        table = jnp.where(mask, table, absent)
    if events and by_element:
        return aligned.align(table, aligned.all_latents, events)
    if events:
        table = jnp.sum(table, tuple(range(-events, 0)))
    return aligned.align(table, aligned.all_latents, 0)


def _absent(aligned: AlignedSite, step: SiteArrays) -> jax.Array:
    """Log-probability of masked cells: such a latent does not exist, which is as good as one that sums to one."""
    if aligned.site.kind == "discrete":
        return jnp.asarray(-math.log(aligned.site.states))
    if aligned.site.kind != "integrated" or aligned.site.distribution == Unseen.__name__:
        return jnp.zeros(())
    rank = len(step.distribution.event_shape)
    constraint = aligned.site.constraint
    free = unconstrain(constraint, step.value)
    standard = -(free**2) / 2 - math.log(2 * math.pi) / 2 - log_jacobian(constraint, free)
    return jnp.sum(standard, tuple(range(step.value.ndim - rank, step.value.ndim)))


def _zero_outside(distribution: Any, value: jax.Array, table: jax.Array) -> jax.Array:
    if constraint_name(distribution.support).startswith("real"):
        return table
    try:
        inside = jnp.asarray(distribution.support(value))
    except (NotImplementedError, TypeError, AttributeError):
        return table
    return jnp.where(inside, table, -jnp.inf)

"""Where EM starts: declared values, the user's values, prior draws, and data-driven seeds for location parameters.

Components of a mixture are seeded as in k-means++: rows of the data, each far from the ones before it.

Reference:
    Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from emppl.jaxpr.maps import ElementMap
from emppl.jaxpr.selection import Selection
from emppl.model.model import Model
from emppl.model.site import AlignedSite
from emppl.mstep import ClosedForm
from emppl.mstep.closed_form import Target
from emppl.mstep.rule import Rule
from emppl.parameters.constraints import constrain, constraint_name, unconstrain
from emppl.program import Program
from emppl.trace import Site, as_numpyro_expects
from emppl.types import Data, Params
from emppl.uncertainty.charts import bounds

_SEED_ROWS = 20_000
"""Most rows among which seeds are chosen."""
_JITTER = 0.5
"""Standard deviation of the jitter, on the unconstrained scale."""


def starting_values(program: Program, rng_key: jax.Array, data: Data, number: int) -> dict[str, jax.Array]:
    """Starting parameters of every restart.

    The first restart starts each ``numpyro.param`` at its declared value and each sampled parameter at seeds
    from the data, or else at a prior draw. Later restarts draw afresh; params without a data-driven seed are
    jittered around their declared value on the unconstrained scale.

    Args:
        number: how many restarts.

    Returns:
        Parameter values by name, with a leading axis of restarts.
    """
    if number == 1 and all(program.model.trace.sites[name].kind == "param" for name in program.model.free):
        declared = program.model.trace.initial(rng_key, list(data))
        return {name: program.model.pin(name, declared[name])[None] for name in program.model.free}
    keys = jax.random.split(rng_key, number)
    first = jnp.arange(number) == 0
    return jax.vmap(lambda key, is_first: _one_start(program, key, data, is_first))(keys, first)


def _one_start(program: Program, rng_key: jax.Array, data: Data, is_first: jax.Array) -> dict[str, jax.Array]:
    draw_key, seed_key, jitter_key = jax.random.split(rng_key, 3)
    drawn = program.model.trace.initial(draw_key, list(data))
    params = {name: drawn[name] for name in program.model.free}
    seeded = {
        name: _inside(program.model.trace.sites[name], seed, params[name])
        for name, seed in _seeds(program, seed_key, params, data).items()
    }
    for position, name in enumerate(program.model.free):
        site = program.model.trace.sites[name]
        if site.kind == "param":
            later = seeded.get(name)
            if later is None:
                later = _jittered(site, jax.random.fold_in(jitter_key, position), params[name])
            params[name] = jnp.where(is_first, params[name], later)
        elif name in seeded:
            params[name] = seeded[name]
    return {name: program.model.pin(name, value) for name, value in params.items()}


def _inside(site: Site, seed: jax.Array, otherwise: jax.Array) -> jax.Array:
    """A seed where it lies within the constraint of a site, else another value: seeds from data ignore constraints."""
    if "ordered" in constraint_name(site.constraint):
        seed = jnp.sort(seed, -1)
    try:
        with as_numpyro_expects():
            inside = jnp.asarray(site.constraint(seed))
        inside = jnp.reshape(inside, inside.shape + (1,) * (seed.ndim - inside.ndim))
        seed = jnp.where(inside, seed, otherwise)
    except NotImplementedError:
        pass
    low, high = bounds(site.constraint)
    above = True if low is None else seed > low
    below = True if high is None else seed < high
    return jnp.where(jnp.logical_and(above, below), seed, otherwise)


def _jittered(site: Site, key: jax.Array, value: jax.Array) -> jax.Array:
    free = unconstrain(site.constraint, value)
    noise = _JITTER * jax.random.normal(key, free.shape, free.dtype)
    jittered = constrain(site.constraint, free + noise)
    return jnp.where(jnp.all(jnp.isfinite(jittered)), jittered, value)


def _seeds(program: Program, key: jax.Array, params: Params, data: Data) -> dict[str, jax.Array]:
    """Data-driven values of the parameters for which a family offers them."""
    model = program.model
    arrays = model.evaluate(params, data)
    groups: dict[tuple[str, ...], list[AlignedSite]] = {}
    wanted = {}
    for name in program.rules:
        target = _first_target(program, name)
        if target is None:
            continue
        factor = model.factors[target.site]
        if factor.family is None or factor.family.start is None or factor.site.kind != "observed":
            continue
        if factor.latents.get("value"):
            continue
        wanted[name] = (factor, target.argument)
        latents = tuple(n for n in model.axes.names if n in factor.all_latents)
        groups.setdefault(latents, [])
        if factor not in groups[latents]:
            groups[latents].append(factor)
    seeds: dict[str, jax.Array] = {}
    for number, (latents, factors) in enumerate(groups.items()):
        rows = _seed_rows(model, jax.random.fold_in(key, number), latents, factors, arrays)
        for name, (factor, argument) in wanted.items():
            suggestion = _suggestion(factor, argument, latents, rows, arrays) if factor in factors else None
            if suggestion is None:
                continue

            def selected(
                value: jax.Array, name: str = name, factor: AlignedSite = factor, argument: str = argument
            ) -> jax.Array:
                return factor.argument(model.evaluate({**params, name: value}, data), argument)

            # Averaged over the cells that share an entry. A map between parameter and argument multiplies both sums by
            # its derivative, which may be negative.
            _, pull_back = jax.vjp(selected, params[name])
            total, count = pull_back(suggestion)[0], pull_back(jnp.ones_like(suggestion))[0]
            used, element_map = count != 0, _map(program.rules[name])
            mean = jnp.where(used, total / jnp.where(used, count, 1), element_map.forward(params[name]))
            seeds[name] = element_map.inverse(mean)
    return seeds


def _first_target(program: Program, name: str) -> Target | None:
    """An argument that a parameter is selected into, for which its family may suggest a start."""
    rule = program.rules[name]
    if isinstance(rule, ClosedForm):
        return rule.targets[0]
    if not rule.free:
        return None
    for path, position in program.model.trace.outputs.items():
        factor = program.model.factors.get(path[0])
        if factor is None or factor.family is None or path[1] != "arguments" or factor.labels_of is not None:
            continue
        if path[2] in factor.family.argument_ranks and name in factor.parameters[path[2]]:
            selection = program.model.dependence.selection(name, position)
            if isinstance(selection, Selection) and selection.is_plain:
                return Target(path[0], path[2])
    return None


def _map(rule: Rule) -> ElementMap:
    return rule.map if isinstance(rule, ClosedForm) else ElementMap()


def _summary(factor: AlignedSite, arrays: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Value, mean and spread over all axes of a site, masked cells left out."""
    value, mask = factor.value(arrays), factor.mask(arrays)
    everywhere = (1,) * (factor.axes.rank + factor.site.reinterpreted)
    mean_of = factor.mean_over_rows(value, mask, everywhere)
    mean = mean_of(value)
    spread = jnp.sqrt(mean_of((value - mean) ** 2))
    if mask is not None:
        present = jnp.reshape(mask, mask.shape + (1,) * (value.ndim - mask.ndim))
        value = jnp.where(present, value, mean)
    return value, mean, jnp.where(spread > 0, spread, 1)


def _seed_rows(
    model: Model, key: jax.Array, latents: Sequence[str], factors: Sequence[AlignedSite], arrays: Mapping[str, Any]
) -> jax.Array:
    """Indices of one row per joint state of the latents, chosen far apart."""
    rows = model.axes.sizes[model.axes.rows]
    states = math.prod(model.axes.sizes[name] for name in latents)
    position = model.axes.rank - 1
    features = []
    for factor in factors:
        value, mean, spread = _summary(factor, arrays)
        standard = jnp.moveaxis((value - mean) / spread, position, 0)
        if standard.shape[0] == rows:
            features.append(jnp.reshape(standard, (rows, -1)))
    if not features:
        return jnp.zeros(states, int)
    matrix = jnp.concatenate(features, -1)
    subset = jnp.arange(rows)
    pick_key, walk_key = jax.random.split(key)
    if rows > _SEED_ROWS:
        subset = jax.random.randint(pick_key, (_SEED_ROWS,), 0, rows)
        matrix = matrix[subset]

    def pick(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chosen, distance = carry
        step_key = jax.random.fold_in(walk_key, number)
        weights = jnp.where(number == 0, jnp.ones_like(distance), distance)
        weights = jnp.where(jnp.sum(weights) > 0, weights, jnp.ones_like(weights))
        index = jax.random.categorical(step_key, jnp.log(weights))
        new = jnp.sum((matrix - matrix[index][None, :]) ** 2, -1)
        return chosen.at[number].set(index), jnp.where(number == 0, new, jnp.minimum(distance, new))

    start = (jnp.zeros(states, int), jnp.zeros(matrix.shape[0], matrix.dtype))
    chosen, _ = jax.lax.fori_loop(0, states, pick, start)
    return subset[chosen]


def _suggestion(
    factor: AlignedSite, argument: str, latents: Sequence[str], rows: jax.Array, arrays: Mapping[str, Any]
) -> jax.Array | None:
    """What the family suggests for an argument in every cell, with one row of the data for each joint state."""
    value, mean, spread = _summary(factor, arrays)
    axes = factor.axes
    aligned = factor.argument(arrays, argument)
    varying = [name for name in latents if aligned.shape[axes.names.index(name)] > 1]
    seeds = mean
    if latents and len(varying) == len(latents) and value.shape[axes.rank - 1] > 1:
        # The chosen rows, one per joint state, take the place of the latents' (so far single) axes.
        chosen = jnp.moveaxis(jnp.take(value, rows, axis=axes.rank - 1), axes.rank - 1, 0)
        chosen = jnp.reshape(chosen, tuple(axes.sizes[name] for name in latents) + chosen.shape[1:])
        places = [axes.names.index(name) for name in latents]
        chosen = jnp.squeeze(chosen, tuple(len(latents) + place for place in places))
        chosen = jnp.moveaxis(chosen, tuple(range(len(latents))), tuple(places))
        seeds = jnp.expand_dims(chosen, axes.rank - 1)
    assert factor.family is not None and factor.family.start is not None
    suggestion = factor.family.start(argument, seeds, mean, spread)
    try:
        return None if suggestion is None else jnp.broadcast_to(suggestion, aligned.shape)
    except ValueError:
        return None  # the argument varies along other axes than the seeds do: keep the declared start

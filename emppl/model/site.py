"""One likelihood site on the model's common axes: its values, its arguments, and the log-probability of every cell.

This is the plain path, which works for every distribution.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.families import Family
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.prune import path_names
from emppl.model.axes import Axes
from emppl.parameters.constraints import constraint_name
from emppl.trace import Site, SiteArrays, Trace, Unseen, as_numpyro_expects, log_density


@dataclasses.dataclass(frozen=True)
class SiteTable:
    """A likelihood site with its axes and its dependences.

    Attributes:
        site: static facts.
        axes: the common axes of the model.
        family: the registered family of its distribution, or None.
        latents: for every field (``"value"``, ``"mask"``, ``"cell_weight"`` or an argument), the latents it depends on.
        parameters: for every field, the parameters it depends on.
        labels_of: the latent whose labels this site carries, or None.
        categories: number of categories of a distribution over a finite set.
        timed: paths of the fields that vary along the time axis of a scan.
        over_atoms: axis of the atoms of an integrated latent, and the paths of the fields that vary along it; or None.
        is_presence: its mask says which steps of a chain exist, and is no part of its table.
    """

    site: Site
    axes: Axes
    family: Family | None
    latents: Mapping[str, frozenset[str]]
    parameters: Mapping[str, frozenset[str]]
    labels_of: str | None = None
    categories: int = 0
    timed: frozenset[tuple[str, ...]] = frozenset()
    is_presence: bool = False
    over_atoms: tuple[str, frozenset[tuple[str, ...]]] | None = None

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.site.name

    @property
    def event_sizes(self) -> tuple[int, ...]:
        """Sizes of the batch axes that ``to_event`` turned into event axes."""
        return self.site.event_shape[: self.site.reinterpreted]

    @property
    def all_latents(self) -> frozenset[str]:
        """Every latent that its log-probability depends on."""
        found = frozenset().union(*self.latents.values())
        return found | {self.labels_of} if self.labels_of else found

    @property
    def all_parameters(self) -> frozenset[str]:
        """Every parameter that its log-probability depends on."""
        return frozenset().union(*self.parameters.values())

    @property
    def value_has_atoms(self) -> bool:
        """Does its value hold atoms of an integrated latent, which move in every iteration?"""
        return bool(self.latents.get("value", frozenset()) & self.axes.of_atoms)

    # ------------------------------------------------------------------------------------------ the table

    def table(self, arrays: Mapping[str, SiteArrays], by_element: bool = False) -> jax.Array:
        """Log-probability of every cell, with the common axes (natural log).

        Args:
            arrays: the evaluated model.
            by_element: keep the ``to_event`` axes, over which it is a sum.
        """
        fields: tuple[str, ...] = ("distribution", "value", "mask", "label_mask", "log_measure", "arguments")
        if self.is_presence:
            fields = ("distribution", "value")
        elif self.site.kind != "factor":
            fields = fields[:-1]
        return self._over_time(arrays[self.name], fields, lambda mine: self._table(mine, arrays, by_element))

    def _table(self, mine: SiteArrays, arrays: Mapping[str, SiteArrays], by_element: bool) -> jax.Array:
        if self.labels_of is not None:
            atoms = self._constant(arrays[self.labels_of].value, frozenset([self.labels_of]), 0)
            value, known = (self._constant(part, frozenset(), 0) for part in _padded(mine.value, mine.label_mask))
            if mine.mask is not None:
                present = self._constant(jnp.asarray(mine.mask), frozenset(), 0)
                known = known & present
            matches = jnp.where(atoms == value, 0.0, -jnp.inf)
            return jnp.where(known, matches, 0.0)
        if self.site.kind == "factor":
            table = mine.arguments["log_factor"]
        else:
            rank = len(mine.distribution.event_shape)
            with as_numpyro_expects():
                value = self._unmasked(mine, rank)
                if rank:  # NumPyro's multivariate densities do not broadcast a value against the batch
                    batch = jnp.broadcast_shapes(value.shape[: value.ndim - rank], mine.distribution.batch_shape)
                    value = jnp.broadcast_to(value, batch + value.shape[value.ndim - rank :])
                table = log_density(mine.distribution, value)
                if self.site.kind == "observed" and not self.value_has_atoms:
                    # Outside its support a density is zero, which NumPyro's log_prob leaves to the caller.
                    table = _zero_outside(mine.distribution, value, table)
                if mine.log_measure is not None:
                    table = table + mine.log_measure
        events = self.site.reinterpreted
        table = jnp.reshape(table, (1,) * max(0, events - table.ndim) + table.shape)
        table = jnp.broadcast_to(table, table.shape[: table.ndim - events] + self.event_sizes)
        if mine.mask is not None:
            table, mask, absent = _padded(table, mine.mask, self._absent(mine))
            table = jnp.where(mask, table, absent)
        if events and by_element:
            return self._constant(table, self.all_latents, events)
        if events:
            table = jnp.sum(table, tuple(range(-events, 0)))
        return self._constant(table, self.all_latents, 0)

    def _absent(self, mine: SiteArrays) -> jax.Array:
        """Log-probability of masked cells: such a latent does not exist, which is as good as one that sums to one."""
        if self.site.kind == "discrete":
            return jnp.asarray(-math.log(self.site.states))
        if self.site.kind != "integrated" or self.site.distribution == Unseen.__name__:
            return jnp.zeros(())
        rank = len(mine.distribution.event_shape)
        standard = -(mine.value**2) / 2 - math.log(2 * math.pi) / 2
        return jnp.sum(standard, tuple(range(mine.value.ndim - rank, mine.value.ndim)))

    def _unmasked(self, mine: SiteArrays, rank: int) -> jax.Array:
        """The value, with masked cells replaced by something inside the support (they may be NaN)."""
        if mine.mask is None or self.site.kind != "observed":
            return mine.value
        mask = jnp.reshape(mine.mask, mine.mask.shape + (1,) * rank)
        value, mask = _padded(mine.value, mask)
        try:
            inside = mine.distribution.support.feasible_like(value)
        except NotImplementedError:
            return value
        except ValueError:  # bounds that vary between states: NumPyro wants the value spread over them
            value, mask, _ = jnp.broadcast_arrays(value, mask, jnp.zeros(mine.distribution.batch_shape + (1,) * rank))
            inside = mine.distribution.support.feasible_like(value)
        return jnp.where(mask, value, inside)

    def scale(self, arrays: Mapping[str, SiteArrays]) -> jax.Array | None:
        """Weight of every cell with the common axes, or None."""
        mine = arrays[self.name]
        if mine.cell_weight is None:
            return None
        depends = self.latents.get("cell_weight", frozenset())
        return self._over_time(mine, ("cell_weight",), lambda mine: self._constant(mine.cell_weight, depends, 0))

    def presence(self, arrays: Mapping[str, SiteArrays]) -> jax.Array:
        """Which steps of a chain exist, with the common axes."""
        return self._over_time(arrays[self.name], ("mask",), lambda mine: self._constant(mine.mask, frozenset(), 0))

    def _over_time(self, mine: SiteArrays, fields: tuple[str, ...], function: Callable) -> jax.Array:
        """Apply a function of one step's arrays to all steps; what varies over time gets the time axis.

        Args:
            mine: arrays of the site.
            fields: what the function reads; the other fields are None.
            function: from one step's arrays to an array that starts with the common axes.
        """
        nothing: dict[str, Any] = {f.name: None for f in dataclasses.fields(mine) if f.name not in fields}
        read = dataclasses.replace(mine, **nothing)
        if self.over_atoms is None:
            return self._over_steps(read, function)
        axis, paths = self.over_atoms
        return _mapped(read, lambda one: self._over_steps(one, function), paths, self.axes.names.index(axis))

    def _over_steps(self, mine: SiteArrays, function: Callable) -> jax.Array:
        time = self.site.time
        if time is None:
            return function(mine)
        return self.by_step(mine, function, self.axes.names.index(time.name))

    def by_step(self, mine: SiteArrays, function: Callable, position: int | None = None) -> Any:
        """A function of the arrays of one step, for all steps.

        Args:
            mine: arrays of a site inside a scan.
            function: from one step's arrays to anything.
            position: where the time axis goes, in place of an axis of size one; default: a new axis in front. What does
                not vary over time gets no time axis.
        """
        return _mapped(mine, function, self.timed, position)

    def at_one_atom(self, mine: SiteArrays) -> SiteArrays:
        """Arrays of a site without the axis of atoms, at the first of them."""
        if self.over_atoms is None:
            return mine
        flat, treedef = jax.tree_util.tree_flatten_with_path(mine)
        return jax.tree.unflatten(
            treedef, [leaf[0] if path_names(path) in self.over_atoms[1] else leaf for path, leaf in flat]
        )

    def _constant(self, array: jax.Array, depends: frozenset[str], trailing: int) -> jax.Array:
        """Align, keeping one copy along the axes of latents on which the array does not depend."""
        split = array.ndim - trailing
        for name in self.axes.latents - depends:
            position = split + self.axes.dims[name]
            if position >= 0 and array.shape[position] > 1:
                array = jax.lax.slice_in_dim(array, 0, 1, axis=position)
        return self.axes.align(array, self.site, trailing)

    # ------------------------------------------------------------------------------- what the table is made of

    def argument(self, arrays: Mapping[str, SiteArrays], name: str) -> jax.Array:
        """One argument of the distribution: common axes, ``to_event`` axes, its own event axes."""
        assert self.family is not None
        trailing = self.site.reinterpreted + self.family.argument_ranks[name]
        given = arrays[self.name]
        mine = dataclasses.replace(given, arguments={name: given.arguments[name]})

        def aligned(mine):
            raw = mine.arguments[name]
            raw = jnp.reshape(raw, (1,) * max(0, trailing - raw.ndim) + raw.shape)
            return self._constant(raw, self.latents[name], trailing)

        return self._over_time(mine, ("arguments",), aligned)

    def arguments(self, arrays: Mapping[str, SiteArrays]) -> dict[str, jax.Array]:
        """Every argument that can hold parameters."""
        assert self.family is not None
        given = arrays[self.name].arguments
        return {
            n: self.argument(arrays, n) for n in given if n in self.family.argument_ranks and n not in self.family.fixed
        }

    def fixed(self, arrays: Mapping[str, SiteArrays]) -> dict[str, Any]:
        """Arguments that belong to the statistics."""
        assert self.family is not None
        fixed: dict[str, Any] = {name: self.argument(arrays, name) for name in self.family.fixed}
        return fixed | {"categories": self.categories}

    def value(self, arrays: Mapping[str, SiteArrays]) -> jax.Array:
        """The value: common axes, ``to_event`` axes, event axes of the family."""
        assert self.family is not None
        rank = self.family.value_rank
        trailing = self.site.reinterpreted + rank
        mine = arrays[self.name]
        masked = mine.mask is not None and self.site.kind == "observed"

        def aligned(mine):
            value = self._unmasked(mine, rank)
            value = jnp.reshape(value, (1,) * max(0, trailing - value.ndim) + value.shape)
            # Masked cells hold another value: it varies with the mask.
            return self._constant(value, self.latents["value"] | self.latents.get("mask", frozenset()), trailing)

        return self._over_time(mine, ("value", "mask", "distribution") if masked else ("value",), aligned)

    def log_measure(self, arrays: Mapping[str, SiteArrays]) -> jax.Array:
        """What a transformation of the value adds to its log-probability: common axes and ``to_event`` axes."""
        events = self.site.reinterpreted

        def aligned(mine):
            found = jnp.reshape(
                mine.log_measure, (1,) * max(0, events - mine.log_measure.ndim) + mine.log_measure.shape
            )
            return self._constant(found, self.latents.get("log_measure", frozenset()), events)

        return self._over_time(arrays[self.name], ("log_measure",), aligned)

    def mask(self, arrays: Mapping[str, SiteArrays]) -> jax.Array | None:
        """Mask over common axes and ``to_event`` axes, or None."""
        mine = arrays[self.name]
        events = self.site.reinterpreted
        if mine.mask is None or self.is_presence:
            return None

        def aligned(mine):
            mask = jnp.reshape(mine.mask, (1,) * max(0, events - mine.mask.ndim) + mine.mask.shape)
            return self._constant(mask, self.latents.get("mask", frozenset()), events)

        return self._over_time(mine, ("mask",), aligned)


def _mapped(mine: SiteArrays, function: Callable, paths, position: int | None) -> Any:
    """A function of arrays, mapped over the leading axis that some of them have."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(mine)
    moving = [path_names(path) in paths for path, _ in flat]
    if not any(moving):
        return function(mine)

    def one(varying):
        varying = iter(varying)
        data = [next(varying) if moves else leaf for moves, (_, leaf) in zip(moving, flat, strict=True)]
        return function(jax.tree.unflatten(treedef, data))

    varying = [leaf for moves, (_, leaf) in zip(moving, flat, strict=True) if moves]
    if position is None:
        return jax.vmap(one)(varying)
    return jnp.squeeze(jax.vmap(one, out_axes=position)(varying), position + 1)


def _zero_outside(distribution, value, table):
    if constraint_name(distribution.support).startswith("real"):
        return table
    try:
        inside = jnp.asarray(distribution.support(value))
    except (NotImplementedError, TypeError, AttributeError):
        return table
    return jnp.where(inside, table, -jnp.inf)


def _padded(*arrays):
    """Give arrays the same rank with leading axes of size one."""
    arrays = tuple(jnp.asarray(array) for array in arrays)
    rank = max(array.ndim for array in arrays)
    return tuple(jnp.reshape(array, (1,) * (rank - array.ndim) + array.shape) for array in arrays)


def field_dependences(trace: Trace, dependence: Dependence, name: str) -> tuple[dict, dict]:
    """For every field of a site, the latents and the parameters it depends on."""
    latents: dict[str, frozenset[str]] = {}
    parameters: dict[str, frozenset[str]] = {}
    for path, position in trace.outputs.items():
        if path[0] != name:
            continue
        field = path[2] if path[1] == "arguments" else path[1]
        labels = dependence.of_output(position)
        for kind, found in (("latent", latents), ("parameter", parameters)):
            names = frozenset(label for what, label in labels if what == kind)
            found[field] = found.get(field, frozenset()) | names
    return latents, parameters

"""One likelihood site on the model's common axes: its value, arguments, mask and weights.

What is made of these stands beside it, as *forms* of the site: its table of log-probabilities (``table``), statistics
times natural parameters (``natural``), and the same for a linear predictor (``regression``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from emppl.errors import Refusal
from emppl.families import Family
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.prune import path_names
from emppl.model.axes import Axes
from emppl.trace import Site, SiteArrays, Trace


@dataclasses.dataclass(frozen=True)
class AlignedSite:
    """A likelihood site whose arrays are aligned on the common axes, with what they depend on.

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
        is_presence: whether its mask says which steps of a chain exist, and is left out of its table.
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
        latents = frozenset().union(*self.latents.values())
        return latents | {self.labels_of} if self.labels_of else latents

    @property
    def all_parameters(self) -> frozenset[str]:
        """Every parameter that its log-probability depends on."""
        return frozenset().union(*self.parameters.values())

    @property
    def value_has_atoms(self) -> bool:
        """Whether its value holds atoms of an integrated latent, which move in every iteration."""
        return bool(self.latents.get("value", frozenset()) & self.axes.of_atoms)

    @property
    def is_exponential(self) -> bool:
        """Whether its family is registered with sufficient statistics."""
        return self.family is not None and self.family.is_exponential

    @property
    def has_natural_form(self) -> bool:
        """Whether its table can be a product of statistics computed once with natural parameters."""
        return self.is_exponential and self.site.kind == "observed" and self.why_not_natural() is None

    @property
    def has_statistics(self) -> bool:
        """Whether its sufficient statistics exist, independent of every parameter."""
        if not self.is_exponential or self.labels_of is not None or self.site.kind == "factor":
            return False
        assert self.family is not None
        return not any(self.parameters.get(field) for field in ("value", "mask", *self.family.fixed))

    @property
    def rough(self) -> frozenset[str]:
        """Parameters in arguments in which its density has corners or jumps."""
        fields = (*self.family.kinks, *self.family.edges) if self.family is not None else ()
        return frozenset().union(*(self.parameters.get(field, ()) for field in fields))

    def why_not_natural(self) -> Refusal | None:
        """The reason why a natural form is impossible, or None."""
        if self.family is None or not self.is_exponential:
            return Refusal(f"{self.site.distribution} has no registered sufficient statistics")
        for field in ("value", "mask", *self.family.fixed):
            if self.latents.get(field) or self.parameters.get(field):
                return Refusal(f"its {field} depends on a latent or a parameter")
        return None

    @property
    def can_collapse(self) -> bool:
        """Whether its spread is compared with that of the data, because a component of it may collapse."""
        if self.family is None or self.family.scale_floor is None:
            return False
        if self.is_exponential:
            return self.has_statistics and not self.value_has_atoms
        return self.site.kind == "observed" and not any(
            of.get(field) for of in (self.latents, self.parameters) for field in ("value", "mask")
        )

    # ---------------------------------------------------------------------------------------------- its arrays

    def scale(self, arrays: Mapping[str, SiteArrays]) -> jax.Array | None:
        """Weight of every cell with the common axes, or None."""
        site_arrays = arrays[self.name]
        if site_arrays.cell_weight is None:
            return None
        depends = self.latents.get("cell_weight", frozenset())
        return self.over_time(site_arrays, ("cell_weight",), lambda step: self.align(step.cell_weight, depends, 0))

    def presence(self, arrays: Mapping[str, SiteArrays]) -> jax.Array:
        """Which steps of a chain exist, with the common axes."""
        return self.over_time(arrays[self.name], ("mask",), lambda step: self.align(step.mask, frozenset(), 0))

    def over_time(self, site_arrays: SiteArrays, fields: tuple[str, ...], function: Callable) -> jax.Array:
        """Apply a function of one step's arrays to all steps; what varies over time gets the time axis.

        Args:
            site_arrays: arrays of the site.
            fields: what the function reads; the other fields are None.
            function: from one step's arrays to an array that starts with the common axes.
        """
        unread: dict[str, Any] = {f.name: None for f in dataclasses.fields(site_arrays) if f.name not in fields}
        read = dataclasses.replace(site_arrays, **unread)
        if self.over_atoms is None:
            return self._over_steps(read, function)
        axis, paths = self.over_atoms
        return _mapped(read, lambda atom: self._over_steps(atom, function), paths, self.axes.names.index(axis))

    def _over_steps(self, site_arrays: SiteArrays, function: Callable) -> jax.Array:
        time = self.site.time
        if time is None:
            return function(site_arrays)
        return self.by_step(site_arrays, function, self.axes.names.index(time.name))

    def by_step(self, site_arrays: SiteArrays, function: Callable, position: int | None = None) -> Any:
        """A function of the arrays of one step, for all steps.

        Args:
            site_arrays: arrays of a site inside a scan.
            function: from one step's arrays to anything.
            position: where the time axis goes, in place of an axis of size one; default: a new axis in front. What does
                not vary over time gets no time axis.
        """
        return _mapped(site_arrays, function, self.timed, position)

    def at_one_atom(self, site_arrays: SiteArrays) -> SiteArrays:
        """Arrays of a site without the axis of atoms, at the first of them."""
        if self.over_atoms is None:
            return site_arrays
        flat, treedef = jax.tree_util.tree_flatten_with_path(site_arrays)
        return jax.tree.unflatten(
            treedef, [leaf[0] if path_names(path) in self.over_atoms[1] else leaf for path, leaf in flat]
        )

    def align(self, array: jax.Array, depends: frozenset[str], trailing: int) -> jax.Array:
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
        site_arrays = dataclasses.replace(given, arguments={name: given.arguments[name]})

        def aligned(step: SiteArrays) -> jax.Array:
            raw = step.arguments[name]
            raw = jnp.reshape(raw, (1,) * max(0, trailing - raw.ndim) + raw.shape)
            return self.align(raw, self.latents[name], trailing)

        return self.over_time(site_arrays, ("arguments",), aligned)

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
        site_arrays = arrays[self.name]
        masked = site_arrays.mask is not None and self.site.kind == "observed"

        def aligned(step: SiteArrays) -> jax.Array:
            value = self.unmasked(step, rank)
            value = jnp.reshape(value, (1,) * max(0, trailing - value.ndim) + value.shape)
            # Masked cells hold another value: it varies with the mask.
            return self.align(value, self.latents["value"] | self.latents.get("mask", frozenset()), trailing)

        return self.over_time(site_arrays, ("value", "mask", "distribution") if masked else ("value",), aligned)

    def log_measure(self, arrays: Mapping[str, SiteArrays]) -> jax.Array:
        """What a transformation of the value adds to its log-probability: common axes and ``to_event`` axes."""
        events = self.site.reinterpreted

        def aligned(step: SiteArrays) -> jax.Array:
            measure = step.log_measure
            measure = jnp.reshape(measure, (1,) * max(0, events - measure.ndim) + measure.shape)
            return self.align(measure, self.latents.get("log_measure", frozenset()), events)

        return self.over_time(arrays[self.name], ("log_measure",), aligned)

    def mask(self, arrays: Mapping[str, SiteArrays]) -> jax.Array | None:
        """Mask over common axes and ``to_event`` axes, or None."""
        site_arrays = arrays[self.name]
        events = self.site.reinterpreted
        if site_arrays.mask is None or self.is_presence:
            return None

        def aligned(step: SiteArrays) -> jax.Array:
            mask = jnp.reshape(step.mask, (1,) * max(0, events - step.mask.ndim) + step.mask.shape)
            return self.align(mask, self.latents.get("mask", frozenset()), events)

        return self.over_time(site_arrays, ("mask",), aligned)

    def unmasked(self, step: SiteArrays, rank: int) -> jax.Array:
        """The value, with masked cells replaced by something inside the support (they may be NaN)."""
        if step.mask is None or self.site.kind != "observed":
            return step.value
        mask = jnp.reshape(step.mask, step.mask.shape + (1,) * rank)
        value, mask = with_equal_ranks(step.value, mask)
        try:
            inside = step.distribution.support.feasible_like(value)
        except NotImplementedError:
            return value
        except ValueError:  # bounds that vary between states: NumPyro wants the value spread over them
            value, mask, _ = jnp.broadcast_arrays(value, mask, jnp.zeros(step.distribution.batch_shape + (1,) * rank))
            inside = step.distribution.support.feasible_like(value)
        return jnp.where(mask, value, inside)

    def mean_over_rows(
        self, value: jax.Array, mask: jax.Array | None, cells: Sequence[int]
    ) -> Callable[[jax.Array], jax.Array]:
        """Averaging function over the axes along which no argument varies."""
        rank = self.axes.rank
        over = tuple(a for a in range(rank) if value.shape[a] > 1 and cells[a] == 1)

        def mean(quantity: jax.Array) -> jax.Array:
            extra = quantity.ndim - rank - self.site.reinterpreted
            if mask is None:
                return jnp.mean(quantity, over, keepdims=True) if over else quantity
            present = jnp.reshape(mask, mask.shape + (1,) * extra)
            total = jnp.sum(jnp.where(present, quantity, 0), over, keepdims=True)
            count = jnp.sum(jnp.broadcast_to(present, quantity.shape), over, keepdims=True)
            return total / jnp.maximum(count, 1)

        return mean


def _mapped(arrays: SiteArrays, function: Callable, paths: frozenset[tuple[str, ...]], position: int | None) -> Any:
    """A function of arrays, mapped over the leading axis that some of them have."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(arrays)
    moving = [path_names(path) in paths for path, _ in flat]
    if not any(moving):
        return function(arrays)

    def at_one(slices: list[jax.Array]) -> Any:
        remaining = iter(slices)
        data = [next(remaining) if moves else leaf for moves, (_, leaf) in zip(moving, flat, strict=True)]
        return function(jax.tree.unflatten(treedef, data))

    varying = [leaf for moves, (_, leaf) in zip(moving, flat, strict=True) if moves]
    if position is None:
        return jax.vmap(at_one)(varying)
    return jnp.squeeze(jax.vmap(at_one, out_axes=position)(varying), position + 1)


def with_equal_ranks(*arrays: Any) -> tuple[jax.Array, ...]:
    """Arrays with leading axes of size one, so that all have the same rank."""
    arrays = tuple(jnp.asarray(array) for array in arrays)
    rank = max(array.ndim for array in arrays)
    return tuple(jnp.reshape(array, (1,) * (rank - array.ndim) + array.shape) for array in arrays)


def field_dependences(trace: Trace, dependence: Dependence, name: str) -> tuple[dict, dict]:
    """Latents and parameters on which a site depends, both by field."""
    latents: dict[str, frozenset[str]] = {}
    parameters: dict[str, frozenset[str]] = {}
    for path, position in trace.outputs.items():
        if path[0] != name:
            continue
        field = path[2] if path[1] == "arguments" else path[1]
        labels = dependence.of_output(position)
        for kind, by_field in (("latent", latents), ("parameter", parameters)):
            names = frozenset(label for label_kind, label in labels if label_kind == kind)
            by_field[field] = by_field.get(field, frozenset()) | names
    return latents, parameters

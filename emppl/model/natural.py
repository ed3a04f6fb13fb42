"""One factor per likelihood site: a table of log-probabilities, or statistics times natural parameters.

``natural`` and ``prepare`` are the fast path of a registered family whose value does not depend on parameters or
latents: statistics are computed once, and a table is then one matrix product. ``table`` is its plain twin. Both give
the same numbers; tests compare them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.model.axes import contract, look_up
from emppl.model.site import SiteTable
from emppl.numerics.guarded import weighted
from emppl.trace import SiteArrays

_MOST_ONE_HOT = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Prepared:
    """What the natural form of a site needs and no parameter changes.

    Attributes:
        statistics: sufficient statistics with a count column, ``(*axes without rows, features, rows)``.
        reference: centre and unit of the statistics.
        base_measure: sum over rows of the part of the log-probability that no parameter touches, weighted.
        bound: largest absolute value of every statistic, to predict rounding.
    """

    statistics: jax.Array
    reference: Any
    base_measure: jax.Array
    bound: jax.Array


@dataclasses.dataclass(frozen=True)
class SiteFactor(SiteTable):
    """A likelihood site with its table, its sufficient statistics and its natural parameters."""

    @property
    def is_exponential(self) -> bool:
        """Is its family registered with sufficient statistics?"""
        return self.family is not None and self.family.is_exponential

    @property
    def has_natural_form(self) -> bool:
        """Can its table be a product of statistics computed once with natural parameters?"""
        return self.is_exponential and self.site.kind == "observed" and self.why_not_natural() is None

    @property
    def has_statistics(self) -> bool:
        """Do its sufficient statistics exist, independent of every parameter?"""
        if not self.is_exponential or self.labels_of is not None or self.site.kind == "factor":
            return False
        assert self.family is not None
        return not any(self.parameters.get(field) for field in ("value", "mask", *self.family.fixed))

    @property
    def rough(self) -> frozenset[str]:
        """Parameters in arguments in which its density has corners or jumps."""
        fields = (*self.family.kinks, *self.family.edges) if self.family is not None else ()
        return frozenset().union(*(self.parameters.get(field, ()) for field in fields))

    def why_not_natural(self) -> str | None:
        """The reason why there is no natural form, or None."""
        if self.family is None or not self.is_exponential:
            return f"{self.site.distribution} has no registered sufficient statistics"
        for field in ("value", "mask", *self.family.fixed):
            if self.latents.get(field) or self.parameters.get(field):
                return f"its {field} depends on a latent or a parameter"
        return None

    @property
    def can_collapse(self) -> bool:
        """Is its spread compared with that of the data, because a component of it may collapse?"""
        if self.family is None or self.family.scale_floor is None:
            return False
        if self.is_exponential:
            return self.has_statistics and not self.value_has_atoms
        return self.site.kind == "observed" and not any(
            of.get(field) for of in (self.latents, self.parameters) for field in ("value", "mask")
        )

    def scale_floor(self, arrays: Mapping[str, SiteArrays], prepared: Mapping[str, Prepared]) -> jax.Array:
        """Spread of every component relative to the data.

        Args:
            arrays: the evaluated model.
            prepared: statistics by site; a family without any is measured by the deviation of all values.
        """
        assert self.family is not None and self.family.scale_floor is not None
        arguments = self.arguments(arrays)
        if self.is_exponential:
            return self.family.scale_floor(arguments, prepared[self.name].reference)
        value = self.value(arrays)
        mean = self._mean_over_rows(value, self.mask(arrays), (1,) * self.axes.rank)
        return self.family.scale_floor(arguments, self.family.reference(value, mean))

    def cell_shape(self, arguments: Mapping[str, jax.Array]) -> tuple[int, ...]:
        """Axes along which any argument varies: common axes then ``to_event`` axes."""
        assert self.family is not None
        shapes = [a.shape[: a.ndim - self.family.argument_ranks[n]] for n, a in arguments.items()]
        return jnp.broadcast_shapes(*shapes)

    def prepare(self, arrays: Mapping[str, SiteArrays], local: bool = False) -> Prepared:
        """Sufficient statistics of the data, centred and scaled.

        Args:
            arrays: the evaluated model.
            local: centre at every component's own location instead of the overall mean, which keeps all
                digits when components are far narrower than the data, at the price of a statistic per component.
        """
        assert self.family is not None and self.family.statistics is not None
        family, axes = self.family, self.axes
        value, mask = self.value(arrays), self.mask(arrays)
        arguments = self.arguments(arrays)
        cells = self.cell_shape(arguments)
        if local and self.family.local_reference is not None:
            reference = self.family.local_reference(arguments)
        else:
            reference = family.reference(value, self._mean_over_rows(value, mask, cells))
        fixed = self.fixed(arrays)
        if self.looks_up:
            return Prepared(self._codes(value, mask), reference, jnp.zeros(()), jnp.zeros(()))
        statistics = self.family.statistics(value, fixed, reference)
        base = family.base_measure(value, fixed)
        if arrays[self.name].log_measure is not None:
            base = base + self.log_measure(arrays)
        ones = jnp.ones(statistics.shape[:-1] + (1,), statistics.dtype)
        full = statistics.shape[: axes.rank] + self.event_sizes
        if mask is not None:
            statistics = jnp.where(mask[..., None], statistics, 0)
            ones = jnp.where(mask[..., None], ones, 0)
            base = jnp.where(mask, base, 0)
            full = jnp.broadcast_shapes(full, mask.shape)
        statistics = jnp.broadcast_to(statistics, full + statistics.shape[-1:])
        if self.counts_by_element:
            statistics = jnp.concatenate([statistics, jnp.broadcast_to(ones, full + (1,))], -1)
            statistics = jnp.reshape(statistics, full[: axes.rank] + (-1,))
        else:
            count = jnp.reshape(ones, ones.shape[: axes.rank] + (-1,))[..., :1]
            statistics = jnp.reshape(statistics, full[: axes.rank] + (-1,))
            statistics = jnp.concatenate([statistics, jnp.broadcast_to(count, full[: axes.rank] + (1,))], -1)
        base = jnp.broadcast_to(base, base.shape[: axes.rank] + self.event_sizes)
        base = jnp.sum(base, tuple(range(axes.rank, base.ndim)))
        scale = self.scale(arrays)
        plates = axes.plates_of(self.site, ())
        repeats = math.prod(axes.sizes[p] for p in plates if base.shape[axes.names.index(p)] == 1)
        weighted_base = jnp.sum(base) * repeats if scale is None else self._scaled_total(base, scale, plates)
        bound = jnp.max(jnp.abs(statistics), tuple(range(axes.rank)), initial=0)
        return Prepared(jnp.moveaxis(statistics, -1, -2), reference, weighted_base, bound)

    @property
    def looks_up(self) -> bool:
        """Are there so many categories that one-hot statistics would waste memory?"""
        return self.family is not None and self.family.indicator and self.categories > _MOST_ONE_HOT

    def _codes(self, value, mask) -> jax.Array:
        """Positions of the ones among the flattened features: ``(*axes without rows, elements, rows)``."""
        rank = self.axes.rank
        if mask is not None:
            value = jnp.where(mask, value, -1)
        value = jnp.broadcast_to(value, value.shape[:rank] + self.event_sizes)
        value = jnp.reshape(value, value.shape[:rank] + (-1,))
        offsets = jnp.reshape(jnp.arange(value.shape[-1]) * self.categories, (1,) * rank + (-1,))
        return jnp.moveaxis(jnp.where(value >= 0, value + offsets, -1), -1, -2)

    def contract(self, natural: jax.Array, statistics: jax.Array) -> jax.Array:
        """Log-probability table from natural parameters and statistics (or codes), without the base measure."""
        product = look_up if jnp.issubdtype(statistics.dtype, jnp.integer) else contract
        return product(natural, statistics)

    def _scaled_total(self, base, scale, plates):
        shape = tuple(
            self.axes.sizes[name] if name in plates else max(base.shape[a], scale.shape[a])
            for a, name in enumerate(self.axes.names)
        )
        return jnp.sum(jnp.broadcast_to(base * scale, shape))

    @property
    def counts_by_element(self) -> bool:
        """Does every element of a ``to_event`` vector need a count of its own (because masks differ)?"""
        return self.site.reinterpreted > 0 and "mask" in self.latents and not self.looks_up

    def _mean_over_rows(self, value, mask, cells):
        """Averaging function over the axes along which no argument varies."""
        assert self.family is not None
        rank = self.axes.rank
        over = tuple(a for a in range(rank) if value.shape[a] > 1 and cells[a] == 1)

        def mean(quantity):
            extra = quantity.ndim - rank - self.site.reinterpreted
            if mask is None:
                return jnp.mean(quantity, over, keepdims=True) if over else quantity
            present = jnp.reshape(mask, mask.shape + (1,) * extra)
            total = jnp.sum(jnp.where(present, quantity, 0), over, keepdims=True)
            count = jnp.sum(jnp.broadcast_to(present, quantity.shape), over, keepdims=True)
            return total / jnp.maximum(count, 1)

        return mean

    def natural(self, arguments: Mapping[str, jax.Array], reference) -> jax.Array:
        """Natural parameters with the offset as coefficient of the count: ``(*axes, features)``."""
        assert self.family is not None and self.family.natural is not None
        eta, offset = self.family.natural(arguments, reference)
        rank = self.axes.rank
        cells = jnp.broadcast_shapes(eta.shape[:-1], offset.shape)
        full = cells[:rank] + self.event_sizes
        eta = jnp.broadcast_to(eta, full + eta.shape[-1:])
        offset = jnp.broadcast_to(offset, full)
        if self.counts_by_element:
            return jnp.reshape(jnp.concatenate([eta, offset[..., None]], -1), full[:rank] + (-1,))
        flat = jnp.reshape(eta, full[:rank] + (-1,))
        total = jnp.sum(offset, tuple(range(rank, offset.ndim)))[..., None]
        return jnp.concatenate([flat, total], -1)

    def expected_statistics(self, weights: jax.Array, natural_shape, prepared: Prepared) -> jax.Array:
        """Transpose of the matrix product: weighted sums of the statistics in every cell."""
        shape = jax.ShapeDtypeStruct(natural_shape, weights.dtype)
        return jax.linear_transpose(lambda eta: self.contract(eta, prepared.statistics), shape)(weights)[0]

    def moments(self, sums: jax.Array, reference) -> Mapping[str, jax.Array]:
        """Quantities for the closed forms, from the gradient with respect to the natural parameters."""
        assert self.family is not None
        rank, events = self.axes.rank, self.event_sizes
        if self.counts_by_element:
            split = jnp.reshape(sums, sums.shape[:rank] + events + (-1,))
            return self.family.moments(split[..., :-1], split[..., -1], reference)
        split = jnp.reshape(sums[..., :-1], sums.shape[:rank] + events + (-1,))
        count = jnp.reshape(sums[..., -1], sums.shape[:rank] + (1,) * len(events))
        return self.family.moments(split, jnp.broadcast_to(count, split.shape[:-1]), reference)

    def moments_of_values(self, weights: jax.Array, arrays: Mapping[str, SiteArrays]) -> Mapping[str, jax.Array]:
        """Quantities for the closed forms of a family without statistics: weighted, value by value."""
        assert self.family is not None and self.family.moments_of_value is not None
        found = self.family.moments_of_value(self.value(arrays), self.arguments(arrays))
        mask = self.mask(arrays)
        weights = jnp.reshape(weights, weights.shape + (1,) * len(self.event_sizes))
        weights = weights if mask is None else jnp.where(mask, weights, 0)
        return {name: weighted(*jnp.broadcast_arrays(weights, quantity)) for name, quantity in found.items()}

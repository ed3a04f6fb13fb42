"""Statistics times natural parameters: the form of a site whose family is exponential.

The value depends on no parameter: its statistics are computed once, and a table is one matrix product. The table of
log-probabilities is the plain twin; both give the same numbers, and tests compare them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from emppl.families import Family
from emppl.model.axes import contract, look_up
from emppl.model.site import AlignedSite
from emppl.numerics.guarded import weighted
from emppl.trace import SiteArrays

_MOST_ONE_HOT_CATEGORIES = 32
"""Categories up to which statistics are zeros and ones; above, codes are looked up."""


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
class NaturalForm:
    """A site as statistics times natural parameters.

    Attributes:
        aligned: the site.
        family: its family, registered with statistics.
    """

    aligned: AlignedSite
    family: Family

    @classmethod
    def of(cls, aligned: AlignedSite) -> NaturalForm:
        """The natural form of a site by its own family."""
        assert aligned.family is not None and aligned.family.is_exponential
        return cls(aligned, aligned.family)

    def arguments(self, arrays: Mapping[str, SiteArrays]) -> dict[str, jax.Array]:
        """Every argument that can hold parameters."""
        return self.aligned.arguments(arrays)

    def cell_shape(self, arguments: Mapping[str, jax.Array]) -> tuple[int, ...]:
        """Axes along which any argument varies: common axes then ``to_event`` axes."""
        shapes = [a.shape[: a.ndim - self.family.argument_ranks[n]] for n, a in arguments.items()]
        return jnp.broadcast_shapes(*shapes)

    def prepare(self, arrays: Mapping[str, SiteArrays], local: bool = False) -> Prepared:
        """Sufficient statistics of the data, centred and scaled.

        Args:
            local: centre at every component's own location instead of the overall mean, which keeps all
                digits when components are far narrower than the data, at the price of a statistic per component.
        """
        return self.prepare_value(self.aligned.value(arrays), self.aligned.arguments(arrays), arrays, local)

    def prepare_value(
        self,
        value: jax.Array,
        arguments: Mapping[str, jax.Array],
        arrays: Mapping[str, SiteArrays],
        local: bool = False,
    ) -> Prepared:
        """Statistics as by :meth:`prepare`, of a given value; of the arguments only the shapes count."""
        assert self.family.statistics is not None and self.family.base_measure is not None
        family, axes, mask = self.family, self.aligned.axes, self.aligned.mask(arrays)
        cells = self.cell_shape(arguments)
        if local and self.family.local_reference is not None:
            reference = self.family.local_reference(arguments)
        else:
            reference = family.reference(value, self.aligned.mean_over_rows(value, mask, cells))
        fixed = self.aligned.fixed(arrays)
        if self.looks_up:
            return Prepared(self._codes(value, mask), reference, jnp.zeros(()), jnp.zeros(()))
        statistics = self.family.statistics(value, fixed, reference)
        base = family.base_measure(value, fixed)
        if arrays[self.aligned.name].log_measure is not None:
            base = base + self.aligned.log_measure(arrays)
        ones = jnp.ones(statistics.shape[:-1] + (1,), statistics.dtype)
        full = statistics.shape[: axes.rank] + self.aligned.event_sizes
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
        base = jnp.broadcast_to(base, base.shape[: axes.rank] + self.aligned.event_sizes)
        base = jnp.sum(base, tuple(range(axes.rank, base.ndim)))
        scale = self.aligned.scale(arrays)
        plates = axes.plates_of(self.aligned.site, ())
        repeats = math.prod(axes.sizes[p] for p in plates if base.shape[axes.names.index(p)] == 1)
        weighted_base = jnp.sum(base) * repeats if scale is None else self._scaled_total(base, scale, plates)
        bound = jnp.max(jnp.abs(statistics), tuple(range(axes.rank)), initial=0)
        return Prepared(jnp.moveaxis(statistics, -1, -2), reference, weighted_base, bound)

    @property
    def looks_up(self) -> bool:
        """Whether there are so many categories that one-hot statistics would waste memory."""
        return self.family.indicator and self.aligned.categories > _MOST_ONE_HOT_CATEGORIES

    def _codes(self, value: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Positions of the ones among the flattened features: ``(*axes without rows, elements, rows)``."""
        rank = self.aligned.axes.rank
        if mask is not None:
            value = jnp.where(mask, value, -1)
        value = jnp.broadcast_to(value, value.shape[:rank] + self.aligned.event_sizes)
        value = jnp.reshape(value, value.shape[:rank] + (-1,))
        offsets = jnp.reshape(jnp.arange(value.shape[-1]) * self.aligned.categories, (1,) * rank + (-1,))
        return jnp.moveaxis(jnp.where(value >= 0, value + offsets, -1), -1, -2)

    def _scaled_total(self, base: jax.Array, scale: jax.Array, plates: frozenset[str]) -> jax.Array:
        shape = tuple(
            self.aligned.axes.sizes[name] if name in plates else max(base.shape[a], scale.shape[a])
            for a, name in enumerate(self.aligned.axes.names)
        )
        return jnp.sum(jnp.broadcast_to(base * scale, shape))

    @property
    def counts_by_element(self) -> bool:
        """Whether every element of a ``to_event`` vector needs a count of its own, because masks differ."""
        return self.aligned.site.reinterpreted > 0 and "mask" in self.aligned.latents and not self.looks_up

    def natural(self, arguments: Mapping[str, jax.Array], reference: Any) -> jax.Array:
        """Natural parameters with the offset as coefficient of the count: ``(*axes, features)``."""
        assert self.family.natural is not None
        eta, offset = self.family.natural(arguments, reference)
        rank = self.aligned.axes.rank
        cells = jnp.broadcast_shapes(eta.shape[:-1], offset.shape)
        full = cells[:rank] + self.aligned.event_sizes
        eta = jnp.broadcast_to(eta, full + eta.shape[-1:])
        offset = jnp.broadcast_to(offset, full)
        if self.counts_by_element:
            return jnp.reshape(jnp.concatenate([eta, offset[..., None]], -1), full[:rank] + (-1,))
        flat = jnp.reshape(eta, full[:rank] + (-1,))
        total = jnp.sum(offset, tuple(range(rank, offset.ndim)))[..., None]
        return jnp.concatenate([flat, total], -1)

    def expected_statistics(self, weights: jax.Array, natural_shape: Sequence[int], prepared: Prepared) -> jax.Array:
        """Transpose of the matrix product: weighted sums of the statistics in every cell."""
        shape = jax.ShapeDtypeStruct(natural_shape, weights.dtype)
        return jax.linear_transpose(lambda eta: table_from_statistics(eta, prepared.statistics), shape)(weights)[0]

    def moments(self, sums: jax.Array, reference: Any) -> Mapping[str, jax.Array]:
        """Quantities for the closed forms, from the gradient with respect to the natural parameters."""
        rank, events = self.aligned.axes.rank, self.aligned.event_sizes
        if self.counts_by_element:
            split = jnp.reshape(sums, sums.shape[:rank] + events + (-1,))
            return self.family.moments(split[..., :-1], split[..., -1], reference)
        split = jnp.reshape(sums[..., :-1], sums.shape[:rank] + events + (-1,))
        count = jnp.reshape(sums[..., -1], sums.shape[:rank] + (1,) * len(events))
        return self.family.moments(split, jnp.broadcast_to(count, split.shape[:-1]), reference)


def table_from_statistics(natural: jax.Array, statistics: jax.Array) -> jax.Array:
    """Log-probability table from natural parameters and statistics (or codes), without the base measure."""
    product = look_up if jnp.issubdtype(statistics.dtype, jnp.integer) else contract
    return product(natural, statistics)


def moments_of_values(
    aligned: AlignedSite, weights: jax.Array, arrays: Mapping[str, SiteArrays]
) -> Mapping[str, jax.Array]:
    """Quantities for the closed forms of a family without statistics: weighted, value by value."""
    assert aligned.family is not None and aligned.family.moments_of_value is not None
    quantities = aligned.family.moments_of_value(aligned.value(arrays), aligned.arguments(arrays))
    mask = aligned.mask(arrays)
    weights = jnp.reshape(weights, weights.shape + (1,) * len(aligned.event_sizes))
    weights = weights if mask is None else jnp.where(mask, weights, 0)
    return {name: weighted(*jnp.broadcast_arrays(weights, quantity)) for name, quantity in quantities.items()}


def scale_floor(aligned: AlignedSite, arrays: Mapping[str, SiteArrays], prepared: Mapping[str, Prepared]) -> jax.Array:
    """Spread of every component of a site relative to the data.

    Args:
        prepared: statistics by site; a family without any is measured by the deviation of all values.
    """
    family = aligned.family
    assert family is not None and family.scale_floor is not None
    arguments = aligned.arguments(arrays)
    if family.is_exponential:
        return family.scale_floor(arguments, prepared[aligned.name].reference)
    value = aligned.value(arrays)
    mean = aligned.mean_over_rows(value, aligned.mask(arrays), (1,) * aligned.axes.rank)
    return family.scale_floor(arguments, family.reference(value, mean))

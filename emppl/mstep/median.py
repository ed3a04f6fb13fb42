"""Weighted medians and quantiles: Q is concave and piecewise linear in a location, with its corners at the data.

The maximum of such a function is a data value. It is found by bisection over the sorted values: between two
neighbours the slope of Q is its derivative, entry by entry, so that entries shared by cells and sites need nothing
special.

With a log-concave prior the sum is still concave, but its maximum may lie between data values, or beyond them: the
slope is then followed by bisection of the line itself.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp

from emppl.errors import Refusal
from emppl.jaxpr.maps import REAL, Interval
from emppl.jaxpr.selection import Selection
from emppl.mstep.entries import FLAT, Entry, enters_elsewhere, entries_of, has_corners, in_another_prior, prior_of
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.rule import Rule, RuleContext
from emppl.parameters.constraints import bounds
from emppl.trace import SiteArrays

_CONCAVE = ("Normal", "Laplace", "Logistic", "Gumbel", "HalfNormal", "Exponential")
"""Priors of single numbers whose log density is concave."""

Bracket: TypeAlias = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Median(Rule):
    """The data value at which the slope of Q changes its sign.

    Attributes:
        sites: where the parameter is a location.
        limits: bounds of its entries, or None.

    A prior that is not flat takes the maximum off the data, and so do bounds.
    """

    sites: tuple[str, ...]
    limits: Interval | None = None

    kind: ClassVar[str] = "weighted median"
    exact: ClassVar[bool] = True

    @classmethod
    def propose(cls, context: RuleContext, name: str) -> Median | Refusal | None:
        """The rule, the reason why it does not apply, or None where nothing suggests it."""
        entries = entries_of(context, name)
        corners = [has_corners(entry) is not None for entry in entries]
        if not any(corners):
            return None
        if not all(corners):
            return Refusal("it is a location with corners at one site, and something else at another")
        interval = bounds(context.model.trace.sites[name].constraint)
        if interval is None:
            return Refusal("its constraint may bind")
        limits = None if interval == REAL else interval
        prior = prior_of(context, name)
        if prior not in (None, *FLAT, *_CONCAVE):
            known = ", ".join(_CONCAVE)
            return Refusal(f"its prior {prior} is none of {known}, which are known to be log-concave")
        reason = why_not_a_data_value(context, name, entries)
        if reason is not None:
            return Refusal(reason)
        detail = "the data value at which the slope of Q changes its sign"
        if prior in _CONCAVE:
            detail = "where the slope of Q plus the log prior changes its sign"
        elif limits is not None:
            detail = "where the slope of Q changes its sign between its bounds"
        sites = tuple(dict.fromkeys(entry.factor.name for entry in entries))
        return cls((name,), detail, sites, limits, prior="flat" if prior in FLAT else prior)

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Bisection over the ranks of the data."""
        (name,) = self.parameters
        if self.prior not in (None, "flat") or self.limits is not None:
            return {name: self._between(step, name)}
        before = step.params[name]
        fields = frozenset((site, field) for site in self.sites for field in ("value", "mask"))
        arrays = step.evaluate(step.params, fields)
        values = jnp.sort(jnp.concatenate([_seen(arrays[site]) for site in self.sites]))
        last = values.shape[0] - 1
        slope = jax.grad(lambda value: step.q({name: value}))

        def halve(_: Any, ranks: Bracket) -> Bracket:
            low, high = ranks
            middle = (low + high) // 2
            between = (values[middle] + values[jnp.minimum(middle + 1, last)]) / 2
            rises = slope(between) > 0
            return jnp.where(rises, jnp.minimum(middle + 1, high), low), jnp.where(rises, high, middle)

        start = (jnp.zeros(before.shape, int), jnp.full(before.shape, last))
        rank, _ = jax.lax.fori_loop(0, math.ceil(math.log2(last + 1)) + 1, halve, start)
        # Below all data the slope is the weight of an entry: without weight it keeps its value.
        weight = slope(jnp.full_like(before, values[0] - 1))
        return {name: jnp.where(weight > 0, values[rank], before)}

    def _between(self, step: Maximisation, name: str) -> jax.Array:
        """Where the slope of a concave function changes its sign: first an interval, then bisection."""
        slope = jax.grad(lambda value: step.q({name: value}))
        dtype = step.params[name].dtype
        ends = (-math.inf, math.inf) if self.limits is None else self.limits
        low, high = (jnp.asarray(end, dtype) for end in ends)
        # A bound may itself be excluded, and a start may lie beyond it.
        least = jnp.where(jnp.isfinite(low), jnp.nextafter(low, high), low)
        most = jnp.where(jnp.isfinite(high), jnp.nextafter(high, low), high)
        before = jnp.clip(step.params[name], least, most)

        def widen(carry: tuple) -> tuple:
            low, high, width, _ = carry
            too_high, too_low = (slope(low) < 0) & (low > least), (slope(high) > 0) & (high < most)
            low = jnp.where(too_high, jnp.maximum(low - width, least), low)
            high = jnp.where(too_low, jnp.minimum(high + width, most), high)
            return low, high, 2 * width, jnp.any(too_high | too_low)

        def halve(_: Any, bracket: Bracket) -> Bracket:
            low, high = bracket
            middle = low + (high - low) / 2
            rises = slope(middle) > 0
            return jnp.where(rises, middle, low), jnp.where(rises, high, middle)

        start = (before, before, 1e-3 * (1 + jnp.abs(before)), jnp.asarray(True))
        low, high, *_ = jax.lax.while_loop(lambda carry: carry[-1], widen, start)
        low, high = jax.lax.fori_loop(0, jnp.finfo(before.dtype).nmant + 8, halve, (low, high))
        return low + (high - low) / 2


def why_not_a_data_value(context: RuleContext, name: str, entries: list[Entry]) -> str | None:
    """The reason why the best value of a parameter need not be one of the data's values, or None."""
    reason = in_another_prior(context, name)
    if reason is not None:
        return reason
    for entry in entries:
        factor, field, position = entry
        if factor.parameters.get("value") or factor.latents.get("value"):
            return f"the value of site {factor.name!r} is not data"
        if enters_elsewhere(entry, name):
            return f"it enters more than one argument of site {factor.name!r}"
        selection = context.model.dependence.selection(name, position)
        if not isinstance(selection, Selection) or not selection.is_plain:
            return f"{field} of site {factor.name!r} is not a plain selection of it"
    return None


def _seen(arrays: SiteArrays) -> jax.Array:
    """Values of a site in one line; masked ones are replaced by a value that is there."""
    value = jnp.asarray(arrays.value, jnp.result_type(float))
    if arrays.mask is None:
        return jnp.ravel(value)
    mask = jnp.reshape(arrays.mask, (1,) * (value.ndim - arrays.mask.ndim) + arrays.mask.shape)
    value, mask = jnp.broadcast_arrays(value, mask)
    return jnp.ravel(jnp.where(mask, value, jnp.max(jnp.where(mask, value, -jnp.inf))))

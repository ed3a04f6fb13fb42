"""Bounds of a support: Q rises until the bound meets the last value that has weight, and jumps to minus infinity."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from emppl.errors import Refusal
from emppl.model.model import Model
from emppl.model.site import AlignedSite
from emppl.mstep.entries import FLAT, entries_of, prior_of
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.median import why_not_a_data_value
from emppl.mstep.numeric import Numeric
from emppl.mstep.rule import Rule, RuleContext
from emppl.parameters.constraints import limits, reachable
from emppl.types import Params


@dataclasses.dataclass(frozen=True)
class Edge(Rule):
    """The last data value inside the support; where the parameter may not come so near, its own bound.

    Attributes:
        targets: sites and arguments that the parameter bounds.
        side: 1 for upper bounds, -1 for lower ones.
        fallback: what is done where the parameter's entries constrain each other and exclude the data values; None
            where its constraint bounds every entry by itself.
    """

    targets: tuple[tuple[str, str], ...]
    side: int
    fallback: Numeric | None = None

    kind: ClassVar[str] = "edge of the support"
    exact: ClassVar[bool] = True

    @classmethod
    def propose(cls, context: RuleContext, name: str) -> Edge | Refusal | None:
        """The rule, the reason why it does not apply, or None where nothing suggests it."""
        entries = entries_of(context, name)
        sides = {factor.family.edges.get(field) if factor.family is not None else None for factor, field, _ in entries}
        side = max((side for side in sides if side is not None), default=None)
        if side is None:
            return None
        if len(sides) > 1:
            return Refusal("it bounds the support of one site, and is something else at another")
        prior = prior_of(context, name)
        if prior not in (None, *FLAT):
            return Refusal(f"its prior {prior} may move the maximum away from the data")
        reason = why_not_a_data_value(context, name, entries)
        if reason is not None:
            return Refusal(reason)
        targets = tuple((factor.name, field) for factor, field, _ in entries)
        detail = f"the {'largest' if side == 1 else 'smallest'} data value with weight"
        is_bounded = limits(context.model.trace.sites[name].constraint) is not None
        fallback = None if is_bounded else Numeric.propose(context, name)
        return cls((name,), detail, targets, side, fallback, prior=prior and "flat")

    def begin(self, model: Model, params: Params) -> Any:
        """What the fallback remembers."""
        return None if self.fallback is None else self.fallback.begin(model, params)

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """The extreme of all values with weight, over the cells that share an entry."""
        (name,) = self.parameters
        before = step.params[name]
        numbers = jnp.reshape(jnp.arange(before.size, dtype=before.dtype), before.shape)
        furthest = jnp.full(before.size, -jnp.inf, before.dtype)
        for site, field in self.targets:
            factor = step.model.factors[site]
            fields = frozenset((site, f) for f in ("value", "mask", "distribution", "arguments"))
            arrays = step.evaluate(step.params, fields)

            def argument(
                value: jax.Array, site: str = site, field: str = field, factor: AlignedSite = factor
            ) -> jax.Array:
                wanted = frozenset([(site, "arguments")])
                return factor.argument(step.evaluate({**step.params, name: value}, wanted), field)

            # The derivative tells the cells that hold an entry from those that hold something else.
            entry, holds = jax.jvp(argument, (numbers,), (jnp.ones_like(before),))
            weight = step.expectations.weights[site]
            weight = jnp.reshape(weight, weight.shape + (1,) * (entry.ndim - weight.ndim))
            value, mask = factor.value(arrays), factor.mask(arrays)
            used = (weight > 0) & (holds > 0.5)
            used = used if mask is None else used & mask
            value, used, entry = jnp.broadcast_arrays(value, used, jnp.round(entry).astype(int))
            extreme = jnp.where(used, self.side * value, -jnp.inf)
            entry = jnp.where(used, entry, 0)
            furthest = furthest.at[jnp.ravel(entry)].max(jnp.ravel(extreme))
        # A bound may itself be excluded from the support: stop one step outside of the value.
        value = self.side * jnp.nextafter(furthest, jnp.inf)
        value = jnp.reshape(value, before.shape)
        constraint = step.model.trace.sites[name].constraint
        if self.fallback is None:
            bounded = jnp.clip(value, *reachable(constraint, value))
            # Beyond the bound on the far side, as without weight, every value is as good as any other.
            usable = jnp.isfinite(value) & (self.side * bounded >= self.side * value)
            return {name: jnp.where(usable, bounded, before)}
        value = jnp.where(jnp.isfinite(value), value, before)
        inside, unfinished = jnp.all(constraint(value)), step.unfinished
        otherwise = self.fallback.update(step)[name]
        step.unfinished = jnp.where(inside, unfinished, step.unfinished)
        return {name: jnp.where(inside, value, otherwise)}

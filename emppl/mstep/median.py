"""Weighted medians and quantiles: Q is concave and piecewise linear in a location, with its corners at the data.

The maximum of such a function is a data value. It is found by bisection over the sorted values: between two
neighbours the slope of Q is its derivative, entry by entry, so that entries shared by cells and sites need nothing
special.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from emppl.mstep.closed_form import FLAT, entries_of, prior_of
from emppl.mstep.maximisation import Maximisation
from emppl.parameters import constraint_name
from emppl.rules import Rule, RuleContext


@dataclasses.dataclass(frozen=True)
class Median(Rule):
    """The data value at which the slope of Q changes its sign.

    Attributes:
        sites: where the parameter is a location.
    """

    sites: tuple[str, ...]

    kind: ClassVar[str] = "weighted median"
    exact: ClassVar[bool] = True

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Bisection over the ranks of the data."""
        (name,) = self.parameters
        before = step.params[name]
        fields = frozenset((site, field) for site in self.sites for field in ("value", "mask"))
        arrays = step.evaluate(step.params, fields)
        values = jnp.sort(jnp.concatenate([_seen(arrays[site]) for site in self.sites]))
        last = values.shape[0] - 1
        slope = jax.grad(lambda value: step.q({name: value}))

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            between = (values[middle] + values[jnp.minimum(middle + 1, last)]) / 2
            rises = slope(between) > 0
            return jnp.where(rises, jnp.minimum(middle + 1, high), low), jnp.where(rises, high, middle)

        start = (jnp.zeros(before.shape, int), jnp.full(before.shape, last))
        rank, _ = jax.lax.fori_loop(0, math.ceil(math.log2(last + 1)) + 1, halve, start)
        # Below all data the slope is the weight of an entry: without weight it keeps its value.
        weight = slope(jnp.full_like(before, values[0] - 1))
        return {name: jnp.where(weight > 0, values[rank], before)}


def propose(context: RuleContext, name: str) -> Median | str | None:
    """The rule, the reason why it does not apply, or None where nothing suggests it."""
    found = entries_of(context, name)
    corners = [factor.family is not None and field in factor.family.kinks for factor, field, _ in found]
    if not any(corners):
        return None
    if not all(corners):
        return "it is a location with corners at one site, and something else at another"
    if not constraint_name(context.trace.sites[name].constraint).startswith("real"):
        return "its constraint may bind"
    prior = prior_of(context.trace, name) if context.use_prior else None
    if prior not in (None, *FLAT):
        return f"its prior {prior} moves the maximum off the data"
    reason = why_not_a_data_value(context, name, found)
    if reason is not None:
        return reason
    sites = tuple(dict.fromkeys(factor.name for factor, _, _ in found))
    return Median((name,), "the data value at which the slope of Q changes its sign", sites, prior=prior and "flat")


def why_not_a_data_value(context: RuleContext, name: str, found) -> str | None:
    """The reason why the best value of a parameter need not be one of the data's values, or None.

    Args:
        context: the model.
        name: the parameter.
        found: where it enters, from :func:`entries_of`.
    """
    for factor, field, position in found:
        if factor.parameters.get("value") or factor.latents.get("value"):
            return f"the value of site {factor.name!r} is not data"
        others = (other for other in factor.family.argument_ranks if other != field)
        if any(name in factor.parameters.get(other, ()) for other in others):
            return f"it enters more than one argument of site {factor.name!r}"
        selection = context.dependence.selection(name, position)
        if isinstance(selection, str) or selection.map or selection.masked:
            return f"{field} of site {factor.name!r} is not a plain selection of it"
    return None


def _seen(mine) -> jax.Array:
    """Values of a site in one line; masked ones are replaced by a value that is there."""
    value = jnp.asarray(mine.value, jnp.result_type(float))
    if mine.mask is None:
        return jnp.ravel(value)
    mask = jnp.reshape(mine.mask, (1,) * (value.ndim - mine.mask.ndim) + mine.mask.shape)
    value, mask = jnp.broadcast_arrays(value, mask)
    return jnp.ravel(jnp.where(mask, value, jnp.max(jnp.where(mask, value, -jnp.inf))))

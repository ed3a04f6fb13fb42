"""Weighted medians and quantiles: Q is concave and piecewise linear in a location, with its corners at the data.

The maximum of such a function is a data value. It is found by bisection over the sorted values: the slope between two
neighbours is a weighted sum over the rows, so that parameters shared by cells and sites need nothing special.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from emppl.mstep import cell_newton
from emppl.mstep.cell_newton import CellNewton, Cells
from emppl.mstep.maximisation import Maximisation
from emppl.parameters import constraint_name
from emppl.rules import RuleContext

SMOOTH = "Q is smooth in it"
"""The reason why the rule does not apply that is not worth a line in the plan."""


@dataclasses.dataclass(frozen=True)
class Median(CellNewton):
    """The data value at which the slope of Q changes its sign."""

    kind: ClassVar[str] = "weighted median"

    @property
    def order(self) -> int:
        """Locations come before scales."""
        return 0

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Bisection over the ranks of the data."""
        cells, (name,) = Cells(self, step), self.parameters
        arrays = step.program.evaluate(step.params, step.leaves, cells.wanted)
        values = jnp.sort(jnp.concatenate([_seen(arrays[site]) for site in self.sites]))
        last = values.shape[0] - 1

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            between = (values[middle] + values[jnp.minimum(middle + 1, last)]) / 2
            slope = jnp.squeeze(cells.derivatives(between[..., None], 1)[1], -1)
            return jnp.where(slope > 0, jnp.minimum(middle + 1, high), low), jnp.where(slope > 0, high, middle)

        start = (jnp.zeros(cells.shape, int), jnp.full(cells.shape, last))
        rank, _ = jax.lax.fori_loop(0, math.ceil(math.log2(last + 1)) + 1, halve, start)
        found = values[rank]
        # Rounding, or a component without weight: the old value is as good.
        better = cells.derivatives(found[..., None], 0)[0] > cells.derivatives(cells.vector(step.params), 0)[0]
        return {name: jnp.where(better, found, step.params[name])}


def propose(context: RuleContext, name: str) -> Median | str:
    """The rule, or the reason why it does not apply."""
    found = cell_newton.entries_of(context, name)
    corners = [factor.family is not None and field in factor.family.kinks for factor, field, _ in found]
    if not corners or not all(corners):
        return SMOOTH
    if not constraint_name(context.trace.sites[name].constraint).startswith("real"):
        return "its constraint may bind"
    rule = cell_newton.propose(context, name, kinks=True)
    if isinstance(rule, str):
        return rule
    if rule.prior not in (None, "ImproperUniform", "Uniform", "Unit"):
        return f"its prior {rule.prior} moves the maximum off the data"
    if any(isinstance(context.dependence.selection(name, position), str) for _, _, position in found):
        return "it is transformed before it becomes a location"
    words = "the data value at which the slope of Q changes its sign"
    return Median(
        rule.parameters, words, rule.anchors, rule.maps, rule.event_ranks, rule.sizes, rule.by_rows, prior=rule.prior
    )


def _seen(mine) -> jax.Array:
    """Values of a site in one line; masked ones are replaced by a value that is there."""
    value = jnp.asarray(mine.value, jnp.result_type(float))
    if mine.mask is None:
        return jnp.ravel(value)
    value, mask = jnp.broadcast_arrays(value, jnp.reshape(mine.mask, (1,) * (value.ndim - mine.mask.ndim) + mine.mask.shape))
    return jnp.ravel(jnp.where(mask, value, jnp.max(jnp.where(mask, value, -jnp.inf))))

"""Newton steps on a smooth block: iteratively reweighted least squares for any link, concave or not.

Each step solves with the Hessian of ``Q + log prior`` on the unconstrained space, whose negative eigenvalues are turned
round where Q is not concave (so that the step always climbs), and is halved until the objective rises by a
fair part of what the slope promised.

Reference:
    Nocedal and Wright (2006), Numerical optimization, sections 3.1 and 3.4.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from emppl.jaxpr.layout import Layout
from emppl.mstep.closed_form import at_an_edge, entries_of, has_corners
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.quadratic import describe, free_entries, scaled_eigen
from emppl.mstep.rule import Rule, RuleContext
from emppl.parameters.constraints import bounds, from_coordinates, is_relative, to_coordinates

_MOST_ENTRIES = 200
_MOST_PROBES = 400
_STEPS = 25
_HALVINGS = 30
_ENOUGH = 0.01
_ARMIJO = 1e-4


@dataclasses.dataclass(frozen=True)
class Newton(Rule):
    """Newton's method with a line search, all smooth parameters that meet in a site together.

    Attributes:
        layout: how the unconstrained entries fall into groups that never meet.
    """

    layout: Layout

    kind: ClassVar[str] = "newton"
    reads_weights: ClassVar[bool] = False

    @property
    def order(self) -> int:
        """After the exact updates."""
        return 25

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Climb until what a further step promises is small beside what was gained."""
        constraints = {name: step.model.trace.sites[name].constraint for name in self.parameters}
        before = {name: step.params[name] for name in self.parameters}
        start = {name: to_coordinates(constraints[name], value) for name, value in before.items()}

        def constrained(free):
            return {name: from_coordinates(constraints[name], value) for name, value in free.items()}

        touched = [n for n, factor in step.model.factors.items() if factor.all_parameters & set(self.parameters)]
        # From sums of statistics a step costs next to nothing: solve to the last digit.
        enough = 0.0 if all(site in step.expectations.sums for site in touched) else _ENOUGH
        free = free_entries(step.model, self.layout)
        relative = {n: jnp.full(x.shape, is_relative(constraints[n]), x.dtype) for n, x in start.items()}
        found, gain, finished = climb(
            lambda block: step.q(constrained(block)), self.layout, start, free, enough, self.layout.pack(relative)
        )
        step.report(finished)
        after = constrained(found)
        return {name: jnp.where(jnp.isfinite(gain), after[name], value) for name, value in before.items()}


def propose(context: RuleContext, name: str) -> Newton | str:
    """Newton's method, or the reason why it does not apply."""
    if context.options.optimizer is not None:
        return "an optimizer is given"
    if name in context.model.held and bounds(context.model.trace.sites[name].constraint) is None:
        return "some of its entries are fixed, and its constraint ties entries together"
    for factor, field, _ in entries_of(context, name):
        rough = at_an_edge(factor, field) or has_corners(factor, field)
        if rough is not None:
            return rough
    reason = context.analysis.why_not_smooth((name,))
    if reason is not None:
        return reason
    layout = context.analysis.layout((name,))
    if _too_large(layout):
        return f"its Hessian is too large ({layout.entries} entries meet; the limit is {_MOST_ENTRIES})"
    return _joint(context, (name,))


def join(context: RuleContext, rules: list[Newton]) -> list[Newton]:
    """Put parameters together that meet in a site, as long as their Hessian stays small."""
    analysis = context.analysis

    def fits(names):
        return analysis.why_not_smooth(names) is None and not _too_large(analysis.layout(names))

    return [_joint(context, block) for block in analysis.blocks(rules, fits)]


def _too_large(layout: Layout) -> bool:
    return layout.entries > _MOST_ENTRIES or layout.probes > _MOST_PROBES


def _joint(context: RuleContext, names: tuple[str, ...]) -> Newton:
    layout = context.analysis.layout(names)
    what = f"{', '.join(names)} jointly" if len(names) > 1 else "it"
    return Newton(names, f"Newton steps on {what}, with a line search" + describe(layout), layout)


def climb(objective, layout: Layout, start, free, enough: float = _ENOUGH, relative: jax.Array | float = 0.0):
    """Newton's method with backtracking, never downhill by more than rounding.

    Args:
        objective: a smooth function of the block, in nats.
        layout: how its entries are grouped.
        start: where to begin.
        free: as vectors of the layout, one for entries that may move, zero for those that are fixed.
        enough: stop when a quadratic would still gain no more than this part of what was gained.
        relative: one for entries of which a unit is a large step whatever the data (a logarithm, a log-odds). On the
            edge of the parameter space, where such a step no longer changes the objective, they stay: their second
            derivatives are rounding, and would send them anywhere.

    Returns:
        ``(block, gain, finished)``: where it ended, how much higher that is, and whether what was left to gain was
        small beside the gain, or rounding.
    """
    fixed = jax.lax.stop_gradient(layout.pack(start))
    at_vectors = lambda vectors: objective(layout.unpack(jnp.where(free > 0, vectors, fixed)))  # noqa: E731
    value_and_grad = jax.value_and_grad(at_vectors)
    gradient_of_block = jax.grad(objective)
    first = layout.pack(start)
    first_value, first_slope = value_and_grad(first)
    relative = jnp.broadcast_to(jnp.asarray(relative), first.shape)
    rounding = 8 * jnp.finfo(first.dtype).eps * (1 + jnp.abs(first_value))

    def curvature(here, slope):
        hessian = layout.hessian(gradient_of_block, layout.unpack(here))
        diagonal = jnp.abs(jnp.diagonal(hessian, axis1=-2, axis2=-1))
        moves = free * jnp.where((relative > 0) & (jnp.maximum(jnp.abs(slope), diagonal) <= rounding), 0, 1)
        return scaled_eigen(-hessian * (moves[..., :, None] * moves[..., None, :])), moves

    def curved(eigen):
        size = jnp.abs(eigen.values)
        return size > jnp.finfo(size.dtype).eps * size.shape[-1] * jnp.max(size, -1, keepdims=True, initial=0)

    def direction(eigen, moves, slope):
        used = curved(eigen)
        return eigen.back(jnp.where(used, eigen.rotated(slope * moves) / jnp.where(used, jnp.abs(eigen.values), 1), 0))

    def climbs_where_flat(eigen, moves, slope, value):
        """Is there a slope along a direction without curvature, where no step is taken?"""
        rotated = eigen.rotated(slope * moves)
        left = jnp.linalg.norm(jnp.where(curved(eigen), 0, rotated))
        return left > jnp.finfo(slope.dtype).eps ** 0.5 * (1 + jnp.abs(value) + jnp.linalg.norm(rotated))

    def keep_going(carry):
        *_, number, finished, stuck = carry
        return (number < _STEPS) & ~finished & ~stuck

    def advance(carry):
        here, value, slope, number, _, _ = carry
        eigen, moves = curvature(here, slope)
        move = direction(eigen, moves, slope)
        promise = jnp.sum(move * slope)
        # The last step promises less than rounding, and doubles the digits of the block all the same: it may
        # seem to lower the objective by as much.
        slack = jnp.where(promise / 2 <= rounding, rounding, 0)

        def too_far(inner):
            scale, _, there, _ = inner
            return ~(there >= value + _ARMIJO * scale * promise - slack) & (scale > 0.5**_HALVINGS)

        def halve(inner):
            scale = inner[0] / 2
            return scale, here + scale * move, *value_and_grad(here + scale * move)

        # Whole steps are nearly always taken: their slope comes along with their value.
        whole = (jnp.ones((), here.dtype), here + move, *value_and_grad(here + move))
        scale, new, there, slope_there = jax.lax.while_loop(too_far, halve, whole)
        risen = there >= value - slack
        new, there, slope_there = jax.tree.map(
            lambda after, before: jnp.where(risen, after, before), (new, there, slope_there), (here, value, slope)
        )
        gain = there - first_value
        # ``promise / 2`` is the squared Newton decrement: what a quadratic would still gain. Where it was small before
        # this step, it is far smaller after it. The old curvature tells roughly what the next step would promise, and
        # saves a Hessian where that is next to nothing.
        left = jnp.sum(direction(eigen, moves, slope_there) * slope_there)
        is_enough = (promise <= 2 * enough * gain) | (left <= enough**2 * gain)
        # A curvature that is not finite, or zero beside a slope, makes a direction of zeros, which promises nothing:
        # that is no end.
        known = jnp.isfinite(promise) & jnp.all(jnp.isfinite(eigen.values))
        finished = known & ((promise / 2 <= rounding) | (is_enough & (scale == 1) & (enough > 0)))
        finished &= ~climbs_where_flat(eigen, moves, slope, value)
        return new, there, slope_there, number + 1, finished, ~risen | ~known

    where = _back_from_the_edge(value_and_grad, first, first_value, first_slope, free * relative, rounding)
    begin = (*where, 0, jnp.asarray(False), jnp.asarray(False))
    found, value, _, _, finished, _ = jax.lax.while_loop(keep_going, advance, begin)
    return layout.unpack(found), value - first_value, finished


_EDGE, _INSIDE = 30.0, 12.0
"""Logarithms or log-odds of entries on the edge, and of entries a little inside."""


def _back_from_the_edge(value_and_grad, first, value, slope, relative, rounding):
    """Entries on the edge that would gain inside it, moved inside: there a logarithm's slope is nothing but rounding.

    Returns:
        ``(point, value, slope)``: those given, unless the objective is higher inside.
    """
    edge = (relative > 0) & (jnp.abs(first) > _EDGE) & (slope * first < 0)

    def inside(_):
        _, slope_there = value_and_grad(jnp.where(edge, jnp.sign(first) * _INSIDE, first))
        gains = edge & (slope_there * first < 0)
        there = jnp.where(gains, jnp.sign(first) * _INSIDE, first)
        found = (there, *value_and_grad(there))
        return jax.tree.map(lambda new, old: jnp.where(found[1] > value + rounding, new, old), found, stay)

    stay = (first, value, slope)
    return jax.lax.cond(jnp.any(edge), inside, lambda _: stay, None)

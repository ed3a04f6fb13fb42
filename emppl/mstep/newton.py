"""Newton steps on a smooth block: iteratively reweighted least squares for any link, concave or not.

Each step solves with the Hessian of ``Q + log prior`` on the unconstrained space, whose negative eigenvalues are turned
round where Q is not concave (so that the step always climbs), and is halved until the objective rises by a
fair part of what the slope promised.

Reference:
    Nocedal and Wright (2006), Numerical optimization, sections 3.1 and 3.4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from emppl.errors import Refusal
from emppl.estep.q import touched
from emppl.mstep.analysis import coordinates, from_block
from emppl.mstep.entries import at_an_edge, entries_of, has_corners
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.quadratic import ScaledEigen, describe, free_entries, scaled_eigen
from emppl.mstep.rule import Rule, RuleContext
from emppl.numerics.rounding import MOST_NOISE, measured
from emppl.parameters.constraints import bounds, is_relative
from emppl.parameters.layout import Block, Layout

_MOST_ENTRIES = 200
_MOST_PROBES = 400
_STEPS = 25
_HALVINGS = 30

_ENOUGH = 0.01
"""Part of what the block has gained that a further step may leave."""

_ARMIJO = 1e-4
"""Part of what the slope promises that a step has to gain."""

_INCREDIBLE = 10.0
"""Multiple of what the slope promises that no step gains: a concave function gains at most 1, a quadratic 3/2."""


@dataclasses.dataclass(frozen=True)
class Newton(Rule):
    """Newton's method with a line search, all smooth parameters that meet in a site together.

    Attributes:
        layout: how the unconstrained entries fall into groups that never meet.
    """

    layout: Layout

    kind: ClassVar[str] = "newton"
    reads_weights: ClassVar[bool] = False
    stage: ClassVar[int] = 25

    @classmethod
    def propose(cls, context: RuleContext, name: str) -> Newton | Refusal:
        """Newton's method, or the reason why it does not apply."""
        if context.options.optimizer is not None:
            return Refusal("an optimizer is given")
        if name in context.model.held and bounds(context.model.trace.sites[name].constraint) is None:
            return Refusal("some of its entries are fixed, and its constraint ties entries together")
        for entry in entries_of(context, name):
            rough = at_an_edge(entry) or has_corners(entry)
            if rough is not None:
                return Refusal(rough)
        reason = context.analysis.why_not_smooth((name,))
        if reason is not None:
            return Refusal(reason)
        layout = context.analysis.layout((name,))
        if _is_too_large(layout):
            return Refusal(f"its Hessian is too large ({layout.entries} entries meet; the limit is {_MOST_ENTRIES})")
        return cls._of_block(context, (name,))

    @classmethod
    def join(cls, context: RuleContext, rules: list[Newton]) -> list[Newton]:
        """Put parameters together that meet in a site, as long as their Hessian stays small."""
        analysis = context.analysis

        def fits(names: tuple[str, ...]) -> bool:
            return analysis.why_not_smooth(names) is None and not _is_too_large(analysis.layout(names))

        blocks = analysis.blocks((rule.name for rule in rules), fits)
        return [cls._of_block(context, block) for block in blocks]

    @classmethod
    def _of_block(cls, context: RuleContext, names: tuple[str, ...]) -> Newton:
        layout = context.analysis.layout(names)
        block = f"{', '.join(names)} jointly" if len(names) > 1 else "it"
        return cls(names, f"Newton steps on {block}, with a line search{describe(layout)}", layout)

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Climb until what a further step promises is small beside what was gained."""
        model, before = step.model, {name: step.params[name] for name in self.parameters}
        start = coordinates(model, before, self.parameters)
        # From sums of statistics a step costs next to nothing: solve to the last digit.
        from_sums = all(site in step.expectations.sums for site in touched(model, self.parameters))
        is_log = {n: is_relative(model.trace.sites[n].constraint) for n in self.parameters}
        end, gain, finished = climb(
            lambda block: step.q(from_block(model, block)),
            self.layout,
            start,
            free_entries(model, self.layout),
            0.0 if from_sums else _ENOUGH,
            self.layout.pack({n: jnp.full(x.shape, is_log[n], x.dtype) for n, x in start.items()}),
        )
        step.report(finished & jnp.isfinite(gain))
        after = from_block(model, end)
        return {name: jnp.where(jnp.isfinite(gain), after[name], value) for name, value in before.items()}


def _is_too_large(layout: Layout) -> bool:
    return layout.entries > _MOST_ENTRIES or layout.probes > _MOST_PROBES


class _Curvature(NamedTuple):
    """Second derivatives at a point of the climb: the eigenvectors, and one for entries that move, zero for others."""

    eigen: ScaledEigen
    moves: jax.Array

    @property
    def used(self) -> jax.Array:
        """Whether an eigenvalue differs from zero by more than rounding."""
        size = jnp.abs(self.eigen.values)
        return size > jnp.finfo(size.dtype).eps * size.shape[-1] * jnp.max(size, -1, keepdims=True, initial=0)

    def direction(self, slope: jax.Array) -> jax.Array:
        """Where to go: Newton's step, with negative eigenvalues turned round."""
        used, rotated = self.used, self.eigen.rotated(slope * self.moves)
        return self.eigen.back(jnp.where(used, rotated / jnp.where(used, jnp.abs(self.eigen.values), 1), 0))

    def climbs_where_flat(self, slope: jax.Array, value: jax.Array) -> jax.Array:
        """Whether there is a slope along a direction without curvature, where no step is taken."""
        rotated = self.eigen.rotated(slope * self.moves)
        left = jnp.linalg.norm(jnp.where(self.used, 0, rotated))
        return left > jnp.finfo(slope.dtype).eps ** 0.5 * (1 + jnp.abs(value) + jnp.linalg.norm(rotated))


def climb(
    objective: Callable[[Block], jax.Array],
    layout: Layout,
    start: Block,
    free: jax.Array,
    enough: float = _ENOUGH,
    relative: jax.Array | float = 0.0,
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
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
    first = layout.pack(start)
    fixed = jax.lax.stop_gradient(first)
    value_and_grad = jax.value_and_grad(lambda point: objective(layout.unpack(jnp.where(free > 0, point, fixed))))
    gradient_of_block = jax.grad(objective)
    first_value, first_slope = value_and_grad(first)
    relative = jnp.broadcast_to(jnp.asarray(relative), first.shape)
    rounding = 8 * jnp.finfo(first.dtype).eps * (1 + jnp.abs(first_value))

    def curvature_at(point: jax.Array, slope: jax.Array) -> _Curvature:
        hessian = layout.hessian(gradient_of_block, layout.unpack(point))
        diagonal = jnp.abs(jnp.diagonal(hessian, axis1=-2, axis2=-1))
        moves = free * jnp.where((relative > 0) & (jnp.maximum(jnp.abs(slope), diagonal) <= rounding), 0, 1)
        return _Curvature(scaled_eigen(-hessian * (moves[..., :, None] * moves[..., None, :])), moves)

    def keep_going(carry: tuple) -> jax.Array:
        *_, number, finished, stuck = carry
        return (number < _STEPS) & ~finished & ~stuck

    def advance(carry: tuple) -> tuple:
        point, value, slope, _, number, _, _ = carry
        curvature = curvature_at(point, slope)
        move = curvature.direction(slope)
        promise = jnp.sum(move * slope)
        # The last step promises less than rounding, and doubles the digits of the block all the same: it may
        # seem to lower the objective by as much.
        slack = jnp.where(promise / 2 <= rounding, rounding, 0)

        def is_too_far(step: tuple) -> jax.Array:
            scale, _, new_value, _ = step
            gain = new_value - value
            # What gains far more than its slope promised, or infinitely much, is where a density lost its digits.
            likely = (gain >= _ARMIJO * scale * promise - slack) & (gain <= _INCREDIBLE * scale * promise + rounding)
            return ~(likely & jnp.isfinite(gain)) & (scale > 0.5**_HALVINGS)

        def halve(step: tuple) -> tuple:
            scale = step[0] / 2
            return scale, point + scale * move, *value_and_grad(point + scale * move)

        # Whole steps are nearly always taken: their slope comes along with their value.
        whole = (jnp.ones((), point.dtype), point + move, *value_and_grad(point + move))
        scale, new, new_value, new_slope = jax.lax.while_loop(is_too_far, halve, whole)
        risen = (new_value >= value - slack) & jnp.isfinite(new_value)
        new, new_value, new_slope = jax.tree.map(
            lambda after, before: jnp.where(risen, after, before), (new, new_value, new_slope), (point, value, slope)
        )
        gain = new_value - first_value
        # ``promise / 2`` is the squared Newton decrement: what a quadratic would still gain. Where it was small before
        # this step, it is far smaller after it. The old curvature tells roughly what the next step would promise, and
        # saves a Hessian where that is next to nothing.
        left = jnp.sum(curvature.direction(new_slope) * new_slope)
        is_enough = (promise <= 2 * enough * gain) | (left <= enough**2 * gain)
        # A curvature that is not finite, or zero beside a slope, makes a direction of zeros, which promises nothing:
        # that is no end.
        known = jnp.isfinite(promise) & jnp.all(jnp.isfinite(curvature.eigen.values))
        finished = known & ((promise / 2 <= rounding) | (is_enough & (scale == 1) & (enough > 0)))
        is_flat = curvature.climbs_where_flat(slope, value)
        finished &= ~is_flat
        at_most = jnp.where(known & ~is_flat, promise / 2, jnp.inf)
        return new, new_value, new_slope, at_most, number + 1, finished, ~risen | ~known

    start_inside = _back_from_the_edge(value_and_grad, first, first_value, first_slope, free * relative, rounding)
    begin = (*start_inside, jnp.full_like(first_value, jnp.inf), 0, jnp.asarray(False), jnp.asarray(False))
    end, value, _, at_most, _, finished, _ = jax.lax.while_loop(keep_going, advance, begin)

    def look_again(_: tuple) -> tuple:
        # No step gains anything where rounding is larger than what is left.
        noise = measured(lambda point: objective(layout.unpack(point)), end)
        return jnp.asarray(False), (at_most <= noise) & (noise <= MOST_NOISE)

    # A loop of at most one turn: under vmap, a conditional would always look.
    _, finished = jax.lax.while_loop(lambda state: state[0], look_again, (~finished, finished))
    return layout.unpack(end), value - first_value, finished


_EDGE, _INSIDE = 30.0, 12.0
"""Logarithms or log-odds of entries on the edge, and of entries a little inside."""


def _back_from_the_edge(
    value_and_grad: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    first: jax.Array,
    value: jax.Array,
    slope: jax.Array,
    relative: jax.Array,
    rounding: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Entries on the edge that would gain inside it, moved inside: there a logarithm's slope is nothing but rounding.

    Returns:
        ``(point, value, slope)``: those given, unless the objective is higher inside.
    """
    edge = (relative > 0) & (jnp.abs(first) > _EDGE) & (slope * first < 0)
    stay = (first, value, slope)

    def inside(_: None) -> tuple[jax.Array, jax.Array, jax.Array]:
        slope_inside = value_and_grad(jnp.where(edge, jnp.sign(first) * _INSIDE, first))[1]
        gains = edge & (slope_inside * first < 0)
        point = jnp.where(gains, jnp.sign(first) * _INSIDE, first)
        moved = (point, *value_and_grad(point))
        better = (moved[1] > value + rounding) & jnp.isfinite(moved[1])
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), moved, stay)

    return jax.lax.cond(jnp.any(edge), inside, lambda _: stay, None)

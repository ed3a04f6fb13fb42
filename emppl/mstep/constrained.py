"""A closed form whose solution may lie outside the parameter's constraint: ordered means, a scale with a floor.

Inside the constraint the closed form is the maximum. Beyond a bound on single numbers the update itself says where it
is (``Update.within``): the bound, where Q rises towards the closed form and falls after it. Where that is not known, or
where entries constrain each other, the fallback takes over.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from emppl.jaxpr.selection import Selection
from emppl.model.model import Model
from emppl.mstep.closed_form import ClosedForm
from emppl.mstep.entries import entries_of
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.newton import Newton
from emppl.mstep.numeric import Numeric
from emppl.mstep.rule import Rule, RuleContext
from emppl.parameters.constraints import constraint_name, limits, reachable
from emppl.types import Params


@dataclasses.dataclass(frozen=True)
class Constrained(Rule):
    """The closed form where the constraint allows it.

    Attributes:
        closed: the update without the constraint.
        is_bounded: whether the constraint bounds every entry by itself, and the update says where the maximum then is.
        fallback: what is done where the solution is outside.
    """

    closed: ClosedForm
    is_bounded: bool
    fallback: Rule

    kind: ClassVar[str] = "constrained"
    reads_weights: ClassVar[bool] = False

    @property
    def order(self) -> int:
        """As the closed form."""
        return self.closed.order

    @classmethod
    def propose(cls, context: RuleContext, name: str) -> Constrained | None:
        """A closed form that only the constraint stands in the way of, or None."""
        closed = ClosedForm.propose(context, name, anywhere=True)
        if not isinstance(closed, ClosedForm) or closed.map:
            return None
        constraint = context.model.trace.sites[name].constraint
        is_known = closed.closed.within is not None and closed.closed.event_rank == 0
        is_bounded = is_known and closed.prior in (None, "flat") and limits(constraint) is not None
        newton = Newton.propose(context, name)
        fallback: Rule = newton if isinstance(newton, Rule) else Numeric.propose(context, name)
        otherwise = "the bound" if is_bounded else fallback.kind
        detail = f"{closed.detail} where its constraint {constraint_name(constraint)!r} allows it, or else {otherwise}"
        return cls((name,), detail, closed, is_bounded, fallback, prior=closed.prior)

    def begin(self, model: Model, params: Params) -> Any:
        """What the fallback remembers."""
        return None if self.is_bounded else self.fallback.begin(model, params)

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """The closed form, moved to the bound or replaced by the fallback where it is outside."""
        ((name, value),) = self.closed.update(step).items()
        constraint = step.model.trace.sites[name].constraint
        if self.is_bounded:
            assert self.closed.closed.within is not None
            return {name: self.closed.closed.within(value, *reachable(constraint, value))}
        inside = jnp.all(constraint(value)) & jnp.all(jnp.isfinite(value))
        before = step.unfinished
        otherwise = self.fallback.update(step)[name]
        step.unfinished = jnp.where(inside, before, step.unfinished)
        return {name: jnp.where(inside, value, otherwise)}


def probabilities_without_a_sum(context: RuleContext, name: str) -> str | None:
    """The site whose probabilities a parameter is, as it stands, though nothing makes them add up to one; or None."""
    constraint = constraint_name(context.model.trace.sites[name].constraint)
    if constraint == "simplex":
        return None
    for factor, field, position in entries_of(context, name):
        update = factor.family.updates.get(field) if factor.family is not None else None
        if update is None or "simplex" not in update.support or update.event_rank != 1:
            continue
        selection = context.model.dependence.selection(name, position)
        if isinstance(selection, Selection) and selection.is_plain:
            last = len(context.model.dependence.jaxpr.outvars[position].aval.shape) - 1
            if last in selection.position:
                return factor.name
    return None

"""Closed forms: a registered update on additive sufficient statistics, pooled over everything that shares an entry."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from emppl.errors import Refusal
from emppl.families import Update
from emppl.jaxpr.maps import REAL, ElementMap, Interval
from emppl.model.axes import reduce_to
from emppl.mstep.entries import FLAT, in_another_prior, prior_of
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.readings import Reading, Target, read_entries
from emppl.mstep.rule import Rule, RuleContext
from emppl.parameters.constraints import bounds, constraint_name
from emppl.types import Params


@dataclasses.dataclass(frozen=True)
class ClosedForm(Rule):
    """The registered closed form of one parameter.

    Attributes:
        targets: where the parameter enters.
        closed: the update.
        map: from the parameter to the argument; the closed form gives the argument's value, which is mapped back.
        cell: the axes of the parameter that form one cell of the argument, counted from the end.
        scaled: whether the argument, at some site, is entries of the parameter times something known.
    """

    targets: tuple[Target, ...]
    closed: Update
    map: ElementMap = ElementMap()
    cell: tuple[int, ...] = ()
    scaled: bool = False

    kind: ClassVar[str] = "closed form"
    exact: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = False

    @property
    def order(self) -> int:
        """Locations come before scales."""
        return self.closed.order

    @classmethod
    def propose(cls, context: RuleContext, name: str, anywhere: bool = False) -> ClosedForm | Refusal:
        """The closed form of a parameter, whose solution may lie outside its constraint if it may lie ``anywhere``."""
        readings = read_entries(context, name)
        if isinstance(readings, Refusal):
            return readings
        first, scaled = readings[0], any(reading.scaled for reading in readings)
        update, map = first.update, first.map
        reason = _why_not_together(context, name, readings)
        if reason is None and map:
            reason = _why_not_mapped_back(context, name, first)
        elif reason is None:
            # What is solved entry by entry is tied together by the constraint alone.
            may_bind = update.by_entry or not anywhere
            reason = (_why_it_binds(context, name, first) if may_bind else None) or _why_not_conjugate(
                context, name, first
            )
        if reason is not None:
            return Refusal(reason)
        detail = f"{update.title}, of entries times known factors" if scaled else update.title
        detail = f"{detail}, through {map}" if map else detail
        targets = tuple(reading.target for reading in readings)
        prior = None if map else prior_of(context, name)
        prior = "flat" if prior in FLAT else prior
        return cls((name,), detail, targets, update, map, first.cell, scaled, prior=prior)

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Pool the contributions of every cell, add the prior's pseudo-statistics, solve."""
        (name,) = self.parameters
        value = self.map.forward(step.params[name])
        wanted = frozenset([(name, "distribution"), *((target.site, "arguments") for target in self.targets)])
        last = tuple(range(-len(self.cell), 0))
        for stage, contributions in enumerate(self.closed.contributions):
            params = {**step.params, name: self.map.inverse(value)}
            arrays = step.evaluate(params, wanted)
            pooled = _pool(self, step, params, arrays, contributions)
            if self.prior not in (None, "flat"):
                prior = next(rule for kind, rule in self.closed.priors.items() if kind.__name__ == self.prior)
                pooled = prior(pooled, prior_arguments(arrays[name].distribution, value.ndim))
            pooled = {key: jnp.moveaxis(quantity, self.cell, last) for key, quantity in pooled.items()}
            solution = self.closed.solve(pooled, jnp.moveaxis(value, self.cell, last), stage)
            value = jnp.moveaxis(solution, last, self.cell)
        return {name: self.map.inverse(value)}


# --------------------------------------------------------------------------------------- reasons against a closed form


def _why_not_together(context: RuleContext, name: str, readings: list[Reading]) -> str | None:
    """The reason why the arguments have no solution in common, or None."""
    reason = in_another_prior(context, name)
    if reason is not None:
        return reason
    update, map, cell = readings[0].update, readings[0].map, readings[0].cell
    if any(reading.map != map for reading in readings):
        maps = sorted({str(reading.map) or "as it is" for reading in readings})
        return f"it enters through different maps ({'; '.join(maps)})"
    if any(reading.cell != cell for reading in readings):
        return "its cells lie along different axes at different sites"
    if "positive" in update.support and any(reading.scaled for reading in readings):
        start = bounds(context.model.trace.sites[name].constraint)
        reached = None if start is None else map.image(start)
        if reached is None or reached[0] < 0:
            return "it may be negative, and so may what it is multiplied by"
    return None


def _why_not_mapped_back(context: RuleContext, name: str, reading: Reading) -> str | None:
    """The reason why the argument's solution may not be mapped back to the parameter, or None: then that is exact."""
    map, title = reading.map, reading.update.title
    prior = prior_of(context, name)
    if prior not in (None, *FLAT):
        return f"its prior {prior} is on the value before the map ({map}), where no closed form has a conjugate prior"
    constraint = context.model.trace.sites[name].constraint
    needed, start = _range_of(reading.update), bounds(constraint)
    if needed is None or start is None:
        return f"it enters through a map ({map}), but {title!r} or its constraint is not a range of numbers"
    reached = map.image(start)
    if reached is None:
        return f"it enters through a map ({map}) that is not one-to-one under {constraint_name(constraint)!r}"
    if reached[0] > needed[0] or reached[1] < needed[1]:
        where = f"whose values lie in {reached}, which may bind: {title!r} can lie anywhere in {needed}"
        return f"it enters through a map ({map}) {where}"
    return None


def _range_of(update: Update) -> Interval | None:
    """Where the solutions of an update lie, if that is an interval for every entry."""
    if update.event_rank and "real_vector" not in update.support:
        return None
    ranges = {"unit_interval": (0.0, 1.0), "positive": (0.0, math.inf), "real": REAL}
    return next((interval for constraint, interval in ranges.items() if constraint in update.support), None)


def _why_it_binds(context: RuleContext, name: str, reading: Reading) -> str | None:
    """The reason why the solution may lie outside the parameter's constraint, or None."""
    constraint = constraint_name(context.model.trace.sites[name].constraint)
    needed = reading.update.support
    if constraint not in needed:
        return f"its constraint {constraint!r} is not implied by the update (which needs one of {', '.join(needed)})"
    if _are_last(reading.cell) or constraint.startswith("real"):
        return None
    return f"its constraint {constraint!r} is one of its last axes, not of those that are cells of the argument"


def _why_not_conjugate(context: RuleContext, name: str, reading: Reading) -> str | None:
    """The reason why the update cannot take in the parameter's prior, or None."""
    prior, title = prior_of(context, name), reading.update.title
    if prior in (None, *FLAT):
        return None
    if any(path[0] == name and path[1] in ("mask", "cell_weight") for path in context.model.trace.outputs):
        return f"its prior {prior} is masked or scaled"
    known = sorted(distribution.__name__ for distribution in reading.update.priors)
    if prior not in known:
        listing = ", ".join(known) or "none"
        return f"its prior {prior} is not conjugate to the update {title!r} (closed forms have: {listing})"
    return None if _are_last(reading.cell) else f"its prior {prior} does not lie along the axes of {title!r}"


def _are_last(cell: tuple[int, ...]) -> bool:
    return cell == tuple(range(-len(cell), 0))


# ----------------------------------------------------------------------------------------------- carrying it out


def _pool(
    rule: ClosedForm, step: Maximisation, params: Params, arrays: Mapping[str, Any], contributions: Callable
) -> dict[str, jax.Array]:
    """Sum every quantity over all cells, of all sites, that share an entry of the parameter."""
    (name,) = rule.parameters
    model = step.model
    wanted = frozenset((target.site, "arguments") for target in rule.targets)

    def selected(argument: jax.Array) -> list[jax.Array]:
        # The map and its inverse cancel: the derivative is that of the selection alone.
        moved = step.evaluate({**params, name: rule.map.inverse(argument)}, wanted)
        return [model.factors[target.site].argument(moved, target.argument) for target in rule.targets]

    value = rule.map.forward(params[name])
    current, pull_back = jax.vjp(selected, value)
    factors = jax.jvp(selected, (value,), (jnp.ones_like(value),))[1] if rule.scaled else [None] * len(current)
    parts = []
    for target, argument, factor in zip(rule.targets, current, factors, strict=True):
        quantities = contributions(step.moments(target.site), step.arguments(target.site, arrays), argument)
        part = {key: _to_argument(quantity, argument) for key, quantity in quantities.items()}
        if factor is not None:
            part = {key: _of_entries(rule.closed, key, quantity, factor) for key, quantity in part.items()}
        parts.append(part)

    def pooled(key: str) -> jax.Array:
        back = lambda *cotangents: pull_back(list(cotangents))[0]  # noqa: E731
        for _ in range(parts[0][key].ndim - current[0].ndim):
            back = jax.vmap(back)
        return back(*(part[key] for part in parts))

    return {key: pooled(key) for key in parts[0]}


def _of_entries(update: Update, key: str, quantity: jax.Array, factor: jax.Array) -> jax.Array:
    """A quantity of the argument as one of the parameter's entries, before it is pulled back (times the factor)."""
    assert update.degrees is not None
    power = update.degrees.get(key, 0) - 1
    # Where the factor is zero, no entry stands in the argument.
    return jnp.where(factor == 0, 0, quantity * jnp.where(factor == 0, 1, factor) ** power)


def _to_argument(quantity: jax.Array, argument: jax.Array) -> jax.Array:
    """Sum a quantity over the cells that share an entry of the argument."""
    extra = quantity.shape[: quantity.ndim - argument.ndim]
    full = jnp.broadcast_shapes(quantity.shape[len(extra) :], argument.shape)
    return reduce_to(jnp.broadcast_to(quantity, extra + full), extra + argument.shape)


def prior_arguments(base: Any, parameter_rank: int) -> types.SimpleNamespace:
    """Arguments of a prior, with leading axes of size one up to the parameter's rank: no rank is promoted silently."""
    values = types.SimpleNamespace()
    for name, constraint in type(base).arg_constraints.items():
        try:
            array = jnp.asarray(getattr(base, name))
        except (AttributeError, TypeError):
            continue
        rank = parameter_rank - len(base.event_shape) + getattr(constraint, "event_dim", 0)
        setattr(values, name, jnp.reshape(array, (1,) * (rank - array.ndim) + array.shape))
    return values

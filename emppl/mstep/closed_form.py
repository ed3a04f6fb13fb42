"""Closed forms: a registered update on additive sufficient statistics, pooled over everything that shares an entry."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import Refusal
from emppl.families import Update
from emppl.jaxpr.maps import REAL, ElementMap, Interval
from emppl.jaxpr.selection import Selection
from emppl.model.axes import reduce_to
from emppl.model.natural import SiteFactor
from emppl.mstep.diagonals import diagonal_update
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.rule import Rule, RuleContext
from emppl.parameters.constraints import bounds, constraint_name
from emppl.trace import Trace

FLAT = ("ImproperUniform", "Uniform", "Unit")
"""Priors that are constant on their support."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One argument of one site through which a parameter enters."""

    site: str
    argument: str


@dataclasses.dataclass(frozen=True)
class ClosedForm(Rule):
    """The registered closed form of one parameter.

    Attributes:
        targets: where the parameter enters.
        closed: the update.
        map: from the parameter to the argument; the closed form gives the argument's value, which is mapped back.
        cell: the axes of the parameter that form one cell of the argument, counted from the end.
        scaled: is the argument, at some site, entries of the parameter times something known?
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

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Pool the contributions of every cell, add the prior's pseudo-statistics, solve."""
        (name,) = self.parameters
        value = self.map.forward(step.params[name])
        for stage, contributions in enumerate(self.closed.contributions):
            here = {**step.params, name: self.map.inverse(value)}
            wanted = {(target.site, "arguments") for target in self.targets} | {(name, "distribution")}
            arrays = step.evaluate(here, frozenset(wanted))
            pooled = _pool(self, step, here, arrays, contributions)
            if self.prior not in (None, "flat"):
                prior = next(rule for kind, rule in self.closed.priors.items() if kind.__name__ == self.prior)
                pooled = prior(pooled, prior_arguments(arrays[name].distribution, value.ndim))
            last = tuple(range(-len(self.cell), 0))
            pooled = {key: jnp.moveaxis(quantity, self.cell, last) for key, quantity in pooled.items()}
            value = jnp.moveaxis(
                self.closed.solve(pooled, jnp.moveaxis(value, self.cell, last), stage), last, self.cell
            )
        return {name: self.map.inverse(value)}


# ------------------------------------------------------------------------------------- does it apply, and why not


def propose(context: RuleContext, name: str, anywhere: bool = False) -> ClosedForm | str:
    """The closed form of a parameter, or the reason why there is none.

    Args:
        context: the model.
        name: the parameter.
        anywhere: may the solution lie outside the parameter's constraint?
    """
    rank = len(context.model.trace.sites[name].shape)
    targets: list[Target] = []
    update: Update | None = None
    maps: list[ElementMap] = []
    cells: list[tuple[int, ...]] = []
    scaled = False
    found = entries_of(context, name)
    if not found:
        return "no likelihood site depends on it"
    for factor, field, position in found:
        if field in ("value", "mask", "cell_weight") or factor.labels_of or factor.site.kind == "factor":
            return f"it enters the {'log factor' if factor.site.kind == 'factor' else field} of site {factor.name!r}"
        edge = at_an_edge(factor, field)
        if edge is not None:
            return edge
        if factor.family is None or not factor.family.updates:
            return f"site {factor.name!r} is {factor.site.distribution}, which has no registered closed form"
        if any(factor.parameters.get(other) for other in ("value", "mask", *factor.family.fixed)):
            return f"the value of site {factor.name!r} depends on a parameter"
        selection = context.model.dependence.selection(name, position)
        candidate = factor.family.updates.get(field)
        if _is_scaled(selection, candidate):
            scaled = True
        elif isinstance(selection, Selection) and selection.scaled:
            selection = Refusal("it is multiplied by data")
        elif isinstance(selection, Selection) and candidate is not None:
            if selection.masked or _cell_axes(context, selection, rank, candidate, position) is None:
                diagonal = diagonal_update(context, factor, field, name, selection.map, position)
                candidate = diagonal if isinstance(diagonal, Update) else candidate
                if isinstance(diagonal, str) and selection.masked:
                    selection = Refusal(diagonal)
        if candidate is None:
            return f"{factor.family.name}.{field} of site {factor.name!r} has no closed-form update"
        if update is not None and candidate is not update:
            return f"it enters as {update.title!r} and as {candidate.title!r}, which have no common closed form"
        partner = _solved_jointly(context, factor, field)
        if partner is not None:
            return f"{field} of site {factor.name!r} is solved together with {partner!r}"
        update = candidate
        if any(
            factor.parameters.get(other, frozenset()) & {name}
            for other in factor.family.argument_ranks
            if other != field
        ):
            return f"it enters more than one argument of site {factor.name!r}"
        if isinstance(selection, Refusal):
            return f"{field} of site {factor.name!r} is not a plain selection of it: {selection.reason}"
        cell = _cell_axes(context, selection, rank, update, position)
        if cell is None:
            return f"no {update.event_rank} of its axes are whole the last ones of {field} of site {factor.name!r}"
        if name in context.model.held and not _fixes_whole_cells(context, name, update, cell):
            return f"some entries of a cell of {field} are fixed and others free"
        cells.append(cell)
        targets.append(Target(factor.name, field))
        maps.append(selection.map)
    assert update is not None
    for other in context.model.trace.parameters:
        if context.model.use_prior and other != name and prior_depends_on(context, other, name):
            return f"the prior of {other!r} depends on it"
    if any(one != maps[0] for one in maps):
        return f"it enters through different maps ({'; '.join(sorted({str(one) or 'as it is' for one in maps}))})"
    if any(one != cells[0] for one in cells):
        return "its cells lie along different axes at different sites"
    if scaled and not _is_positive(context, name, update, maps[0]):
        return "it may be negative, and so may what it is multiplied by"
    title = f"{update.title}, of entries times known factors" if scaled else update.title
    if maps[0]:
        through = _through_map(context, name, update, tuple(targets), maps[0], title)
        return (
            dataclasses.replace(through, cell=cells[0], scaled=scaled) if isinstance(through, ClosedForm) else through
        )
    refusal = _constraint_binds(context, name, update, cells[0])
    # What is solved entry by entry is tied together by the constraint alone.
    if refusal is not None and (update.by_entry or not anywhere):
        return refusal
    prior = _conjugate_prior(context, name, update)
    if isinstance(prior, _Refusal):
        return prior.reason
    if prior not in (None, "flat") and not _are_last(cells[0]):
        return f"its prior {prior} does not lie along the axes of {update.title!r}"
    return ClosedForm((name,), title, tuple(targets), update, cell=cells[0], scaled=scaled, prior=prior)


def _is_scaled(selection: Selection | Refusal, update: Update | None) -> bool:
    """Is the argument entries times something known, and does the update say how its quantities scale?"""
    if update is None or update.degrees is None:
        return False
    return isinstance(selection, Selection) and selection.is_multiple


def _is_positive(context: RuleContext, name: str, update: Update, map: ElementMap) -> bool:
    """Are the entries positive, where the argument has to be? The solution is."""
    if "positive" not in update.support:
        return True
    start = bounds(context.model.trace.sites[name].constraint)
    reached = None if start is None else map.image(start)
    return reached is not None and reached[0] >= 0


def at_an_edge(factor: SiteFactor, field: str) -> str | None:
    """Why no rule with derivatives finds the maximum of an argument at which a support begins or ends, or None."""
    if factor.family is None or field not in factor.family.edges:
        return None
    edge = f"{factor.family.name}.{field}"
    return f"the support of site {factor.name!r} begins or ends at it ({edge}), where Q jumps to minus infinity"


def has_corners(factor: SiteFactor, field: str) -> str | None:
    """Why no rule with derivatives finds the maximum of an argument in which a density is not smooth, or None."""
    if factor.family is None or field not in factor.family.kinks:
        return None
    return (
        f"the density of site {factor.name!r} has corners in it ({factor.family.name}.{field}), where no slope leads on"
    )


def _solved_jointly(context: RuleContext, factor: SiteFactor, field: str) -> str | None:
    """Another free parameter, in an argument of the site that is to be maximised together with this one."""
    assert factor.family is not None
    if field not in factor.family.joint:
        return None
    others = frozenset().union(*(factor.parameters.get(o, frozenset()) for o in factor.family.joint if o != field))
    free = sorted(other for other in others if other not in context.model.fixed and other not in context.options.m_step)
    return free[0] if free else None


def _fixes_whole_cells(context: RuleContext, name: str, update: Update, cell: tuple[int, ...]) -> bool:
    """Is every cell wholly fixed or wholly free, or a simplex, whose free entries share what the fixed ones leave?"""
    if update.event_rank == 0 or constraint_name(context.model.trace.sites[name].constraint) == "simplex":
        return True
    given = ~np.isnan(context.model.held[name])
    return bool(np.all(given.any(cell) == given.all(cell)))


def _through_map(
    context: RuleContext, name: str, update: Update, targets, map: ElementMap, title: str
) -> ClosedForm | str:
    """The closed form of the argument, mapped back to the parameter: exact, if it is always within reach."""
    prior = prior_of(context.model.trace, name)
    if prior not in (None, *FLAT) and context.model.use_prior:
        return f"its prior {prior} is on the value before the map ({map}), where no closed form has a conjugate prior"
    constraint = context.model.trace.sites[name].constraint
    needed, start = _range_of(update), bounds(constraint)
    if needed is None or start is None:
        return f"it enters through a map ({map}), but {update.title!r} or its constraint is not a range of numbers"
    reached = map.image(start)
    if reached is None:
        return f"it enters through a map ({map}) that is not one-to-one under {constraint_name(constraint)!r}"
    if reached[0] > needed[0] or reached[1] < needed[1]:
        return (
            f"it enters through a map ({map}) whose values lie in {reached}, which may bind: "
            f"{update.title!r} can lie anywhere in {needed}"
        )
    return ClosedForm((name,), f"{title}, through {map}", targets, update, map)


def _range_of(update: Update) -> Interval | None:
    """Where the solutions of an update lie, if that is an interval for every entry."""
    if update.event_rank and "real_vector" not in update.support:
        return None
    for constraint, interval in (("unit_interval", (0.0, 1.0)), ("positive", (0.0, math.inf)), ("real", REAL)):
        if constraint in update.support:
            return interval
    return None


def entries_of(context: RuleContext, name: str):
    """Every output of a likelihood site that depends on the parameter: ``(factor, field, position)``."""
    found = []
    for path, position in context.model.trace.outputs.items():
        factor = context.model.factors.get(path[0])
        if factor is None or ("parameter", name) not in context.model.dependence.of_output(position):
            continue
        if factor.labels_of is not None and path[1] not in ("value", "mask", "label_mask"):
            continue
        if path[1] == "distribution":
            if factor.family is None or factor.site.kind == "factor":
                found.append((factor, "distribution", position))
            continue
        found.append((factor, path[2] if path[1] == "arguments" else path[1], position))
    return found


def prior_depends_on(context: RuleContext, other: str, name: str) -> bool:
    """Does a parameter enter the prior of another one?"""
    return any(
        path[0] == other and path[1] != "value" and ("parameter", name) in context.model.dependence.of_output(position)
        for path, position in context.model.trace.outputs.items()
    )


def _cell_axes(context, selection: Selection, rank: int, update: Update, position: int) -> tuple[int, ...] | None:
    """Axes of the parameter, counted from the end, that are whole the last axes of an argument; None if there are none.

    An update entry by entry needs none: only the parameter's constraint ties entries together, along its last ones.
    """
    if update.by_entry:
        return tuple(range(-update.event_rank, 0))
    out_rank = len(context.model.dependence.jaxpr.outvars[position].aval.shape)
    found = []
    for back in range(update.event_rank, 0, -1):
        if out_rank - back not in selection.position:
            return None
        found.append(selection.position.index(out_rank - back) - rank)
    return tuple(found)


def _are_last(cell: tuple[int, ...]) -> bool:
    return cell == tuple(range(-len(cell), 0))


def _constraint_binds(context: RuleContext, name: str, update: Update, cell: tuple[int, ...]) -> str | None:
    constraint = constraint_name(context.model.trace.sites[name].constraint)
    if constraint in update.support and (_are_last(cell) or constraint.startswith("real")):
        return None
    if constraint in update.support:
        return f"its constraint {constraint!r} is one of its last axes, not of those that are cells of the argument"
    return (
        f"its constraint {constraint!r} is not implied by the update (which needs one of {', '.join(update.support)})"
    )


@dataclasses.dataclass(frozen=True)
class _Refusal:
    reason: str


def prior_of(trace: Trace, name: str) -> str | None:
    """Class name of a parameter's prior, or None for a ``numpyro.param``."""
    site = trace.sites[name]
    return site.distribution if site.kind == "continuous" else None


def _conjugate_prior(context: RuleContext, name: str, update: Update) -> str | None | _Refusal:
    prior = prior_of(context.model.trace, name)
    if prior is None or not context.model.use_prior:
        return None
    if prior in FLAT:
        return "flat"
    if any(path[0] == name and path[1] in ("mask", "cell_weight") for path in context.model.trace.outputs):
        return _Refusal(f"its prior {prior} is masked or scaled")
    for distribution in update.priors:
        if distribution.__name__ == prior:
            return prior
    known = ", ".join(sorted(d.__name__ for d in update.priors)) or "none"
    return _Refusal(f"its prior {prior} is not conjugate to the update {update.title!r} (closed forms have: {known})")


# ----------------------------------------------------------------------------------------------- carrying it out


def _pool(rule: ClosedForm, step: Maximisation, params, arrays, contributions) -> dict[str, jax.Array]:
    """Sum every quantity over all cells, of all sites, that share an entry of the parameter."""
    (name,) = rule.parameters
    model = step.model
    wanted = frozenset((target.site, "arguments") for target in rule.targets)

    def selected(value):
        there = step.evaluate({**params, name: value}, wanted)
        return [model.factors[t.site].argument(there, t.argument) for t in rule.targets]

    # Through the map and back: the derivative of what is differentiated is that of the selection alone.
    through, there = lambda value: selected(rule.map.inverse(value)), rule.map.forward(params[name])
    current, pull_back = jax.vjp(through, there)
    factors = jax.jvp(through, (there,), (jnp.ones_like(there),))[1] if rule.scaled else [None] * len(current)
    parts = []
    for target, argument, factor in zip(rule.targets, current, factors, strict=True):
        quantities = contributions(step.moments(target.site), step.arguments(target.site, arrays), argument)
        parts.append({key: _to_argument(quantity, argument) for key, quantity in quantities.items()})
        if factor is not None:
            parts[-1] = {key: _of_entries(rule.closed, key, part, factor) for key, part in parts[-1].items()}

    def pooled(key):
        extra = parts[0][key].ndim - current[0].ndim
        back = lambda *cotangents: pull_back(list(cotangents))[0]  # noqa: E731
        for _ in range(extra):
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


@dataclasses.dataclass(frozen=True)
class PriorArguments:
    """A prior distribution's arguments, shaped to broadcast against the parameter without rank promotion."""

    values: Mapping[str, Any]

    def __getattr__(self, name: str):
        return self.values[name]


def prior_arguments(base: Any, parameter_rank: int) -> PriorArguments:
    """Arguments of a prior, each with leading axes of size one up to the parameter's rank."""
    values = {}
    for name, constraint in type(base).arg_constraints.items():
        try:
            array = jnp.asarray(getattr(base, name))
        except (AttributeError, TypeError):
            continue
        event = getattr(constraint, "event_dim", 0)
        rank = parameter_rank - len(base.event_shape) + event
        values[name] = jnp.reshape(array, (1,) * (rank - array.ndim) + array.shape)
    return PriorArguments(values)

"""Arguments through which a parameter enters, each with the update of its family that solves for it."""

from __future__ import annotations

import dataclasses

import numpy as np

from emppl.errors import Refusal
from emppl.families import Update
from emppl.jaxpr.maps import ElementMap
from emppl.jaxpr.selection import Selection
from emppl.mstep.diagonals import diagonal_update
from emppl.mstep.entries import Entry, at_an_edge, enters_elsewhere, entries_of
from emppl.mstep.rule import RuleContext
from emppl.parameters.constraints import constraint_name


@dataclasses.dataclass(frozen=True)
class Target:
    """One argument of one site through which a parameter enters."""

    site: str
    argument: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a closed form has to know about one argument.

    Attributes:
        target: the argument.
        update: what solves for it.
        map: what was done to every entry of the parameter on the way.
        cell: axes of the parameter, counted from the end, that form one cell of the argument.
        scaled: whether the argument is entries of the parameter times something known.
    """

    target: Target
    update: Update
    map: ElementMap
    cell: tuple[int, ...]
    scaled: bool


def read_entries(context: RuleContext, name: str) -> list[Reading] | Refusal:
    """A reading of every argument through which a parameter enters, or the reason why no update solves for them."""
    readings: list[Reading] = []
    for entry in entries_of(context, name):
        reason = _why_no_update(entry)
        reading = Refusal(reason) if reason is not None else _read(context, name, entry, readings)
        if isinstance(reading, Refusal):
            return reading
        readings.append(reading)
    return readings or Refusal("no likelihood site depends on it")


def _why_no_update(entry: Entry) -> str | None:
    """The reason why the family of a site has no update to offer for what a parameter enters, or None."""
    factor, field, _ = entry
    is_factor = factor.site.kind == "factor"
    if field in ("value", "mask", "cell_weight") or factor.labels_of or is_factor:
        return f"it enters the {'log factor' if is_factor else field} of site {factor.name!r}"
    edge = at_an_edge(entry)
    if edge is not None:
        return edge
    if factor.family is None or not factor.family.updates:
        return f"site {factor.name!r} is {factor.site.distribution}, which has no registered closed form"
    if any(factor.parameters.get(other) for other in ("value", "mask", *factor.family.fixed)):
        return f"the value of site {factor.name!r} depends on a parameter"
    return None


def _read(context: RuleContext, name: str, entry: Entry, before: list[Reading]) -> Reading | Refusal:
    """The reading of one argument; its update has to be that of the readings before."""
    factor, field, _ = entry
    assert factor.family is not None
    update, selection = _solution(context, name, entry)
    if update is None:
        return Refusal(f"{factor.family.name}.{field} of site {factor.name!r} has no closed-form update")
    if before and update is not before[0].update:
        titles = f"{before[0].update.title!r} and as {update.title!r}"
        return Refusal(f"it enters as {titles}, which have no common closed form")
    partner = _solved_jointly(context, entry)
    if partner is not None:
        return Refusal(f"{field} of site {factor.name!r} is solved together with {partner!r}")
    if enters_elsewhere(entry, name):
        return Refusal(f"it enters more than one argument of site {factor.name!r}")
    if isinstance(selection, Refusal):
        return Refusal(f"{field} of site {factor.name!r} is not a plain selection of it: {selection.reason}")
    cell = _cell_axes(context, name, entry, update, selection)
    if cell is None:
        where = f"{field} of site {factor.name!r}"
        return Refusal(f"no {update.event_rank} of its axes are whole the last ones of {where}")
    if name in context.model.held and not _fixes_whole_cells(context, name, update, cell):
        return Refusal(f"some entries of a cell of {field} are fixed and others free")
    scaled = _is_scaled(selection, factor.family.updates.get(field))
    return Reading(Target(factor.name, field), update, selection.map, cell, scaled)


def _solution(context: RuleContext, name: str, entry: Entry) -> tuple[Update | None, Selection | Refusal]:
    """The update that solves for an argument, and how the argument's entries are those of the parameter."""
    assert entry.factor.family is not None
    update = entry.factor.family.updates.get(entry.field)
    selection = context.model.dependence.selection(name, entry.position)
    if update is None or isinstance(selection, Refusal) or _is_scaled(selection, update):
        return update, selection
    if selection.scaled:
        return update, Refusal("it is multiplied by data")
    if not selection.masked and _cell_axes(context, name, entry, update, selection) is not None:
        return update, selection
    diagonal = diagonal_update(context, entry, name, selection.map)
    if isinstance(diagonal, Refusal):
        return update, diagonal if selection.masked else selection
    return diagonal, selection


def _is_scaled(selection: Selection, update: Update | None) -> bool:
    """Whether the argument is entries times something known, and the update says how its quantities scale."""
    return update is not None and update.degrees is not None and selection.is_multiple


def _solved_jointly(context: RuleContext, entry: Entry) -> str | None:
    """Another free parameter, in an argument of the site that is to be maximised together with this one."""
    assert entry.factor.family is not None
    joint = entry.factor.family.joint
    if entry.field not in joint:
        return None
    others = (entry.factor.parameters.get(field, frozenset()) for field in joint if field != entry.field)
    free = frozenset().union(*others) - {*context.model.fixed, *context.options.m_step}
    return min(free, default=None)


def _cell_axes(
    context: RuleContext, name: str, entry: Entry, update: Update, selection: Selection
) -> tuple[int, ...] | None:
    """Axes of the parameter, counted from the end, that are whole the last axes of an argument; None if there are none.

    An update entry by entry needs none: only the parameter's constraint ties entries together, along its last ones.
    """
    if update.by_entry:
        return tuple(range(-update.event_rank, 0))
    rank = len(context.model.dependence.jaxpr.outvars[entry.position].aval.shape)
    last = range(rank - update.event_rank, rank)
    if not set(last) <= set(selection.position):
        return None
    return tuple(selection.position.index(axis) - len(context.model.trace.sites[name].shape) for axis in last)


def _fixes_whole_cells(context: RuleContext, name: str, update: Update, cell: tuple[int, ...]) -> bool:
    """Whether cells are wholly fixed or free, or simplices, whose free entries share what the fixed ones leave."""
    if update.event_rank == 0 or constraint_name(context.model.trace.sites[name].constraint) == "simplex":
        return True
    given = ~np.isnan(context.model.held[name])
    return bool(np.all(given.any(cell) == given.all(cell)))

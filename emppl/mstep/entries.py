"""Where a parameter enters the likelihood, and its prior: what several rules ask before they apply."""

from __future__ import annotations

from typing import NamedTuple

from emppl.model.site import AlignedSite
from emppl.mstep.rule import RuleContext

FLAT = ("ImproperUniform", "Uniform", "Unit")
"""Priors that are constant on their support."""


class Entry(NamedTuple):
    """An output of a likelihood site that depends on a parameter.

    Attributes:
        factor: the site.
        field: the argument of its distribution, or what else of the site it is (``"value"``, ``"mask"``).
        position: its place among the outputs of the trace.
    """

    factor: AlignedSite
    field: str
    position: int


def entries_of(context: RuleContext, name: str) -> list[Entry]:
    """Every entry of a parameter."""
    entries = []
    for path, position in context.model.trace.outputs.items():
        factor = context.model.factors.get(path[0])
        if factor is None or ("parameter", name) not in context.model.dependence.of_output(position):
            continue
        if factor.labels_of is not None and path[1] not in ("value", "mask", "label_mask"):
            continue
        # Without a family whose arguments are outputs of their own, the distribution stands for all of them.
        if path[1] != "distribution" or factor.family is None or factor.site.kind == "factor":
            entries.append(Entry(factor, path[2] if path[1] == "arguments" else path[1], position))
    return entries


def enters_elsewhere(entry: Entry, name: str) -> bool:
    """Whether a parameter enters another argument of the same site, too."""
    factor = entry.factor
    assert factor.family is not None
    others = (argument for argument in factor.family.argument_ranks if argument != entry.field)
    return any(name in factor.parameters.get(argument, ()) for argument in others)


def at_an_edge(entry: Entry) -> str | None:
    """Why no rule with derivatives finds the maximum of an argument at which a support begins or ends, or None."""
    family = entry.factor.family
    if family is None or entry.field not in family.edges:
        return None
    where = f"the support of site {entry.factor.name!r} begins or ends at it ({family.name}.{entry.field})"
    return f"{where}, where Q jumps to minus infinity"


def has_corners(entry: Entry) -> str | None:
    """Why no rule with derivatives finds the maximum of an argument in which a density is not smooth, or None."""
    family = entry.factor.family
    if family is None or entry.field not in family.kinks:
        return None
    where = f"the density of site {entry.factor.name!r} has corners in it ({family.name}.{entry.field})"
    return f"{where}, where no slope leads on"


def prior_of(context: RuleContext, name: str) -> str | None:
    """Class name of a parameter's prior; None for a ``numpyro.param``, or where priors are dropped."""
    site = context.model.trace.sites[name]
    return site.distribution if site.kind == "continuous" and context.model.use_prior else None


def in_another_prior(context: RuleContext, name: str) -> str | None:
    """The reason why the likelihood alone does not decide about a parameter: it enters the prior of another one."""
    model = context.model
    for path, position in model.trace.outputs.items():
        is_of_prior = path[0] in model.trace.parameters and path[0] != name and path[1] != "value"
        if model.use_prior and is_of_prior and ("parameter", name) in model.dependence.of_output(position):
            return f"the prior of {path[0]!r} depends on it"
    return None

"""Weights of cells (``handlers.scale``): what they must cover, and the order in which latents are summed out for them.

A weight means that a cell, with its latents and its data, is counted that many times. What lies inside a weight is
repeated given what lies outside, so that it is summed out first; what cannot be summed out in such an order is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from emppl.errors import ModelError
from emppl.jaxpr.depends import Dependence
from emppl.model.axes import Axes
from emppl.model.integral import Integral
from emppl.model.site import AlignedSite, field_dependences
from emppl.names import latent_of, model_name
from emppl.trace import Trace


def summed_before(
    trace: Trace, dependence: Dependence, plates: Mapping[str, frozenset[str]]
) -> dict[str, frozenset[str]]:
    """By axis of a latent, the axes that must be summed out before it: those of its plates inside another weight.

    Args:
        plates: by axis of every discrete latent, its plates.
    """
    weighted = [axis for axis in plates if is_weighted(trace, latent_of(axis))]
    if not weighted:
        return {}
    order = {name: number for number, name in enumerate(trace.sites)}
    rank = {axis: (axis in weighted, order[latent_of(axis)]) for axis in plates}
    return {
        axis: frozenset(
            other
            for other in weighted
            if plates[other] == plates[axis]
            and rank[other] > rank[axis]
            and not count_alike(trace, dependence, latent_of(axis), latent_of(other))
        )
        for axis in plates
    }


def is_weighted(trace: Trace, site: str) -> bool:
    """Whether the cells of a site have a weight."""
    return (site, "cell_weight") in trace.outputs


def count_alike(trace: Trace, dependence: Dependence, site: str, other: str) -> bool:
    """Whether the cells of two sites are known to have the same weight."""
    positions = [trace.outputs.get((name, "cell_weight")) for name in (site, other)]
    if None in positions or model_name(site) == model_name(other):
        return model_name(site) == model_name(other) or positions == [None, None]
    return dependence.is_same(*positions)  # type: ignore[arg-type]


def check_weights(
    trace: Trace,
    dependence: Dependence,
    axes: Axes,
    factors: Mapping[str, AlignedSite],
    integrals: Sequence[Integral],
) -> None:
    """Refuse weights that do not cover a cell with its latents and its data.

    Args:
        factors: likelihood sites.
        integrals: continuous latents.

    Raises:
        ModelError: a site lies outside the weight of a latent that it depends on; or latents of different weights meet
            that cannot be summed out from the inside to the outside.
    """
    if not any(is_weighted(trace, name) for name in factors):
        return
    for integral in integrals:
        for latent in integral.latents:
            if not count_alike(trace, dependence, integral.latents[0], latent):
                raise _unlike(integral.latents[0], latent, "are integrated together")
    members = {integral.axis: integral.latents[0] for integral in integrals}
    below = {name: {name} if factor.site.kind == "discrete" else set() for name, factor in factors.items()}
    for name, latents in below.items():
        for axis in frozenset().union(*field_dependences(trace, dependence, name)[0].values()):
            latents.add(members.get(axis, latent_of(axis)))
    for name, factor in factors.items():
        uncovered = [latent for latent in sorted(below[name]) if is_weighted(trace, latent)]
        if uncovered and not is_weighted(trace, name) and factor.labels_of is None:
            latent, site = model_name(uncovered[0]), model_name(name)
            raise ModelError(
                f"Latent {latent!r} has a weight (handlers.scale), and site {site!r}, which depends on it, has none. A "
                "weight counts a whole cell that many times, its latents with all that depends on them: put "
                f"{site!r} under the same `with numpyro.handlers.scale(...)`, or take {latent!r} out of it."
            )
        for one, other in itertools.combinations(sorted(below[name]), 2):
            if count_alike(trace, dependence, one, other):
                continue
            inner = _inside(trace, axes, below, one, other)
            outer = one if inner == other else other
            if inner is None or not _comes_first(trace, axes, inner, outer):
                raise _unlike(one, other, f"meet in site {model_name(name)!r}")


def _unlike(one: str, other: str, how: str) -> ModelError:
    return ModelError(
        f"Latents {model_name(one)!r} and {model_name(other)!r} have different weights (handlers.scale) and {how}: "
        "copies of one cell would share a latent that is not summed out after them. Put both under the same `with "
        "numpyro.handlers.scale(...)`, or leave both out of it."
    )


def _inside(trace: Trace, axes: Axes, below: Mapping[str, set[str]], one: str, other: str) -> str | None:
    """Which of two latents of different weights is repeated given the other one; None if that is not known."""
    if is_weighted(trace, one) != is_weighted(trace, other):
        return one if is_weighted(trace, one) else other
    plates = {name: axes.plates_of(trace.sites[name], trace.sites[name].batch_shape) for name in (one, other)}
    if plates[one] != plates[other] and (plates[one] < plates[other] or plates[other] < plates[one]):
        return max(plates, key=lambda name: len(plates[name]))
    if other in below[one]:
        return one
    return other if one in below[other] else None


def _comes_first(trace: Trace, axes: Axes, inner: str, outer: str) -> bool:
    """Whether one latent is summed or integrated out before another one."""
    sites = trace.sites[inner], trace.sites[outer]
    inside, outside = (axes.plates_of(site, site.batch_shape) for site in sites)
    if sites[1].kind == "integrated" or not outside <= inside:
        return False
    chained = {name for scan in trace.scans for name, depth in scan.depths.items() if depth}
    return outside < inside or model_name(inner) not in map(model_name, chained)

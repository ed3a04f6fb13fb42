"""Continuous latents inside a ``scan``: windows of neighbouring steps, on which every site of a step depends.

The steps of one chain are integrated together; what makes that cheap is that a site sees a window only, so that the
precision of all steps is banded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from emppl.errors import ModelError
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.groups import Meeting
from emppl.jaxpr.layout import Layout, group_numbers
from emppl.jaxpr.separation import Separation
from emppl.model.axes import Axes
from emppl.model.integral import Integral, StateSpace, plate_axes
from emppl.model.site import field_dependences
from emppl.names import first, lagged
from emppl.trace import Trace


def find_chains(trace: Trace, dependence: Dependence, others: Sequence[str]) -> list[Integral]:
    """The continuous latents of every scan.

    Args:
        trace: the model.
        dependence: what depends on what.
        others: continuous latents outside scans, traced as parameters.

    Returns:
        One integral for every scan that has any.

    Raises:
        ModelError: a chain that no strategy integrates.
    """
    found = []
    for chain in trace.scans:
        if not chain.hidden:
            continue
        names = tuple(chain.hidden)
        if not chain.order:
            raise ModelError(
                f"The scan with the continuous latent {names[0]!r} carries no latent from step to step. Its steps are "
                "independent: put them in a plate, `with numpyro.plate('steps', T):`, instead of a scan."
            )
        axis = trace.atom_axes[names[0]].axis
        factors, given = [], set()
        for name in trace.sites:
            in_latents, in_parameters = field_dependences(trace, dependence, name)
            here = frozenset().union(*in_latents.values())
            if axis not in here:
                continue
            factors.append(name)
            given |= {other for other in here if other != axis}
            outside = sorted(frozenset().union(*in_parameters.values()) & set(others))
            if outside:
                raise ModelError(
                    f"Site {name!r} depends on the continuous latents {names[0]!r}, inside a scan, and {outside[0]!r}, "
                    f"outside of it, which cannot be integrated together yet. Carry {outside[0]!r} along as part of "
                    f"the state, or maximise over it: EM(model, estimate=[{outside[0]!r}])."
                )
        inside = sorted(name for name in given if trace.sites[name.split("@")[0]].is_scanned)
        if inside:
            raise ModelError(
                f"The scan has the continuous latent {names[0]!r} and the discrete latent {inside[0]!r}, which "
                "switches it: the exact E-step would need a normal distribution for every path of states. Make "
                f"{inside[0]!r} a latent outside the scan (one regime per sequence), or observe one of the two."
            )
        order = tuple(name for name in trace.sites if name in given)
        layout = Layout({}, {}, 0)
        found.append(Integral(axis, names, tuple(factors), order, states=StateSpace(chain, layout, layout)))
    return found


def arrange_chain(integral: Integral, trace: Trace, axes: Axes, tables: Callable, *arguments) -> Integral:
    """Lay out the first steps and the windows of a chain, apart for every cell of the plates around its steps.

    Args:
        integral: the latents and sites.
        trace: the model.
        axes: the common axes.
        tables: ``(values, *arguments) -> tables`` of the sites, at one value of every latent.
        *arguments: shapes of everything else.

    Returns:
        The integral with ``cells`` and ``states``.

    Raises:
        ModelError: chains in different cells depend on each other.
    """
    assert integral.states is not None
    chain = integral.states.chain
    shared = [set(plate_axes(trace, axes, name)) - {chain.time} for name in integral.latents]
    cells = (*integral.given, *(name for name in axes.names if all(name in one for one in shared)))
    firsts = {first(name, step): name for step in range(chain.order) for name in chain.hidden}
    windows = {
        lagged(name, lag): name
        for lag in range(chain.order, -1, -1)
        for name, depth in chain.hidden.items()
        if lag <= depth
    }
    shapes = {name: trace.value_shapes[name] for name in (*firsts, *windows)}
    places = {name: _positions(trace, axes, name, latent, cells) for name, latent in (firsts | windows).items()}
    grouped = {name: places[name] for name in firsts if places[name]}
    moving = {name: (0, *(place + 1 for place in places[name])) for name in windows}
    number = math.prod(axes.sizes[name] for name in cells)
    states = StateSpace(
        chain,
        Layout({name: shapes[name] for name in firsts}, grouped, number if grouped else 0),
        Layout({name: shapes[name] for name in windows}, moving, chain.length * number),
    )
    separation = Separation(tables, shapes, *arguments)
    for layout in (states.firsts, states.windows):
        numbers = {name: group_numbers(shape, layout.grouped.get(name)) for name, shape in shapes.items()}
        if any(isinstance(one, Meeting) for one in separation.groups(numbers)):
            raise ModelError(
                f"The chains of the continuous latents {', '.join(map(repr, integral.latents))} in different plate "
                "cells depend on each other. Make the state of a step one vector, in no plate."
            )
    outside = [n for n in integral.given if not set(plate_axes(trace, axes, n)) <= set(cells)]
    if outside:
        raise ModelError(
            f"The discrete latent {outside[0]!r} lies in other plates than the chain of {integral.latents[0]!r}. Put "
            "both in the same plates, so that every cell has a chain of its own."
        )
    return dataclasses.replace(integral, cells=cells, states=states)


def _positions(trace: Trace, axes: Axes, name: str, latent: str, cells) -> tuple[int, ...]:
    """Axes of one atom of one step that number the cells."""
    site, shape = trace.sites[latent], trace.value_shapes[name]
    shape = shape[1:] if latent == name or "@previous" in name else shape
    rank = len(shape) - len(site.event_shape)
    by_dim = axes.of_site(site)
    return tuple(rank + dim for dim in range(-rank, 0) if shape[rank + dim] > 1 and by_dim.get(dim) in cells)

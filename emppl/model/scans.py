"""Continuous latents inside a ``scan``: windows of neighbouring steps, on which every site of a step depends.

The steps of one chain are integrated together. That is cheap because a site depends on one window only, so that the
precision of all steps is banded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from emppl.errors import ModelError
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.groups import SHARED
from emppl.jaxpr.separation import Separation
from emppl.model.axes import Axes
from emppl.model.integral import Integral, cell_groups, is_picked, lies_in_order, numbering_axes, plate_axes
from emppl.model.site import field_dependences
from emppl.model.state_space import StateSpace, TrajectoryLayout
from emppl.names import first, lagged, latent_of
from emppl.parameters.layout import Layout, group_numbers
from emppl.trace import Scan, Trace

_MOST_TRAJECTORY_NUMBERS = 2048
"""Numbers of one trajectory up to which it is integrated: the time of its dense matrices grows with their cube."""


@dataclasses.dataclass(frozen=True)
class ChainIntegral(Integral):
    """The continuous latents of a scan, all steps of a chain together; its layout is one of trajectories.

    Attributes:
        scan: how steps follow each other.
    """

    scan: Scan = dataclasses.field(kw_only=True)

    @property
    def states(self) -> StateSpace:
        """The first steps and the windows."""
        assert isinstance(self.layout, TrajectoryLayout)
        return self.layout.states

    def arranged(self, trace: Trace, axes: Axes, tables: Callable, *arguments: Any) -> ChainIntegral:
        """The integral with first steps and windows laid out, apart for every cell of the plates around its steps.

        Args:
            tables: ``(values, *arguments) -> tables`` of the sites, at one value of every latent.
            *arguments: shapes of everything else.

        Returns:
            The integral with ``cells`` and ``layout``.

        Raises:
            ModelError: chains in different cells depend on each other.
        """
        shared = [plate_axes(trace, axes, name) - {self.scan.time} for name in self.latents]
        cells = (*self.given, *(name for name in axes.names if all(name in plates for plates in shared)))
        outside = [name for name in self.given if not plate_axes(trace, axes, name) <= set(cells)]
        states = self._state_space(trace, axes, cells)
        shapes = {**states.firsts.shapes, **states.windows.shapes}
        separation = Separation(tables, shapes, *arguments)
        for layout in (states.firsts, states.windows):
            numbers = {name: group_numbers(shape, layout.grouped.get(name)) for name, shape in shapes.items()}
            groups = self._groups_of_cells(trace, axes, layout, numbers)
            if any(is_picked(table) or not lies_in_order(table, groups) for table in separation.groups(numbers)):
                raise ModelError(
                    f"The chains of the continuous latents {', '.join(map(repr, self.latents))} in different plate "
                    "cells depend on each other, or are read in another order than that of the cells. Make the state "
                    "of a step one vector, in no plate."
                )
        if outside:
            raise ModelError(
                f"The discrete latent {outside[0]!r} lies in other plates than the chain of {self.latents[0]!r}. Put "
                "both in the same plates, so that every cell has a chain of its own."
            )
        layout = TrajectoryLayout(shapes, states.firsts.grouped, states.firsts.groups, states)
        return dataclasses.replace(self, cells=cells, layout=layout)

    def _groups_of_cells(
        self, trace: Trace, axes: Axes, layout: Layout, numbers: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The groups of the cells of all steps, with the common axes."""
        if not layout.groups:
            return np.full((1,) * axes.rank, SHARED)
        name = next(iter(layout.grouped))
        if name in trace.sites and trace.sites[name].time is None:
            return cell_groups(trace, axes, name, numbers[name])
        within = cell_groups(trace, axes, latent_of(name), numbers[name][0])
        steps = np.arange(self.scan.length) * (layout.groups // self.scan.length)
        time = axes.names.index(self.scan.time)
        return within + np.expand_dims(steps, [axis for axis in range(axes.rank) if axis != time])

    def _state_space(self, trace: Trace, axes: Axes, cells: Sequence[str]) -> StateSpace:
        """Layouts of the first steps, and of the windows, whose axis of time numbers groups beside the cells."""
        order, hidden, sizes = self.scan.order, self.scan.hidden, trace.value_shapes
        firsts = {first(name, step): name for step in range(order) for name in hidden}
        lags = range(order, -1, -1)
        windows = {lagged(name, lag): name for lag in lags for name, depth in hidden.items() if lag <= depth}
        places = {name: numbering_axes(trace, axes, latent, sizes[name], cells) for name, latent in firsts.items()}
        grouped = {name: axes_ for name, axes_ in places.items() if axes_}
        moving = {}
        for name, latent in windows.items():
            within = numbering_axes(trace, axes, latent, sizes[name][1:], cells)
            moving[name] = (0, *(axis + 1 for axis in within))
        number = math.prod(axes.sizes[name] for name in cells)
        return StateSpace(
            self.scan,
            Layout({name: sizes[name] for name in firsts}, grouped, number if grouped else 0),
            Layout({name: sizes[name] for name in windows}, moving, self.scan.length * number),
        )

    def check_trajectories(self, trace: Trace) -> None:
        """Refuse chains that cannot be integrated as one vector each.

        Raises:
            ModelError: a latent within bounds, or trajectories that are too long.
        """
        names = ", ".join(map(repr, self.latents))
        for name, constraint in self.bounded(trace).items():
            raise ModelError(
                f"The continuous latent {name!r} inside a scan is {constraint}, and no strategy integrates such a "
                "chain yet. Let the chain be one of real numbers, the logarithm or logit of it, say, and transform "
                "these where they are used."
            )
        if self.dimensions > _MOST_TRAJECTORY_NUMBERS:
            raise ModelError(
                f"The log joint density is not quadratic in {names}, inside a scan, so that its "
                f"{self.states.steps:,} steps are integrated together: {self.dimensions:,} numbers, of which "
                f"{_MOST_TRAJECTORY_NUMBERS:,} are the limit. Cut the series into shorter ones, in a plate, or write a "
                "model that is normal given the parameters."
            )


def find_chains(trace: Trace, dependence: Dependence, unscanned: Sequence[str]) -> list[ChainIntegral]:
    """The continuous latents of every scan.

    Args:
        dependence: what depends on what.
        unscanned: continuous latents outside scans, traced as parameters.

    Returns:
        One integral for every scan that has any.

    Raises:
        ModelError: a chain that no strategy integrates.
    """
    integrals = []
    for scan in trace.scans:
        if not scan.hidden:
            continue
        names = tuple(scan.hidden)
        if not scan.order:
            raise ModelError(
                f"The scan with the continuous latent {names[0]!r} carries no latent from step to step. Its steps are "
                "independent: put them in a plate, `with numpyro.plate('steps', T):`, instead of a scan."
            )
        axis = trace.atom_axes[names[0]].axis
        factors: list[str] = []
        given: set[str] = set()
        for name in trace.sites:
            in_latents, in_parameters = field_dependences(trace, dependence, name)
            touched = frozenset().union(*in_latents.values())
            if axis not in touched:
                continue
            factors.append(name)
            given |= touched - {axis}
            outside = sorted(frozenset().union(*in_parameters.values()) & set(unscanned))
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
        integrals.append(ChainIntegral(axis, names, tuple(factors), order, scan=scan))
    return integrals

"""Continuous latents that are integrated out together: which they are, and where their integral falls apart.

Latents that meet in a site belong together. Given the discrete latents there, and in every plate cell that they share,
their integral is one of its own: a *group*. That is read off the model by running it on group numbers
(:mod:`emppl.jaxpr.separation`); nothing of the data is looked at.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import ModelError
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.groups import Grouped, Meeting
from emppl.jaxpr.layout import Layout, group_numbers
from emppl.jaxpr.separation import Separation
from emppl.model.axes import Axes
from emppl.model.site import field_dependences
from emppl.parameters.constraints import bounds, constraint_name
from emppl.strategies import Continuous, Gaussian
from emppl.trace import AtomAxis, Scan, Trace


@dataclasses.dataclass(frozen=True)
class StateSpace:
    """The continuous latents of a scan: every later step sees a window of itself and the steps before.

    Attributes:
        chain: the scan.
        firsts: the latents of the first steps, which are no window, by cell: all of them together.
        windows: the latents of a window, the oldest step first, by step and cell.
    """

    chain: Scan
    firsts: Layout
    windows: Layout

    @property
    def steps(self) -> int:
        """Number of steps, the first ones included."""
        return self.chain.length + self.chain.order

    @property
    def cells(self) -> int:
        """Number of chains."""
        return max(self.firsts.groups, 1)

    @property
    def dimensions(self) -> int:
        """Numbers in one step's state."""
        return self.firsts.entries // self.chain.order


@dataclasses.dataclass(frozen=True)
class Integral:
    """Continuous latents that are integrated out together.

    Attributes:
        axis: the axis of their atoms; also the name of the factor that the integral leaves behind.
        latents: the latents.
        factors: the sites that depend on them.
        given: discrete latents; there is an integral for every state of these.
        strategy: how it is done.
        cells: axes (plates, and latents of ``given``) over which integrals are apart.
        layout: how the entries of the latents fall into groups.
        is_indexed: are the cells of sites told apart by an index among the data (``b[subject]``)?
        reason: why the strategy applies, for the plan.
        states: of latents inside a scan, how steps follow each other; else None.
        trajectory: the same, where every chain is integrated as one vector and not step by step.
        limits: those of ``factors`` that are observed Delta sites, which restrict the latent to an interval or a point.
    """

    axis: str
    latents: tuple[str, ...]
    factors: tuple[str, ...]
    given: tuple[str, ...]
    strategy: Continuous = Gaussian()
    cells: tuple[str, ...] = ()
    layout: Layout = dataclasses.field(default_factory=lambda: Layout({}, {}, 0))
    is_indexed: bool = False
    reason: str = ""
    states: StateSpace | None = None
    trajectory: StateSpace | None = None
    limits: tuple[str, ...] = ()

    @property
    def chain(self) -> StateSpace | None:
        """How steps follow each other, if the latents are inside a scan."""
        return self.trajectory if self.states is None else self.states

    @property
    def unlimited(self) -> Integral:
        """The same without the Delta sites."""
        return dataclasses.replace(self, factors=tuple(n for n in self.factors if n not in self.limits), limits=())

    @property
    def limiting(self) -> Integral:
        """The same with the Delta sites only."""
        return dataclasses.replace(self, factors=self.limits)

    @property
    def groups(self) -> int:
        """Number of integrals, or of steps of all chains."""
        if self.states is not None:
            return self.states.steps * self.states.cells
        return max(self.layout.groups, 1)

    @property
    def dimensions(self) -> int:
        """How many numbers are integrated together, or make up one step's state."""
        return self.layout.entries if self.states is None else self.states.dimensions

    @property
    def atoms(self) -> int:
        """How many atoms there are."""
        if self.states is None:
            return self.strategy.atoms(self.dimensions)
        # States differ in scale by many orders (a variance next to zero, a diffuse start): points along one column of
        # a root each, two for every dimension, keep the digits that the corners of a simplex mix.
        return 2 * max(self.states.windows.per_group, self.states.firsts.entries)

    def zeros(self) -> dict[str, jax.Array]:
        """One value of every latent; of scanned ones, of every step of every window."""
        layouts = [self.layout] if self.states is None else [self.states.firsts, self.states.windows]
        return {name: jnp.zeros(shape) for layout in layouts for name, shape in layout.shapes.items()}

    @property
    def atom_axis(self) -> AtomAxis:
        """What the trace needs to know."""
        return AtomAxis(self.axis, self.given)


def find_integrals(trace: Trace, dependence: Dependence, latents: Sequence[str]) -> list[Integral]:
    """Continuous latents that meet in a site, directly or through others, are integrated together.

    Args:
        trace: the model, continuous sites traced as parameters.
        dependence: what depends on what.
        latents: continuous latents.

    Returns:
        The integrals, as far as they are known before the model is traced with the atoms of these latents.

    Raises:
        ModelError: a latent whose numbers cannot be moved one by one.
    """
    touched: dict[str, frozenset[str]] = {}
    discrete: dict[str, frozenset[str]] = {}
    for name in trace.sites:
        in_latents, in_parameters = field_dependences(trace, dependence, name)
        here = frozenset().union(*in_parameters.values()) & set(latents)
        if here:
            touched[name] = here
            discrete[name] = frozenset().union(*in_latents.values())
            if trace.sites[name].kind == "discrete":
                discrete[name] |= {name}
    for name in latents:
        if bounds(trace.sites[name].constraint) is None:
            raise ModelError(
                f"The continuous latent {name!r} ({trace.sites[name].distribution}) has entries that constrain each "
                f"other ({constraint_name(trace.sites[name].constraint)}), and no strategy integrates it yet. Maximise "
                f"over it: EM(model, estimate=[{name!r}])."
            )
    groups = [{name} for name in latents]
    for here in touched.values():
        joined = [group for group in groups if group & here]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    found = []
    for group in groups:
        members = tuple(name for name in trace.sites if name in group)
        sites = tuple(name for name, here in touched.items() if here & group)
        given = frozenset().union(*(discrete[name] for name in sites))
        found.append(Integral(f"{members[0]}@atoms", members, sites, tuple(n for n in trace.sites if n in given)))
    return found


def arrange(integral: Integral, trace: Trace, axes: Axes, tables: Callable, *arguments) -> Integral:
    """Find the finest groups that are integrals of their own.

    Args:
        integral: the latents and sites.
        trace: the model.
        axes: the common axes.
        tables: ``(values, *arguments) -> tables`` of the sites, at one value of every latent.
        *arguments: shapes of everything else.

    Returns:
        The integral with ``cells``, ``layout`` and ``is_indexed``.

    Raises:
        ModelError: discrete and continuous latents depend on each other across plates.
    """
    shapes = {name: trace.value_shapes[name] for name in integral.latents}
    separation = Separation(tables, shapes, *arguments)
    shared = [set(plate_axes(trace, axes, name)) for name in integral.latents]
    plates = [name for name in axes.names if all(name in one for one in shared)]
    for count in range(len(plates), -1, -1):
        for chosen in itertools.combinations(plates, count):
            cells = (*integral.given, *chosen)
            grouped = {name: _positions(trace, axes, name, cells) for name in integral.latents}
            grouped = {name: places for name, places in grouped.items() if places}
            numbers = {name: group_numbers(shapes[name], grouped.get(name)) for name in shapes}
            found = separation.groups(numbers)
            # As one single group they may meet, in whatever operation.
            if any(isinstance(one, Meeting) for one in found) and (chosen or integral.given):
                continue
            groups = int(np.prod([axes.sizes[name] for name in cells if axes.sizes[name] > 1], dtype=int))
            layout = Layout(shapes, grouped, groups if grouped else 0)
            is_indexed = any(isinstance(one, Grouped) and bool(np.any(one.numbers < -1)) for one in found)
            outside = [latent for latent in integral.given if not set(plate_axes(trace, axes, latent)) <= set(chosen)]
            if outside or (is_indexed and integral.given):
                continue
            return dataclasses.replace(integral, cells=cells, layout=layout, is_indexed=is_indexed)
    raise ModelError(_mixed(integral))


def plate_axes(trace: Trace, axes: Axes, name: str) -> frozenset[str]:
    """Plates of a latent."""
    site = trace.sites[name]
    return axes.plates_of(site, site.shape[: len(site.shape) - len(site.event_shape)])


def _positions(trace: Trace, axes: Axes, name: str, cells) -> tuple[int, ...]:
    """Axes of one atom of a latent that number the groups."""
    site, shape = trace.sites[name], trace.value_shapes[name]
    rank = len(shape) - len(site.event_shape)
    by_dim = axes.of_site(site)
    return tuple(rank + dim for dim in range(-rank, 0) if shape[rank + dim] > 1 and by_dim.get(dim) in cells)


def _mixed(integral: Integral) -> str:
    continuous, discrete = (", ".join(map(repr, names)) for names in (integral.latents, integral.given))
    return (
        f"The continuous latents {continuous} and the discrete latents {discrete} depend on each other across plate "
        "cells: the integral would have to be done for every joint state of "
        f"{discrete} in all cells that share one value of {continuous}. Put them in the same plates, so that every "
        f"cell has an integral of its own; sum {discrete} out in the model, with dist.MixtureSameFamily or, for zeros, "
        f"dist.ZeroInflatedDistribution; or maximise over one of them: EM(model, estimate=[{integral.latents[0]!r}])."
    )

"""Continuous latents that are integrated out together: which they are, and where their integral falls apart.

Latents that meet in a site belong together. Given the discrete latents there, and in every plate cell that they share,
their integral is one of its own: a *group*. That is read off the model by running it on group numbers
(:mod:`emppl.jaxpr.separation`); no values of the data enter.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import ModelError
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.groups import SHARED, Grouped, Meeting
from emppl.jaxpr.separation import Separation
from emppl.model.axes import Axes
from emppl.model.site import field_dependences
from emppl.parameters.constraints import bounds, constraint_name, is_linear, unconstrained_shape
from emppl.parameters.layout import Layout, group_numbers
from emppl.strategies import Continuous
from emppl.trace import AtomAxis, Trace


@dataclasses.dataclass(frozen=True)
class Integral:
    """Continuous latents that are integrated out together.

    Attributes:
        axis: the axis of their atoms; also the name of the factor that the integral leaves behind.
        latents: the latents.
        factors: the sites that depend on them.
        given: discrete latents; there is an integral for every state of these.
        cells: axes (plates, and latents of ``given``) over which integrals are apart.
        layout: how the entries of the latents fall into groups.
        indexed: factors whose cells are told apart by an index among the data (``b[subject]``).
        way: how it is done, an :class:`emppl.integrals.way.Way`; None before that is settled.
    """

    axis: str
    latents: tuple[str, ...]
    factors: tuple[str, ...]
    given: tuple[str, ...]
    cells: tuple[str, ...] = ()
    layout: Layout = dataclasses.field(default_factory=lambda: Layout({}, {}, 0))
    indexed: frozenset[str] = frozenset()
    way: Any = None

    @property
    def strategy(self) -> Continuous:
        """The strategy by which it is done, the user's or the default."""
        return self.way.strategy

    @property
    def is_indexed(self) -> bool:
        """Whether cells of any factor are told apart by an index among the data."""
        return bool(self.indexed)

    @property
    def groups(self) -> int:
        """Number of integrals."""
        return max(self.layout.groups, 1)

    @property
    def dimensions(self) -> int:
        """How many numbers are integrated together."""
        return self.layout.entries

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return self.way.atoms(self)

    def bounded(self, trace: Trace) -> dict[str, str]:
        """By latent within bounds, the name of its constraint."""
        constraints = {name: trace.sites[name].constraint for name in self.latents}
        return {n: constraint_name(constraint) for n, constraint in constraints.items() if not is_linear(constraint)}

    def zeros(self) -> dict[str, jax.Array]:
        """One value of every latent; of scanned ones, of every step of every window."""
        return {name: jnp.zeros(shape) for name, shape in self.layout.shapes.items()}

    @property
    def atom_axis(self) -> AtomAxis:
        """The axis of its atoms, for the trace."""
        return AtomAxis(self.axis, self.given)

    def arranged(self, trace: Trace, axes: Axes, tables: Callable, *arguments: Any) -> Integral:
        """The integral with the finest groups that are integrals of their own.

        Args:
            tables: ``(values, *arguments) -> tables`` of the sites, at one value of every latent.
            *arguments: shapes of everything else.

        Returns:
            The integral with ``cells``, ``layout`` and ``indexed``.

        Raises:
            ModelError: discrete and continuous latents depend on each other across plates.
        """
        sites = trace.sites
        shapes = {n: unconstrained_shape(sites[n].constraint, trace.value_shapes[n]) for n in self.latents}
        separation = Separation(tables, shapes, *arguments)
        shared = [plate_axes(trace, axes, name) for name in self.latents]
        plates = [name for name in axes.names if all(name in plates for plates in shared)]
        for count in range(len(plates), -1, -1):
            for chosen in itertools.combinations(plates, count):
                cells = (*self.given, *chosen)
                grouped = {name: numbering_axes(trace, axes, name, shapes[name], cells) for name in self.latents}
                grouped = {name: places for name, places in grouped.items() if places}
                numbers = {name: group_numbers(shapes[name], grouped.get(name)) for name in shapes}
                tables_groups = dict(zip(sorted(self.factors), separation.groups(numbers), strict=True))
                # Latents of one single group may meet in any operation, and be read in any order.
                groups_of = cell_groups(trace, axes, self.latents[0], numbers[self.latents[0]])
                if cells and not all(lies_in_order(table, groups_of) for table in tables_groups.values()):
                    continue
                groups = int(np.prod([axes.sizes[name] for name in cells if axes.sizes[name] > 1], dtype=int))
                layout = Layout(shapes, grouped, groups if grouped else 0)
                indexed = frozenset(name for name, table in tables_groups.items() if is_picked(table))
                outside = [latent for latent in self.given if not plate_axes(trace, axes, latent) <= set(chosen)]
                if not outside and not (indexed and self.given):
                    return dataclasses.replace(self, cells=cells, layout=layout, indexed=indexed)
        raise ModelError(_mixed(self))


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
        continuous = frozenset().union(*in_parameters.values()) & set(latents)
        if continuous:
            touched[name] = continuous
            discrete[name] = frozenset().union(*in_latents.values())
            if trace.sites[name].kind == "discrete":
                discrete[name] |= {name}
    for name in latents:
        constraint = trace.sites[name].constraint
        if bounds(constraint) is None and not is_linear(constraint):
            raise ModelError(
                f"The continuous latent {name!r} ({trace.sites[name].distribution}) has entries that constrain each "
                f"other ({constraint_name(constraint)}), and no strategy integrates it yet. Maximise "
                f"over it: EM(model, estimate=[{name!r}])."
            )
    groups = [{name} for name in latents]
    for together in touched.values():
        joined = [group for group in groups if group & together]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    integrals = []
    for group in groups:
        members = tuple(name for name in trace.sites if name in group)
        sites = tuple(name for name, together in touched.items() if together & group)
        given = frozenset().union(*(discrete[name] for name in sites))
        order = tuple(name for name in trace.sites if name in given)
        integrals.append(Integral(f"{members[0]}@atoms", members, sites, order))
    return integrals


def plate_axes(trace: Trace, axes: Axes, name: str) -> frozenset[str]:
    """Plates of a latent."""
    site = trace.sites[name]
    return axes.plates_of(site, site.shape[: len(site.shape) - len(site.event_shape)])


def numbering_axes(
    trace: Trace, axes: Axes, latent: str, shape: tuple[int, ...], cells: Sequence[str]
) -> tuple[int, ...]:
    """Axes of one atom of a latent, in one step, that number the groups."""
    site = trace.sites[latent]
    rank = len(shape) - len(site.event_shape)
    by_dim = axes.of_site(site)
    return tuple(rank + dim for dim in range(-rank, 0) if shape[rank + dim] > 1 and by_dim.get(dim) in cells)


def is_picked(table: Grouped | Meeting | None) -> bool:
    """Whether data say on which group a cell of a table depends."""
    return isinstance(table, Grouped) and bool(np.any(table.numbers < SHARED))


def cell_groups(trace: Trace, axes: Axes, latent: str, numbers: np.ndarray) -> np.ndarray:
    """The groups of the cells of a latent, with the common axes, from those of its entries."""
    site = trace.sites[latent]
    with jax.ensure_compile_time_eval():
        entries = axes.align(jnp.asarray(numbers), site, len(site.event_shape))
        return np.asarray(entries).reshape(*entries.shape[: axes.rank], -1)[..., 0]


def lies_in_order(table: Grouped | Meeting | None, groups: np.ndarray) -> bool:
    """Whether a cell of a table depends on the group of its own cell, on none, or on one that the data pick."""
    if table is None or is_picked(table):
        return True
    if isinstance(table, Meeting):
        return False
    if groups.size > 1 and any(n == 1 < g for n, g in zip(table.numbers.shape, groups.shape, strict=True)):
        return bool(np.all(table.numbers == SHARED))  # constant along the groups
    return bool(np.all((table.numbers == SHARED) | (table.numbers == groups)))


def _mixed(integral: Integral) -> str:
    continuous, discrete = (", ".join(map(repr, names)) for names in (integral.latents, integral.given))
    return (
        f"The continuous latents {continuous} and the discrete latents {discrete} depend on each other across plate "
        "cells: the integral would have to be done for every joint state of "
        f"{discrete} in all cells that share one value of {continuous}. Put them in the same plates, so that every "
        f"cell has an integral of its own; sum {discrete} out in the model, with dist.MixtureSameFamily or, for zeros, "
        f"dist.ZeroInflatedDistribution; or maximise over one of them: EM(model, estimate=[{integral.latents[0]!r}])."
    )

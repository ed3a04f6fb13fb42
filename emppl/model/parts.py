"""Factors that are eliminated together, and the order of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax

from emppl.elimination.order import EliminationPlan, Factor, plan_elimination
from emppl.elimination.run import probe_name
from emppl.jaxpr.depends import Dependence
from emppl.model.axes import Axes
from emppl.model.integral import Integral
from emppl.model.site import AlignedSite
from emppl.model.weights import summed_before
from emppl.names import latent_of
from emppl.trace import Trace


@dataclasses.dataclass(frozen=True)
class Part:
    """Factors that are eliminated together.

    Attributes:
        factors: their names.
        plan: the order of elimination.
        by_rows: whether every latent lies inside the row plate, so that rows can be cut into chunks.
    """

    factors: tuple[str, ...]
    plan: EliminationPlan
    by_rows: bool

    @property
    def probes(self) -> tuple[str, ...]:
        """Names under which zero tables of scanned latents may be added to the factors."""
        chains = [step.chain for step in self.plan.steps if step.chain is not None]
        return tuple(probe_name(name) for chain in chains for name in chain.current)


def find_parts(
    trace: Trace,
    dependence: Dependence,
    axes: Axes,
    factors: Mapping[str, AlignedSite],
    integrals: Sequence[Integral],
    tables: Mapping[str, jax.ShapeDtypeStruct],
) -> tuple[Part, ...]:
    """Cut the factors of a model into parts, and order the elimination of each.

    Args:
        factors: likelihood sites.
        integrals: continuous latents; each is one factor, in place of those that depend on its latents.
        tables: shapes of the factors' tables.

    Returns:
        The parts; at most one is by rows.
    """
    integrated = frozenset().union(*(integral.factors for integral in integrals))
    plates_of_latent = {}
    for name in axes.latents - axes.of_atoms:
        site = trace.sites[latent_of(name)]
        plates_of_latent[name] = axes.plates_of(site, site.batch_shape)
    named = {}
    for integral in integrals:  # an integral is one factor, in place of those that depend on its latents
        given = frozenset(integral.given)
        named[integral.axis] = Factor(integral.axis, given, frozenset(integral.cells) - given)
    for name, factor in factors.items():
        if name in integrated:
            continue
        time = factor.site.time
        is_timed = time is not None and tables[name].shape[axes.names.index(time.name)] > 1
        plates = axes.plates_of(factor.site, factor.site.batch_shape)
        named[name] = Factor(name, factor.all_latents, plates, is_timed)
    before = summed_before(trace, dependence, plates_of_latent)
    presence = frozenset(name for name, factor in factors.items() if factor.is_presence)
    inside = [f for f in named.values() if axes.rows in f.plates]
    outside = [f for f in named.values() if axes.rows not in f.plates]
    touched = frozenset().union(*(f.latents for f in inside)) if inside else frozenset()
    groups = [(inside, True), (outside, False)]
    if any(axes.rows not in plates_of_latent[latent] for latent in touched):
        groups = [(list(named.values()), False)]
    return tuple(
        Part(
            tuple(f.name for f in group),
            plan_elimination(group, plates_of_latent, axes.sizes, axes.names, trace.scans, presence, before),
            by_rows,
        )
        for group, by_rows in groups
        if group
    )

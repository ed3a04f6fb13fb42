"""Plated variable elimination over named axes: the log normaliser, planned before it is run.

Factors are log-probability tables with named axes: latents (summed in the log semiring) and plates
(conditionally independent copies, whose logs add up). :func:`plan_elimination` fixes the order and predicts
cost and memory from sizes alone; :func:`log_normalizer` carries the plan out. Its gradient with respect to a
factor's table is that factor's posterior weight; with the sum replaced by a maximum or by a draw, the same
gradient is the most probable assignment or an exact joint sample.

Reference:
    Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from emppl.errors import ModelError
from emppl.numerics import logsumexp, safe_divide, weighted


@dataclasses.dataclass(frozen=True)
class Factor:
    """A factor's named axes: the latents and the plates its table has."""

    name: str
    latents: frozenset[str]
    plates: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Step:
    """Multiply ``inputs`` together, sum out ``latent`` (or nothing), then sum the log over ``plates``.

    ``owner`` is the latent whose weight (``handlers.scale``) the inputs are measured against.
    """

    inputs: tuple[str, ...]
    output: str
    latent: str | None
    plates: tuple[str, ...]
    owner: str | None
    cells: int


@dataclasses.dataclass(frozen=True)
class EliminationPlan:
    """Order of elimination with its predicted cost.

    Attributes:
        axes: every axis name, latents first, in the order that tables are laid out.
        sizes: number of atoms or cells by axis name.
        steps: what to do, in order.
        cost: table cells visited in total.
        largest: cells of the largest table.
    """

    axes: tuple[str, ...]
    sizes: Mapping[str, int]
    steps: tuple[Step, ...]
    cost: int
    largest: int


def plan_elimination(
    factors: list[Factor], latents: Mapping[str, frozenset[str]], sizes: Mapping[str, int], axes: tuple[str, ...]
) -> EliminationPlan:
    """Choose the order of elimination.

    Works from the innermost plates outwards; inside a connected group of factors the latent whose
    elimination makes the smallest table goes first.

    Args:
        factors: the factors.
        latents: for every latent the plates it sits in.
        sizes: number of atoms or cells by axis name.
        axes: the common order of axes.

    Returns:
        The plan.

    Raises:
        ModelError: a site outside a plate uses a latent inside it, or latents of crossing plates meet, so
            that the sum does not factorise.
    """
    pending = list(factors)
    for factor in pending:
        for latent in sorted(factor.latents):
            outside = latents[latent] - factor.plates
            if outside:
                raise ModelError(
                    f"Site {factor.name!r} depends on latent {latent!r} but sits outside its plate "
                    f"{', '.join(map(repr, sorted(outside)))}. Put {factor.name!r} in that plate too, or move "
                    f"{latent!r} out of it."
                )
    steps: list[Step] = []
    remaining = dict(latents)
    counter = 0

    def emit(inputs, latent, plates, owner, result_latents, result_plates) -> Factor:
        nonlocal counter
        counter += 1
        involved = frozenset().union(*(f.latents | f.plates for f in inputs))
        cells = math.prod(sizes[axis] for axis in involved)
        output = Factor(f"*{counter}", frozenset(result_latents), frozenset(result_plates))
        steps.append(Step(tuple(f.name for f in inputs), output.name, latent, tuple(sorted(plates)), owner, cells))
        return output

    while pending:
        ordinals = {factor.plates for factor in pending}
        leaf = max(ordinals, key=lambda plates: (len(plates), sorted(plates)))
        group = [factor for factor in pending if factor.plates == leaf]
        pending = [factor for factor in pending if factor.plates != leaf]
        local = {name for name, plates in remaining.items() if plates == leaf}
        while any(factor.latents & local for factor in group):
            present = sorted(local & frozenset().union(*(factor.latents for factor in group)))

            def table_size(name, group=group):
                axes_touched = frozenset().union(*(f.latents for f in group if name in f.latents))
                return math.prod(sizes[axis] for axis in axes_touched)

            latent = min(present, key=lambda name: (table_size(name), name))
            touching = [factor for factor in group if latent in factor.latents]
            merged_latents = frozenset().union(*(f.latents for f in touching)) - {latent}
            result = emit(touching, latent, (), latent, merged_latents, leaf)
            group = [factor for factor in group if factor not in touching] + [result]
            remaining.pop(latent)
        for factor in group:
            target = frozenset().union(*(latents[name] for name in factor.latents))
            if target == leaf and leaf:
                raise ModelError(_crossing_message(factor, latents, leaf))
            owner = max(factor.latents, key=lambda name: (len(latents[name]), name), default=None)
            if leaf:
                pending.append(emit([factor], None, leaf - target, owner, factor.latents, target))
            else:
                steps.append(Step((factor.name,), "total", None, (), None, 1))
    cost = sum(step.cells for step in steps)
    largest = max((step.cells for step in steps), default=1)
    return EliminationPlan(tuple(axes), dict(sizes), tuple(steps), cost, largest)


def _crossing_message(factor: Factor, latents, leaf) -> str:
    involved = sorted(factor.latents)
    where = "; ".join(f"{name!r} in plates {sorted(latents[name])}" for name in involved)
    return (
        f"Latents of crossing plates meet in one factor ({where}; the factor lies in plates {sorted(leaf)}): the sum "
        "over their joint states does not factorise, so exact enumeration is exponential in the plate sizes. "
        "Make one of them a parameter (EM(model, estimate=[...])), or declare the smaller plate as a Python loop."
    )


SumOut = Callable[[jax.Array, int], jax.Array]


def _log_sum(table: jax.Array, axis: int) -> jax.Array:
    return logsumexp(table, axis)


def log_normalizer(
    plan: EliminationPlan,
    tables: Mapping[str, jax.Array],
    scales: Mapping[str, jax.Array | None],
    owners: Mapping[str, jax.Array | None],
    sum_out: SumOut = _log_sum,
) -> jax.Array:
    """Log of the sum over all latents of the product of all factors (natural log).

    A factor's weight ``scale`` counts its cells that many times. It multiplies log evidence, outside the
    sum over the latent that carries the same weight: factors enter a latent's sum with the ratio of their
    weight to the latent's.

    Args:
        plan: the order of elimination.
        tables: log-probability tables, every one with all of ``plan.axes`` (size one where absent).
        scales: weight of every factor's cells, or None, laid out like the tables.
        owners: weight of every latent's cells, or None.
        sum_out: what replaces the sum over a latent; default log-sum-exp.

    Returns:
        A scalar.
    """
    pending = {name: (table, scales.get(name)) for name, table in tables.items()}
    total = jnp.zeros((), next(iter(tables.values())).dtype)
    for step in plan.steps:
        reference = owners.get(step.owner) if step.owner is not None else None
        table = None
        for name in step.inputs:
            factor, scale = pending.pop(name)
            factor = _rescale(factor, scale, reference)
            table = factor if table is None else table + factor
        assert table is not None
        if step.latent is not None:
            table = sum_out(table, plan.axes.index(step.latent))
        for plate in step.plates:
            axis = plan.axes.index(plate)
            if table.shape[axis] == 1:
                table = table * plan.sizes[plate]
            else:
                table = jnp.sum(table, axis, keepdims=True)
        if step.output == "total":
            total = total + jnp.sum(table)
        else:
            pending[step.output] = (table, reference)
    return total


def _rescale(table, scale, reference):
    """Weight a table relative to the weight that is applied later, once its latent is summed out."""
    if scale is None and reference is None or scale is reference:
        return table
    if scale is None:
        return safe_divide(jnp.ones_like(reference), reference, jnp.ones_like(reference)) * table
    if reference is None:
        return weighted(*jnp.broadcast_arrays(scale, table))
    return safe_divide(scale, reference, jnp.ones_like(reference)) * table

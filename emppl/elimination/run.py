"""Plated variable elimination over named axes: the log normaliser.

:func:`log_normalizer` carries out a plan (:mod:`.elimination_plan`). Its gradient with respect to a factor's table is
that factor's posterior weight; with the sum replaced by a maximum or by a draw, the same gradient is the most probable
assignment or an exact joint sample.

Reference:
    Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination.chain import step_by_step
from emppl.elimination.chains import ChainAxes, ChainTables, Emission, SumOut, arrange, kernel_evidence
from emppl.elimination.order import EliminationPlan
from emppl.elimination.reductions import Picking
from emppl.numerics.guarded import logsumexp, safe_divide, weighted


def log_sum(table: jax.Array, axis: int, time=None) -> jax.Array:
    """The ordinary sum over a latent."""
    del time
    return logsumexp(table, axis)


def log_normalizer(
    plan: EliminationPlan,
    tables: Mapping[str, jax.Array | Emission],
    scales: Mapping[str, jax.Array | None],
    owners: Mapping[str, jax.Array | None],
    sum_out: SumOut = log_sum,
    present: Mapping[str, jax.Array] | None = None,
    fast: bool = False,
    watch: Callable[[ChainAxes, ChainTables], None] | None = None,
    sum_chain: Callable[[ChainTables], jax.Array] | None = None,
    picking: Picking | None = None,
) -> jax.Array:
    """Log of the sum over all latents of the product of all factors (natural log).

    A factor's weight ``scale`` counts its cells that many times. It multiplies log evidence, outside the
    sum over the latent that carries the same weight: factors enter a latent's sum with the ratio of their
    weight to the latent's.

    Args:
        plan: the order of elimination.
        tables: log-probability tables, every one with all of ``plan.axes`` (size one where absent); of a scanned site
            also an emission that is computed step by step.
        scales: weight of every factor's cells, or None, laid out like the tables.
        owners: weight of every latent's cells, or None.
        sum_out: ``(table, axis, time)``, what replaces the sum over a latent; default log-sum-exp. ``time`` is the
            step of a chain, else None.
        present: by scanned latent, which steps exist.
        fast: run chains by the kernels, which can be differentiated once, instead of their twin.
        watch: is shown the factors of every chain.
        sum_chain: what sums out a whole chain, one value per batch cell; default: ``sum_out`` step by step.
        picking: latents that get one value instead; their chains take tables, no emissions step by step.

    Returns:
        A scalar.
    """
    picked = frozenset() if picking is None else picking.plates.keys()
    pending = {name: (table, scales.get(name)) for name, table in tables.items()}
    total = jnp.zeros((), jnp.result_type(float))
    table: Any
    for number, step in enumerate(plan.steps):
        reference = owners.get(step.owner) if step.owner is not None else None
        if step.chain is not None:
            initial, later = (
                [_rescale(*pending.pop(name), reference) for name in names] for names in (step.inputs, step.later)
            )
            later += [pending.pop(probe)[0] for probe in map(probe_name, step.chain.current) if probe in pending]
            exists = _exists(step.chain, present or {})
            latent = step.chain.current[0]
            if picking is not None and latent in picked:
                initial += picking.lanes(latent, plan.axes, plan.sizes, step.chain.time)
                chain = arrange(plan.axes, plan.sizes, step.chain, initial, later, exists)
                table = jnp.reshape(picking.of_chain(chain.arrays, number), chain.shape)
            elif fast:
                table = kernel_evidence(plan.axes, plan.sizes, step.chain, initial, later, exists)
            else:
                chain = arrange(plan.axes, plan.sizes, step.chain, initial, later, exists)
                if watch is not None:
                    watch(step.chain, chain)
                evidence = step_by_step(*chain.arrays, sum_out) if sum_chain is None else sum_chain(chain)
                table = jnp.reshape(evidence, chain.shape)
        else:
            table = functools.reduce(operator.add, (_rescale(*pending.pop(name), reference) for name in step.inputs))
        if step.latent is not None and picking is not None and step.latent in picked:
            table = picking.of_latent(table, step.latent, number, plan.axes, plan.sizes)
        elif step.latent is not None:
            table = sum_out(table, plan.axes.index(step.latent), None)
        if isinstance(table, Emission):
            table = table.map(functools.partial(_sum_plates, plan, step.plates))
        else:
            table = _sum_plates(plan, step.plates, table)
        if step.output == "total":
            total = total + jnp.sum(table)
        else:
            pending[step.output] = (table, reference)
    return total


def probe_name(latent: str) -> str:
    """Under this name a zero table over a scanned latent may be added, whose gradient is its posterior."""
    return f"{latent}@probe"


def _exists(chain: ChainAxes, present) -> jax.Array | None:
    exists = None
    for latent in chain.presence:
        exists = present[latent] if exists is None else jnp.logical_or(exists, present[latent])
    return exists


def _sum_plates(plan: EliminationPlan, plates: tuple[str, ...], table: jax.Array) -> jax.Array:
    for plate in plates:
        axis = plan.axes.index(plate)
        if table.shape[axis] == 1:
            table = table * plan.sizes[plate]
        else:
            table = jnp.sum(table, axis, keepdims=True)
    return table


def _rescale(table, scale, reference):
    """Weight a table relative to the weight that is applied later, once its latent is summed out."""
    if scale is None and reference is None or scale is reference:
        return table
    if scale is None:
        return safe_divide(jnp.ones_like(reference), reference, jnp.ones_like(reference)) * table
    if reference is None:
        return weighted(*jnp.broadcast_arrays(scale, table))
    return safe_divide(scale, reference, jnp.ones_like(reference)) * table

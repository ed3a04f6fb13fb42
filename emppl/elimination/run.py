"""Plated variable elimination over named axes: the log normaliser.

:func:`log_normalizer` carries out a plan (:mod:`emppl.elimination.order`). Its gradient with respect to a factor's
table is that factor's posterior weight; with the sum replaced by a maximum or by a draw, the same gradient is the most
probable assignment or an exact joint sample.

Reference:
    Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination.chains import ChainFactors, Emission
from emppl.elimination.order import EliminationPlan, EliminationStep
from emppl.elimination.reductions import Reduction
from emppl.numerics.guarded import safe_divide, weighted
from emppl.types import Scales, Tables


def log_normalizer(
    plan: EliminationPlan,
    tables: Mapping[str, jax.Array | Emission],
    scales: Scales,
    reductions: Mapping[str, Reduction],
    present: Tables | None = None,
) -> jax.Array:
    """Log of the sum over all latents of the product of all factors (natural log), in any semiring.

    A factor's weight ``scale`` counts its cells that many times. It multiplies log evidence, outside the
    sum over the latent that carries the same weight: factors enter a latent's sum with the ratio of their
    weight to the latent's.

    Args:
        plan: the order of elimination.
        tables: log-probability tables, every one with all of ``plan.axes`` (size one where absent); of a scanned site
            whose chain is summed out by the kernels also an emission that is computed step by step.
        scales: weight of every factor's cells, or None, laid out like the tables; a latent's is that of its own site.
        reductions: what takes the place of the sum over a latent, by every axis that the plan reduces.
        present: by scanned latent, which steps exist.

    Returns:
        A scalar.
    """
    pending = {name: (table, scales.get(name)) for name, table in tables.items()}
    total = jnp.zeros((), jnp.result_type(float))
    table: Any
    for step in plan.steps:
        reference = None if step.owner is None else scales.get(step.owner)
        inputs = [_rescale(*pending.pop(name), reference) for name in step.inputs]
        if step.chain is not None:
            later = [_rescale(*pending.pop(name), reference) for name in step.later]
            later += [pending.pop(probe)[0] for probe in map(probe_name, step.chain.current) if probe in pending]
            exists = _exists(step, present or {})
            factors = ChainFactors(plan.axes, plan.sizes, step.chain, inputs, later, exists)
            table = reductions[step.chain.current[0]].chain(factors)
        else:
            table = functools.reduce(operator.add, inputs)
            if step.latent is not None:
                table = reductions[step.latent].axis(table, plan.axes.index(step.latent), None)
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


def _exists(step: EliminationStep, present: Tables) -> jax.Array | None:
    """Which steps of a chain exist; None if all do."""
    assert step.chain is not None
    masks = [present[latent] for latent in step.chain.presence]
    return functools.reduce(jnp.logical_or, masks) if masks else None


def _sum_plates(plan: EliminationPlan, plates: tuple[str, ...], table: jax.Array) -> jax.Array:
    for plate in plates:
        axis = plan.axes.index(plate)
        if table.shape[axis] == 1:
            table = table * plan.sizes[plate]
        else:
            table = jnp.sum(table, axis, keepdims=True)
    return table


def _rescale(table: Any, scale: jax.Array | None, reference: jax.Array | None) -> Any:
    """Weight a table relative to the weight that is applied later, once its latent is summed out."""
    if scale is reference:
        return table
    if reference is None:
        assert scale is not None
        return weighted(*jnp.broadcast_arrays(scale, table))
    numerator = jnp.ones_like(reference) if scale is None else scale
    return safe_divide(numerator, reference, jnp.ones_like(reference)) * table

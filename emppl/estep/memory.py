"""How much memory an E-step takes, predicted from sizes alone, and the refusal of what would not fit."""

from __future__ import annotations

import math

import jax.numpy as jnp

from emppl.elimination.order import EliminationStep
from emppl.errors import ModelError
from emppl.estep.fused import FusedPlan
from emppl.model.model import Model

MEMORY_LIMIT = 4 * 2**30
"""Bytes that the largest table of an E-step may take before the model is refused."""


def largest_table(model: Model, fused: FusedPlan | None) -> tuple[int, EliminationStep | None]:
    """Cells of the largest table that exists at once, and the step of the elimination that makes it, if any.

    Args:
        fused: static choices of the fused path, whose tables hold a chunk of rows; None for the plain path, whose
            tables hold all of them.
    """
    rows = model.axes.sizes[model.axes.rows]
    largest: tuple[int, EliminationStep | None] = (1, None)
    for part in model.parts:
        share = fused.chunking.size / rows if fused is not None and part.by_rows else 1.0
        for step in part.plan.steps:
            cells = math.ceil(step.cells * share)
            if cells > largest[0]:
                largest = cells, step
    return largest


def check_memory(model: Model, fused: FusedPlan | None) -> None:
    """Refuse a model whose tables (see :func:`largest_table`) would not fit, before any memory is taken.

    Raises:
        ModelError: the largest table is above :data:`MEMORY_LIMIT`; names the latents that meet in it.
    """
    cells, step = largest_table(model, fused)
    size = cells * jnp.dtype(jnp.result_type(float)).itemsize
    if size <= MEMORY_LIMIT or step is None:
        return
    if step.chain is not None:
        raise ModelError(_too_large_chain(model, step, size))
    sizes = {name: model.axes.sizes[name] for name in model.latents}
    if fused is not None:
        task, remedy = (
            "Exact enumeration",
            "Reduce the number of states, or break the dependence between these latents.",
        )
    else:
        task = "Keeping the weights of all rows at once (not a fit)"
        remedy = "Call it on fewer rows at a time: the answer is per row."
    raise ModelError(
        f"{task} needs a table of {cells:.3g} cells ({size / 2**30:.3g} GiB, limit {MEMORY_LIMIT / 2**30:.3g} GiB) "
        f"when summing out latent {step.latent!r}: too many latents meet in one factor. "
        f"States by latent: {sizes}. {remedy}"
    )


def _too_large_chain(model: Model, step: EliminationStep, size: int) -> str:
    assert step.chain is not None
    states = {name: model.axes.sizes[name] for name in step.chain.current}
    return (
        f"The joint state of the chain has {math.prod(states.values()):,} values ({states}) over "
        f"{model.axes.sizes[step.chain.time] + 1:,} steps: summing it out needs a table of {size / 2**30:.3g} GiB, "
        f"limit {MEMORY_LIMIT / 2**30:.3g} GiB. Reduce the number of states, make the transition independent of time "
        "and data, or break the dependence between the scanned latents."
    )

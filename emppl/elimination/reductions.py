"""Reductions: what takes the place of the sum over a latent's states, chosen for every latent by itself.

The derivative of a sum is the posterior; that of a maximum points at the best state, that of a draw at the state that
was drawn. So the gradient of the log normaliser, which is every factor's posterior weight, marks the cells of one joint
assignment where latents get one value instead of a sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emppl.elimination.chain import ReduceAxis, path_evidence, step_by_step
from emppl.elimination.chains import ChainAxes, ChainFactors, ChainTables, arrange, kernel_evidence
from emppl.elimination.order import EliminationPlan
from emppl.numerics.guarded import logsumexp, maximum_out, sample_out


class Reduction(NamedTuple):
    """One semiring.

    Attributes:
        axis: ``(table, axis, time) -> table``: reduces one axis of a table of log-probabilities, which keeps size one.
            ``time`` is the step of a chain that is reduced step by step, else None.
        chain: reduces all states of a chain; one value per cell, laid out like the tables.
    """

    axis: ReduceAxis
    chain: Callable[[ChainFactors], jax.Array]


def twin(reduction: Reduction) -> Reduction:
    """A reduction that goes through chains step by step, so that JAX can differentiate it any number of times."""
    return Reduction(reduction.axis, lambda factors: arrange(factors).apply(step_by_step, reduction.axis))


SUM = Reduction(lambda table, axis, time: logsumexp(table, axis), kernel_evidence)
"""The sum over the states; that of a chain by the kernels, which can be differentiated once."""

PLAIN_SUM = twin(SUM)

BEST = Reduction(
    lambda table, axis, time: maximum_out(table, axis), lambda factors: arrange(factors).apply(path_evidence)
)
"""The jointly most probable states; those of a chain by Viterbi's algorithm."""


def draw(key: jax.Array, cells: tuple[int, ...] = ()) -> Reduction:
    """The sum, whose derivative points at a draw of the states; those of a chain by sampling backwards.

    Args:
        key: random key of this latent.
        cells: shape on the common axes of the cells that each get a draw of their own. Cells whose tables are the same
            share them in the elimination, but not their draws. Empty if the tables have all cells anyway.
    """

    def of_axis(table: jax.Array, axis: int, time: jax.Array | int | None) -> jax.Array:
        table = jnp.broadcast_to(table, jnp.broadcast_shapes(table.shape, cells))
        of_step = key if time is None else jax.random.fold_in(key, time)
        return sample_out(table, jax.random.gumbel(of_step, table.shape, table.dtype), axis)

    def of_chain(factors: ChainFactors) -> jax.Array:
        if cells:
            every_cell = jnp.zeros(cells, jnp.result_type(float))
            factors = dataclasses.replace(factors, initial=[*factors.initial, every_cell])
        return arrange(factors).apply(path_evidence, key)

    return Reduction(of_axis, of_chain)


def draws(plan: EliminationPlan, plates: Mapping[str, frozenset[str]], key: jax.Array) -> dict[str, Reduction]:
    """By axis, a draw for some latents.

    Args:
        plan: the elimination, which numbers their keys.
        plates: by axis of such a latent, the plates that it sits in.
    """
    drawn = {}
    for number, step in enumerate(plan.steps):
        if step.reduced is not None and step.reduced in plates:
            own = plates[step.reduced] - ({step.chain.time} if step.chain is not None else set())
            cells = tuple(plan.sizes[name] if name in own else 1 for name in plan.axes)
            drawn[step.reduced] = draw(jax.random.fold_in(key, number), cells)
    return drawn


def watch(show: Callable[[ChainAxes, ChainTables], None]) -> Reduction:
    """The plain sum; ``show`` is shown the factors of every chain."""

    def of_chain(factors: ChainFactors) -> jax.Array:
        show(factors.chain, arrange(factors))
        return PLAIN_SUM.chain(factors)

    return Reduction(SUM.axis, of_chain)

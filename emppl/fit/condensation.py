"""The M-step of a long chain of normal latents on few weighted steps, which EM cannot tell from all of them.

Where the log density of a step is quadratic in its data and its window of the state, for all parameters, its
expectation is a function of their first two moments, summed over steps. One step more than there are numbers in one
reproduces these; the M-step is the one of the same model with so many steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep
from emppl.estep import Posterior
from emppl.estep.joint import Joint
from emppl.estep.state_space import sigma_points, smooth_states, state_precisions
from emppl.fit.lossless import block_of, equivalent_pieces, other_reader, why_not_quadratic, why_not_separate
from emppl.program import Program
from emppl.structure.layout import group_numbers
from emppl.structure.separation import SHARED

_LEAST_SAVING = 4


@dataclasses.dataclass(frozen=True)
class Condensation:
    """What is condensed.

    Attributes:
        leaves: positions of the arrays of data that are scanned over.
        columns: numbers in one step: its data, and its window of the state.
        order: how many steps come before the first window.
    """

    leaves: tuple[int, ...]
    columns: int
    order: int

    @property
    def steps(self) -> int:
        """Number of windows that are left."""
        return self.columns + 1

    def apply(self, program: Program, short: Program, params, leaves):
        """E-step, and few steps in the place of all for the M-step.

        Args:
            program: of all steps.
            short: the program for few.
            params: constrained parameter values.
            leaves: the data.

        Returns:
            ``(expectations, prepared, leaves)`` for the M-step of ``short``.
        """
        integral, few = program.integrals[0], short.integrals[0]
        states = few.states
        assert states is not None
        number = len(leaves[self.leaves[0]]) - self.order
        first = [one[: self.order + self.steps] if n in self.leaves else one for n, one in enumerate(leaves)]
        # Second derivatives depend on no data: those of one window are those of all.
        at_first, every = state_precisions(Joint(short, few, params, first))
        precisions = at_first, jnp.broadcast_to(every[:1], (number, *every.shape[1:]))
        found = smooth_states(Joint(program, integral, params, leaves), precisions)
        data = [jnp.reshape(leaves[n][self.order :], (number, -1)) for n in self.leaves]
        rows = jnp.concatenate([found.window_mean, *(one.astype(found.window_mean.dtype) for one in data)], 1)
        mean = jnp.mean(rows, 0)
        centred = rows - mean[None]
        size = found.window_mean.shape[1]
        covariance = centred.T @ centred / number
        covariance = covariance.at[:size, :size].add(jnp.mean(found.window_covariance, 0))
        steps = equivalent_pieces(mean, covariance, jnp)
        atoms = few.atoms
        windows = states.windows.unpack(steps[:, :size])
        values = jax.vmap(states.firsts.unpack)(sigma_points(found.first_mean, found.first_covariance, atoms))
        values |= {name: jnp.broadcast_to(one[None], (atoms, *one.shape)) for name, one in windows.items()}
        starts = size + np.cumsum([0, *(one.shape[1] for one in data)])
        for n, begin, end in zip(self.leaves, starts[:-1], starts[1:], strict=True):
            new = jnp.reshape(steps[:, begin:end], (self.steps, *leaves[n].shape[1:]))
            first[n] = jnp.concatenate([leaves[n][: self.order], new.astype(leaves[n].dtype)])
        tables = jax.eval_shape(lambda: short.tables(short.evaluate(params, first, atoms=values)))
        time = short.axes.names.index(states.chain.time)
        weights = {
            name: jnp.full(
                one.shape,
                number / (one.shape[time] * atoms) if short.factors[name].site.time is not None else 1 / atoms,
                one.dtype,
            )
            for name, one in tables.items()
        }
        posterior = Posterior(jnp.sum(found.evidence), weights, values)
        expectations, prepared = estep.from_posterior(short, params, posterior, first)
        return dataclasses.replace(expectations, centers={integral.axis: found.mean}), prepared, first


def find_condensation(program: Program, shapes: Sequence[jax.ShapeDtypeStruct]) -> Condensation | str:
    """Whether the M-step can be done on few steps, or the reason why not.

    Args:
        program: the derived algorithm.
        shapes: shapes of the data.

    Returns:
        The condensation, or a clause for the plan.
    """
    if len(program.integrals) != 1 or program.integrals[0].states is None or program.latents:
        return "not one chain of normal latents alone"
    integral = program.integrals[0]
    states = integral.states
    assert states is not None
    if states.cells > 1:
        return "there are several chains"
    if set(program.factors) - set(integral.factors):
        return "some sites do not depend on the chain"
    if any({"mask", "cell_weight"} & set(factor.latents) for factor in program.factors.values()):
        return "some of its steps are masked or weighted"
    holders = [n for n, one in enumerate(shapes) if one.shape and one.shape[0] == states.steps]
    if not all(jnp.issubdtype(shapes[n].dtype, jnp.inexact) for n in holders) or not holders:
        return "its data are not all real numbers"
    columns = states.windows.per_group + sum(math.prod(shapes[n].shape[1:]) for n in holders)
    if states.chain.length < 2 * _LEAST_SAVING * columns:
        return f"{states.chain.length} steps are not many for {columns} numbers in each"
    reason = _why_not(program, shapes, holders)
    return reason if reason is not None else Condensation(tuple(holders), columns, states.chain.order)


def _why_not(program: Program, shapes, holders) -> str | None:
    states = program.integrals[0].states
    assert states is not None
    reader = other_reader(program, holders, list(program.factors))
    if reader is not None:
        return f"site {reader!r} reads the data too"
    later = [name for name, factor in program.factors.items() if factor.site.time is not None]
    block = block_of(program, shapes, holders)
    numbers = {}
    for name, one in block.items():
        if name in states.windows.shapes:
            numbers[name] = group_numbers(one.shape, (0,))
        else:
            own = np.arange(one.shape[0]) - states.chain.order if name.startswith("data ") else np.full(1, SHARED)
            own = np.where(own < 0, SHARED, own).reshape((-1,) + (1,) * (len(one.shape) - 1)) if one.shape else own[0]
            numbers[name] = np.broadcast_to(own, one.shape)
    time = program.axes.names.index(states.chain.time)
    reason = why_not_separate(program, shapes, block, numbers, later, time, "step")
    return reason if reason is not None else why_not_quadratic(program, shapes, block, later, "step")

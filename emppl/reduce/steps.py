"""The M-step of a long chain on few weighted steps, which is the same as on all of them.

Where the log density of a step is quadratic in its data and its window of the state, for all parameters, its
expectation is a function of their first two moments, summed over steps. One step more than there are numbers in one
reproduces these; the M-step is the one of the same model with so many steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep
from emppl.errors import Refusal
from emppl.estep import Expectations, Posterior
from emppl.integrals.joint import Joint
from emppl.integrals.smoother import sigma_points, smooth_states, state_precisions, states_of
from emppl.jaxpr.groups import SHARED
from emppl.model.model import Model
from emppl.model.natural import Prepared
from emppl.model.scans import ChainIntegral
from emppl.model.state_space import StateSpace
from emppl.parameters.layout import group_numbers
from emppl.reduce.moments import block_of, equivalent_pieces, other_reader, why_not_quadratic, why_not_separate
from emppl.strategies import Gaussian
from emppl.types import Data, Params

_LEAST_SAVING = 4
"""Half the ratio of steps to numbers in a step from which condensing pays."""


class Moments(NamedTuple):
    """Moments of a chain, from its E-step.

    Attributes:
        log_likelihood: of the observed data.
        mean: of the window of every step, ``(steps, d)``.
        covariance: their mean covariance over all steps, ``(d, d)``.
        centers: where the states lie.
        atoms: of the first steps, which have no window.
        cancelled: sum of the terms that cancel in the log-likelihood.
    """

    log_likelihood: jax.Array
    mean: jax.Array
    covariance: jax.Array
    centers: jax.Array
    atoms: dict[str, jax.Array]
    cancelled: jax.Array | float = 0.0


@dataclasses.dataclass(frozen=True)
class Condensation:
    """Which steps of one chain are condensed.

    Attributes:
        arrays: positions of the arrays of data that hold steps.
        columns: numbers in one step: its data, and its window of the state.
        order: how many steps come before the first window.
    """

    arrays: tuple[int, ...]
    columns: int
    order: int

    @property
    def pieces(self) -> int:
        """Number of steps that are left."""
        return self.columns + 1

    def is_whole(self, short: Model) -> bool:
        """Whether every step of the model for few has a window."""
        (integral,) = short.integrals
        return isinstance(integral, ChainIntegral) and integral.scan.length == self.pieces

    def apply(
        self, model: Model, short: Model, params: Params, data: Data
    ) -> tuple[Expectations, Mapping[str, Prepared], Data]:
        """E-step, and few steps in place of all for the M-step.

        Args:
            model: of all steps.
            short: of few.

        Returns:
            ``(expectations, prepared, data)`` for the M-step of ``short``.
        """
        (whole,), (part,) = model.integrals, short.integrals
        few = [leaf[: self.order + self.pieces] if n in self.arrays else leaf for n, leaf in enumerate(data)]
        moments = self._moments(Joint(model, whole, params, data), Joint(short, part, params, few))
        number, size = moments.mean.shape
        columns = [jnp.reshape(data[n][self.order :], (number, -1)).astype(moments.mean.dtype) for n in self.arrays]
        joined = jnp.concatenate([moments.mean, *columns], 1)
        mean = jnp.mean(joined, 0)
        centred = joined - mean[None]
        covariance = (centred.T @ centred / number).at[:size, :size].add(moments.covariance)
        pieces = equivalent_pieces(mean, covariance, jnp)
        assert isinstance(part, ChainIntegral)
        latents = part.states.windows.unpack(pieces[:, :size])
        atoms = {name: jnp.broadcast_to(value[None], (part.atoms, *value.shape)) for name, value in latents.items()}
        atoms |= moments.atoms
        starts = size + np.cumsum([0, *(column.shape[1] for column in columns)])
        for n, begin, end in zip(self.arrays, starts[:-1], starts[1:], strict=True):
            new = jnp.reshape(pieces[:, begin:end], (self.pieces, *data[n].shape[1:]))
            few[n] = jnp.concatenate([data[n][: self.order], new.astype(data[n].dtype)])
        tables = jax.eval_shape(lambda: short.tables(short.evaluate(params, few, atoms=atoms)))
        first = {name for name in tables if self.order and short.factors[name].site.time is None}
        weights = {
            name: jnp.full(table.shape, (1 if name in first else number / self.pieces) / part.atoms, table.dtype)
            for name, table in tables.items()
        }
        posterior = Posterior(moments.log_likelihood, weights, atoms)
        expectations, prepared = estep.from_posterior(short, params, posterior, few)
        centers = {whole.axis: moments.centers}
        return dataclasses.replace(expectations, centers=centers, cancelled=moments.cancelled), prepared, few

    def _moments(self, joint: Joint, few: Joint) -> Moments:
        """The E-step, by the smoother; second derivatives depend on no data: those of one step are those of all."""
        states = states_of(few)
        first, later = state_precisions(few)
        number = len(joint.data[self.arrays[0]]) - self.order
        smoothed = smooth_states(joint, (first, jnp.broadcast_to(later[:1], (number, *later.shape[1:]))))
        points = sigma_points(smoothed.first_mean, smoothed.first_covariance, few.integral.atoms)
        mean = jnp.mean(smoothed.window_covariance, 0)
        atoms = jax.vmap(states.firsts.unpack)(points)
        return Moments(jnp.sum(smoothed.evidence), smoothed.window_mean, mean, smoothed.mean, atoms, smoothed.cancelled)


def find_condensation(model: Model) -> Condensation | Refusal:
    """Whether the M-step of a model can be done on few steps of its chain."""
    if len(model.integrals) != 1 or model.latents or not isinstance(model.integrals[0].strategy, Gaussian):
        return Refusal("normal latents are not its only ones")
    integral = model.integrals[0]
    if not isinstance(integral, ChainIntegral):
        return Refusal("it has no chain")
    states = integral.states
    if states.cells > 1:
        return Refusal("there are several chains")
    if set(model.factors) - set(integral.factors):
        return Refusal("some sites do not depend on the chain")
    if any({"mask", "cell_weight"} & set(factor.latents) for factor in model.factors.values()):
        return Refusal("some of its steps are masked or weighted")
    holders = [n for n, leaf in enumerate(model.shapes) if leaf.shape and leaf.shape[0] == states.steps]
    if not all(jnp.issubdtype(model.shapes[n].dtype, jnp.inexact) for n in holders) or not holders:
        return Refusal("its data are not all real numbers")
    columns = states.windows.per_group + sum(math.prod(model.shapes[n].shape[1:]) for n in holders)
    if states.scan.length < 2 * _LEAST_SAVING * columns:
        return Refusal(f"{states.scan.length} steps are not many for {columns} numbers in each")
    reason = _why_not(model, states, holders)
    return reason or Condensation(tuple(holders), columns, states.scan.order)


def _why_not(model: Model, states: StateSpace, holders: Sequence[int]) -> Refusal | None:
    """The reason why steps are not determined by their moments, or None."""
    reader = other_reader(model, holders, list(model.factors))
    if reader is not None:
        return Refusal(f"site {reader!r} reads the data too")
    later = [name for name, factor in model.factors.items() if factor.site.time is not None]
    block = block_of(model, holders)
    numbers = {}
    for name, leaf in block.items():
        if name in states.windows.shapes:
            numbers[name] = group_numbers(leaf.shape, (0,))
        else:
            own = np.arange(leaf.shape[0]) - states.scan.order if name.startswith("data ") else np.full(1, SHARED)
            own = np.where(own < 0, SHARED, own).reshape((-1,) + (1,) * (len(leaf.shape) - 1)) if leaf.shape else own[0]
            numbers[name] = np.broadcast_to(own, leaf.shape)
    time = model.axes.names.index(states.scan.time)
    reason = why_not_separate(model, block, numbers, later, time, "step")
    return reason or why_not_quadratic(model, block, later, "step")

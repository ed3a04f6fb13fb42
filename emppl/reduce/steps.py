"""The M-step on few weighted pieces, which EM cannot tell from all of them: steps of a long chain, or rows of data.

Where the log density of a step is quadratic in its data and its window of the state, for all parameters, its
expectation is a function of their first two moments, summed over steps. The same holds for rows of data with normal
latents of their own (where the data are not compressed to begin with). One step more than there are numbers in one
reproduces these; the M-step is the one of the same model with so many steps.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep
from emppl.estep import Posterior
from emppl.integrals.joint import Joint
from emppl.integrals.smoother import sigma_points, smooth_states, state_precisions
from emppl.jaxpr.groups import SHARED
from emppl.jaxpr.layout import Layout, group_numbers
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.numerics.small_matrices import half_log_det, lower_inverse, lower_root
from emppl.reduce.moments import block_of, equivalent_pieces, other_reader, why_not_quadratic, why_not_separate
from emppl.reduce.rows import find_compression
from emppl.strategies import Gaussian

_LEAST_SAVING = 4


class Moments(NamedTuple):
    """What the E-step leaves of a chain, or of rows.

    Attributes:
        log_likelihood: of the observed data.
        mean: of the latents of every piece, ``(pieces, d)``.
        covariance: their mean covariance over all pieces, ``(d, d)``.
        centers: where the latents lie, group by group.
        atoms: of latents that belong to no piece: the first steps of a chain.
        cancelled: sum of the terms that cancel in the log-likelihood.
    """

    log_likelihood: jax.Array
    mean: jax.Array
    covariance: jax.Array
    centers: jax.Array
    atoms: dict[str, jax.Array]
    cancelled: jax.Array | float = 0.0


@dataclasses.dataclass(frozen=True)
class Condensation(abc.ABC):
    """What is condensed.

    Attributes:
        arrays: positions of the arrays of data that hold pieces.
        columns: numbers in one piece: its data, and its latents.
        order: how many steps come before the first piece.
    """

    arrays: tuple[int, ...]
    columns: int
    order: int

    name: ClassVar[str]

    @property
    def pieces(self) -> int:
        """Number of pieces that are left."""
        return self.columns + 1

    @abc.abstractmethod
    def moments(self, joint: Joint, few: Joint) -> Moments:
        """The E-step.

        Args:
            joint: log joint density of all pieces.
            few: of the first few. Second derivatives depend on no data: those of one piece are those of all.
        """

    @abc.abstractmethod
    def layout(self, integral: Integral) -> Layout:
        """How the latents of a piece are a vector."""

    @abc.abstractmethod
    def is_whole(self, short: Model) -> bool:
        """Does the program for few pieces have as many as it should?"""

    def apply(self, model: Model, short: Model, params, data):
        """E-step, and few pieces in the place of all for the M-step.

        Args:
            model: of all pieces.
            short: the program for few.
            params: constrained parameter values.
            data: arrays of the model's arguments.

        Returns:
            ``(expectations, prepared, data)`` for the M-step of ``short``.
        """
        (whole,), (part,) = model.integrals, short.integrals
        few = [one[: self.order + self.pieces] if n in self.arrays else one for n, one in enumerate(data)]
        found = self.moments(Joint(model, whole, params, data), Joint(short, part, params, few))
        number, size = found.mean.shape
        columns = [jnp.reshape(data[n][self.order :], (number, -1)).astype(found.mean.dtype) for n in self.arrays]
        every = jnp.concatenate([found.mean, *columns], 1)
        mean = jnp.mean(every, 0)
        centred = every - mean[None]
        covariance = (centred.T @ centred / number).at[:size, :size].add(found.covariance)
        pieces = equivalent_pieces(mean, covariance, jnp)
        latents = self.layout(part).unpack(pieces[:, :size])
        atoms = {name: jnp.broadcast_to(one[None], (part.atoms, *one.shape)) for name, one in latents.items()}
        atoms |= found.atoms
        starts = size + np.cumsum([0, *(one.shape[1] for one in columns)])
        for n, begin, end in zip(self.arrays, starts[:-1], starts[1:], strict=True):
            new = jnp.reshape(pieces[:, begin:end], (self.pieces, *data[n].shape[1:]))
            few[n] = jnp.concatenate([data[n][: self.order], new.astype(data[n].dtype)])
        tables = jax.eval_shape(lambda: short.tables(short.evaluate(params, few, atoms=atoms)))
        first = {name for name in tables if self.order and short.factors[name].site.time is None}
        weights = {
            name: jnp.full(one.shape, (1 if name in first else number / self.pieces) / part.atoms, one.dtype)
            for name, one in tables.items()
        }
        posterior = Posterior(found.log_likelihood, weights, atoms)
        expectations, prepared = estep.from_posterior(short, params, posterior, few)
        centers = {whole.axis: found.centers}
        return dataclasses.replace(expectations, centers=centers, cancelled=found.cancelled), prepared, few


class CondensedSteps(Condensation):
    """Steps of one chain."""

    name = "steps"

    def moments(self, joint: Joint, few: Joint) -> Moments:
        """By the smoother."""
        states = few.integral.states
        assert states is not None
        first, every = state_precisions(few)
        number = len(joint.data[self.arrays[0]]) - self.order
        found = smooth_states(joint, (first, jnp.broadcast_to(every[:1], (number, *every.shape[1:]))))
        points = sigma_points(found.first_mean, found.first_covariance, few.integral.atoms)
        mean = jnp.mean(found.window_covariance, 0)
        atoms = jax.vmap(states.firsts.unpack)(points)
        return Moments(jnp.sum(found.evidence), found.window_mean, mean, found.mean, atoms, found.cancelled)

    def layout(self, integral: Integral) -> Layout:
        """A window of the state."""
        assert integral.states is not None
        return integral.states.windows

    def is_whole(self, short: Model) -> bool:
        """Every step has a window."""
        states = short.integrals[0].states
        return states is not None and states.chain.length == self.pieces


class CondensedRows(Condensation):
    """Rows of a plate, each with normal latents of its own."""

    name = "rows"

    def moments(self, joint: Joint, few: Joint) -> Moments:
        """By regression of the latents on the rows."""
        zeros = few.pack(few.zeros())
        root = lower_root(-few.hessian(zeros)[0])
        inverse = lower_inverse(root)
        covariance = inverse.T @ inverse
        mean = joint.gradient(joint.pack(joint.zeros())) @ covariance
        # From there the gradient is small, and a second step recovers the digits that the first one lost.
        height, slope = jax.value_and_grad(lambda vectors: jnp.sum(joint.by_group(vectors)))(mean)
        step = slope @ covariance
        volume = len(mean) * (len(root) / 2 * math.log(2 * math.pi) - half_log_det(root))
        return Moments(height + jnp.sum(slope * step) / 2 + volume, mean + step, covariance, mean + step, {})

    def layout(self, integral: Integral) -> Layout:
        """All latents of a row."""
        return integral.layout

    def is_whole(self, short: Model) -> bool:
        """Every row has its latents."""
        return short.integrals[0].groups == self.pieces


def find_condensation(model: Model) -> Condensation | str:
    """Whether the M-step can be done on few steps, or the reason why not.

    Args:
        model: the model.

    Returns:
        The condensation, or a clause for the plan.
    """
    if len(model.integrals) != 1 or model.latents or not isinstance(model.integrals[0].strategy, Gaussian):
        return "normal latents are not its only ones"
    integral = model.integrals[0]
    states = integral.states
    if states is None:
        return _rows(model)
    if states.cells > 1:
        return "there are several chains"
    if set(model.factors) - set(integral.factors):
        return "some sites do not depend on the chain"
    if any({"mask", "cell_weight"} & set(factor.latents) for factor in model.factors.values()):
        return "some of its steps are masked or weighted"
    holders = [n for n, one in enumerate(model.shapes) if one.shape and one.shape[0] == states.steps]
    if not all(jnp.issubdtype(model.shapes[n].dtype, jnp.inexact) for n in holders) or not holders:
        return "its data are not all real numbers"
    columns = states.windows.per_group + sum(math.prod(model.shapes[n].shape[1:]) for n in holders)
    if states.chain.length < 2 * _LEAST_SAVING * columns:
        return f"{states.chain.length} steps are not many for {columns} numbers in each"
    reason = _why_not(model, holders)
    return reason if reason is not None else CondensedSteps(tuple(holders), columns, states.chain.order)


def _rows(model: Model) -> Condensation | str:
    """The same for rows of data."""
    (integral,) = model.integrals
    found = find_compression(model)
    if isinstance(found, str):
        return found
    rows = frozenset([model.axes.rows])
    plates = [model.axes.plates_of(one.site, one.site.batch_shape) for one in model.factors.values()]
    if found.keys or integral.is_indexed or integral.groups != found.rows or any(one != rows for one in plates):
        return "not every row has latents of its own, and nothing but these"
    if any({"mask", "cell_weight"} & set(factor.latents) for factor in model.factors.values()):
        return "some of its rows are masked, weighted or incomplete"
    columns = found.columns + integral.dimensions
    if found.rows < 2 * _LEAST_SAVING * columns:
        return f"{found.rows} rows are not many for {columns} numbers in each"
    return CondensedRows(found.moments, columns, 0)


def _why_not(model: Model, holders) -> str | None:
    states = model.integrals[0].states
    assert states is not None
    reader = other_reader(model, holders, list(model.factors))
    if reader is not None:
        return f"site {reader!r} reads the data too"
    later = [name for name, factor in model.factors.items() if factor.site.time is not None]
    block = block_of(model, holders)
    numbers = {}
    for name, one in block.items():
        if name in states.windows.shapes:
            numbers[name] = group_numbers(one.shape, (0,))
        else:
            own = np.arange(one.shape[0]) - states.chain.order if name.startswith("data ") else np.full(1, SHARED)
            own = np.where(own < 0, SHARED, own).reshape((-1,) + (1,) * (len(one.shape) - 1)) if one.shape else own[0]
            numbers[name] = np.broadcast_to(own, one.shape)
    time = model.axes.names.index(states.chain.time)
    reason = why_not_separate(model, block, numbers, later, time, "step")
    return reason if reason is not None else why_not_quadratic(model, block, later, "step")

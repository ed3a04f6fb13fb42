"""Standard errors from the exact Hessian of the marginal log-likelihood.

The observed information is differentiated out of the log evidence itself (not out of Q, whose weights are
held fixed), in local coordinates around the estimate; entries on the boundary of the parameter space are held
there and named.

Reference:
    Efron and Hinkley (1978), Assessing the accuracy of the maximum likelihood estimator.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep
from emppl.model.model import Model
from emppl.numerics.curvature import hessian_product
from emppl.program import Program
from emppl.strategies.base import ObjectiveKind
from emppl.types import Data
from emppl.uncertainty.boundary import newton_step, scales, vanishing
from emppl.uncertainty.charts import (
    Chart,
    Information,
    Moves,
    chart_around,
    has_bounds,
    jacobian,
    label,
    params_after,
    pressed,
)
from emppl.uncertainty.corners import no_standard_errors
from emppl.uncertainty.second_order import SecondOrder, in_words, units

EDGE = 1e-5
"""How close to its bound a probability counts as being on it."""

_MOST_GAIN = 0.1
"""Gain, in nats, that a Newton step from a maximum may promise: an estimate within half of a standard error."""

_MOST_COLUMNS = 32
"""Columns of the Hessian in one call of a compiled function."""


class Covariance(NamedTuple):
    """Covariance matrix of the estimates.

    Attributes:
        labels: ``"mu[0, 1]"`` and so on, one per row.
        matrix: ``(parameters, parameters)``; NaN for entries on the boundary and for logits, of which only
            differences are identified.
    """

    labels: list[str]
    matrix: np.ndarray


def charts(model: Model, params: Mapping[str, Any], only_differences: Collection[str] = ()) -> dict[str, Chart]:
    """Local coordinates of every free parameter around an estimate.

    Args:
        only_differences: logits of which only differences along the last axis matter.
    """
    return {
        name: chart_around(
            model.trace.sites[name].constraint,
            np.asarray(params[name]),
            EDGE,
            name in only_differences,
            model.held.get(name),
        )
        for name in model.free
    }


def boundary_labels(local: Mapping[str, Chart]) -> list[str]:
    """Names of the entries that lie on the boundary of the parameter space."""
    return [label(name, index) for name, chart in local.items() for index in np.argwhere(chart.boundary)]


def hessian_columns(
    model: Model, frames: Mapping[str, Moves], data: Data, which: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Some columns of the Hessian of log-likelihood plus log prior, in local coordinates: pure, to be jitted.

    Args:
        frames: moves of every free parameter; their coordinates are stacked in the order of the program.
        which: ``(columns,)``, coordinates to differentiate along.

    Returns:
        ``(columns, gradient)``: ``(columns, coordinates)`` and ``(coordinates,)``.
    """
    zero = jnp.zeros(sum(frames[name].size for name in model.free), jnp.result_type(float))
    objective = jax.grad(functools.partial(_objective, model, frames, data), has_aux=True)
    gradient = lambda step: objective(step)[0]  # noqa: E731

    product = hessian_product(gradient, zero)
    # One column at a time: memory stays that of one gradient.
    columns = jax.lax.map(lambda coordinate: product(zero.at[coordinate].set(1)), which)
    return columns, gradient(zero)


def score(
    model: Model, frames: Mapping[str, Moves], data: Data, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Log-likelihood at an estimate, and the gradient of it plus the log prior in local coordinates: pure.

    Args:
        frames: the estimate.
        key: random numbers of simulated integrals; None for those that are always the same.
    """
    zero = jnp.zeros(sum(frames[name].size for name in model.free), jnp.result_type(float))
    objective = functools.partial(_objective, model, frames, data, key=key)
    (_, value), gradient = jax.value_and_grad(objective, has_aux=True)(zero)
    return value, gradient


def scores(model: Model, frames: Mapping[str, Moves], data: Data, steps: jax.Array) -> jax.Array:
    """Gradients of log-likelihood plus log prior after some steps in local coordinates: pure, to be jitted.

    Where all integrals are exact, the gradient is that of Q at its own parameters, so that nothing is differentiated
    through an E-step.

    Args:
        frames: the estimate.
        steps: ``(steps, coordinates)``.

    Returns:
        ``(steps, coordinates)``.

    Reference:
        Fisher (1925); Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.
    """

    def directly(step: jax.Array) -> jax.Array:
        return jax.grad(lambda at: _objective(model, frames, data, at)[0])(step)

    def by_q(step: jax.Array) -> jax.Array:
        posterior = jax.lax.stop_gradient(estep.e_step(model, params_after(model, frames, step), data))
        q = estep.QFunction(model, estep.Expectations.of(posterior), data)

        def expected(at: jax.Array) -> jax.Array:
            params = params_after(model, frames, at)
            return q.value(params) + model.log_prior(params, data)

        return jax.grad(expected)(step)

    is_exact = model.integrals and model.objective_kind is ObjectiveKind.EXACT
    # One step at a time: memory stays that of one gradient.
    return jax.lax.map(by_q if is_exact else directly, steps)


def _objective(
    model: Model, frames: Mapping[str, Moves], data: Data, step: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Log-likelihood plus log prior after a step, and the log-likelihood alone."""
    params = params_after(model, frames, step)
    value = estep.log_likelihood(model, params, data, key)
    return value + model.log_prior(params, data), value


def observed_information(local: Mapping[str, Chart], columns: Callable, data: Data) -> Information:
    """Observed information and score at an estimate.

    Args:
        local: charts of every free parameter.
        columns: :func:`hessian_columns` of the program, compiled: ``columns(frames, data, which)``.

    Returns:
        Both, in the coordinates that are not held.
    """
    frames = {name: chart.frame for name, chart in local.items()}
    active = np.flatnonzero(np.concatenate([chart.active for chart in local.values()]))
    if not len(active):
        return Information(np.zeros((0, 0)), np.zeros(0))
    # Always the same number of columns, whatever is held: one compilation serves every estimate.
    width = min(_MOST_COLUMNS, sum(chart.frame.size for chart in local.values()))
    padded = np.concatenate([active, np.full(-len(active) % width, active[0])])
    blocks = [columns(frames, data, jnp.asarray(which)) for which in padded.reshape(-1, width)]
    hessian = np.concatenate([np.asarray(block) for block, _ in blocks])[: len(active), active]
    return Information(-(hessian + hessian.T) / 2, np.asarray(blocks[0][1])[active])


def hold_pressed(
    program: Program, local: Mapping[str, Chart], information: Information
) -> tuple[dict[str, Chart], Information]:
    """Hold also the entries that press against a bound which their optimiser, or EM itself, came close to.

    Args:
        local: charts by position alone.
        information: the information in them.

    Returns:
        Charts and information without these entries.
    """
    held: dict[str, Chart] = {}
    kept, position = [], 0
    model = program.model
    towards_zero = scales(model)
    newton = newton_step(information.matrix, information.score) if towards_zero else information.score
    for name, chart in local.items():
        count = int(chart.active.sum())
        block = slice(position, position + count)
        active = chart.active.copy()
        if name in (*optimised_within_bounds(program), *towards_zero):
            score, curvature, step = np.full((3, len(active)), np.nan)
            score[active], curvature[active] = information.score[block], np.diagonal(information.matrix)[block]
            step[active] = newton[block]
            active &= ~pressed(model.trace.sites[name].constraint, chart, score, curvature)
            if name in towards_zero:
                active &= ~vanishing(chart, step, score, curvature)
            pressing = (chart.active & ~active).reshape(chart.boundary.shape)
            chart = dataclasses.replace(chart, boundary=chart.boundary | pressing)
        kept.append(active[local[name].active])
        held[name] = dataclasses.replace(chart, active=active)
        position += count
    keep = np.concatenate(kept)
    return held, Information(information.matrix[np.ix_(keep, keep)], information.score[keep], information.noise)


def optimised_within_bounds(program: Program) -> list[str]:
    """Parameters with bounds that no closed form reaches exactly."""
    return [
        name
        for name in program.model.free
        if not program.rules[name].exact and has_bounds(program.model.trace.sites[name].constraint)
    ]


def covariance(
    model: Model,
    local: Mapping[str, Chart],
    information: Information,
    verdict: SecondOrder,
    only_differences: Collection[str] = (),
    is_at_rest: bool = True,
) -> Covariance:
    """Covariance of all entries of all free parameters, by the delta method from local coordinates.

    Args:
        verdict: of the information.
        only_differences: logits of which only differences along the last axis matter.
        is_at_rest: whether the point was to be a maximum, and not where somebody stopped the iterations.

    Raises:
        ValueError: the information matrix is not positive definite, so the estimate is no interior maximum; or there
            is none, because of corners.
    """
    from scipy import sparse

    corners = no_standard_errors(model)
    if corners:
        raise ValueError(corners)
    if not np.all(np.isfinite(information.matrix)):
        names = np.array([name for name, chart in local.items() for _ in range(int(chart.active.sum()))], dtype=object)
        raise ValueError(_not_finite(sorted(set(names[~np.isfinite(information.matrix).all(axis=1)]))))
    if len(verdict.rising):
        raise ValueError(
            "The estimate is no local maximum, so it has no standard errors: the log-likelihood rises along "
            f"{in_words(local, verdict.rising[0])}. Run to convergence, start from other values, or fix or constrain "
            "these parameters."
        )
    if is_at_rest and not verdict.promised <= _MOST_GAIN:
        raise ValueError(
            f"The estimate is no maximum, so it has no standard errors: the slope, over the curvature, promises "
            f"{verdict.promised:.2g} nats more. result.stop_message says why the fit stopped there, and what to do."
        )
    labels, missing, entries, coordinates, values = [], [], [], [], []
    rows = columns = 0
    for name, chart in local.items():
        entry, coordinate, value = jacobian(model.trace.sites[name].constraint, chart.frame)
        moving = chart.active[coordinate]
        place = np.cumsum(chart.active) - 1
        entries.append(rows + entry[moving])
        coordinates.append(columns + place[coordinate[moving]])
        values.append(value[moving])
        shape = chart.boundary.shape
        labels += [label(name, index) for index in np.ndindex(shape)]
        missing.append(np.ones(shape, bool).ravel() if name in only_differences else chart.boundary.ravel())
        rows, columns = rows + chart.boundary.size, columns + int(chart.active.sum())
    positions = np.concatenate(entries), np.concatenate(coordinates)
    derivative = sparse.csr_array((np.concatenate(values), positions), shape=(rows, columns))
    matrix = derivative @ (derivative @ verdict.inverse).T
    gone = np.concatenate(missing) | _moved_by(derivative, verdict.flat, information)
    matrix[gone, :], matrix[:, gone] = np.nan, np.nan
    return Covariance(labels, matrix)


def entry_gradients(model: Model, local: Mapping[str, Chart]) -> np.ndarray:
    """Derivatives of all entries of all free parameters by the active local coordinates, ``(entries, coordinates)``."""
    blocks = [_entry_gradient(model, name, chart) for name, chart in local.items()]
    whole = np.zeros((sum(block.shape[0] for block in blocks), sum(block.shape[1] for block in blocks)))
    row = column = 0
    for block in blocks:
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return whole


def _entry_gradient(model: Model, name: str, chart: Chart) -> np.ndarray:
    entry, coordinate, value = jacobian(model.trace.sites[name].constraint, chart.frame)
    derivative = np.zeros((chart.boundary.size, chart.frame.size))
    np.add.at(derivative, (entry, coordinate), value)
    return derivative[:, chart.active]


def spread_over_entries(model: Model, local: Mapping[str, Chart], matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Standard deviations of all entries of all free parameters, from a covariance in active local coordinates.

    Returns:
        Arrays like the parameters; zero where an entry is held.
    """
    deviations, start = {}, 0
    for name, chart in local.items():
        stop = start + int(chart.active.sum())
        derivative = _entry_gradient(model, name, chart)
        variances = np.einsum("ij,jk,ik->i", derivative, matrix[start:stop, start:stop], derivative)
        deviations[name], start = np.sqrt(variances).reshape(chart.boundary.shape), stop
    return deviations


def _moved_by(derivative: Any, flat: np.ndarray, information: Information) -> np.ndarray:
    """Entries that change along flat directions."""
    moved = np.zeros(derivative.shape[0], bool)
    if len(flat):
        # In units of what the entry would move if all coordinates went their own way.
        spread = np.sqrt((derivative.power(2) @ (1 / units(information.matrix) ** 2)) + np.finfo(float).tiny)
        moved = np.max(np.abs(derivative @ flat.T), axis=1) > _LEAST_MOVE * spread
    return moved


_LEAST_MOVE = 1e-4
"""Share of its own standard error that an entry has to move along a flat direction to count as not identified."""


def _not_finite(bad: list[str]) -> str:
    return (
        f"The observed information is not finite (in {', '.join(bad)}), so there are no standard errors. A "
        "parameter lies where the log-likelihood has no second derivative: give it a constraint that holds, or fix "
        "it with EM(model, fixed={name: value}). Or the model takes the logarithm of an exact zero, as in "
        "logits=jnp.log(p), whose derivatives are 0 / 0: write probs=p, or "
        "jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)."
    )

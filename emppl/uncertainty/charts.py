"""Local coordinates around an estimate, in which standard errors are computed.

Flat sets (numbers between bounds, simplices, symmetric and triangular matrices) move along straight lines in
their own units: each coordinate adds its step to a few entries, kept as index lists. Curved sets go
through numpyro's bijection, cell by cell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl.model.model import Model
from emppl.parameters.constraints import constrain, constraint_name, innermost, unconstrain

_MARGIN = 1e-12
"""Distance, as a share of the interval's length, within which a number lies on its bound."""

_MOST_GAIN = 1e-3
"""Gain, in nats, below which going to a bound changes next to nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moves:
    """The moves that coordinates make, as arrays: an argument of compiled functions.

    Attributes:
        base: the estimate (flat sets), or its unconstrained value (curved sets).
        entries: flat position of the entry that each move changes.
        coordinates: the coordinate that moves it.
        signs: by how much per unit of the coordinate.
        size: number of coordinates, held ones included.
        curved: whether the set goes through numpyro's bijection.
    """

    base: Any
    entries: Any
    coordinates: Any
    signs: Any
    size: int = dataclasses.field(metadata={"static": True})
    curved: bool = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Chart:
    """Local coordinates of a parameter around an estimate: ``value_at(constraint, frame, zeros)`` is the estimate.

    Attributes:
        frame: the moves.
        active: boolean ``(coordinates,)``: those along which the parameter can move; the others are held.
        boundary: boolean array like the estimate: entries on the edge of the parameter space, which are held there.
    """

    frame: Moves
    active: np.ndarray
    boundary: np.ndarray


class Information(NamedTuple):
    """Observed information in the local coordinates that are not held.

    Attributes:
        matrix: minus the Hessian of the objective, ``(active coordinates, active coordinates)``.
        score: its gradient, ``(active coordinates,)``.
        noise: how far the matrix was from symmetric before it was made so, in units of its diagonal.
    """

    matrix: np.ndarray
    score: np.ndarray
    noise: float = 0.0


def label(name: str, index: Sequence[int] | np.ndarray) -> str:
    """``mu[0, 1]``, or ``mu`` for a scalar."""
    return f"{name}[{', '.join(str(int(i)) for i in index)}]" if len(index) else name


def value_at(constraint: Any, frame: Moves, step: jax.Array) -> jax.Array:
    """The parameter after a step in local coordinates.

    Args:
        constraint: where the parameter lives.
        frame: its moves.
        step: ``(coordinates,)``.

    Returns:
        The constrained value.
    """
    if frame.curved:
        return constrain(constraint, frame.base + step.reshape(frame.base.shape))
    flat = jnp.ravel(frame.base).at[frame.entries].add(frame.signs * step[frame.coordinates])
    return flat.reshape(frame.base.shape)


def params_after(model: Model, frames: Mapping[str, Moves], step: jax.Array) -> dict[str, jax.Array]:
    """The free parameters after a step in all coordinates, stacked in the order of the model."""
    parts = jnp.split(step, np.cumsum([frames[name].size for name in model.free])[:-1])
    return {
        name: value_at(model.trace.sites[name].constraint, frames[name], part)
        for name, part in zip(model.free, parts, strict=True)
    }


def jacobian(constraint: Any, frame: Moves) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Non-zero derivatives of the entries with respect to the coordinates: ``(entry, coordinate, value)`` lists."""
    if not frame.curved:
        return frame.entries, frame.coordinates, frame.signs
    rank = frame.base.ndim - constraint.event_dim
    cells = frame.base.reshape((-1, *frame.base.shape[rank:]))
    blocks = np.asarray(jax.vmap(jax.jacfwd(lambda cell: constrain(constraint, cell)))(jnp.asarray(cells)))
    count = len(cells)
    blocks = blocks.reshape(count, -1, cells[0].size if count else 0)
    cell, row, column = np.indices(blocks.shape)
    return (
        (cell * blocks.shape[1] + row).ravel(),
        (cell * blocks.shape[2] + column).ravel(),
        blocks.ravel(),
    )


def chart_around(
    constraint: Any,
    estimate: np.ndarray,
    edge: float,
    only_differences: bool = False,
    held: np.ndarray | None = None,
) -> Chart:
    """Coordinates in which a standard error can be computed.

    Args:
        constraint: where the parameter lives.
        estimate: the point.
        edge: how close to its bound a probability counts as being on it. Other numbers are on a bound within 1e-12 of
            the interval's length, or within 1e-12 if there is but one bound, whatever the units.
        only_differences: only differences along the last axis matter; the last entry is held.
        held: entries that are fixed by the user; NaN where they are free.

    Returns:
        The chart.
    """
    given = np.zeros(np.shape(estimate), bool) if held is None else ~np.isnan(held)
    name = constraint_name(constraint)
    estimate = np.asarray(estimate)
    nowhere = np.zeros(estimate.shape, bool)
    if only_differences:
        return _differences_chart(estimate, nowhere)
    if name == "simplex":
        return _simplex_chart(_away_from_bounds(estimate, 0.0, 1.0), edge, given)
    if name in ("positive_definite", "lower_cholesky"):
        return _matrix_chart(estimate, nowhere, symmetric=name == "positive_definite")
    lower, upper = bounds(constraint)
    if lower is not None or upper is not None:
        margin = edge if name in ("unit_interval", "open_interval") else _MARGIN
        on = _on_bounds(estimate, lower, upper, margin) & ~given
        return _linear_chart(_away_from_bounds(estimate, lower, upper), on, given)
    if name in ("real", "real_vector", "real_matrix"):
        return _linear_chart(estimate, nowhere, given)
    start = np.asarray(unconstrain(constraint, jnp.asarray(estimate)))
    none = np.zeros(0, int)
    frame = Moves(start, none, none, np.zeros(0, estimate.dtype), start.size, True)
    return Chart(frame, np.ones(start.size, bool), nowhere)


def bounds(constraint: Any) -> tuple[Any, Any]:
    """Lower and upper bound of an elementwise constraint, None where there is none."""
    constraint = innermost(constraint)
    if constraint_name(constraint) in ("positive", "nonnegative", "softplus_positive"):
        return 0.0, None
    lower, upper = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    return (None if b is None else np.asarray(b) for b in (lower, upper))  # type: ignore[return-value]


def has_bounds(constraint: Any) -> bool:
    """Whether an elementwise constraint bounds a number from below or above."""
    if constraint_name(constraint) == "simplex":
        return False
    return any(bound is not None for bound in bounds(constraint))


def pressed(constraint: Any, chart: Chart, score: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Coordinates whose bound keeps them from their maximum, though a numerical optimiser only came close to it.

    The best point of the local parabola lies beyond the bound, and going to the bound would gain next to nothing.

    Args:
        constraint: where the parameter lives.
        chart: its chart.
        score: ``(coordinates,)``, gradient of the objective; NaN where held.
        curvature: ``(coordinates,)``, minus its second derivative.

    Returns:
        Boolean ``(coordinates,)``.
    """
    lower, upper = bounds(constraint)
    if chart.frame.curved or (lower is None and upper is None):
        return np.zeros(chart.frame.size, bool)
    value = chart.frame.base
    towards = score.reshape(value.shape)
    room = np.full(value.shape, np.inf)
    if upper is not None:
        room = np.where(towards > 0, upper - value, room)
    if lower is not None:
        room = np.where(towards < 0, value - lower, room)
    with np.errstate(invalid="ignore"):  # no room at all times infinite curvature, and the other way round
        beyond = np.abs(towards) > curvature.reshape(value.shape) * room
        return (beyond & (np.abs(towards) * room < _MOST_GAIN)).ravel()


def _on_bounds(estimate: np.ndarray, lower: Any, upper: Any, margin: float) -> np.ndarray:
    length = upper - lower if lower is not None and upper is not None else 1.0

    def near(bound: Any, distance: Any) -> np.ndarray:
        return distance < np.maximum(margin * length, 4 * np.finfo(estimate.dtype).eps * np.abs(bound))

    on = np.zeros(estimate.shape, bool)
    if lower is not None:
        on |= near(lower, estimate - lower)
    if upper is not None:
        on |= near(upper, upper - estimate)
    return on


def _away_from_bounds(estimate: np.ndarray, lower: Any, upper: Any) -> np.ndarray:
    """The estimate moved off its bounds so far that second derivatives do not overflow."""
    info = np.finfo(estimate.dtype)

    def gap(bound: Any) -> Any:
        return np.maximum(float(np.sqrt(info.tiny)), info.eps * np.abs(bound))

    low = None if lower is None else lower + gap(lower)
    high = None if upper is None else upper - gap(upper)
    return np.clip(estimate, low, high).astype(estimate.dtype)


def _flat(
    estimate: np.ndarray,
    entries: np.ndarray,
    coordinates: np.ndarray,
    signs: np.ndarray | float,
    active: np.ndarray,
    boundary: np.ndarray,
) -> Chart:
    signs = np.broadcast_to(np.asarray(signs, estimate.dtype), entries.shape)
    return Chart(Moves(estimate, entries, coordinates, signs, len(active), False), active, boundary)


def _linear_chart(estimate: np.ndarray, boundary: np.ndarray, given: np.ndarray | None) -> Chart:
    every = np.arange(estimate.size)
    return _flat(estimate, every, every, 1.0, ~(boundary | given).ravel(), boundary)


def _differences_chart(estimate: np.ndarray, nowhere: np.ndarray) -> Chart:
    entries = np.arange(estimate.size).reshape(estimate.shape)[..., :-1].ravel()
    return _flat(estimate, entries, np.arange(len(entries)), 1.0, np.ones(len(entries), bool), nowhere)


def _simplex_chart(estimate: np.ndarray, edge: float, given: np.ndarray) -> Chart:
    """Every entry but the largest free one of its cell has a coordinate; the largest gives way."""
    table = estimate.reshape(-1, estimate.shape[-1])
    given = given.reshape(table.shape)
    boundary = (table < edge) & ~given
    cells, categories = table.shape
    pivot = np.argmax(np.where(given, -1, table), -1)
    alone = (categories - boundary.sum(-1) == 1) & (categories > 1)
    position = np.arange(table.size).reshape(table.shape)
    rest = position[np.arange(categories) != pivot[:, None]]
    pivots = np.repeat(position[np.arange(cells), pivot], categories - 1)
    active = ~(boundary | given).ravel()[rest]
    boundary[alone, pivot[alone]] = True
    coordinates = np.arange(len(rest))
    return _flat(
        estimate,
        np.concatenate([rest, pivots]),
        np.concatenate([coordinates, coordinates]),
        np.repeat([1.0, -1.0], len(rest)),
        active,
        boundary.reshape(estimate.shape),
    )


def _matrix_chart(estimate: np.ndarray, nowhere: np.ndarray, symmetric: bool) -> Chart:
    dimension = estimate.shape[-1]
    rows, columns = np.tril_indices(dimension)
    starts = np.arange(estimate.size // dimension**2)[:, None] * dimension**2
    lower = (starts + rows * dimension + columns).ravel()
    coordinates = np.arange(len(lower))
    entries, movers = lower, coordinates
    if symmetric:
        mirrored = (starts + columns * dimension + rows).ravel()
        off = mirrored != lower
        entries, movers = np.concatenate([lower, mirrored[off]]), np.concatenate([coordinates, coordinates[off]])
    return _flat(estimate, entries, movers, 1.0, np.ones(len(lower), bool), nowhere)

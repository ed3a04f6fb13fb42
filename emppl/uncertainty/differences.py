"""Observed information by differences of the score, whose program compiles in a fraction of the time of a Hessian's.

Steps are about a hundredth of a standard error; the error of the four-point formula is the fourth power of that. How
far the matrix is from symmetric shows how large it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from emppl.parameters.constraints import constraint_name
from emppl.types import Data
from emppl.uncertainty.charts import Chart, Information, bounds
from emppl.uncertainty.second_order import units

_MOST_STEPS = 32
"""Points in one call of the compiled score."""

_MOST_ROUNDS = 5
"""Most attempts to find the length of the steps."""

_WEAK = 1e-4
"""Curvature, relative to what coordinates have given all others, from which on a direction is well determined."""

_SHARE_OF_ROOM = 0.4
"""Steps towards a bound, as a share of the distance, in units of the relative length of a step."""


def information_by_differences(
    constraints: Mapping[str, Any], local: Mapping[str, Chart], scores: Callable, data: Data
) -> Information:
    """Observed information and score at an estimate.

    Args:
        constraints: by parameter, where it lives.
        local: charts of every free parameter.
        scores: gradients after steps in local coordinates, compiled: ``scores(frames, data, steps)``, see
            :func:`~emppl.uncertainty.information.scores`.

    Returns:
        Both, in the coordinates that are not held, and how far the matrix was from symmetric.
    """
    active = np.flatnonzero(np.concatenate([chart.active for chart in local.values()]))
    if not len(active):
        return Information(np.zeros((0, 0)), np.zeros(0))
    eps = float(jnp.finfo(jnp.result_type(float)).eps)
    length = eps**0.125
    spaces = [_space(constraints[name], chart) for name, chart in local.items()]
    magnitude, room = (np.concatenate(parts)[active] for parts in zip(*spaces, strict=True))
    most = _SHARE_OF_ROOM * length * room
    slopes = _NearbyScores({name: chart.frame for name, chart in local.items()}, active, scores, data)
    every = np.arange(len(active))
    steps = np.minimum(length**2.7 * magnitude, most)
    columns, searched = slopes.central(steps, every), every
    for _ in range(_MOST_ROUNDS):
        better = np.minimum(_better(steps, columns, length)[searched], most[searched])
        changed = np.abs(np.log2(better / steps[searched])) > 1
        searched = searched[changed]
        if not len(searched):
            break
        steps[searched] = better[changed]
        columns[searched] = slopes.central(steps[searched], searched)
    hessian = (4 * columns - slopes.central(2 * steps, every)) / 3
    matrix = -(hessian + hessian.T) / 2
    unit = units(matrix)
    asymmetry = float(np.max(np.abs(hessian - hessian.T) / np.outer(unit, unit)))
    noise = max(asymmetry, eps / length)
    if np.all(np.isfinite(matrix)):
        scaled, noise = _with_long_steps(matrix / np.outer(unit, unit), noise, slopes, unit, room / 4, length)
        matrix = scaled * np.outer(unit, unit)
    return Information(matrix, slopes.here(), noise)


def _with_long_steps(
    scaled: np.ndarray, noise: float, slopes: _NearbyScores, unit: np.ndarray, most: np.ndarray, length: float
) -> tuple[np.ndarray, float]:
    """The same matrix with the curvature along weak directions by longer steps, over which it is more than noise.

    Args:
        scaled: information in units of its diagonal.
        noise: its error.
        unit: those units: one over the standard error of a coordinate given all others.
        most: how far coordinates may go.
        length: of the steps so far, in standard errors.

    Returns:
        The matrix, and its error along the weak directions.
    """
    values, vectors = np.linalg.eigh(scaled)
    weak = vectors[:, np.abs(values) < _WEAK]
    if not weak.shape[1]:
        return scaled, noise
    along = scaled @ weak
    for step in (10 * length, 100 * length, 1000 * length):
        moves = step * weak / unit[:, None]
        if np.any(np.abs(2 * moves) > most[:, None]):
            break
        near, far = (slopes.along(times * moves.T).T / (times * step) / unit[:, None] for times in (1, 2))
        longer = -(4 * near - far) / 3
        if not np.max(np.abs(longer - along)) <= 3 * noise:  # no parabola over so long a step
            break
        along, noise = longer, noise / 10
    rest = vectors[:, np.abs(values) >= _WEAK]
    cross, within = rest.T @ along, weak.T @ along
    basis = np.concatenate([rest, weak], 1)
    whole = np.block([[np.diag(values[np.abs(values) >= _WEAK]), cross], [cross.T, (within + within.T) / 2]])
    return basis @ whole @ basis.T, noise


class _NearbyScores:
    """Scores near an estimate, in blocks of one size: one compilation serves every estimate."""

    def __init__(self, frames: Mapping[str, Any], active: np.ndarray, scores: Callable, data: Data):
        self._frames, self._active, self._scores, self._data = frames, active, scores, data
        self._size = sum(frame.size for frame in frames.values())

    def here(self) -> np.ndarray:
        return self._at(np.zeros((1, self._size)))[0]

    def central(self, steps: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Rows of the Hessian: differences of the score along some of the active coordinates."""
        moves = np.zeros((len(which), self._size))
        moves[np.arange(len(which)), self._active[which]] = steps
        return self._differences(moves) / steps[:, None]

    def along(self, moves: np.ndarray) -> np.ndarray:
        """Differences of the score between both ends of moves of the active coordinates, halved."""
        whole = np.zeros((len(moves), self._size))
        whole[:, self._active] = moves
        return self._differences(whole)

    def _differences(self, moves: np.ndarray) -> np.ndarray:
        above, below = np.split(self._at(np.concatenate([moves, -moves])), 2)
        return (above - below) / 2

    def _at(self, moves: np.ndarray) -> np.ndarray:
        width = min(_MOST_STEPS, 2 * self._size + 1)
        padded = np.concatenate([moves, np.zeros((-len(moves) % width, self._size))]).reshape(-1, width, self._size)
        blocks = [np.asarray(self._scores(self._frames, self._data, jnp.asarray(block))) for block in padded]
        return np.concatenate(blocks).astype(float)[: len(moves), self._active]


def _better(steps: np.ndarray, columns: np.ndarray, length: float) -> np.ndarray:
    """Steps of a given length in standard errors, by the curvatures that were seen with other ones."""
    wanted = np.clip(length / units((columns + columns.T) / 2), 1e-4 * steps, 1e4 * steps)
    return np.where(np.isfinite(columns).all(axis=1), wanted, steps / 10)  # not finite: outside of the space


def _space(constraint: Any, chart: Chart) -> tuple[np.ndarray, np.ndarray]:
    """Size of what every coordinate moves, and how far it may go."""
    frame = chart.frame
    if frame.curved:
        return np.maximum(np.abs(np.ravel(frame.base)), 1.0), np.full(frame.size, np.inf)
    base = np.asarray(frame.base, float)
    room, magnitude = np.full(frame.size, np.inf), np.zeros(frame.size)
    np.minimum.at(room, frame.coordinates, _room(constraint, base).ravel()[frame.entries])
    np.maximum.at(magnitude, frame.coordinates, np.abs(base).ravel()[frame.entries])
    return np.maximum(magnitude, max(1e-3 * np.max(np.abs(base), initial=0.0), 1e-9)), room


def _room(constraint: Any, base: np.ndarray) -> np.ndarray:
    """How far every entry may move until the value leaves its space."""
    name = constraint_name(constraint)
    if name == "simplex":
        return base
    if name == "lower_cholesky":
        return np.where(np.eye(base.shape[-1], dtype=bool), base, np.inf)
    if name == "positive_definite":
        unit = np.sqrt(np.diagonal(base, axis1=-2, axis2=-1))
        product = unit[..., :, None] * unit[..., None, :]
        return product * np.linalg.eigvalsh(base / product)[..., :1, None]
    lower, upper = bounds(constraint)
    below = np.inf if lower is None else base - lower
    above = np.inf if upper is None else upper - base
    return np.broadcast_to(np.minimum(below, above), base.shape)

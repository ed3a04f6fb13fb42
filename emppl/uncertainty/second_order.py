"""Whether an estimate is a local maximum: directions in which the objective rises, and those in which it is flat."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from emppl.model.model import Model
from emppl.parameters.constraints import is_inside
from emppl.uncertainty.charts import Chart, Information, label, params_after

_LEAST_RISE = 1e-6
"""Curvature, relative to that of the coordinates by themselves, from which on a direction upwards is believed."""

_LEAST_CURVATURE = 1e-10
"""Curvature, in the same units, up to which a direction counts as flat."""

_ROUNDS_OF_UNITS = 30
"""Each takes a quarter of the way, in logarithms."""

_LENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Steps along a direction upwards, in units in which its parabola rises by half a nat."""


@dataclasses.dataclass(frozen=True)
class SecondOrder:
    """Directions in the coordinates that are not held.

    Attributes:
        rising: ``(directions, coordinates)``, along which the log-likelihood plus log prior rises to both sides; a
            parabola rises by half a nat over their length. Steepest first.
        weakest: least curvature, in units in which that of a coordinate by itself is one.
        flat: ``(directions, coordinates)``, along which it does not change; of length one in units of the standard
            errors that the coordinates have given all others.
        inverse: ``(coordinates, coordinates)``, of the information along all other directions.
        newton: ``(coordinates,)``, the Newton step along these.
        promised: what it promises, in nats.
    """

    rising: np.ndarray
    flat: np.ndarray
    weakest: float
    inverse: np.ndarray
    newton: np.ndarray
    promised: float

    def upwards(self, least: float) -> np.ndarray:
        """Directions in which the objective rises by more than some nats, ``(directions, coordinates)``."""
        return np.concatenate([self.newton[None], self.rising]) if self.promised > least else self.rising


def second_order(information: Information) -> SecondOrder:
    """The verdict of an information matrix."""
    count = len(information.score)
    none = np.zeros((0, count))
    if not count or not np.all(np.isfinite(information.matrix)):
        return SecondOrder(none, none, 1.0, np.zeros((count, count)), np.zeros(count), 0.0)
    unit = units(information.matrix)
    values, vectors = np.linalg.eigh(information.matrix / np.outer(unit, unit))
    rises = values < -max(_LEAST_RISE, 30 * information.noise) * max(values[-1], 1.0)
    flat = ~rises & (values <= max(_LEAST_CURVATURE, 3 * information.noise) * max(values[-1], 1.0))
    directions = vectors.T / unit
    scale = np.sqrt(np.maximum(np.abs(values), _LEAST_RISE))[:, None]
    curved = ~rises & ~flat
    inverse = (directions[curved].T / values[curved]) @ directions[curved]
    newton = inverse @ information.score
    promised = float(information.score @ newton) / 2
    return SecondOrder((directions / scale)[rises], directions[flat], float(values[0]), inverse, newton, promised)


def units(matrix: np.ndarray) -> np.ndarray:
    """The scale of every coordinate, in which a symmetric matrix has a largest entry of one in every row.

    Of a positive definite matrix it is the root of the diagonal: one over the standard errors that the coordinates have
    given all others. At a saddle the diagonal may be zero.
    """
    size = np.abs(np.where(np.isfinite(matrix), matrix, 0.0))
    largest = np.max(size, axis=1, initial=0.0)
    size[np.diag_indices_from(size)] = np.where(largest > 0, np.diagonal(size), 1.0)
    unit = np.sqrt(np.maximum(np.diagonal(size), _LEAST_CURVATURE * largest))
    for _ in range(_ROUNDS_OF_UNITS):
        unit = unit * np.max(size / np.outer(unit, unit), axis=1, initial=0.0) ** 0.25
    return unit


def way_up(
    model: Model, local: Mapping[str, Chart], directions: np.ndarray, objective: Callable, least: float
) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Parameters at which the objective is higher, along directions in which it rises.

    Args:
        local: charts around the estimate.
        directions: from :meth:`SecondOrder.upwards`.
        objective: log-likelihood plus log prior of parameters.
        least: the objective that has to be exceeded.

    Returns:
        The best parameters along the first direction that leads up, and that direction; or None.
    """
    for direction in directions:
        higher = [found for found in _along(model, local, direction, objective) if found[0] > least]
        if higher:
            return max(higher, key=lambda found: found[0])[1], direction
    return None


def far_along(
    model: Model, local: Mapping[str, Chart], direction: np.ndarray, objective: Callable, least: float
) -> dict[str, np.ndarray] | None:
    """Parameters as far away along a direction as the objective stays above a value, or None if it nowhere does."""
    kept = [params for value, params in _along(model, local, direction, objective) if value >= least]
    return kept[-1] if kept else None


def _along(
    model: Model, local: Mapping[str, Chart], direction: np.ndarray, objective: Callable
) -> list[tuple[float, dict[str, np.ndarray]]]:
    """Objective and parameters after steps of growing length to both sides, where these stay in their space."""
    found = []
    for length in (sign * length for length in _LENGTHS for sign in (1, -1)):
        params = after_step(model, local, length * direction)
        if all(is_inside(model.trace.sites[name].constraint, value) for name, value in params.items()):
            found.append((float(objective(params)), params))
    return [(value, params) for value, params in found if np.isfinite(value)]


def after_step(model: Model, local: Mapping[str, Chart], step: np.ndarray) -> dict[str, np.ndarray]:
    """The free parameters after a step in the coordinates that are not held."""
    active = np.concatenate([chart.active for chart in local.values()])
    whole = np.zeros(len(active))
    whole[active] = step
    after = params_after(model, {name: chart.frame for name, chart in local.items()}, jnp.asarray(whole))
    return {name: np.asarray(value) for name, value in after.items()}


def in_words(local: Mapping[str, Chart], direction: np.ndarray) -> str:
    """A direction as a combination of entries: ``beta[1] - beta[2]``."""
    names = [
        label(name, np.array(np.unravel_index(_entry(chart, int(coordinate)), chart.boundary.shape)))
        for name, chart in local.items()
        for coordinate in np.flatnonzero(chart.active)
    ]
    share = direction / np.max(np.abs(direction))
    moving = np.flatnonzero(np.abs(share) > _LEAST_SHARE)
    sign = np.sign(share[moving[np.argmax(np.abs(share[moving]))]]) if len(moving) else 1.0
    parts = []
    for place in moving[:_MOST_NAMES]:
        weight = sign * share[place]
        number = "" if abs(abs(weight) - 1) < 0.01 else f"{abs(weight):.2g} "
        parts.append(f"{'-' if weight < 0 else '+'} {number}{names[place]}")
    more = f" and {len(moving) - _MOST_NAMES} more" if len(moving) > _MOST_NAMES else ""
    words = " ".join(parts)
    return (words[2:] if words.startswith("+ ") else "-" + words[2:]) + more


_LEAST_SHARE = 1e-3
"""Share of the largest entry from which on an entry belongs to a direction."""

_MOST_NAMES = 6
"""Most entries that are named in a direction."""


def _entry(chart: Chart, coordinate: int) -> int:
    """The entry that a coordinate moves; on a curved set the one at its place."""
    moved = chart.frame.entries[np.asarray(chart.frame.coordinates) == coordinate]
    return int(moved[0]) if len(moved) else min(coordinate, chart.boundary.size - 1)

"""The estimates that a stochastic fit went through: do they still drift, their mean, and the error of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.model.model import Model

CHECK = 20
"""Iterations between two looks at whether the estimates drift."""

_SHORTEST = 40
_FEW = 5
"""Few and long batches: successive estimates are as correlated as EM is slow."""

_BATCHES = 25
_DRIFT = 3.0
_SHARE = 0.5


class Trail:
    """Estimates of one phase.

    Args:
        values: those so far, every one flattened.
    """

    def __init__(self, values: list[np.ndarray] | None = None) -> None:
        self.values: list[np.ndarray] = [] if values is None else list(values)

    def add(self, params: Mapping[str, Any]) -> None:
        """One more."""
        self.values.append(flat(params))

    @property
    def is_long(self) -> bool:
        """Long enough for a look, which comes every few iterations, and where they are many every twentieth of them."""
        number = len(self.values)
        return number >= _SHORTEST and number % (CHECK * max(number // (20 * CHECK), 1)) == 0

    @property
    def is_level(self) -> bool:
        """Do the two quarters of the last half agree, within the noise that batches of them show?"""
        one, other = self._last_quarters
        noise = np.sqrt(_variance_of_mean(one, _FEW) + _variance_of_mean(other, _FEW))
        return bool(np.all(np.abs(one.mean(0) - other.mean(0)) <= _DRIFT * noise + 1e-12))

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation of every estimate, over the last half."""
        return np.std(self.values[len(self.values) // 2 :], 0)

    def is_close(self, spread: np.ndarray) -> bool:
        """Do the two quarters of the last half differ by less than a share of what single estimates did?

        Where steps shrink, estimates are correlated over more iterations than there are, and batches show no noise.
        """
        one, other = self._last_quarters
        return bool(np.all(np.abs(one.mean(0) - other.mean(0)) <= _SHARE * spread + 1e-12))

    @property
    def _last_quarters(self) -> list[np.ndarray]:
        quarter = len(self.values) // 4
        return [np.array(self.values[len(self.values) - end * quarter :][:quarter]) for end in (2, 1)]

    def mean(self, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Averaged estimates."""
        return _shaped(np.mean(self.values, 0), like)

    def errors(self, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Standard errors of the average, by batch means; NaN for too short a trail."""
        if len(self.values) < 2 * _BATCHES:
            return _shaped(np.full_like(self.values[0], np.nan), like)
        return _shaped(np.sqrt(_variance_of_mean(np.array(self.values), _BATCHES)), like)

    @property
    def relative_error(self) -> float:
        """Largest standard error of an average, as a share of the standard deviation of the estimates themselves."""
        values = np.array(self.values)
        if len(values) < 2 * _BATCHES:
            return np.inf
        spread = values.std(0)
        moving = spread > 1e-12 * (1 + np.abs(values).max(0))
        return float(np.max(np.sqrt(_variance_of_mean(values, _BATCHES))[moving] / spread[moving], initial=0.0))


def flat(params: Mapping[str, Any]) -> np.ndarray:
    """All values of one set of parameters."""
    return np.concatenate([np.ravel(value) for value in jax.device_get(dict(params)).values()])


def _shaped(values: np.ndarray, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    shapes = {name: np.shape(value) for name, value in like.items()}
    sizes = np.cumsum([int(np.prod(shape, dtype=int)) for shape in shapes.values()])[:-1]
    return {n: part.reshape(shapes[n]) for n, part in zip(shapes, np.split(values, sizes), strict=True)}


def _variance_of_mean(values: np.ndarray, batches: int) -> np.ndarray:
    size = len(values) // batches
    means = values[len(values) - batches * size :].reshape(batches, size, -1).mean(1)
    return means.var(0, ddof=1) / batches


def inside(model: Model, mean: Mapping[str, np.ndarray], last: Mapping[str, Any]) -> dict[str, Any]:
    """Averages, as far as their constraint (which need not be convex) lets them be.

    Args:
        model: the model.
        mean: averaged estimates.
        last: the last of them, for what cannot be averaged.
    """
    found = {}
    for name, value in mean.items():
        constraint = model.trace.sites[name].constraint
        is_inside = bool(np.all(np.asarray(constraint(jnp.asarray(value)))))
        found[name] = model.pin(name, jnp.asarray(value)) if is_inside else last[name]
    return found

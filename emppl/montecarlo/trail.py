"""The estimates that a stochastic fit went through: do they still drift, their mean, and the error of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl.model.model import Model
from emppl.types import Params

CHECK = 20
"""Iterations between two looks at whether the estimates drift."""

_FEWEST_ITERATIONS = 40
"""A look takes at least so many."""

_BATCHES_OF_A_QUARTER = 5
"""Few and long batches: successive estimates are as correlated as EM is slow."""

_BATCHES = 25
"""Of a whole phase."""

_DRIFT_ERRORS = 3.0
"""Standard errors of their difference by which two quarters of the estimates may differ."""

_DRIFT_SHARE = 0.5
"""Share of the spread of single estimates by which they may differ where batches show no noise."""


class Trail(NamedTuple):
    """Estimates of one phase.

    Attributes:
        values: those so far, ``(iterations, numbers)``.
    """

    values: np.ndarray

    @classmethod
    def empty(cls, params: Params) -> Trail:
        """No estimates of these parameters."""
        return cls(flat(params)[None][:0])

    def extended(self, values: np.ndarray) -> Trail:
        """With more estimates, ``(iterations, numbers)``."""
        return Trail(np.concatenate([self.values, values]))

    @property
    def is_long(self) -> bool:
        """Long enough for a look, which comes every few iterations, and where they are many every twentieth of them."""
        number = len(self.values)
        return number >= _FEWEST_ITERATIONS and number % (CHECK * max(number // (20 * CHECK), 1)) == 0

    @property
    def is_level(self) -> bool:
        """Whether the two quarters of the last half agree, within the noise that batches of them show."""
        third, fourth = self._last_quarters
        variances = [_variance_of_mean(quarter, _BATCHES_OF_A_QUARTER) for quarter in (third, fourth)]
        return self._differ_by_at_most(_DRIFT_ERRORS * np.sqrt(sum(variances)))

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation of every estimate, over the last half."""
        return np.std(self.values[len(self.values) // 2 :], 0)

    def is_close(self, spread: np.ndarray) -> bool:
        """Whether the two quarters of the last half differ by less than a share of what single estimates did.

        Where steps shrink, estimates are correlated over more iterations than there are, and batches show no noise.
        """
        return self._differ_by_at_most(_DRIFT_SHARE * spread)

    def _differ_by_at_most(self, limit: np.ndarray) -> bool:
        third, fourth = self._last_quarters
        return bool(np.all(np.abs(third.mean(0) - fourth.mean(0)) <= limit + 1e-12))

    @property
    def _last_quarters(self) -> tuple[np.ndarray, np.ndarray]:
        values, quarter = self.values, len(self.values) // 4
        return values[len(values) - 2 * quarter :][:quarter], values[len(values) - quarter :]

    def mean(self, like: Params) -> dict[str, np.ndarray]:
        """Averaged estimates, in the shapes of these parameters."""
        return _shaped(np.mean(self.values, 0), like)

    def errors(self, like: Params) -> dict[str, np.ndarray]:
        """Standard errors of the average, by batch means; NaN for too short a trail."""
        if len(self.values) < 2 * _BATCHES:
            return _shaped(np.full_like(self.values[0], np.nan), like)
        return _shaped(np.sqrt(_variance_of_mean(self.values, _BATCHES)), like)

    @property
    def relative_error(self) -> float:
        """Largest standard error of an average, as a share of the standard deviation of the estimates themselves."""
        values = self.values
        if len(values) < 2 * _BATCHES:
            return np.inf
        spread = values.std(0)
        moving = spread > 1e-12 * (1 + np.abs(values).max(0))
        return float(np.max(np.sqrt(_variance_of_mean(values, _BATCHES))[moving] / spread[moving], initial=0.0))


def flat(params: Params) -> np.ndarray:
    """All values of one set of parameters."""
    return np.concatenate([np.ravel(value) for value in jax.device_get(dict(params)).values()])


def _shaped(values: np.ndarray, like: Params) -> dict[str, np.ndarray]:
    shapes = {name: np.shape(value) for name, value in like.items()}
    sizes = np.cumsum([int(np.prod(shape, dtype=int)) for shape in shapes.values()])[:-1]
    return {n: part.reshape(shapes[n]) for n, part in zip(shapes, np.split(values, sizes), strict=True)}


def _variance_of_mean(values: np.ndarray, batches: int) -> np.ndarray:
    size = len(values) // batches
    means = values[len(values) - batches * size :].reshape(batches, size, -1).mean(1)
    return means.var(0, ddof=1) / batches


def inside(model: Model, mean: Mapping[str, np.ndarray], last: Params) -> dict[str, jax.Array]:
    """Averages, as far as their constraint (which need not be convex) lets them be.

    Args:
        mean: averaged estimates.
        last: the last of them, for what cannot be averaged.
    """
    params = {}
    for name, value in mean.items():
        constraint = model.trace.sites[name].constraint
        is_inside = bool(np.all(np.asarray(constraint(jnp.asarray(value)))))
        params[name] = model.pin(name, jnp.asarray(value)) if is_inside else last[name]
    return params

"""The rounding error of a function, measured: its range where only the last digits of its argument differ.

How far a sum is off depends on the size of the terms that are added up, inside densities too: of a Poisson count of two
million they are 3e7 nats, of which 8 are left. At a maximum, where slopes vanish, only rounding makes a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_EVALUATIONS = 8

_UNITS = 64
"""Most units of the machine epsilon by which entries are changed, relative to their size."""

_RANGES = 16.0
"""Ranges of the values that make a bound: neighbours share most of their rounding errors, and differ by less."""

MOST_NOISE = 1e-2
"""Nats up to which rounding may hide gains: estimates are then within a seventh of a standard error of the maximum."""


def changes(shape: Sequence[int], dtype: Any, seed: int) -> np.ndarray:
    """Factors of the entries of an array, by number of evaluation; below one, so that a probability stays one."""
    units = np.random.default_rng(seed).integers(0, _UNITS + 1, (_EVALUATIONS, *shape))
    return (1 - np.finfo(dtype).eps * units).astype(dtype)


def noise_of(values: Any) -> Any:
    """A bound on rounding errors from values along the first axis; NaN where one is not finite."""
    return _RANGES * (jnp.max(values, 0) - jnp.min(values, 0))


def measured(function: Callable[[jax.Array], jax.Array], at: jax.Array) -> jax.Array:
    """A bound on the rounding errors of a function of one array."""
    points = at[None] * changes(at.shape, at.dtype, 0)
    return noise_of(jnp.concatenate([function(at)[None], jax.lax.map(function, points)]))

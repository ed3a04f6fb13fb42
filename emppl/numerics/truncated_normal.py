"""A normal variable restricted to an interval: the mass there, its moments and draws, to rounding.

Differences of distribution functions lose every digit in the tails and in narrow intervals. There the density is
integrated by a Gauss-Legendre rule instead: all terms are positive, and nothing cancels.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

_NUM_NODES = 28
"""Nodes of the rule. Its relative error is below 1e-14 for every interval that it is used for."""

_DECAY_IN_NATS = 41.0
"""The rule goes on until the density has fallen by ``exp(-41)``, below half a unit in the last place."""

_MAX_RULE_WIDTH = 3.0
"""In standard deviations: intervals around the mode that are wider need no rule, as little cancels there."""

_LOG_TWO_PI = math.log(2 * math.pi)
_NUM_HALVINGS = 60


@dataclasses.dataclass
class _Side:
    """Standardised intervals, reflected where that brings the mode to the left of the middle.

    Attributes:
        flip: -1 where an interval was reflected, else 1.
        low: lower end.
        high: upper end.
        reach: how far from the lower end the density matters.
        by_rule: whether the rule integrates the interval.
    """

    flip: jax.Array
    low: jax.Array
    high: jax.Array
    reach: jax.Array
    by_rule: jax.Array


def moments(
    mean: jax.Array, root: jax.Array, lower: jax.Array, upper: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mass of an interval under a normal law, and mean and variance of the law inside it.

    Args:
        mean: of the normal law.
        root: square root of its precision.
        lower: lower end, minus infinity for none.
        upper: upper end.

    Returns:
        ``(log mass, mean, variance)``.
    """
    side = _standardised(mean, root, lower, upper)
    low = jnp.where(side.by_rule, side.low, 0.0)
    length = jnp.where(side.by_rule, side.reach, 1.0)
    mass, first, second = _rule(low, length)
    by_rule = -(low**2 + _LOG_TWO_PI) / 2 + jnp.log(mass), low + first, second - first**2
    low = jnp.where(side.by_rule, -1.0, side.low)
    high = jnp.where(side.by_rule, 4.0, side.high)
    outside = ndtr(low) + ndtr(-high)
    below, above = _density(low), _density(high)
    inside = 1 - outside
    shift = (below - above) / inside
    finite = jnp.isfinite(low), jnp.isfinite(high)
    ends = [jnp.where(known, end, 0.0) for known, end in zip(finite, (low, high), strict=True)]
    spread = 1 + (ends[0] * below - ends[1] * above) / inside - shift**2
    wide = jnp.log1p(-outside), shift, spread
    log_mass, shift, spread = (jnp.where(side.by_rule, a, b) for a, b in zip(by_rule, wide, strict=True))
    return log_mass, mean + side.flip * shift / root, spread / root**2


def draw(rng_key: jax.Array, mean: jax.Array, root: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """One draw from every restricted normal law, by inverting its distribution function."""
    side = _standardised(mean, root, lower, upper)
    share = jax.random.uniform(rng_key, side.low.shape, side.low.dtype)
    low = jnp.where(side.by_rule, side.low, 0.0)
    length = jnp.where(side.by_rule, side.reach, 1.0)
    target = share * _rule(low, length)[0]

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        begin, end = ends
        middle = (begin + end) / 2
        short = _rule(low, middle)[0] < target
        return jnp.where(short, middle, begin), jnp.where(short, end, middle)

    begin, end = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, (jnp.zeros_like(length), length))
    by_rule = low + (begin + end) / 2
    below, above = ndtr(side.low), ndtr(-side.high)
    # Close to one the distribution function has no digits left: there, the other tail.
    inside = 1 - below - above
    left = below + share * inside
    wide = jnp.where(left < 0.5, ndtri(left), -ndtri(above + (1 - share) * inside))
    value = mean + side.flip * jnp.where(side.by_rule, by_rule, wide) / root
    return jnp.clip(value, lower, upper)


def _standardised(mean: jax.Array, root: jax.Array, lower: jax.Array, upper: jax.Array) -> _Side:
    mean, root, lower, upper = jnp.broadcast_arrays(mean, root, lower, upper)
    starts, ends = jnp.isfinite(lower), jnp.isfinite(upper)
    # Infinite ends are put in afterwards: they have no derivative.
    first = jnp.where(starts, (jnp.where(starts, lower, 0.0) - mean) * root, -jnp.inf)
    last = jnp.where(ends, (jnp.where(ends, upper, 0.0) - mean) * root, jnp.inf)
    both = starts & ends
    width = jnp.where(both, jnp.where(both, upper - lower, 0.0) * root, jnp.inf)
    reflect = first + last < 0
    low, high = jnp.where(reflect, -last, first), jnp.where(reflect, -first, last)
    by_rule = (low >= 0) | (width <= _MAX_RULE_WIDTH)
    inside = jax.lax.stop_gradient(jnp.where(by_rule, low, 0.0))
    decay = 2 * _DECAY_IN_NATS / (inside + jnp.hypot(inside, math.sqrt(2 * _DECAY_IN_NATS)))
    reach = jnp.where(width < decay, jnp.where(width < decay, width, 1.0), decay)
    return _Side(jnp.where(reflect, -1.0, 1.0), low, high, reach, by_rule)


def _rule(low: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``exp(-low t - t^2 / 2)`` over ``0 < t < length``: its integral, and mean and mean square of ``t``."""
    places, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    total = first = second = jnp.zeros_like(low)
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        t = place * length
        height = weight * jnp.exp(-(low + t / 2) * t)
        total, first, second = total + height, first + place * height, second + place**2 * height
    return total * length, first / total * length, second / total * length**2


def _density(x: jax.Array) -> jax.Array:
    finite = jnp.isfinite(x)
    return jnp.where(finite, jnp.exp(-(jnp.where(finite, x, 0.0) ** 2 + _LOG_TWO_PI) / 2), 0.0)

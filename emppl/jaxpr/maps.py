"""Elementwise invertible maps from a parameter to an argument: ``exp(log_sigma)[z]``, ``2 * mu[z] + 1``.

They commute with selections, and maximum likelihood is invariant under them: the closed form gives the argument, the
inverse gives the parameter. Each map knows the image of an interval, from which follows whether it can reach every
solution of the closed form.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Interval = tuple[float, float]
REAL: Interval = (-math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An elementwise invertible operation with a constant, which may be None.

    Attributes:
        name: in words.
        forward: of a value and the constant.
        inverse: of a result and the constant; finite at the edge of the image.
        image: where an interval goes, or None if the operation is not one-to-one on it.
    """

    name: str
    forward: Callable[[jax.Array, Any], jax.Array]
    inverse: Callable[[jax.Array, Any], jax.Array]
    image: Callable[[Interval, Any], Interval | None]


@dataclasses.dataclass(frozen=True)
class Step:
    """One elementwise operation of a chain, with its constant."""

    operation: Operation
    constant: float | None = None

    def __str__(self) -> str:
        return self.operation.name if self.constant is None else f"{self.operation.name} {self.constant:g}"


@dataclasses.dataclass(frozen=True)
class ElementMap:
    """A chain of operations, applied from left to right; the empty chain is the identity."""

    steps: tuple[Step, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __str__(self) -> str:
        return ", ".join(str(step) for step in self.steps)

    def then(self, step: Step) -> ElementMap:
        """This map followed by one more operation."""
        return ElementMap((*self.steps, step))

    def forward(self, value: jax.Array) -> jax.Array:
        """From the parameter to the argument."""
        for step in self.steps:
            value = step.operation.forward(value, step.constant)
        return value

    def inverse(self, value: jax.Array) -> jax.Array:
        """From the argument to the parameter; finite where the argument is at the edge of the image."""
        for step in reversed(self.steps):
            value = step.operation.inverse(value, step.constant)
        return value

    def image(self, interval: Interval) -> Interval | None:
        """Where an interval goes, or None if the map is not one-to-one on it."""
        current: Interval | None = interval
        for step in self.steps:
            if current is not None:
                current = step.operation.image(current, step.constant)
        return current


def _monotone(
    function: Callable[[float, Any], float], domain: Interval = REAL
) -> Callable[[Interval, Any], Interval | None]:
    """Image of an interval under a monotone function, if the interval lies inside the domain."""

    def image(interval: Interval, constant: Any) -> Interval | None:
        if interval[0] < domain[0] or interval[1] > domain[1]:
            return None
        ends = sorted(function(end, constant) for end in interval)
        return ends[0], ends[1]

    return image


def _simple(
    name: str,
    forward: Callable[[jax.Array], jax.Array],
    inverse: Callable[[jax.Array], jax.Array],
    at: Callable[[float], float],
    domain: Interval = REAL,
) -> Operation:
    return Operation(name, lambda x, c: forward(x), lambda y, c: inverse(y), _monotone(lambda x, c: at(x), domain))


def _at_least_tiny(value: jax.Array) -> jax.Array:
    return jnp.maximum(value, jnp.finfo(value.dtype).tiny)


def _inside(value: jax.Array) -> jax.Array:
    """Probabilities, kept so far from 0 and 1 that their log odds are finite."""
    return jnp.clip(value, jnp.finfo(value.dtype).tiny, 1 - jnp.finfo(value.dtype).epsneg)


def _logit(value: jax.Array) -> jax.Array:
    inside = _inside(value)
    return jnp.log(inside) - jnp.log1p(-inside)


def _softplus_inverse(value: jax.Array) -> jax.Array:
    value = _at_least_tiny(value)
    return value + jnp.log(-jnp.expm1(-value))


def _float_exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _float_log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _float_logistic(x: float) -> float:
    return 1 / (1 + _float_exp(-x))


def _times(interval: Interval, factor: float) -> Interval | None:
    if factor == 0:
        return None
    ends = sorted(0.0 if end == 0 else end * factor for end in interval)
    return ends[0], ends[1]


def _reciprocal(interval: Interval, constant: float) -> Interval | None:
    low, high = interval
    if constant == 0 or low < 0 < high:
        return None
    sides = (math.inf if low >= 0 else -math.inf, 0.0)
    ends = sorted(sides[0] if end == 0 else 1 / end for end in (low, high))
    return _times((ends[0], ends[1]), constant)


def _power_image(interval: Interval, power: float) -> Interval | None:
    low, high = interval
    odd = float(power).is_integer() and power > 0 and int(power) % 2 == 1
    if power == 0 or (low < 0 and not odd):
        return None

    def at(x: float) -> float:
        if x == 0:
            return 0.0 if power > 0 else math.inf
        if math.isinf(x):
            return math.copysign(math.inf, x) if power > 0 else 0.0
        return math.copysign(abs(x) ** power, x)

    ends = sorted((at(low), at(high)))
    return ends[0], ends[1]


def _root(value: jax.Array, power: float) -> jax.Array:
    if power < 0:
        value = _at_least_tiny(value)
    return jnp.sign(value) * jnp.abs(value) ** (1 / power)


ADD = Operation("add", lambda x, c: x + c, lambda y, c: y - c, _monotone(lambda x, c: x + c))
SUBTRACT_FROM = Operation("subtract from", lambda x, c: c - x, lambda y, c: c - y, _monotone(lambda x, c: c - x))
MULTIPLY = Operation("multiply by", lambda x, c: x * c, lambda y, c: y / c, _times)
DIVIDE = Operation("divide", lambda x, c: c / x, lambda y, c: c / y, _reciprocal)
POWER = Operation("power", lambda x, c: x**c, _root, _power_image)
NEGATE = _simple("neg", jnp.negative, jnp.negative, lambda x: -x)
EXP = _simple("exp", jnp.exp, lambda y: jnp.log(_at_least_tiny(y)), _float_exp)
EXP2 = _simple("exp2", jnp.exp2, lambda y: jnp.log2(_at_least_tiny(y)), lambda x: _float_exp(x * math.log(2)))
EXPM1 = _simple("expm1", jnp.expm1, jnp.log1p, lambda x: _float_exp(x) - 1)
LOG = _simple("log", jnp.log, jnp.exp, _float_log, (0.0, math.inf))
LOG1P = _simple("log1p", jnp.log1p, jnp.expm1, lambda x: _float_log(1 + x), (-1.0, math.inf))
LOGISTIC = _simple("logistic", jax.nn.sigmoid, _logit, _float_logistic)
SOFTPLUS = _simple(
    "softplus", jax.nn.softplus, _softplus_inverse, lambda x: x if x > 700 else math.log1p(_float_exp(x))
)
TANH = _simple("tanh", jnp.tanh, lambda y: _logit((y + 1) / 2) / 2, math.tanh)

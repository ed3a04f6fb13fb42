"""What the updates of several families are made of."""

from __future__ import annotations

from collections.abc import Callable

import jax

from emppl.families.family import Arrays
from emppl.numerics.guarded import safe_divide

POSITIVE = ("positive", "softplus_positive", "real")
"""Constraints that a positive solution satisfies."""

NONNEGATIVE = ("positive", "nonnegative", "softplus_positive", "real")
"""Constraints that a solution satisfies which may be zero."""


def moments_alone(moments: Arrays, arguments: Arrays, current: jax.Array) -> Arrays:
    """Contributions that are the moments themselves."""
    return moments


def ratio(numerator: str, denominator: str) -> Callable[[Arrays, jax.Array, int], jax.Array]:
    """Solution by one pooled quantity over another; the previous value where the latter is zero."""

    def solve(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
        return safe_divide(pooled[numerator], pooled[denominator], previous)

    return solve

"""From a seed to a model."""

from __future__ import annotations

import functools

import numpy as np

from tests.generator import chains, discrete, gaussian
from tests.generator.brute import Brute, TooMany, brute
from tests.generator.plain import Plain
from tests.generator.writer import Program, Unfit, Writer

KINDS = {"discrete": discrete.write, "chain": chains.write, "gaussian": gaussian.write}


@functools.lru_cache(1)
def draw(
    seed: int, kind: str | None = None, off: frozenset[str] = frozenset(), interior: bool = False
) -> tuple[Program, Brute]:
    """The model of a seed, and what is right about it.

    Args:
        seed: any whole number.
        kind: of :data:`KINDS`; by default they take turns.
        off: features that are left out.
        interior: with a prior on every parameter, so that fits end inside.
    """
    kind = list(KINDS)[seed % len(KINDS)] if kind is None else kind
    for attempt in range(1000):
        writer = Writer(np.random.default_rng([seed, attempt]), off, interior)
        try:
            program = KINDS[kind](writer)
            right = brute(Plain(program.text), program)
        except (Unfit, TooMany):
            continue
        if not np.isfinite(right.log_likelihood):
            continue
        if isinstance(right, Brute) and right.continuous and not right.is_quadratic():
            continue
        return program, right
    raise RuntimeError(f"no model of kind {kind!r} for seed {seed}")

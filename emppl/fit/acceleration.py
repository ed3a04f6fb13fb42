"""Acceleration of slow EM: two plain steps show how the steps shrink, a third one leaps to where they lead.

From ``t0`` two EM steps give ``t1`` and ``t2``. With ``r = t1 - t0`` and ``v = t2 - t1 - r``, all on the unconstrained
space, the leap goes to ``t0 + 2 s r + s^2 v`` with ``s = |r| / |v|``. It is kept if the objective there is no lower
than at ``t1``; otherwise ``t2`` is next, as without acceleration.

Reference:
    Varadhan and Roland (2008), Simple and globally convergent methods for accelerating the convergence of any EM
    algorithm, Scand. J. Statist. 35:335-353 (scheme SqS3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl.fit.convergence import Gains, Judgement, needs_rise, rounding_of
from emppl.model.model import Model
from emppl.parameters.constraints import constrain, unconstrain
from emppl.types import Params

FIRST, SECOND, LEAP = 0, 1, 2


class Leaping(NamedTuple):
    """Where one restart is in its cycle of three steps.

    Attributes:
        phase: which of them is next.
        start: parameters at which the cycle began.
        fallback: parameters to go on with if a leap fails.
        floor: objective that a leap must reach, in nats.
    """

    phase: Any
    start: Any
    fallback: Any
    floor: Any

    @classmethod
    def beginning(cls, params: Mapping[str, np.ndarray], lanes: int, dtype: Any) -> Leaping:
        """Before the first step of every restart, on the host."""
        return cls(np.zeros(lanes, np.int32), dict(params), dict(params), np.full(lanes, -np.inf, dtype))


class Leap(NamedTuple):
    """The outcome of one E-step and M-step in the cycle of three.

    Attributes:
        params: next parameters.
        leaping: next place in the cycle.
        failed: whether this was the evaluation of a leap that is not kept.
        judgement: of the objective.
    """

    params: dict[str, jax.Array]
    leaping: Leaping
    failed: jax.Array
    judgement: Judgement


def leap(
    model: Model,
    leaping: Leaping,
    params: Params,
    after: Params,
    objective: jax.Array,
    gains: Gains,
    amplification: jax.Array,
    tolerance: jax.Array,
) -> Leap:
    """Take the next step of the cycle.

    Args:
        leaping: place in the cycle.
        params: parameters that were evaluated.
        after: what the M-step made of them.
        objective: log-likelihood plus log prior at ``params``, in nats.
        gains: what the test before this one left.
        amplification: how much larger than the log-probabilities the terms are that were added up.
        tolerance: in nats, on the gain that is left.
    """
    eps = jnp.finfo(objective.dtype).eps
    size = 1 + jnp.abs(objective)
    noise = rounding_of(objective, amplification) + gains.noise
    is_leap = leaping.phase == LEAP
    gain, slack = objective - gains.objective, jnp.zeros_like(objective)
    if needs_rise(model.objective_kind):
        # The error of an approximate objective hides small steps: the rise of Q is exact.
        gain, slack = gains.rise, _SLACK * size
    failed = is_leap & ~(objective >= leaping.floor - slack)
    # A fall by less than the tolerance is no fall.
    decreased = ~is_leap & jnp.isfinite(objective) & (gain < -(noise + tolerance))
    target, shrink = _extrapolated(model, leaping.start, params, after)
    usable = jnp.isfinite(shrink)
    for value in target.values():
        usable = usable & jnp.all(jnp.isfinite(value))
    at_second = leaping.phase == SECOND
    # Steps that shrink by the factor ``shrink`` have gains that shrink by its square.
    ratio = shrink**2
    remaining = jnp.where(ratio < 1, gain * ratio / jnp.where(ratio < 1, 1 - ratio, 1), jnp.inf)
    near = jnp.where(at_second, (remaining <= tolerance) & (gain >= -(noise + tolerance)), gains.near)
    still = (jnp.abs(gain) <= 8 * eps * size) | ((gain <= 0) & ~decreased)
    stalls = jnp.where(at_second, jnp.where(still, gains.stalls + 1, 0), gains.stalls)
    converged = at_second & jnp.isfinite(objective) & ((near & gains.near) | (stalls >= 2))

    def choose(first: Any, second: Any, leapt: Any) -> Any:
        return jax.tree.map(lambda a, b, c: jnp.where(at_second, b, jnp.where(is_leap, c, a)), first, second, leapt)

    jump = jax.tree.map(lambda far, plain: jnp.where(usable, far, plain), target, after)
    landed = jax.tree.map(lambda plain, back: jnp.where(failed, back, plain), after, leaping.fallback)
    following = Leaping(
        (leaping.phase + 1) % 3,
        jax.tree.map(lambda current, before: jnp.where(leaping.phase == FIRST, current, before), params, leaping.start),
        jax.tree.map(lambda plain, before: jnp.where(at_second, plain, before), after, leaping.fallback),
        jnp.where(at_second, objective, leaping.floor),
    )
    kept = jnp.where(failed, gains.objective, objective)
    stalls = stalls.astype(gains.stalls.dtype)
    judged = gains._replace(objective=kept, gain=gain, ratio=ratio, near=near, stalls=stalls)
    judgement = Judgement(converged, decreased, judged)
    return Leap(choose(after, jump, landed), following, failed, judgement)


_SLACK = 1e-6
"""How far below the objective before a leap may end, relative to its size, where the objective is approximate."""


def _extrapolated(model: Model, start: Params, middle: Params, end: Params) -> tuple[dict[str, jax.Array], jax.Array]:
    """Where two steps lead, and the factor by which steps shrink."""
    constraints = {name: model.trace.sites[name].constraint for name in start}
    points = [
        {name: unconstrain(constraints[name], value) for name, value in point.items()} for point in (start, middle, end)
    ]
    first = {name: points[1][name] - points[0][name] for name in start}
    change = {name: points[2][name] - points[1][name] - first[name] for name in start}
    norm = lambda block: jnp.sqrt(sum(jnp.sum(value**2) for value in block.values()))  # noqa: E731
    length = norm(first) / norm(change)
    step = jnp.maximum(length, 1)
    target = {
        name: model.pin(
            name, constrain(constraints[name], points[0][name] + 2 * step * first[name] + step**2 * change[name])
        )
        for name in start
    }
    return target, jnp.clip(1 - 1 / length, 0, 1)

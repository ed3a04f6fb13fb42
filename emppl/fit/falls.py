"""Falls of the objective that are rounding: a restart whose objective fell by no more runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from emppl.fit.convergence import Gains
from emppl.fit.outcome import StopReason
from emppl.numerics.rounding import MOST_NOISE, changes, noise_of


def without_rounded_falls(states: Any, evaluate: Callable[[Any], np.ndarray]) -> Any:
    """States in which restarts run on whose objective fell by no more than rounding, as measured where it fell.

    Args:
        states: ``LaneState`` of all restarts, after a block of iterations.
        evaluate: the objective of every restart after one iteration from some states, NaN where there is none.
    """
    fell = np.asarray(states.status) == StopReason.DECREASED.value
    if not np.any(fell):
        return states
    gains = jax.tree.map(np.asarray, states.gains)
    noise = _noise(states, evaluate, gains.objective.dtype)
    # Where nothing larger is measured than the last time, the fall has another cause.
    pardoned = fell & (-gains.gain <= noise) & (noise > gains.noise) & (noise <= MOST_NOISE)
    status = np.where(pardoned, StopReason.RUNNING.value, states.status).astype(np.asarray(states.status).dtype)
    return states._replace(status=status, gains=gains._replace(noise=np.where(pardoned, noise, gains.noise)))


def _noise(states: Any, evaluate: Callable[[Any], np.ndarray], dtype: Any) -> np.ndarray:
    status = np.asarray(states.status)
    running = np.full_like(status, StopReason.RUNNING.value)
    fresh = states._replace(status=running, gains=Gains.beginning(len(status), dtype))
    if states.leaping is not None:
        fresh = fresh._replace(leaping=states.leaping._replace(phase=np.zeros_like(states.leaping.phase)))
    values = [evaluate(fresh)]
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, states.params))
    factors = [changes(leaf.shape, leaf.dtype, seed) for seed, leaf in enumerate(leaves)]
    for changed in zip(*factors, strict=True):
        nearby = [leaf * factor for leaf, factor in zip(leaves, changed, strict=True)]
        values.append(evaluate(fresh._replace(params=jax.tree.unflatten(tree, nearby))))
    return np.nan_to_num(np.asarray(noise_of(np.asarray(values))), nan=0.0, posinf=0.0).astype(dtype)

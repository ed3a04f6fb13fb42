"""Stochastic approximation EM: few draws per iteration, a Q that remembers, estimates that are averaged.

Q is kept as a set of past draws with shares: with step ``g`` the old shares shrink by ``1 - g``, and new draws share
``g``. For rules that are sums of statistics this is stochastic approximation of those sums, and it serves every other
rule as well. Draws whose share has become too small to matter are forgotten.

Reference:
    Delyon, Lavielle and Moulines (1999), Convergence of a stochastic approximation version of the EM algorithm,
    Annals of Statistics 27:94-128; Polyak and Juditsky (1992), Acceleration of stochastic approximation by averaging,
    SIAM Journal on Control and Optimization 30:838-855.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep.simulated import Drawn
from emppl.fit.ascent import Path, draw
from emppl.fit.outcome import StopReason
from emppl.fit.simulator import Simulator
from emppl.strategies import SAEM

_FORGOTTEN = 1e-7
_CHECK = 20
"""Iterations between two looks at whether the estimates drift."""

_SHORTEST = 40
_BATCHES = 5
"""Few and long ones: successive estimates are as correlated as EM is slow."""

_DRIFT = 3.0


@dataclasses.dataclass
class Window:
    """Past draws that Q remembers.

    Attributes:
        draws: by integral, ``(draws, groups, dimensions)``.
        shares: ``(draws,)``, adding up to one.
    """

    draws: dict[str, np.ndarray]
    shares: np.ndarray

    def after(self, new: dict[str, np.ndarray], step: float, most: int) -> Window:
        """With new draws that share ``step``, and without those that are too light, or older than ``most`` others."""
        number = len(next(iter(new.values())))
        shares = np.concatenate([self.shares * (1 - step), np.full(number, step / number)])
        draws = {axis: np.concatenate([self.draws[axis], new[axis]]) for axis in new}
        kept = shares > _FORGOTTEN
        kept &= np.cumsum(kept[::-1])[::-1] <= most
        shares = shares[kept]
        return Window({axis: one[kept] for axis, one in draws.items()}, shares / shares.sum())

    def padded(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """One of few sizes, so that few programs are compiled: filled up with draws of no share."""
        number = len(self.shares)
        size = 16
        while size < number:
            size *= 4
        fill = np.zeros(size - number, int)
        draws = {axis: np.concatenate([one, one[fill]])[None] for axis, one in self.draws.items()}
        return draws, np.concatenate([self.shares, np.zeros(size - number)])


def average(
    simulator: Simulator, path: Path, leaves, prepared, max_iterations: int, report: Callable[[Path], None]
) -> None:
    """Burn in until nothing drifts, then average until nothing drifts; ``path`` ends at the averaged estimates.

    Args:
        simulator: compiled steps.
        path: the fit, changed in place.
        leaves: the data.
        prepared: their statistics.
        max_iterations: most M-steps.
        report: called after every M-step.
    """
    strategy = simulator.strategy
    assert isinstance(strategy, SAEM)
    window: Window | None = None
    phase, trace = "burn-in", _Trace()
    while path.status is StopReason.RUNNING:
        if path.iteration >= max_iterations:
            path.status = StopReason.MAX_ITERATIONS
            break
        drawn = draw(simulator, path, leaves, strategy.num_samples)
        step = 1.0 if phase == "burn-in" else (len(trace.values) + 1) ** -strategy.decay
        new = {axis: np.asarray(one).reshape(-1, *one.shape[2:]) for axis, one in drawn.draws.items()}
        if window is None:
            window = Window({axis: one[:0] for axis, one in new.items()}, np.zeros(0))
        window = window.after(new, step, strategy.window)
        draws, shares = window.padded()
        remembered = Drawn(draws, drawn.evidence, drawn.chains)  # type: ignore[arg-type]
        improved = simulator.improve(path.params, remembered, jnp.asarray(shares), leaves, prepared, path.memory)
        path.log_likelihood = float(improved.log_likelihood)
        path.objective = path.log_likelihood + float(improved.log_prior)
        path.rows.append(
            {
                "iteration": path.iteration,
                "draws": strategy.num_samples * strategy.num_chains,
                "gain": np.nan,
                "gain_error": np.nan,
                "decision": phase,
                "objective": path.objective,
                "log_likelihood": path.log_likelihood,
            }
        )
        if not all(np.all(np.isfinite(value)) for value in jax.device_get(improved.params).values()):
            path.status = StopReason.NOT_FINITE
            return
        path.params, path.memory = improved.params, improved.memory
        path.iteration += 1
        report(path)
        trace.add(path.params)
        if trace.is_long and trace.is_level:
            if phase == "averaging":
                path.status = StopReason.CONVERGED
            else:
                phase, trace = "averaging", _Trace()
    if phase == "averaging" and trace.values:
        path.params = _inside(simulator, trace.mean(), path.params)


class _Trace:
    """Estimates of one phase."""

    def __init__(self) -> None:
        self.values: list[np.ndarray] = []
        self.shapes: dict[str, tuple[int, ...]] = {}

    def add(self, params) -> None:
        params = jax.device_get(params)
        self.shapes = {name: np.shape(value) for name, value in params.items()}
        self.values.append(np.concatenate([np.ravel(value) for value in params.values()]))

    @property
    def is_long(self) -> bool:
        """Long enough for a look, which comes every few iterations."""
        return len(self.values) >= _SHORTEST and len(self.values) % _CHECK == 0

    @property
    def is_level(self) -> bool:
        """Do the two quarters of the last half agree, within the noise that batches of them show?"""
        quarter = len(self.values) // 4
        one, other = (np.array(self.values[len(self.values) - end * quarter :][:quarter]) for end in (2, 1))
        noise = np.sqrt(_variance_of_mean(one) + _variance_of_mean(other))
        return bool(np.all(np.abs(one.mean(0) - other.mean(0)) <= _DRIFT * noise + 1e-12))

    def mean(self) -> dict[str, np.ndarray]:
        """Averaged estimates."""
        flat = np.mean(self.values, 0)
        sizes = np.cumsum([int(np.prod(shape, dtype=int)) for shape in self.shapes.values()])[:-1]
        return {n: part.reshape(self.shapes[n]) for n, part in zip(self.shapes, np.split(flat, sizes), strict=True)}


def _variance_of_mean(values: np.ndarray) -> np.ndarray:
    size = len(values) // _BATCHES
    batches = values[len(values) - _BATCHES * size :].reshape(_BATCHES, size, -1).mean(1)
    return batches.var(0, ddof=1) / _BATCHES


def _inside(simulator: Simulator, mean: dict[str, np.ndarray], last) -> dict[str, Any]:
    """Averages, as far as their constraint (which need not be convex) lets them be."""
    program = simulator.program
    found = {}
    for name, value in mean.items():
        constraint = program.trace.sites[name].constraint
        is_inside = bool(np.all(np.asarray(constraint(jnp.asarray(value)))))
        found[name] = program.pin(name, jnp.asarray(value)) if is_inside else last[name]
    return found

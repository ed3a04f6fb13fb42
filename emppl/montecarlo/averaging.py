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

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep.simulated import Drawn
from emppl.fit.outcome import StopReason
from emppl.montecarlo.path import Path, draw
from emppl.montecarlo.simulator import Simulator
from emppl.montecarlo.trail import inside
from emppl.montecarlo.window import Window
from emppl.strategies import SAEM


def average(
    simulator: Simulator,
    path: Path,
    data,
    prepared,
    max_iterations: int,
    closes: bool,
    report: Callable[[Path], None],
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Burn in until nothing drifts, then average until nothing drifts; ``path`` ends at the averaged estimates.

    Args:
        simulator: compiled steps.
        path: the fit, changed in place.
        data: arrays of the model's arguments.
        prepared: their statistics.
        max_iterations: most M-steps.
        closes: does a closing phase follow? It wants to begin near the maximum; else nothing may drift.
        report: called after every M-step.
        keep: called where the fit may be taken up again.
    """
    strategy = simulator.strategy
    assert isinstance(strategy, SAEM)
    try:
        for _ in path.iterations(max_iterations, keep):
            drawn = draw(simulator, path, data, strategy.num_samples)
            step = 1.0 if path.phase == "burn-in" else (len(path.trail.values) + 1) ** -strategy.decay
            new = {axis: np.asarray(one).reshape(-1, *one.shape[2:]) for axis, one in drawn.draws.items()}
            if path.window is None:
                path.window = Window({axis: one[:0] for axis, one in new.items()}, np.zeros(0))
            path.window = path.window.after(new, step, strategy.window)
            draws, shares = path.window.padded()
            remembered = Drawn(draws, drawn.evidence, drawn.chains)  # type: ignore[arg-type]
            improved = simulator.improve(path.params, remembered, jnp.asarray(shares), data, prepared, path.memory)
            path.log_likelihood = float(improved.log_likelihood)
            path.objective = path.log_likelihood + float(improved.log_prior)
            path.record(strategy.num_samples * strategy.num_chains, path.phase, bool(improved.unfinished))
            if not all(np.all(np.isfinite(value)) for value in jax.device_get(improved.params).values()):
                path.status = StopReason.NOT_FINITE
                return
            path.params, path.memory = improved.params, improved.memory
            path.iteration += 1
            report(path)
            path.trail.add(path.params)
            if path.trail.is_long and (path.trail.is_level or (closes and _is_close(path))):
                if path.phase == "averaging":
                    path.status = path.settled
                else:
                    path.begin("averaging")
    finally:
        if path.phase == "averaging" and path.trail.values:
            path.params = inside(simulator.model, path.trail.mean(path.params), path.params)


def _is_close(path: Path) -> bool:
    return path.spread is not None and path.trail.is_close(path.spread)

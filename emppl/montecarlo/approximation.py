"""Iterations of stochastic approximation EM: few draws, and a Q that remembers earlier ones.

Q is kept as a set of past draws with shares: with step ``g`` the old shares shrink by ``1 - g``, and new draws share
``g``. For rules that are sums of statistics this is stochastic approximation of those sums, and it serves every other
rule as well. Draws whose share has become too small to matter are forgotten.

Reference:
    Delyon, Lavielle and Moulines (1999), Convergence of a stochastic approximation version of the EM algorithm,
    Annals of Statistics 27:94-128.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep.simulated import Drawn
from emppl.fit.outcome import StopReason
from emppl.montecarlo.path import Path, draw
from emppl.montecarlo.simulator import Problem
from emppl.montecarlo.trail import flat
from emppl.strategies import SAEM


@dataclasses.dataclass(frozen=True)
class Approximation:
    """One iteration.

    Attributes:
        problem: compiled steps and data.
        phase: its name in the history.
        decay: minus the exponent of the steps; 0 forgets all draws but the last.
    """

    problem: Problem
    phase: str
    decay: float

    def __call__(self, path: Path) -> Path:
        """Draw, remember, and maximise."""
        simulator, data, prepared = self.problem
        strategy = simulator.strategy
        assert isinstance(strategy, SAEM)
        path, drawn = draw(simulator, path, data, strategy.num_samples)
        step = (len(path.trail.values) + 1) ** -self.decay
        new = {axis: np.asarray(draws).reshape(-1, *draws.shape[2:]) for axis, draws in drawn.draws.items()}
        path = path._replace(window=path.window.after(new, step, strategy.window))
        draws, shares = path.window.padded()
        remembered = Drawn(draws, drawn.evidence, drawn.walkers, {})  # type: ignore[arg-type]
        improved = simulator.improve(path.params, remembered, jnp.asarray(shares), data, prepared, path.memory)
        path = path.evaluated(float(improved.log_likelihood), float(improved.log_prior))
        number = strategy.num_samples * strategy.num_chains
        path = path.recorded(number, self.phase, unfinished=bool(improved.unfinished))
        if not all(np.all(np.isfinite(value)) for value in jax.device_get(improved.params).values()):
            return path._replace(status=StopReason.NOT_FINITE)
        trail = path.trail.extended(flat(improved.params)[None])
        return path._replace(params=improved.params, memory=improved.memory, iteration=path.iteration + 1, trail=trail)

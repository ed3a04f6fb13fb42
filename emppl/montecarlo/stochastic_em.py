"""Iterations of stochastic EM: one draw of the latents, and an M-step on it.

The iterations do not come to rest: they are a Markov chain around the maximum, whose spread is less than that of the
estimator itself (with one parameter, ``f / (1 + f)`` of its variance, where ``f`` is the share of information that is
missing). Their mean is the estimate; batch means say how exactly it is known.

Reference:
    Celeux and Diebolt (1985), The SEM algorithm: a probabilistic teacher algorithm derived from the EM algorithm for
    the mixture problem, Computational Statistics Quarterly 2:73-82; Nielsen (2000), The stochastic EM algorithm:
    estimation and asymptotic results, Bernoulli 6:457-489.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from emppl.fit.outcome import StopReason
from emppl.montecarlo.path import Path
from emppl.montecarlo.simulator import Iterations, Problem
from emppl.montecarlo.trail import CHECK

SPREAD_SHARE = 0.5
"""Most that the variance of the iterations may be, as a share of the estimator's."""


@dataclasses.dataclass(frozen=True)
class Wandering:
    """A block of iterations, between two looks at whether the estimates drift.

    Attributes:
        problem: compiled steps and data.
        phase: its name in the history.
        max_iterations: most M-steps of the fit.
    """

    problem: Problem
    phase: str
    max_iterations: int

    def __call__(self, path: Path) -> Path:
        """As many iterations as are sound and wanted."""
        simulator, data, prepared = self.problem
        path, key = path.split()
        memory, walkers, iterations = simulator.wander(
            path.params, path.memory, path.walkers, key, data, prepared, number=CHECK
        )
        every = jax.device_get(iterations)
        values = np.concatenate([value.reshape(CHECK, -1) for value in every.params.values()], 1)
        # The M-step of an iteration may fail after its E-step was sound.
        is_finite = np.isfinite(every.log_likelihood) & np.all(np.isfinite(values), 1)
        is_sound = is_finite & (every.scale >= 1)
        wanted = min(CHECK, self.max_iterations - path.iteration)
        count = wanted if np.all(is_sound[:wanted]) else int(np.argmin(is_sound))
        if count:
            path = self._after(path, jax.tree.map(lambda column: column[:count], every), values[:count])
        if count == wanted:
            return path._replace(memory=memory, walkers=walkers)
        return path._replace(status=StopReason.COLLAPSED if is_finite[count] else StopReason.NOT_FINITE)

    def _after(self, path: Path, every: Iterations, values: np.ndarray) -> Path:
        """The path with these iterations appended."""
        strategy = self.problem.simulator.strategy
        log_likelihoods = np.asarray(every.log_likelihood, float)
        objectives = log_likelihoods + np.asarray(every.log_prior, float)
        number = len(values)
        return path.recorded(
            strategy.num_samples * strategy.num_chains,
            self.phase,
            iteration=path.iteration + np.arange(number),
            unfinished=every.unfinished,
            objective=objectives,
            log_likelihood=log_likelihoods,
        )._replace(
            log_likelihood=float(log_likelihoods[-1]),
            objective=float(objectives[-1]),
            total_draws=path.total_draws + strategy.num_samples * number,
            params={name: column[-1] for name, column in every.params.items()},
            trail=path.trail.extended(values),
            iteration=path.iteration + number,
        )

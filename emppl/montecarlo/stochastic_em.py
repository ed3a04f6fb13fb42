"""Stochastic EM: one draw of the latents per iteration, an M-step on it, and the average of the estimates.

The iterations do not come to rest: they are a Markov chain around the maximum, whose spread is less than that of the
estimator itself (with one parameter, ``f / (1 + f)`` of its variance, where ``f`` is the share of information that is
missing). Their mean is the estimate; batch means say how exactly it is known.

Reference:
    Celeux and Diebolt (1985), The SEM algorithm: a probabilistic teacher algorithm derived from the EM algorithm for
    the mixture problem, Computational Statistics Quarterly 2:73-82; Nielsen (2000), The stochastic EM algorithm:
    estimation and asymptotic results, Bernoulli 6:457-489.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from emppl.fit.outcome import StopReason
from emppl.montecarlo.path import Path
from emppl.montecarlo.simulator import Simulator
from emppl.montecarlo.trail import CHECK, inside

_SPREAD = 0.5
"""Most that the variance of the iterations may be, as a share of the estimator's."""


def wander(
    simulator: Simulator,
    path: Path,
    data,
    prepared,
    tolerance: float,
    max_iterations: int,
    report: Callable[[Path], None],
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Iterate until nothing drifts, then until the average is known; ``path`` ends there.

    Args:
        simulator: compiled steps.
        path: the fit, changed in place.
        data: arrays of the model's arguments.
        prepared: their statistics.
        tolerance: in nats, on what the noise of the average costs.
        max_iterations: most M-steps.
        report: called after every block of iterations.
        keep: called where the fit may be taken up again.
    """
    # In nats, an error of e standard errors costs e^2 / 2.
    known = float(np.sqrt(2 * tolerance / _SPREAD))
    try:
        for _ in path.iterations(max_iterations, keep):
            _block(simulator, path, data, prepared, min(CHECK, max_iterations - path.iteration))
            report(path)
            if path.status is not StopReason.RUNNING or not path.trail.is_long:
                continue
            if path.phase == "burn-in":
                if path.trail.is_level:
                    path.begin("averaging")
            elif path.trail.relative_error <= known and path.trail.is_level:
                path.status = path.settled
    finally:
        if path.phase == "averaging" and path.trail.values:
            path.errors = path.trail.errors(path.params)
            path.params = inside(simulator.model, path.trail.mean(path.params), path.params)


def _block(simulator: Simulator, path: Path, data, prepared, number: int) -> None:
    """A block of iterations, of which the first few are used."""
    strategy = simulator.strategy
    wandered = simulator.wander(path.params, path.memory, path.chains, path.split(), data, prepared, number=CHECK)
    every, log_likelihoods, log_priors, floors, unfinished = jax.device_get(wandered.every)
    # The M-step of an iteration may fail after its E-step was sound.
    sound = np.isfinite(log_likelihoods)
    for values in every.values():
        sound = sound & np.all(np.isfinite(values.reshape(CHECK, -1)), 1)
    wide = floors >= 1
    for row in range(number):
        if not sound[row] or not wide[row]:
            path.status = StopReason.NOT_FINITE if not sound[row] else StopReason.COLLAPSED
            return
        path.log_likelihood = float(log_likelihoods[row])
        path.objective = path.log_likelihood + float(log_priors[row])
        path.record(strategy.num_samples * strategy.num_chains, path.phase, bool(unfinished[row]))
        path.total_draws += strategy.num_samples
        path.params = {name: values[row] for name, values in every.items()}
        path.trail.add(path.params)
        path.iteration += 1
    path.memory, path.chains = wandered.memory, wandered.chains

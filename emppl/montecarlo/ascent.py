"""Monte Carlo EM with as many draws as the ascent needs.

An M-step on draws is accepted if the lower confidence bound of its gain in Q is positive. If not, the draws are
doubled, and the M-step is done again on all of them. The iterations end when the upper bound of the gain is below the
tolerance.

The paper takes the step as given. But an M-step maximises on the very draws that judge it, and in p dimensions noise
alone makes a gain: if the noise of the score is ``S`` and ``S`` is proportional to the curvature of Q, the gain of a
step of noise is ``sqrt(chi2_p) / 2`` of its own standard errors. With eight parameters that is 1.4 on average, and
nearly every such step would pass as an ascent. The bound is therefore at least the one that steps of noise pass no
more often than the paper's allows, ``sqrt(chi2_p quantile) / 2`` standard errors.

Reference:
    Caffo, Jank and Jones (2005), Ascent-based Monte Carlo expectation-maximization, JRSS B 67:235-251;
    Wilson and Hilferty (1931), The distribution of chi-square, PNAS 17:684-688 (the quantile).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np

from emppl.fit.outcome import StopReason
from emppl.montecarlo.path import Path, draw, joined
from emppl.montecarlo.simulator import Improved, Simulator, batch_error
from emppl.strategies import MonteCarlo

_CONFIDENCE = statistics.NormalDist().inv_cdf(0.75)
"""Of the lower bound: a step is accepted in error with probability 1/4 at most, as in the paper."""

_POWER = statistics.NormalDist().inv_cdf(0.75)
"""Draws of the next iteration: enough to see a gain like the last one with this probability."""

_STOP = statistics.NormalDist().inv_cdf(0.95)
"""Of the upper bound."""

_PATIENCE = 3
"""So many M-steps in succession whose gain cannot be seen, and whose inner iteration stopped short, are the end."""

_ENDS = {"converged": StopReason.CONVERGED, "too noisy": StopReason.NOISY}
"""Decisions that end the iterations."""


def climb(
    simulator: Simulator,
    path: Path,
    data,
    prepared,
    tolerance: float,
    max_iterations: int,
    report: Callable[[Path], None],
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Iterate until the gain cannot be told from less than the tolerance; ``path`` holds everything at every moment.

    Args:
        simulator: compiled steps.
        path: the fit, changed in place.
        data: arrays of the model's arguments.
        prepared: their statistics.
        tolerance: in nats, on the gain of one iteration.
        max_iterations: most M-steps that are accepted.
        report: called after every M-step.
        keep: called where the fit may be taken up again.
    """
    strategy = simulator.strategy
    assert isinstance(strategy, MonteCarlo)
    bound = lower_bound(simulator.model.free_dimensions)

    def step(drawn, number: int) -> tuple[str, Improved]:
        """An M-step, and what is made of it."""
        improved = simulator.improve(path.params, drawn, None, data, prepared, path.memory)
        gains = np.asarray(improved.gains).reshape(strategy.num_chains, number, 1)
        gain, error = float(gains.mean()), float(np.sqrt(batch_error(gains)[0, 0]))
        unfinished = bool(improved.unfinished)
        is_finite = np.isfinite(gain) and np.isfinite(improved.log_likelihood)
        decision = _decide(strategy, gain, error, bound, tolerance, number)
        decision = "unfinished" if unfinished and decision in _ENDS else decision
        decision = decision if is_finite else "not finite"
        path.log_likelihood = float(improved.log_likelihood)
        path.objective = path.log_likelihood + float(improved.log_prior)
        path.record(number * strategy.num_chains, decision, unfinished, gain, error)
        report(path)
        return decision, improved

    for _ in path.iterations(max_iterations, keep):
        number = path.number
        drawn = draw(simulator, path, data, number)
        decision, improved = step(drawn, number)
        while decision == "enlarged":
            drawn = joined([drawn, draw(simulator, path, data, number)])
            number *= 2
            decision, improved = step(drawn, number)
        if decision == "not finite":
            path.status = StopReason.NOT_FINITE
            break
        path.params, path.memory = improved.params, improved.memory
        path.iteration += 1
        # Gains that die away because an inner iteration cannot make them are no convergence.
        taken = [row["decision"] for row in path.rows if row["decision"] != "enlarged"][-_PATIENCE:]
        if decision in _ENDS:
            path.status = _ENDS[decision]
        elif taken == ["unfinished"] * _PATIENCE:
            path.status = StopReason.UNFINISHED
        elif strategy.ascent:
            last = path.rows[-1]
            number = last["draws"] // strategy.num_chains
            needed = number * (last["gain_error"] * (bound + _POWER) / max(last["gain"], 1e-300)) ** 2
            while path.number < min(needed, number) and 2 * path.number <= strategy.max_samples:
                path.number *= 2


def lower_bound(dimensions: int) -> float:
    """Standard errors that a gain must exceed to be believed, of a step in so many dimensions."""
    quantile = dimensions * chi_square_mean_quantile(max(dimensions, 1), _CONFIDENCE)
    return max(_CONFIDENCE, math.sqrt(quantile) / 2)


def chi_square_mean_quantile(dimensions: float, normal: float) -> float:
    """Quantile of chi-square divided by its degrees of freedom, at the level of a standard normal quantile."""
    share = 2 / (9 * dimensions)
    return (1 - share + normal * math.sqrt(share)) ** 3


def _decide(strategy: MonteCarlo, gain: float, error: float, bound: float, tolerance: float, number: int) -> str:
    if gain + _STOP * error < tolerance:
        return "converged"
    if not strategy.ascent or gain - bound * error > 0:
        return "accepted"
    return "enlarged" if 2 * number <= strategy.max_samples else "too noisy"

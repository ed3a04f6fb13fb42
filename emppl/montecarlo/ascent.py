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

import dataclasses
import math
import statistics

import numpy as np

from emppl.estep.simulated import Drawn
from emppl.fit.outcome import StopReason
from emppl.montecarlo.path import Path, draw, joined
from emppl.montecarlo.phases import Phase
from emppl.montecarlo.simulator import Improved, batch_error
from emppl.strategies import MonteCarlo

_LOWER_QUANTILE = statistics.NormalDist().inv_cdf(0.75)
"""Normal quantile of the lower bound: a step is accepted in error with probability 1/4 at most, as in the paper."""

_POWER_QUANTILE = statistics.NormalDist().inv_cdf(0.75)
"""Draws of the next iteration: enough to see a gain like the last one with this probability."""

_UPPER_QUANTILE = statistics.NormalDist().inv_cdf(0.95)
"""Normal quantile of the upper bound."""

_MOST_UNFINISHED = 3
"""So many M-steps in succession whose gain cannot be seen, and whose inner iteration stopped short, are the end."""

_ENDS = {"converged": StopReason.CONVERGED, "too noisy": StopReason.NOISY, "not finite": StopReason.NOT_FINITE}
"""Decisions that end the iterations."""


@dataclasses.dataclass(frozen=True)
class Ascent(Phase):
    """M-steps that are seen to climb.

    Attributes:
        tolerance: in nats, on the gain of one iteration.
    """

    tolerance: float

    def begin(self, path: Path) -> Path:
        """Running again, after a closing phase that found nothing."""
        return path._replace(status=StopReason.RUNNING, closing=None)

    def step(self, path: Path) -> Path:
        """One accepted M-step, on as many draws as that takes."""
        simulator, data, _ = self.problem
        number = path.number
        path, drawn = draw(simulator, path, data, number)
        path, decision, improved = self._judged(path, drawn, number)
        while decision == "enlarged":
            path, more = draw(simulator, path, data, number)
            drawn, number = joined([drawn, more]), 2 * number
            path, decision, improved = self._judged(path, drawn, number)
        path = path._replace(status=_ENDS.get(decision, StopReason.RUNNING))
        if decision == "not finite":
            return path
        path = path._replace(params=improved.params, memory=improved.memory, iteration=path.iteration + 1)
        # Gains that die away because an inner iteration cannot make them are no convergence.
        decisions = path.history["decision"]
        if list(decisions[decisions != "enlarged"][-_MOST_UNFINISHED:]) == ["unfinished"] * _MOST_UNFINISHED:
            return path._replace(status=StopReason.UNFINISHED)
        return self._with_number(path, number) if path.status is StopReason.RUNNING else path

    @property
    def _strategy(self) -> MonteCarlo:
        strategy = self.problem.simulator.strategy
        assert isinstance(strategy, MonteCarlo)
        return strategy

    @property
    def _bound(self) -> float:
        return lower_bound(self.problem.simulator.model.free_dimensions)

    def _judged(self, path: Path, drawn: Drawn, number: int) -> tuple[Path, str, Improved]:
        """Do an M-step, and decide whether to accept it."""
        simulator, data, prepared = self.problem
        improved = simulator.improve(path.params, drawn, None, data, prepared, path.memory)
        gains = np.asarray(improved.gains).reshape(self._strategy.num_chains, number, 1)
        gain, error = float(gains.mean()), float(np.sqrt(batch_error(gains)[0, 0]))
        unfinished, log_likelihood = bool(improved.unfinished), float(improved.log_likelihood)
        if not (np.isfinite(gain) and np.isfinite(log_likelihood)):
            decision = "not finite"
        else:
            decision = self._decision(gain, error, number)
            decision = "unfinished" if unfinished and decision in _ENDS else decision
        path = path.evaluated(log_likelihood, float(improved.log_prior))
        draws = number * self._strategy.num_chains
        path = path.recorded(draws, decision, unfinished=unfinished, gain=gain, gain_error=error)
        return path, decision, improved

    def _decision(self, gain: float, error: float, number: int) -> str:
        if gain + _UPPER_QUANTILE * error < self.tolerance:
            return "converged"
        if not self._strategy.ascent or gain - self._bound * error > 0:
            return "accepted"
        return "enlarged" if 2 * number <= self._strategy.max_samples else "too noisy"

    def _with_number(self, path: Path, number: int) -> Path:
        """With the draws of the next iteration, where this one took so many."""
        if not self._strategy.ascent:
            return path
        gain, error = (float(path.history[name][-1]) for name in ("gain", "gain_error"))
        needed = number * (error * (self._bound + _POWER_QUANTILE) / max(gain, 1e-300)) ** 2
        following = path.number
        while following < min(needed, number) and 2 * following <= self._strategy.max_samples:
            following *= 2
        return path._replace(number=following)


def lower_bound(dimensions: int) -> float:
    """Standard errors that a gain must exceed to be believed, of a step in so many dimensions."""
    quantile = dimensions * chi_square_mean_quantile(max(dimensions, 1), _LOWER_QUANTILE)
    return max(_LOWER_QUANTILE, math.sqrt(quantile) / 2)


def chi_square_mean_quantile(dimensions: float, normal: float) -> float:
    """Quantile of chi-square divided by its degrees of freedom, at the level of a standard normal quantile."""
    share = 2 / (9 * dimensions)
    return (1 - share + normal * math.sqrt(share)) ** 3

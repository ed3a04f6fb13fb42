"""Phases of iterations that do not come to rest: burn in until nothing drifts, then average.

Reference:
    Polyak and Juditsky (1992), Acceleration of stochastic approximation by averaging, SIAM Journal on Control and
    Optimization 30:838-855.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from emppl.fit.outcome import StopReason
from emppl.montecarlo.path import Path
from emppl.montecarlo.phases import Decision, Phase
from emppl.montecarlo.trail import Trail, inside


@dataclasses.dataclass(frozen=True)
class BurnIn(Phase):
    """Iterations until the estimates no longer drift.

    Attributes:
        iterate: one iteration, or several; it extends the trail.
    """

    iterate: Callable[[Path], Path]

    def step(self, path: Path) -> Path:
        """One iteration on new draws."""
        return self.iterate(path)

    def decide(self, path: Path) -> Decision:
        """Averaging follows."""
        is_over = path.status is StopReason.RUNNING and path.trail.is_long and path.trail.is_level
        return Decision.NEXT if is_over else super().decide(path)


@dataclasses.dataclass(frozen=True)
class Averaging(Phase):
    """Iterations whose estimates are averaged; the path ends at the average.

    Attributes:
        iterate: one iteration, or several; it extends the trail.
        is_settled: whether the average is known.
    """

    iterate: Callable[[Path], Path]
    is_settled: Callable[[Path], bool]

    def begin(self, path: Path) -> Path:
        """A new trail; what single estimates of the burn-in differed by is the measure of drift."""
        return path._replace(spread=path.trail.spread, trail=Trail.empty(path.params)).counted_afresh()

    def step(self, path: Path) -> Path:
        """Iterate; at the end most M-steps must have come to theirs."""
        path = self.iterate(path)
        if path.status is not StopReason.RUNNING or not path.trail.is_long or not self.is_settled(path):
            return path
        is_unfinished = path.history["unfinished"][-len(path.trail.values) :].mean() > 0.5
        return path._replace(status=StopReason.UNFINISHED if is_unfinished else StopReason.CONVERGED)

    def end(self, path: Path) -> Path:
        """Set the parameters to the averaged estimates."""
        if not len(path.trail.values):
            return path
        mean = path.trail.mean(path.params)
        return path._replace(params=inside(self.problem.simulator.model, mean, path.params))

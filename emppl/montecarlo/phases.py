"""The loop of every stochastic fit: restarts go through phases, are reported, saved, and kept when interrupted."""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emppl.checkpoint.file import Checkpoint
from emppl.fit.convergence import Gains
from emppl.fit.loop import History, LaneState
from emppl.fit.outcome import StopReason
from emppl.fit.restarts import best_restart
from emppl.montecarlo.path import Path
from emppl.montecarlo.simulator import Problem

_CHOSEN = "chosen"
"""Name of the number of the best restart, in checkpoints."""


class Decision(enum.Enum):
    """What follows a step: another one, the next phase if there is one, or nothing because the fit has ended."""

    AGAIN, NEXT, STOP = range(3)


@dataclasses.dataclass(frozen=True)
class Phase(abc.ABC):
    """One part of a stochastic fit. It keeps nothing: all that changes is in the path.

    Attributes:
        problem: compiled steps and data.
        max_iterations: M-steps of the whole fit after which it ends unconverged.
    """

    problem: Problem
    max_iterations: float

    def begin(self, path: Path) -> Path:
        """The path where the phase begins."""
        return path

    @abc.abstractmethod
    def step(self, path: Path) -> Path:
        """The path after one step, with a status if that was the last one."""

    def decide(self, path: Path) -> Decision:
        """What follows: the next phase, wherever this one came to a proper end."""
        if path.status is StopReason.RUNNING:
            return Decision.AGAIN
        return Decision.NEXT if path.status in (StopReason.CONVERGED, StopReason.NOISY) else Decision.STOP

    def end(self, path: Path) -> Path:
        """The path with the estimates of the phase, also of one that was interrupted, or has ended before."""
        return path


class Loop:
    """The restarts of a fit.

    Args:
        paths: one per restart, at its start.
        report: called with the states of all restarts after every step.
        checkpoint: where the paths are saved, and taken from if there is a file.
    """

    def __init__(self, paths: list[Path], report: Callable[[LaneState], None], checkpoint: Checkpoint | None):
        self.paths, self.report, self.checkpoint = paths, report, checkpoint
        self.chosen: int | None = None
        saved = None if checkpoint is None else checkpoint.load()
        if saved is not None:
            self.paths = [path.resumed(f"{lane}/", saved) for lane, path in enumerate(paths)]
            self.chosen = int(saved[_CHOSEN]) if _CHOSEN in saved else None

    def follow(self, lane: int, phases: Sequence[Phase]) -> None:
        """One restart through phases, from where it is to where the last of them ends."""
        while True:
            phase = phases[self.paths[lane].phase]
            try:
                while phase.decide(self.paths[lane]) is Decision.AGAIN:
                    if self.checkpoint is not None:
                        self.checkpoint.save_at_times(self._arrays)
                    self.paths[lane] = _step(phase, self.paths[lane])
                    self.report(self.states())
            finally:
                path = self.paths[lane] = phase.end(self.paths[lane])
            if phase.decide(path) is not Decision.NEXT or path.phase + 1 == len(phases):
                return
            self.paths[lane] = phases[path.phase + 1].begin(path._replace(phase=path.phase + 1))

    def save(self) -> None:
        """Save the paths, where there is a checkpoint."""
        if self.checkpoint is not None:
            self.checkpoint.save(self._arrays())

    def best(self) -> int:
        """The restart that was chosen, or would be now."""
        if self.chosen is not None:
            return self.chosen
        objectives, statuses = ([getattr(path, name) for path in self.paths] for name in ("objective", "status"))
        return best_restart(np.array(objectives), np.array(statuses))

    def states(self) -> LaneState:
        """The restarts in the form that results are made of."""
        paths, lanes = self.paths, len(self.paths)
        params = {name: np.stack([np.asarray(path.params[name]) for path in paths]) for name in paths[0].params}
        gains = Gains.beginning(lanes, float)._replace(objective=np.array([path.objective for path in paths]))
        return LaneState(
            params=params,
            good_params=params,
            gains=gains,
            log_likelihood=np.array([path.log_likelihood for path in paths]),
            iteration=np.array([path.iteration for path in paths]),
            status=np.array([path.status.value for path in paths]),
            collapsed_at=np.full(lanes, -1),
            rounding=np.zeros(lanes),
            unfinished=np.zeros(lanes, bool),
            memory={},
            centers={},
        )

    def history(self) -> History:
        """Objective and log-likelihood of every M-step of every restart, NaN where one has ended."""
        length = max(len(path.history["draws"]) for path in self.paths)

        def column(name: str) -> np.ndarray:
            seen = [path.history[name] for path in self.paths]
            return np.stack([np.append(values, np.full(length - len(values), np.nan)) for values in seen], 1)

        return History(column("objective"), column("log_likelihood"))

    def _arrays(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {} if self.chosen is None else {_CHOSEN: np.array(self.chosen)}
        for lane, path in enumerate(self.paths):
            arrays |= path.arrays(f"{lane}/")
        return arrays


def _step(phase: Phase, path: Path) -> Path:
    if path.iteration >= phase.max_iterations:
        return path._replace(status=StopReason.MAX_ITERATIONS)
    return phase.step(path)

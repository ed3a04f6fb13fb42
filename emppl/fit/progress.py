"""A progress bar for fits that take long enough to want one; silent without tqdm."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from emppl.fit.loop import LaneState
from emppl.fit.outcome import StopReason


class Progress:
    """Shows iterations, objective and restarts still running, once a fit has taken a second.

    Args:
        enabled: False for a silent one.
        max_iterations: length of the bar.
    """

    def __init__(self, enabled: bool, max_iterations: int):
        self.enabled = enabled
        self.max_iterations = max_iterations
        self.began = time.perf_counter()
        self.bar: Any = None

    def __call__(self, states: LaneState) -> None:
        """Report the state of all restarts after one block."""
        if not self.enabled or (self.bar is None and time.perf_counter() - self.began < 1.0):
            return
        if self.bar is None:
            self.bar = _tqdm(self.max_iterations)
            if self.bar is None:
                self.enabled = False
                return
        done = int(np.max(states.iteration))
        running = int(np.sum(np.asarray(states.status) == StopReason.RUNNING.value))
        best = float(np.max(states.gains.objective))
        self.bar.set_postfix_str(f"objective {best:.6f}, {running} running", refresh=False)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Finish the bar."""
        if self.bar is not None:
            self.bar.close()


def _tqdm(total: int) -> Any:
    try:
        import tqdm
    except ImportError:
        return None
    return tqdm.tqdm(total=total, desc="EM")

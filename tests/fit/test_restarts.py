"""Which of several restarts is kept, and what is said of the others."""

import numpy as np
import pytest

from emppl.fit.outcome import StopReason
from emppl.fit.restarts import best_restart, left_out

CONVERGED, CAPPED, UNFINISHED, FELL = (
    StopReason.CONVERGED,
    StopReason.MAX_ITERATIONS,
    StopReason.UNFINISHED,
    StopReason.DECREASED,
)


@pytest.mark.parametrize(
    ("objective", "status", "best", "said"),
    [
        ([-5.0, 1029423.0], [CONVERGED, UNFINISHED], 0, "number 2 (UNFINISHED, 1.02943e+06 nats higher)"),
        ([-5.0, -3.0], [CONVERGED, CAPPED], 1, "1 of 2 restarts converged, at best 2 nats lower"),
        ([-5.0, -7.0], [CONVERGED, CAPPED], 0, None),
        ([-5.0, -3.0], [UNFINISHED, FELL], 0, "number 2 (DECREASED, 2 nats higher)"),
        ([-5.0, -3.0], [FELL, FELL], 1, None),
        ([-5.0, np.inf, np.nan], [CONVERGED, CAPPED, CAPPED], 0, None),
        ([-5.0, -5.0 + 1e-9], [CONVERGED, UNFINISHED], 0, None),
    ],
)
def test_what_failed_does_not_beat_what_converged(objective, status, best, said):
    objective, status = np.array(objective), np.array(status, dtype=object)
    assert best_restart(objective, status) == best
    remarks = left_out(objective, status, best)
    assert (remarks == []) if said is None else (said in remarks[0])

"""Several starts, one answer: which restart is kept, how many optima there were, which component collapsed."""

from __future__ import annotations

import numpy as np

from emppl.fit.outcome import StopReason
from emppl.model.model import Model
from emppl.model.site import AlignedSite


def best_restart(objective: np.ndarray, status: np.ndarray) -> int:
    """Index of the best restart: the kind of ending first, then the highest objective.

    A restart that was stopped while it climbed counts as much as one that converged: its end would be higher still.
    One whose M-step failed counts less, because a density that loses its digits is what makes M-steps fail, and the
    objective may be wrong there. What fell, collapsed or became infinite counts least.
    """
    score = np.where(np.isfinite(objective), objective, -np.inf)
    rank = np.array([_RANKS.get(reason, 0) for reason in status])
    return int(np.lexsort((score, rank))[-1])


_RANKS = {
    StopReason.CONVERGED: 2,
    StopReason.MAX_ITERATIONS: 2,
    StopReason.INTERRUPTED: 2,
    StopReason.UNFINISHED: 1,
}


def left_out(objective: np.ndarray, status: np.ndarray, best: int) -> list[str]:
    """A remark on restarts that ended higher than the one that is kept, and on what converged lower than it.

    Args:
        objective: of every restart, in nats.
        status: the reason why each of them stopped.
        best: the one that is kept.
    """
    above = np.where(np.isfinite(objective), objective - objective[best], -np.inf)
    more, remarks = _same_optimum_within(objective[best]), []
    higher = [f"number {i + 1} ({status[i].name}, {above[i]:.6g} nats higher)" for i in np.flatnonzero(above > more)]
    if higher:
        remarks.append(
            f"Left out although higher: restart {', '.join(higher)}. Only restarts that climbed without failure count: "
            "where an M-step fails, or the objective falls or is unbounded, its value cannot be trusted."
        )
    lower = (status == StopReason.CONVERGED) & (above < -more)
    if status[best] is not StopReason.CONVERGED and np.any(lower):
        remarks.append(
            f"{np.sum(lower)} of {len(status)} restarts converged, at best {-np.max(above[lower]):.6g} nats lower than "
            "the one that is kept, which did not."
        )
    return remarks


def distinct_optima(objectives: np.ndarray, best: float) -> tuple[int, int]:
    """Number of distinct optima, and how many restarts are at the best one.

    Objectives are the same optimum within 1e-5 nats plus 1e-7 of the best objective's size.
    """
    if len(objectives) == 0:
        return 0, 0
    tolerance = _same_optimum_within(best)
    ordered = np.sort(objectives)
    return 1 + int(np.sum(np.diff(ordered) > tolerance)), int(np.sum(objectives >= best - tolerance))


def _same_optimum_within(best: float) -> float:
    return 1e-5 * (1 + abs(best) * 1e-2)


def watched_sites(model: Model) -> list[tuple[str, AlignedSite]]:
    """Sites whose components may collapse, in a fixed order."""
    free = set(model.free)
    return [(n, f) for n, f in sorted(model.factors.items()) if f.can_collapse and f.all_parameters & free]


def collapsed_name(model: Model, flat: int) -> str:
    """Which component collapsed, from the flat position over all watched sites."""
    for name, factor in watched_sites(model):
        shapes = model.argument_shapes[name]
        assert factor.family is not None
        scale = "scale" if "scale" in shapes else next(n for n in shapes if n != "loc")
        cells = shapes[scale][: len(shapes[scale]) - factor.family.argument_ranks[scale]]
        size = int(np.prod(cells))
        if flat < size:
            index = np.unravel_index(flat, cells)
            parts = [f"{n}={index[a]}" for a, n in enumerate(model.axes.names) if cells[a] > 1]
            parts += [f"element {i}" for i in index[model.axes.rank :]]
            return f"Site {name!r}, component {', '.join(parts) or 'only'}:"
        flat -= size
    return ""

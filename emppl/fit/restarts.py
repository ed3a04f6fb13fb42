"""Several starts, one answer: which restart is kept, how many optima there were, which component collapsed."""

from __future__ import annotations

import numpy as np

from emppl.fit.outcome import StopReason
from emppl.model.model import Model
from emppl.model.site import AlignedSite


def best_restart(objective: np.ndarray, status: np.ndarray) -> int:
    """Index of the best restart: sound endings first, then the highest objective."""
    sound = (StopReason.CONVERGED, StopReason.MAX_ITERATIONS, StopReason.UNFINISHED, StopReason.INTERRUPTED)
    rank = np.array([reason in sound for reason in status], float)
    score = np.where(np.isfinite(objective), objective, -np.inf)
    return int(np.lexsort((score, rank))[-1])


def distinct_optima(objectives: np.ndarray, best: float) -> tuple[int, int]:
    """Number of distinct optima, and how many restarts are at the best one.

    Objectives are the same optimum within 1e-5 nats plus 1e-7 of the best objective's size.
    """
    if len(objectives) == 0:
        return 0, 0
    tolerance = 1e-5 * (1 + abs(best) * 1e-2)
    ordered = np.sort(objectives)
    return 1 + int(np.sum(np.diff(ordered) > tolerance)), int(np.sum(objectives >= best - tolerance))


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

"""What Q remembers of past draws in stochastic approximation EM."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

_FORGOTTEN = 1e-7


@dataclasses.dataclass
class Window:
    """Past draws that Q remembers.

    Attributes:
        draws: by integral, ``(draws, groups, dimensions)``.
        shares: ``(draws,)``, adding up to one.
    """

    draws: dict[str, np.ndarray]
    shares: np.ndarray

    def after(self, new: dict[str, np.ndarray], step: float, most: int) -> Window:
        """With new draws that share ``step``, and without those that are too light, or older than ``most`` others."""
        number = len(next(iter(new.values())))
        shares = np.concatenate([self.shares * (1 - step), np.full(number, step / number)])
        draws = {axis: np.concatenate([self.draws[axis], new[axis]]) for axis in new}
        kept = shares > _FORGOTTEN
        kept &= np.cumsum(kept[::-1])[::-1] <= most
        shares = shares[kept]
        return Window({axis: one[kept] for axis, one in draws.items()}, shares / shares.sum())

    @property
    def arrays(self) -> dict[str, Any]:
        """Both, by name."""
        return {"draws": self.draws, "shares": self.shares}

    def padded(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """One of few sizes, so that few programs are compiled: filled up with draws of no share."""
        number = len(self.shares)
        size = 16
        while size < number:
            size *= 4
        fill = np.zeros(size - number, int)
        draws = {axis: np.concatenate([one, one[fill]])[None] for axis, one in self.draws.items()}
        return draws, np.concatenate([self.shares, np.zeros(size - number)])

"""What Q remembers of past draws in stochastic approximation EM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from emppl.integrals.mcmc import Walkers

_SMALLEST_SHARE = 1e-7
"""Draws that share less are forgotten."""


class Window(NamedTuple):
    """Past draws that Q remembers.

    Attributes:
        draws: by integral, ``(draws, groups, dimensions)``.
        shares: ``(draws,)``, adding up to one.
    """

    draws: Mapping[str, np.ndarray]
    shares: np.ndarray

    @classmethod
    def empty(cls, walkers: Mapping[str, Walkers]) -> Window:
        """No draws, of the chains of these integrals."""
        empty = {axis: np.asarray(walkers[axis].position)[:0] for axis in walkers}
        return cls(empty, np.zeros(0))

    def after(self, new: Mapping[str, np.ndarray], step: float, most: int) -> Window:
        """With new draws that share ``step``, and without those that are too light, or older than ``most`` others."""
        number = len(next(iter(new.values())))
        shares = np.concatenate([self.shares * (1 - step), np.full(number, step / number)])
        draws = {axis: np.concatenate([self.draws[axis], new[axis]]) for axis in new}
        kept = shares > _SMALLEST_SHARE
        kept &= np.cumsum(kept[::-1])[::-1] <= most
        shares = shares[kept]
        return Window({axis: vectors[kept] for axis, vectors in draws.items()}, shares / shares.sum())

    def padded(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """One of few sizes, so that few programs are compiled: filled up with draws of no share."""
        number = len(self.shares)
        size = 16
        while size < number:
            size *= 4
        fill = np.zeros(size - number, int)
        draws = {axis: np.concatenate([vectors, vectors[fill]])[None] for axis, vectors in self.draws.items()}
        return draws, np.concatenate([self.shares, np.zeros(size - number)])

"""What the closing phase of a stochastic fit has seen, from which it may be taken up again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

_PIECES = ("scores", "information", "by_chain", "errors")


@dataclasses.dataclass
class Looks:
    """Several looks near one point: the information wants more draws than the score does.

    The information is the difference of two matrices which, where EM is slow, are nearly equal: a small relative error
    of either is a large one of the difference, and of every error that is computed from it.

    Attributes:
        number: draws of every chain in a look.
        steps: how many were made.
        averaged: how many of the last of them are averaged.
        seen: of every look, the score, the information, the same by chain, and the covariance of the score's noise.
    """

    number: int
    steps: int = 0
    averaged: int = 0
    seen: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)

    @property
    def arrays(self) -> dict[str, Any]:
        """All of it, by name."""
        pieces = {name: np.array([look[place] for look in self.seen]) for place, name in enumerate(_PIECES)}
        return {"counts": np.array([self.number, self.steps, self.averaged]), **pieces}

    @classmethod
    def like(cls) -> dict[str, Any]:
        """Names of :attr:`arrays`."""
        return dict.fromkeys(("counts", *_PIECES), 0)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Looks:
        """Inverse of :attr:`arrays`."""
        number, steps, averaged = arrays["counts"].tolist()
        return cls(number, steps, averaged, list(zip(*(arrays[name] for name in _PIECES), strict=True)))

    def forget(self) -> None:
        """What was seen was seen elsewhere."""
        self.seen = []

    def double(self) -> None:
        """Start afresh with twice the draws."""
        self.number *= 2
        self.averaged, self.seen = 0, []

    def add(self, score: np.ndarray, information: np.ndarray, by_chain: np.ndarray, errors: np.ndarray) -> None:
        """One look; one in other coordinates than those before it starts afresh."""
        if self.seen and self.seen[-1][0].shape != score.shape:
            self.seen = []
        self.seen.append((score, information, by_chain, errors))

    @property
    def score(self) -> np.ndarray:
        """Of the last look, where the parameters are now."""
        return self.seen[-1][0]

    @property
    def matrix(self) -> np.ndarray:
        """Observed information."""
        return np.mean([information for _, information, *_ in self.seen], 0)

    @property
    def errors(self) -> np.ndarray:
        """Covariance of the score's noise in one look."""
        return np.mean([errors for *_, errors in self.seen], 0)

    @property
    def uncertainty(self) -> float:
        """Largest relative error of the information in any coordinate, from the spread of the chains."""
        root = np.linalg.cholesky(self.matrix)
        each = np.concatenate([by_chain for *_, by_chain, _ in self.seen])
        white = np.linalg.solve(root, np.swapaxes(np.linalg.solve(root, each), -1, -2))
        return float(np.max(np.std(np.diagonal(white, axis1=-2, axis2=-1), 0, ddof=1), initial=0) / np.sqrt(len(each)))

    @property
    def note(self) -> str | None:
        """Why there is no closing phase, or None."""
        matrix, score = self.matrix, self.score
        if not np.all(np.isfinite(matrix)) or not np.all(np.isfinite(score)):
            found = "The observed information is not finite"
        elif len(score) and np.linalg.eigvalsh(_scaled(matrix))[0] <= 1e-8:
            found = "The observed information, estimated from the draws, is not positive definite"
        else:
            return None
        return found + ": the fit ends without a closing phase, and without Monte Carlo standard errors."


def _scaled(matrix: np.ndarray) -> np.ndarray:
    unit = np.sqrt(np.maximum(np.abs(np.diagonal(matrix)), np.finfo(float).tiny))
    return matrix / np.outer(unit, unit)

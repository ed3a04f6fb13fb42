"""What the closing phase of a stochastic fit has seen, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from emppl.montecarlo.mixing import Mixing
from emppl.uncertainty.charts import Chart, Information


class Looks(NamedTuple):
    """Several looks near one point: the information wants more draws than the score does.

    The information is the difference of two matrices which, where EM is slow, are nearly equal: a small relative error
    of either is a large one of the difference, and of every error that is computed from it.

    Attributes:
        number: draws of every chain in a look.
        steps: how many were made.
        averaged: how many of the last of them are averaged.
        scores: of every look, ``(looks, coordinates)``.
        informations: observed information, ``(looks, coordinates, coordinates)``.
        by_chain: the same from every chain alone, ``(looks, chains, coordinates, coordinates)``.
        noises: covariance of the score's noise, ``(looks, coordinates, coordinates)``.
    """

    number: int
    steps: int = 0
    averaged: int = 0
    scores: np.ndarray = np.zeros((0, 0))
    informations: np.ndarray = np.zeros((0, 0, 0))
    by_chain: np.ndarray = np.zeros((0, 0, 0, 0))
    noises: np.ndarray = np.zeros((0, 0, 0))

    def forgotten(self) -> Looks:
        """Looks without what was seen, at other parameters."""
        return Looks(self.number, self.steps, self.averaged)

    def doubled(self) -> Looks:
        """Looks restarted with twice the draws."""
        return Looks(2 * self.number, self.steps)

    def with_look(self, score: np.ndarray, information: np.ndarray, by_chain: np.ndarray, noise: np.ndarray) -> Looks:
        """With one more look; one in other coordinates than those before it starts afresh."""
        seen = [self.scores, self.informations, self.by_chain, self.noises]
        newest = [score[None], information[None], by_chain[None], noise[None]]
        if len(self.scores) and self.scores.shape[1:] == score.shape:
            newest = [np.concatenate(pair) for pair in zip(seen, newest, strict=True)]
        return Looks(self.number, self.steps, self.averaged, *newest)

    @property
    def score(self) -> np.ndarray:
        """Score of the last look, which was taken at the parameters of the moment."""
        return self.scores[-1]

    @property
    def information(self) -> np.ndarray:
        """Observed information, the mean of all looks."""
        return np.mean(self.informations, 0)

    @property
    def noise(self) -> np.ndarray:
        """Covariance of the score's noise in one look."""
        return np.mean(self.noises, 0)

    @property
    def inverse(self) -> np.ndarray:
        """Inverse of the information."""
        return np.linalg.inv(self.information)

    @property
    def gain_left(self) -> float:
        """What is left to gain, in nats; noise raises it."""
        return float((self.inverse @ self.score) @ self.score) / 2

    @property
    def gain_of_noise(self) -> float:
        """The part of it that noise alone would make."""
        return float(np.sum(self.inverse * self.noise)) / 2

    @property
    def uncertainty(self) -> float:
        """Largest relative error of the information in any coordinate, from the spread of the chains."""
        root = np.linalg.cholesky(self.information)
        each = np.concatenate(self.by_chain)
        white = np.linalg.solve(root, np.swapaxes(np.linalg.solve(root, each), -1, -2))
        return float(np.max(np.std(np.diagonal(white, axis1=-2, axis2=-1), 0, ddof=1), initial=0) / np.sqrt(len(each)))

    @property
    def note(self) -> str | None:
        """Why there is no closing phase, or None."""
        if not np.all(np.isfinite(self.information)) or not np.all(np.isfinite(self.score)):
            reason = "The observed information is not finite"
        elif len(self.score) and np.linalg.eigvalsh(_scaled(self.information))[0] <= 1e-8:
            reason = "The observed information, estimated from the draws, is not positive definite"
        else:
            return None
        return reason + ": the fit ends without a closing phase, and without Monte Carlo standard errors."


class Precision(NamedTuple):
    """How far from the maximum the estimate may be because draws were used: what the closing phase found.

    Attributes:
        charts: local coordinates around the estimate.
        information: observed information and score there, in the coordinates that are free.
        covariance: Monte Carlo covariance of the estimate, in the same coordinates.
        mixing: how the chains of the last E-step mixed.
        deviations: Monte Carlo errors of the standard errors of all entries of all parameters, one after the other.
        note: why there is none of this, or None.
        rough: parameters without curvature, which stay where the last M-step left them.
    """

    charts: Mapping[str, Chart]
    information: Information
    covariance: np.ndarray
    mixing: Mixing
    deviations: np.ndarray
    note: str | None
    rough: tuple[str, ...]

    @property
    def relative_error(self) -> float:
        """Largest Monte Carlo standard error of any coordinate, as a share of its standard error."""
        if self.note is not None or not len(self.covariance):
            return float("nan")
        variances = np.diagonal(np.linalg.inv(self.information.matrix))
        return float(np.sqrt(np.max(np.diagonal(self.covariance) / variances)))

    @property
    def words(self) -> str:
        """For summaries."""
        if not len(self.covariance):
            return self.mixing.words
        unknown = f"; those of {', '.join(self.rough)} are not known" if self.rough else ""
        return (
            f"{self.mixing.words} Monte Carlo standard errors of the estimates are at most {self.relative_error:.2g} "
            f"of their standard errors (result.monte_carlo_errors){unknown}."
        )


def _scaled(matrix: np.ndarray) -> np.ndarray:
    unit = np.sqrt(np.maximum(np.abs(np.diagonal(matrix)), np.finfo(float).tiny))
    return matrix / np.outer(unit, unit)

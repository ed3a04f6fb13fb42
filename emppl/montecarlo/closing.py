"""The end of every stochastic fit: to the root of the Monte Carlo score, and how far from the maximum that may be.

At parameters near the maximum, draws give the score of the log-likelihood (the mean of their complete-data scores,
Fisher's identity) and the observed information (their complete information less the covariance of their scores, by
Louis). A step ``information^-1 score`` is a Monte Carlo Newton step; once one begins near the maximum, further ones, of
length ``1/k`` on fresh draws, average its noise away (Robbins and Monro, with the best gain matrix). Fresh draws also
say what is left to gain: half the score's square in the metric of the information.

The Monte Carlo covariance of the estimate is ``information^-1 (covariance of the mean score) information^-1``, divided
by the number of steps that were averaged.

Reference:
    Louis (1982), Finding the observed information matrix when using the EM algorithm, JRSS B 44:226-233;
    McCulloch (1997), Maximum likelihood algorithms for generalized linear mixed models, JASA 92:162-170;
    Gu and Kong (1998), A stochastic approximation algorithm with Markov chain Monte Carlo method, PNAS 95:7270-7274.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.fit.outcome import StopReason
from emppl.model.model import Model
from emppl.montecarlo.ascent import chi_square_mean_quantile
from emppl.montecarlo.looks import Looks
from emppl.montecarlo.mixing import Mixing, mixing
from emppl.montecarlo.path import Path, draw
from emppl.montecarlo.simulator import Simulator, batch_error
from emppl.uncertainty.charts import Chart, Information, value_at
from emppl.uncertainty.corners import hold_corners
from emppl.uncertainty.information import charts, entry_gradients

MOST_DIMENSIONS = 200
"""So many free dimensions may a model have for which the information is computed unasked."""

_FEWEST = 250
"""Draws of one chain from which the information is estimated."""

_FAR = 0.5
"""A step that promises more nats is shortened: there is more to it than the parabola shows."""

_NEAR = 3
"""Averaging begins within this multiple of what noise makes: an error of the information is a share of the step."""

_RARE = statistics.NormalDist().inv_cdf(0.999)
"""Noise alone begins the averaging anew in one look of a thousand."""

_NOISY = 8
"""Noise beyond this multiple of the tolerance is not left to averaging."""

_KNOWN = 0.1
"""Largest relative error of the information for which errors are computed from it."""

_MOST_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Closing:
    """What the closing phase found.

    Attributes:
        charts: local coordinates around the estimate.
        information: observed information and score there, in the coordinates that are not held.
        covariance: Monte Carlo covariance of the estimate, in the same coordinates.
        left: what is left to gain, in nats; noise raises it.
        noise: the part of it that noise alone would make.
        steps: number of steps that were averaged.
        mixing: how the chains of the last E-step mixed.
        deviations: Monte Carlo errors of the standard errors of all entries of all parameters, one after the other.
        note: why there is none of this, or None.
        held: parameters without curvature, which stay where the last M-step left them.
    """

    charts: Mapping[str, Chart]
    information: Information
    covariance: np.ndarray
    left: float
    noise: float
    steps: int
    mixing: Mixing
    deviations: np.ndarray
    note: str | None = None
    held: tuple[str, ...] = ()

    @property
    def relative_error(self) -> float:
        """Largest Monte Carlo standard error of any coordinate, as a share of its standard error."""
        if self.note is not None or not len(self.covariance):
            return float("nan")
        return float(
            np.sqrt(np.max(np.diagonal(self.covariance) / np.diagonal(np.linalg.inv(self.information.matrix))))
        )

    @property
    def words(self) -> str:
        """For summaries."""
        if not len(self.covariance):
            return self.mixing.words
        known = f"; those of {', '.join(self.held)} are not known" if self.held else ""
        return (
            f"{self.mixing.words} Monte Carlo standard errors of the estimates are at most {self.relative_error:.2g} "
            f"of their standard errors (result.monte_carlo_errors){known}."
        )


def close(
    simulator: Simulator,
    path: Path,
    data,
    tolerance: float,
    report: Callable[[Path], None],
    keep: Callable[[], None] = lambda: None,
) -> Closing:
    """Step to the root of the score until what is left to gain is below the tolerance.

    Args:
        simulator: compiled steps.
        path: the fit, changed in place; what was seen so far is in its ``looks``.
        data: arrays of the model's arguments.
        tolerance: in nats, on the gain that is left, noise included.
        report: called after every step.
        keep: called where the fit may be taken up again.

    Returns:
        Errors and diagnostics.
    """
    model, strategy = simulator.model, simulator.strategy
    block = strategy.block
    first = block * math.ceil(path.number / block)
    while first < _FEWEST and 2 * first <= strategy.max_samples:
        first *= 2
    if path.looks is None:
        path.looks = Looks(first)
    looks = path.looks
    held = tuple(model.rough)
    while True:
        keep()
        drawn = draw(simulator, path, data, looks.number, block)
        local = _charts(model, jax.device_get(path.params), data)
        looks.add(*_look(simulator, path, local, drawn, data, first))
        can_double = 2 * looks.number <= strategy.max_samples
        note = looks.note
        if note is not None and can_double:
            looks.double()
            continue
        if note is not None:
            nothing = np.full_like(looks.matrix, np.nan)
            nowhere = Information(looks.matrix, looks.score)
            mixed, unknown = (
                mixing(model, drawn.draws),
                np.full(sum(one.boundary.size for one in local.values()), np.nan),
            )
            return Closing(local, nowhere, nothing, np.nan, np.nan, looks.averaged, mixed, unknown, note, held)
        inverse = np.linalg.inv(looks.matrix)
        step = inverse @ looks.score
        left, noise = float(step @ looks.score) / 2, float(np.sum(inverse * looks.errors)) / 2
        # Noise of the point and of this look at it; how many directions share it.
        expected = noise * (1 + 1 / max(looks.averaged, 1))
        shared = inverse @ looks.errors
        apart = chi_square_mean_quantile(max(4 * noise**2 / max(np.sum(shared * shared.T), 1e-300), 1.0), _RARE)
        is_near = left <= max((apart if looks.averaged else _NEAR) * expected, tolerance / 100)
        if not is_near:
            looks.averaged = 0  # not counted: the parabola was not right, or this look's noise is an extreme one
        averaged = looks.averaged
        settled = averaged > 0 and noise / averaged <= tolerance / 2 and left <= max(tolerance, _NEAR * expected)
        settled = settled and looks.uncertainty <= _KNOWN
        path.record(looks.number * strategy.num_chains, "closing step", gain=left, gain_error=noise)
        report(path)
        if settled or looks.steps >= _MOST_STEPS:
            path.status = StopReason.CONVERGED if settled else StopReason.NOISY
            covariance = inverse @ looks.errors @ inverse / max(averaged, 1)
            found = Information(looks.matrix, looks.score)
            deviations = _deviations(simulator, path, local, drawn, data, inverse, covariance, len(looks.seen))
            mixed = mixing(model, drawn.draws)
            return Closing(local, found, covariance, left, noise, averaged, mixed, deviations, held=held)
        if (noise > _NOISY * tolerance or looks.uncertainty > 3 * _KNOWN) and can_double:
            looks.double()  # averaging alone would take many steps
            continue
        looks.steps += 1
        if is_near:
            looks.averaged += 1
        length = 1 / looks.averaged if looks.averaged else min(math.sqrt(_FAR / left), 1.0)
        if looks.averaged <= 1:
            looks.forget()  # what was seen before the first step that counts was seen elsewhere
        path.params = _moved(model, local, path.params, length * step)
        path.iteration += 1


def _charts(model: Model, params, data) -> dict[str, Chart]:
    """Local coordinates; at corners, where no parabola says where the maximum is, nothing moves."""
    found = hold_corners(model, charts(model, params), params, data)
    for name in model.rough:
        found[name] = dataclasses.replace(found[name], active=np.zeros_like(found[name].active))
    return found


def _look(simulator: Simulator, path: Path, local, drawn, data, block: int):
    """Score, information, information chain by chain, covariance of the score's noise.

    All in the coordinates that are not held.
    """
    frames = {name: one.frame for name, one in local.items()}
    measured = simulator.derivatives.measure(path.params, frames, drawn, data, block)
    active = np.concatenate([one.active for one in local.values()])
    scores = measured.scores[active]
    errors = batch_error(np.moveaxis(scores, 0, -1)) + measured.weighing[np.ix_(active, active)]
    information, by_chain = (one[..., active, :][..., active] for one in (measured.information, measured.by_chain))
    return scores.mean((1, 2)), information, by_chain, errors


def _deviations(simulator, path, local, drawn, data, inverse, covariance, looks: int) -> np.ndarray:
    """Monte Carlo errors of standard errors, by the delta method.

    With ``a`` the inverse information times the gradient of an entry, its variance changes with the information as
    ``- a . change . a``, and ``a . information . a`` is, to first order, a mean over draws. It is also taken at an
    estimate that is off by its own Monte Carlo error.
    """
    gradients = entry_gradients(simulator.model, local)
    active = np.concatenate([one.active for one in local.values()])
    along = np.zeros((len(gradients), len(active)))
    along[:, active] = gradients @ inverse
    frames = {name: one.frame for name, one in local.items()}
    found = simulator.derivatives.curvatures(path.params, frames, drawn, data, jnp.asarray(along))
    each = np.asarray(found.second).reshape(len(along), simulator.strategy.num_chains, -1)
    change = np.asarray(found.change)[:, active]
    noise = np.diagonal(batch_error(np.moveaxis(each, 0, -1))) / looks
    noise = noise + np.einsum("ij,jk,ik->i", change, covariance, change)
    variances = np.einsum("ij,ij->i", gradients, along[:, active])
    # A variance that is zero, of an entry that is held, has no error.
    return np.sqrt(noise) / (2 * np.sqrt(np.where(variances > 0, variances, 1)))


def _moved(model: Model, local: Mapping[str, Chart], params, step: np.ndarray) -> dict[str, Any]:
    """Parameters after a step, which is halved until they stay inside their constraints."""
    whole = np.zeros(sum(len(one.active) for one in local.values()))
    whole[np.concatenate([one.active for one in local.values()])] = step
    parts = np.split(whole, np.cumsum([one.frame.size for one in local.values()])[:-1])
    for _ in range(60):
        moved = {}
        for (name, one), part in zip(local.items(), parts, strict=True):
            constraint = model.trace.sites[name].constraint
            value = value_at(constraint, one.frame, jnp.asarray(part))
            if not np.all(np.asarray(constraint(value))):
                break
            moved[name] = model.pin(name, value)
        if len(moved) == len(local):
            return {**params, **moved}
        parts = [part / 2 for part in parts]
    return dict(params)

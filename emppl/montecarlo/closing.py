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
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep.simulated import Drawn
from emppl.fit.outcome import StopReason
from emppl.model.model import Model
from emppl.montecarlo.ascent import chi_square_mean_quantile
from emppl.montecarlo.derivatives import Surroundings
from emppl.montecarlo.looks import Looks, Precision
from emppl.montecarlo.mixing import mixing
from emppl.montecarlo.path import Path, draw
from emppl.montecarlo.phases import Decision, Phase
from emppl.montecarlo.simulator import Simulator, batch_error
from emppl.types import Data, Params
from emppl.uncertainty.charts import Chart, Information, value_at
from emppl.uncertainty.corners import hold_corners
from emppl.uncertainty.information import charts, entry_gradients

MOST_DIMENSIONS = 200
"""So many free dimensions may a model have for which the information is computed unasked."""

_FEWEST_DRAWS = 250
"""Draws of one chain from which the information is estimated."""

_LARGEST_GAIN = 0.5
"""Nats. A step that promises more is shortened: there is more to it than the parabola shows."""

_NEAR = 3
"""Averaging begins within this multiple of what noise makes: an error of the information is a share of the step."""

_RARE_QUANTILE = statistics.NormalDist().inv_cdf(0.999)
"""Normal quantile: averaging restarts when the remaining gain exceeds it under pure noise."""

_MOST_NOISE = 8
"""Noise beyond this multiple of the tolerance is not left to averaging."""

_MAX_RELATIVE_ERROR = 0.1
"""Largest relative error of the information for which errors are computed from it."""

_MOST_STEPS = 50

_MOST_HALVINGS = 60


@dataclasses.dataclass(frozen=True)
class Closing(Phase):
    """Monte Carlo Newton steps, until what is left to gain is below the tolerance.

    The status stays what the phase before made it until this one ends.

    Attributes:
        tolerance: in nats, on the gain that is left, noise included.
    """

    tolerance: float

    def begin(self, path: Path) -> Path:
        """Start without looks."""
        return path._replace(looks=Looks(self._first_number(path)))

    def step(self, path: Path) -> Path:
        """Estimate score and information once; then step, or double the draws."""
        simulator, data, _ = self.problem
        model, strategy = simulator.model, simulator.strategy
        path, drawn = draw(simulator, path, data, path.looks.number, strategy.block)
        local = _charts(model, jax.device_get(path.params), data)
        looks = path.looks.with_look(*look(simulator, path.params, local, drawn, data, self._first_number(path)))
        can_double = 2 * looks.number <= strategy.max_samples
        if looks.note is not None:
            if can_double:
                return path._replace(looks=looks.doubled())
            return path._replace(closing=self._precision(path, looks, local, drawn))
        is_near = self._is_near(looks)
        looks = looks if is_near else looks._replace(averaged=0)
        draws, noise = looks.number * strategy.num_chains, looks.gain_of_noise
        path = path.recorded(draws, "closing step", gain=looks.gain_left, gain_error=noise)
        is_settled = self._is_settled(looks)
        if is_settled or looks.steps >= _MOST_STEPS:
            status = StopReason.CONVERGED if is_settled else StopReason.NOISY
            return path._replace(status=status, closing=self._precision(path, looks, local, drawn))
        if (noise > _MOST_NOISE * self.tolerance or looks.uncertainty > 3 * _MAX_RELATIVE_ERROR) and can_double:
            return path._replace(looks=looks.doubled())  # averaging alone would take many steps
        averaged = looks.averaged + is_near
        length = 1 / averaged if averaged else min(math.sqrt(_LARGEST_GAIN / looks.gain_left), 1.0)
        params = _moved(model, local, path.params, length * (looks.inverse @ looks.score))
        if averaged <= 1:
            looks = looks.forgotten()  # what was seen before the first step that counts was seen elsewhere
        looks = looks._replace(steps=looks.steps + 1, averaged=averaged)
        return path._replace(params=params, looks=looks, iteration=path.iteration + 1)

    def decide(self, path: Path) -> Decision:
        """Where nothing was found, an ascent may do what this phase should have done."""
        if path.closing is None:
            return Decision.AGAIN
        return Decision.STOP if path.closing.note is None else Decision.NEXT

    def _first_number(self, path: Path) -> int:
        """Draws of one chain in the first look, whole blocks."""
        strategy = self.problem.simulator.strategy
        number = strategy.block * math.ceil(path.number / strategy.block)
        while number < _FEWEST_DRAWS and 2 * number <= strategy.max_samples:
            number *= 2
        return number

    def _is_near(self, looks: Looks) -> bool:
        """Whether the step may be averaged; else the parabola was not right, or this look's noise is an extreme one."""
        # How many directions share the noise.
        shared = looks.inverse @ looks.noise
        dimensions = max(4 * looks.gain_of_noise**2 / max(np.sum(shared * shared.T), 1e-300), 1.0)
        share = chi_square_mean_quantile(dimensions, _RARE_QUANTILE) if looks.averaged else _NEAR
        return bool(looks.gain_left <= max(share * _expected(looks), self.tolerance / 100))

    def _is_settled(self, looks: Looks) -> bool:
        """Whether the average is known, and nothing is left to gain."""
        return (
            looks.averaged > 0
            and looks.gain_of_noise / looks.averaged <= self.tolerance / 2
            and looks.gain_left <= max(self.tolerance, _NEAR * _expected(looks))
            and looks.uncertainty <= _MAX_RELATIVE_ERROR
        )

    def _precision(self, path: Path, looks: Looks, local: Mapping[str, Chart], drawn: Drawn) -> Precision:
        """What was found; NaN where the information is none."""
        simulator, data, _ = self.problem
        if looks.note is None:
            inverse = looks.inverse
            covariance = inverse @ looks.noise @ inverse / max(looks.averaged, 1)
            deviations = _deviations(simulator, path.params, local, drawn, data, inverse, covariance, len(looks.scores))
        else:
            covariance = np.full_like(looks.information, np.nan)
            deviations = np.full(sum(chart.boundary.size for chart in local.values()), np.nan)
        information, rough = Information(looks.information, looks.score), tuple(simulator.model.rough)
        mixed = mixing(simulator.model, drawn.draws)
        return Precision(local, information, covariance, mixed, deviations, looks.note, rough)


def _expected(looks: Looks) -> float:
    """Gain that noise would make: that of the point, and that of this look at it."""
    return looks.gain_of_noise * (1 + 1 / max(looks.averaged, 1))


def _charts(model: Model, params: Params, data: Data) -> dict[str, Chart]:
    """Local coordinates; at corners, where no parabola says where the maximum is, nothing moves."""
    local = hold_corners(model, charts(model, params), params, data)
    for name in model.rough:
        local[name] = dataclasses.replace(local[name], active=np.zeros_like(local[name].active))
    return local


def look(
    simulator: Simulator, params: Params, local: Mapping[str, Chart], drawn: Drawn, data: Data, block: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Derivatives of the log-likelihood at the parameters of draws, in the coordinates that are free.

    Args:
        params: where the draws were made.
        local: local coordinates around them.
        drawn: the draws.
        block: draws of a chain that are looked at together.

    Returns:
        Score, information, information chain by chain, covariance of the score's noise.
    """
    around = Surroundings(params, {name: chart.frame for name, chart in local.items()}, data)
    measured = simulator.derivatives.measure(around, drawn, block)
    active = np.concatenate([chart.active for chart in local.values()])
    scores = measured.scores[active]
    noise = batch_error(np.moveaxis(scores, 0, -1)) + measured.weighing[np.ix_(active, active)]
    information, by_chain = (each[..., active, :][..., active] for each in (measured.information, measured.by_chain))
    return scores.mean((1, 2)), information, by_chain, noise


def _deviations(
    simulator: Simulator,
    params: Params,
    local: Mapping[str, Chart],
    drawn: Drawn,
    data: Data,
    inverse: np.ndarray,
    covariance: np.ndarray,
    looks: int,
) -> np.ndarray:
    """Monte Carlo errors of standard errors, by the delta method.

    With ``a`` the inverse information times the gradient of an entry, its variance changes with the information as
    ``- a . change . a``, and ``a . information . a`` is, to first order, a mean over draws. It is also taken at an
    estimate that is off by its own Monte Carlo error.
    """
    gradients = entry_gradients(simulator.model, local)
    active = np.concatenate([chart.active for chart in local.values()])
    along = np.zeros((len(gradients), len(active)))
    along[:, active] = gradients @ inverse
    around = Surroundings(params, {name: chart.frame for name, chart in local.items()}, data)
    curvatures = simulator.derivatives.curvatures(around, drawn, jnp.asarray(along))
    each = np.asarray(curvatures.second).reshape(len(along), simulator.strategy.num_chains, -1)
    change = np.asarray(curvatures.change)[:, active]
    noise = np.diagonal(batch_error(np.moveaxis(each, 0, -1))) / looks
    noise = noise + np.einsum("ij,jk,ik->i", change, covariance, change)
    variances = np.einsum("ij,ij->i", gradients, along[:, active])
    # A variance that is zero, of an entry that is at its bound, has no error.
    return np.sqrt(noise) / (2 * np.sqrt(np.where(variances > 0, variances, 1)))


def _moved(model: Model, local: Mapping[str, Chart], params: Params, step: np.ndarray) -> dict[str, jax.Array]:
    """Parameters after a step, which is halved until they stay inside their constraints."""
    whole = np.zeros(sum(len(chart.active) for chart in local.values()))
    whole[np.concatenate([chart.active for chart in local.values()])] = step
    steps = np.split(whole, np.cumsum([chart.frame.size for chart in local.values()])[:-1])
    for _ in range(_MOST_HALVINGS):
        moved = {}
        for (name, chart), along in zip(local.items(), steps, strict=True):
            constraint = model.trace.sites[name].constraint
            value = value_at(constraint, chart.frame, jnp.asarray(along))
            if not np.all(np.asarray(constraint(value))):
                break
            moved[name] = model.pin(name, value)
        if len(moved) == len(local):
            return {**params, **moved}
        steps = [along / 2 for along in steps]
    return dict(params)

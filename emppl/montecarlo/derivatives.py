"""Derivatives of the log-likelihood at the parameters of draws: score, observed information, and their noise.

Draws are looked at in blocks of one size, so that more of them need no other program.

Reference:
    Louis (1982), Finding the observed information matrix when using the EM algorithm, JRSS B 44:226-233.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep.simulated import Drawn, simulated
from emppl.model.model import Model
from emppl.montecarlo.nearby import log_densities, nearby_log_likelihood, risen_log_likelihood
from emppl.uncertainty.charts import value_at


class Measured(NamedTuple):
    """Derivatives at one point, in local coordinates.

    Attributes:
        scores: gradient of every draw's complete-data log density, ``(coordinates, chains, draws)``.
        weighing: covariance of the noise of their mean that comes from the evidence of discrete states.
        information: minus the Hessian of the log-likelihood plus log prior, ``(coordinates, coordinates)``.
        by_chain: the same from every chain alone, ``(chains, coordinates, coordinates)``.
    """

    scores: Any
    weighing: Any
    information: Any
    by_chain: Any


class _Block(NamedTuple):
    """What the draws of one block say, chain by chain.

    Attributes:
        scores: gradient of every draw's complete-data log density, ``(coordinates, chains, draws)``.
        within: minus the Hessian, as these draws alone estimate it, ``(chains, coordinates, coordinates)``.
        slopes: by integral, gradient of the log evidence of every group, ``(chains, coordinates, groups)``.
        squares: that of the slopes, ``(chains, coordinates, coordinates)``.
    """

    scores: Any
    within: Any
    slopes: Any
    squares: Any


class _Across(NamedTuple):
    """What takes the means of all blocks.

    Attributes:
        weighing: as in :class:`Measured`.
        whole: squares of the mean slopes, ``(coordinates, coordinates)``.
        by_chain: the same of every chain.
    """

    weighing: Any
    whole: Any
    by_chain: Any


class Curvatures(NamedTuple):
    """For every entry of every parameter, in the direction in which its estimate varies.

    Attributes:
        second: second derivative of the log-likelihood, as a mean over the draws: what each of them adds (up to a
            constant), ``(entries, draws)``.
        change: gradient of the entry's variance in local coordinates, ``(entries, coordinates)``.
    """

    second: Any
    change: Any


class Derivatives:
    """A program's derivatives by draws; each is compiled once per number of draws in a block.

    Args:
        model: the model.
    """

    def __init__(self, model: Model):
        self.model = model
        self.measure_block = jax.jit(self._measure_block)
        self.measure_across = jax.jit(self._measure_across)
        self.curvatures = jax.jit(self._curvatures)

    def measure(self, params, frames, drawn: Drawn, data, block: int) -> Measured:
        """Derivatives at the parameters of the draws.

        Args:
            params: where the draws were made.
            frames: by free parameter, coordinates around it.
            drawn: draws and evidence.
            data: arrays of the model's arguments.
            block: draws of a chain that are looked at together, a part of their number.

        Returns:
            The derivatives. What several blocks say of the information is put together from means: in the variance of
            the scores of a group, that between blocks is added to those within.
        """
        number = next(iter(drawn.draws.values())).shape[1]
        pieces = []
        for start in range(0, number, block):
            some = {axis: jnp.asarray(one[:, start : start + block]) for axis, one in drawn.draws.items()}
            pieces.append(jax.device_get(self.measure_block(params, frames, some, drawn.evidence, data)))
        scores = np.concatenate([piece.scores for piece in pieces], -1)
        within, squares = (sum(getattr(one, name) for one in pieces) / len(pieces) for name in ("within", "squares"))
        slopes = {axis: sum(piece.slopes[axis] for piece in pieces) / len(pieces) for axis in drawn.draws}
        across = jax.device_get(self.measure_across(params, frames, slopes, drawn, data))
        by_chain = within - (squares - across.by_chain)
        information = within.mean(0) - (squares.mean(0) - across.whole)
        return Measured(scores, across.weighing, information, by_chain)

    def _measure_block(self, params, frames, draws, evidence, data) -> _Block:
        """What the draws of one block say, chain by chain."""
        zero, unit = self._steps(frames)
        weights = jax.grad(lambda rises: risen_log_likelihood(self.model, params, rises, evidence, data))
        shares = weights(self._no_rise(draws))
        rest = jax.grad(lambda step: self._risen(params, frames, step, self._no_rise(draws), evidence, data))(zero)

        def one_chain(draws):
            near, equal = self._nearby(params, frames, draws, evidence, data)
            slope = jax.grad(lambda step: near(step, equal))
            hessian = jax.lax.map(lambda along: jax.jvp(slope, (zero,), (along,))[1], unit)

            def densities(step):
                return log_densities(self.model, {**params, **self._moved(frames, step)}, draws, data)

            def slope_of_draws(along):
                each = jax.jvp(densities, (zero,), (along,))[1]
                return {axis: jnp.mean(one, 0) for axis, one in each.items()}, sum(
                    one @ shares[axis] for axis, one in each.items()
                )

            slopes, scores = jax.lax.map(slope_of_draws, unit)
            return rest[:, None] + scores, -(hessian + hessian.T) / 2, slopes, self._square(weights, slopes)

        scores, within, slopes, squares = jax.lax.map(one_chain, draws)
        return _Block(jnp.moveaxis(scores, 0, 1), within, slopes, squares)

    def _measure_across(self, params, frames, slopes, drawn, data) -> _Across:
        """What takes the means of all blocks."""
        zero, unit = self._steps(frames)
        whole = {axis: jnp.mean(one, 0) for axis, one in slopes.items()}

        def square(slopes):
            risen = lambda rises: risen_log_likelihood(self.model, params, rises, drawn.evidence, data)  # noqa: E731
            return self._square(jax.grad(risen), slopes)

        def score(known, along):
            def value(step):
                rises = {axis: step @ one for axis, one in whole.items()}
                return self._risen(params, frames, step, rises, {**drawn.evidence, **known}, data)

            return jax.jvp(value, (zero,), (along,))[1]

        weighing: Any = jnp.zeros((len(unit), len(unit)))
        if drawn.evidence_shares:
            known = {axis: drawn.evidence[axis] for axis in drawn.evidence_shares}
            changes = jax.lax.map(lambda along: jax.grad(score)(known, along), unit)
            for axis, parts in drawn.evidence_shares.items():
                position = self.model.axes.names.index(axis)
                parts = jnp.where(jnp.isfinite(parts), parts, 0)  # of states that are impossible
                each = jnp.moveaxis(parts * parts.shape[position] - 1, position, 0)
                each = jnp.reshape(each, (len(each), -1)) @ jnp.reshape(changes[axis], (len(unit), -1)).T
                weighing = weighing + each.T @ each / len(each) ** 2
        return _Across(weighing, square(whole), jax.lax.map(square, slopes))

    def _square(self, weights: Callable, slopes):
        """Slopes of the log evidence times themselves, as they enter the second derivative of the log-likelihood.

        Args:
            weights: gradient of the log-likelihood with respect to the rises.
            slopes: by integral, ``(coordinates, groups)``.
        """
        at = self._no_rise(slopes)
        shares = weights(at)

        def product(along):
            bend = jax.jvp(weights, (at,), (along,))[1]
            return {axis: shares[axis] * one - bend[axis] for axis, one in along.items()}

        products = jax.lax.map(product, slopes)
        return sum(one @ products[axis].T for axis, one in slopes.items())

    def _no_rise(self, like):
        groups = {one.axis: one.groups for one in simulated(self.model)}
        return {axis: jnp.zeros(groups[axis]) for axis in like}

    def _steps(self, frames):
        """No step, and one along every coordinate."""
        zero = jnp.zeros(sum(frames[name].size for name in self.model.free))
        return zero, jnp.eye(len(zero))

    def _risen(self, params, frames, step, rises, evidence, data):
        """Log-likelihood plus log prior after a step in local coordinates, for given rises of the log evidence."""
        at = {**params, **self._moved(frames, step)}
        return risen_log_likelihood(self.model, at, rises, evidence, data) + self.model.log_prior(at, data)

    def _curvatures(self, params, frames, drawn, data, directions) -> Curvatures:
        near, equal = self._nearby(params, frames, _stacked(drawn.draws), drawn.evidence, data)
        zero = jnp.zeros(directions.shape[-1])

        def second(function, step, direction):
            slope = lambda length: jax.jvp(lambda t: function(step + t * direction), (length,), (1.0,))[1]  # noqa: E731
            return jax.jvp(slope, (0.0,), (1.0,))[1]

        def entry(step, position):
            moved = self._moved(frames, step)
            return jnp.concatenate([jnp.ravel(moved[name]) for name in self.model.free])[position]

        def one(position):
            along = directions[position]
            bend = jax.grad(lambda step: jax.jvp(lambda at: entry(at, position), (step,), (along,))[1])(zero)
            third = jax.grad(lambda step: second(lambda at: near(at, equal), step, along))(zero)
            # What one more of a draw would change: the infinitesimal jackknife.
            each = jax.grad(lambda shares: second(lambda at: near(at, shares), zero, along))(equal)
            return each, 2 * bend + third

        return Curvatures(*jax.lax.map(one, jnp.arange(len(directions))))

    def _moved(self, frames, step):
        """Parameters after a step in local coordinates."""
        model = self.model
        parts = jnp.split(step, np.cumsum([frames[name].size for name in model.free])[:-1])
        return {
            name: value_at(model.trace.sites[name].constraint, frames[name], part)
            for name, part in zip(model.free, parts, strict=True)
        }

    def _nearby(self, params, frames, draws, evidence, data):
        """Log-likelihood plus log prior after a step in local coordinates, given shares of the draws; equal shares."""
        near = nearby_log_likelihood(self.model, params, draws, evidence, data)

        def value(step, shares):
            moved = self._moved(frames, step)
            return near({**params, **moved}, shares) + self.model.log_prior({**params, **moved}, data)

        number = len(next(iter(draws.values())))
        return value, jnp.full(number, 1 / number)


def _stacked(draws):
    """Draws of all chains, one after the other."""
    return {axis: jnp.reshape(one, (-1, *one.shape[2:])) for axis, one in draws.items()}

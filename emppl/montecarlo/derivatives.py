"""Derivatives of the log-likelihood at the parameters of draws: score, observed information, and their noise.

Draws are looked at in blocks of one size, so that more of them need no other program.

Reference:
    Louis (1982), Finding the observed information matrix when using the EM algorithm, JRSS B 44:226-233.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep.simulated import Drawn, simulated
from emppl.model.model import Model
from emppl.montecarlo.nearby import ByIntegral, log_densities, nearby_log_likelihood, risen_log_likelihood
from emppl.types import Data, Params
from emppl.uncertainty.charts import Moves, value_at


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


class Surroundings(NamedTuple):
    """Where derivatives are taken: parameters with local coordinates around them, and data.

    Attributes:
        params: where draws were made.
        frames: by free parameter, coordinates around it.
        data: arrays of the model's arguments.
    """

    params: Params
    frames: Mapping[str, Moves]
    data: Data

    def after(self, model: Model, step: jax.Array) -> Params:
        """Parameters after a step in local coordinates."""
        steps = jnp.split(step, np.cumsum([self.frames[name].size for name in model.free])[:-1])
        moved = {
            name: value_at(model.trace.sites[name].constraint, self.frames[name], along)
            for name, along in zip(model.free, steps, strict=True)
        }
        return {**self.params, **moved}

    def steps(self, model: Model) -> tuple[jax.Array, jax.Array]:
        """No step, and one along every coordinate."""
        zero = jnp.zeros(sum(self.frames[name].size for name in model.free))
        return zero, jnp.eye(len(zero))


class Derivatives:
    """A model's derivatives by draws; each is compiled once per number of draws in a block."""

    def __init__(self, model: Model):
        self.model = model
        self.measure_block = jax.jit(self._measure_block)
        self.measure_across = jax.jit(self._measure_across)
        self.curvatures = jax.jit(self._curvatures)

    def measure(self, around: Surroundings, drawn: Drawn, block: int) -> Measured:
        """Derivatives at the parameters of the draws.

        Args:
            around: where the draws were made.
            drawn: draws and evidence.
            block: draws of a chain that are looked at together, a part of their number.

        Returns:
            The derivatives. What several blocks say of the information is put together from means: in the variance of
            the scores of a group, that between blocks is added to those within.
        """
        number = next(iter(drawn.draws.values())).shape[1]
        pieces = []
        for start in range(0, number, block):
            some = {axis: jnp.asarray(draws[:, start : start + block]) for axis, draws in drawn.draws.items()}
            pieces.append(jax.device_get(self.measure_block(around, some, drawn.evidence)))
        scores = np.concatenate([piece.scores for piece in pieces], -1)
        within, squares = (sum(getattr(piece, n) for piece in pieces) / len(pieces) for n in ("within", "squares"))
        slopes = {axis: sum(piece.slopes[axis] for piece in pieces) / len(pieces) for axis in drawn.draws}
        across = jax.device_get(self.measure_across(around, slopes, drawn))
        by_chain = within - (squares - across.by_chain)
        information = within.mean(0) - (squares.mean(0) - across.whole)
        return Measured(scores, across.weighing, information, by_chain)

    def _measure_block(self, around: Surroundings, draws: ByIntegral, evidence: ByIntegral) -> _Block:
        """What the draws of one block say, chain by chain."""
        model, none = self.model, self._no_rise(draws)
        zero, unit = around.steps(model)
        weights = jax.grad(lambda rises: risen_log_likelihood(model, around.params, rises, evidence, around.data))
        shares = weights(none)
        rest = jax.grad(lambda step: self._risen(around, step, none, evidence))(zero)

        def of_chain(draws: ByIntegral) -> tuple[jax.Array, ...]:
            near, equal = self._nearby(around, draws, evidence)
            slope = jax.grad(lambda step: near(step, equal))
            hessian = jax.lax.map(lambda along: jax.jvp(slope, (zero,), (along,))[1], unit)

            def slope_of_draws(along: jax.Array) -> tuple[ByIntegral, jax.Array]:
                densities = lambda step: log_densities(model, around.after(model, step), draws, around.data)  # noqa: E731
                each = jax.jvp(densities, (zero,), (along,))[1]
                means = {axis: jnp.mean(slopes, 0) for axis, slopes in each.items()}
                return means, sum(slopes @ shares[axis] for axis, slopes in each.items())

            slopes, scores = jax.lax.map(slope_of_draws, unit)
            return rest[:, None] + scores, -(hessian + hessian.T) / 2, slopes, self._square(weights, slopes)

        scores, within, slopes, squares = jax.lax.map(of_chain, draws)
        return _Block(jnp.moveaxis(scores, 0, 1), within, slopes, squares)

    def _measure_across(self, around: Surroundings, slopes: ByIntegral, drawn: Drawn) -> _Across:
        """What takes the means of all blocks."""
        model = self.model
        zero, unit = around.steps(model)
        whole = {axis: jnp.mean(of_chains, 0) for axis, of_chains in slopes.items()}

        def square(slopes: ByIntegral) -> jax.Array:
            risen = lambda rises: risen_log_likelihood(model, around.params, rises, drawn.evidence, around.data)  # noqa: E731
            return self._square(jax.grad(risen), slopes)

        def score(known: ByIntegral, along: jax.Array) -> jax.Array:
            def value(step: jax.Array) -> jax.Array:
                rises = {axis: step @ of_groups for axis, of_groups in whole.items()}
                return self._risen(around, step, rises, {**drawn.evidence, **known})

            return jax.jvp(value, (zero,), (along,))[1]

        weighing: Any = jnp.zeros((len(unit), len(unit)))
        if drawn.evidence_shares:
            known = {axis: drawn.evidence[axis] for axis in drawn.evidence_shares}
            changes = jax.lax.map(lambda along: jax.grad(score)(known, along), unit)
            for axis, shares in drawn.evidence_shares.items():
                position = model.axes.names.index(axis)
                shares = jnp.where(jnp.isfinite(shares), shares, 0)  # of states that are impossible
                each = jnp.moveaxis(shares * shares.shape[position] - 1, position, 0)
                each = jnp.reshape(each, (len(each), -1)) @ jnp.reshape(changes[axis], (len(unit), -1)).T
                weighing = weighing + each.T @ each / len(each) ** 2
        return _Across(weighing, square(whole), jax.lax.map(square, slopes))

    def _square(self, weights: Callable[[ByIntegral], ByIntegral], slopes: ByIntegral) -> jax.Array:
        """Slopes of the log evidence times themselves, as they enter the second derivative of the log-likelihood.

        Args:
            weights: gradient of the log-likelihood with respect to the rises.
            slopes: by integral, ``(coordinates, groups)``.
        """
        none = self._no_rise(slopes)
        shares = weights(none)

        def product(along: ByIntegral) -> ByIntegral:
            bend = jax.jvp(weights, (none,), (along,))[1]
            return {axis: shares[axis] * of_groups - bend[axis] for axis, of_groups in along.items()}

        products = jax.lax.map(product, slopes)
        return sum(of_groups @ products[axis].T for axis, of_groups in slopes.items())

    def _no_rise(self, like: ByIntegral) -> ByIntegral:
        groups = {integral.axis: integral.groups for integral in simulated(self.model)}
        return {axis: jnp.zeros(groups[axis]) for axis in like}

    def _risen(self, around: Surroundings, step: jax.Array, rises: ByIntegral, evidence: ByIntegral) -> jax.Array:
        """Log-likelihood plus log prior after a step in local coordinates, for given rises of the log evidence."""
        params = around.after(self.model, step)
        log_likelihood = risen_log_likelihood(self.model, params, rises, evidence, around.data)
        return log_likelihood + self.model.log_prior(params, around.data)

    def _nearby(
        self, around: Surroundings, draws: ByIntegral, evidence: ByIntegral
    ) -> tuple[Callable[[jax.Array, jax.Array], jax.Array], jax.Array]:
        """Log-likelihood plus log prior after a step in local coordinates, given shares of the draws; equal shares."""
        near = nearby_log_likelihood(self.model, around.params, draws, evidence, around.data)

        def value(step: jax.Array, shares: jax.Array) -> jax.Array:
            params = around.after(self.model, step)
            return near(params, shares) + self.model.log_prior(params, around.data)

        number = len(next(iter(draws.values())))
        return value, jnp.full(number, 1 / number)

    def _curvatures(self, around: Surroundings, drawn: Drawn, directions: jax.Array) -> Curvatures:
        stacked = {axis: jnp.reshape(draws, (-1, *draws.shape[2:])) for axis, draws in drawn.draws.items()}
        near, equal = self._nearby(around, stacked, drawn.evidence)
        zero, _ = around.steps(self.model)

        def second(function: Callable[[jax.Array], jax.Array], step: jax.Array, direction: jax.Array) -> jax.Array:
            slope = lambda length: jax.jvp(lambda t: function(step + t * direction), (length,), (1.0,))[1]  # noqa: E731
            return jax.jvp(slope, (0.0,), (1.0,))[1]

        def entry(step: jax.Array, position: jax.Array) -> jax.Array:
            params = around.after(self.model, step)
            return jnp.concatenate([jnp.ravel(params[name]) for name in self.model.free])[position]

        def of_entry(position: jax.Array) -> tuple[jax.Array, jax.Array]:
            along = directions[position]
            bend = jax.grad(lambda step: jax.jvp(lambda at: entry(at, position), (step,), (along,))[1])(zero)
            third = jax.grad(lambda step: second(lambda at: near(at, equal), step, along))(zero)
            # What one more of a draw would change: the infinitesimal jackknife.
            each = jax.grad(lambda shares: second(lambda at: near(at, shares), zero, along))(equal)
            return each, 2 * bend + third

        return Curvatures(*jax.lax.map(of_entry, jnp.arange(len(directions))))

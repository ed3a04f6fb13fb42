"""The compiled functions of a Monte Carlo fit: draw, improve, measure."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep, mstep
from emppl.estep.nearby import nearby_log_likelihood
from emppl.estep.reweighting import Reweighted, log_densities, ratio_residuals
from emppl.estep.simulated import begin_chains, complete_log_densities, draw_all, simulated, simulated_expectations
from emppl.fit.loop import smallest_scale
from emppl.information.charts import value_at
from emppl.program import Program
from emppl.strategies import Simulated


class Improved(NamedTuple):
    """Outcome of an M-step on draws.

    Attributes:
        params: the new values.
        memory: what M-step rules remember.
        unfinished: did an inner iteration stop short?
        gains: for every draw, by how much its complete-data log density rose; of draws with weights of their own, the
            residuals of a ratio around its mean.
        log_likelihood: at the old parameters, by importance sampling.
        log_prior: at the old parameters.
    """

    params: Any
    memory: Any
    unfinished: Any
    gains: Any
    log_likelihood: Any
    log_prior: Any


class Measured(NamedTuple):
    """Derivatives at one point, in local coordinates.

    Attributes:
        scores: gradient of every draw's complete-data log density, ``(coordinates, draws)``.
        weighing: covariance of the noise of their mean that comes from the evidence of discrete states.
        information: minus the Hessian of the log-likelihood plus log prior, ``(coordinates, coordinates)``.
        by_chain: the same from every chain alone, ``(chains, coordinates, coordinates)``.
    """

    scores: Any
    weighing: Any
    information: Any
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


class Wandered(NamedTuple):
    """Outcome of a block of stochastic EM.

    Attributes:
        memory: what M-step rules remember at its end.
        chains: where the chains are then.
        every: of every iteration, the new values, log-likelihood and log prior before, smallest relative scale, and
            whether an inner iteration stopped short.
    """

    memory: Any
    chains: Any
    every: Any


class Simulator:
    """A program's Monte Carlo steps; each is compiled once per number of draws.

    Args:
        program: the derived algorithm.
        fused: static choices of the fused path.
    """

    def __init__(self, program: Program, fused: estep.FusedPlan):
        self.program = program
        self.fused = fused
        self.integrals = simulated(program)
        self.draw = jax.jit(functools.partial(draw_all, program), static_argnames="number")
        self.log_densities = jax.jit(functools.partial(log_densities, program))
        self.improve = jax.jit(self._improve)
        self.measure = jax.jit(self._measure)
        self.curvatures = jax.jit(self._curvatures)
        self.informed_shares = jax.jit(functools.partial(estep.informed_shares, program))
        self.wander = jax.jit(self._wander, static_argnames="number")

    @property
    def strategy(self) -> Simulated:
        """The options, which all simulated latents share."""
        return next(one for one in self.program.strategies.values() if isinstance(one, Simulated))

    def begin(self):
        """Chains before the first draw."""
        return begin_chains(self.program)

    def _improve(self, params, drawn, shares, leaves, prepared, memory) -> Improved:
        found = simulated_expectations(self.program, self.fused, params, drawn, shares, leaves, prepared)
        step = mstep.maximise(self.program, params, found, leaves, prepared, memory)
        before, after = (
            complete_log_densities(self.program, found, prepared, at, leaves) for at in (params, step.params)
        )
        gains = after - before
        if isinstance(shares, Reweighted):
            gains = gains + ratio_residuals(self.program, found, shares, params, step.params, leaves)
        return Improved(
            step.params,
            step.memory,
            step.unfinished,
            gains,
            found.log_likelihood,
            self.program.log_prior(params, leaves),
        )

    def _wander(self, params, memory, chains, key, leaves, prepared, number: int) -> Wandered:
        program = self.program

        def advance(carry, key):
            params, memory, chains = carry
            one, other = jax.random.split(key)
            floor, _ = smallest_scale(program, params, leaves, prepared)
            if self.integrals:
                drawn = draw_all(program, params, chains, one, leaves, self.strategy.num_samples)
                chains = drawn.chains
                found = simulated_expectations(program, self.fused, params, drawn, None, leaves, prepared, other)
            else:
                found = estep.expectations(program, self.fused, params, leaves, prepared, key=other)
            step = mstep.maximise(program, params, found, leaves, prepared, memory)
            seen = step.params, found.log_likelihood, program.log_prior(params, leaves), floor, step.unfinished
            return (step.params, step.memory, chains), seen

        (_, memory, chains), every = jax.lax.scan(advance, (params, memory, chains), jax.random.split(key, number))
        return Wandered(memory, chains, every)

    def _measure(self, params, frames, drawn, leaves, prepared) -> Measured:
        program = self.program
        found = simulated_expectations(program, self.fused, params, drawn, None, leaves, prepared)
        each = self._along(frames, found, leaves, prepared)
        zero = jnp.zeros(sum(frames[name].size for name in program.free))
        unit = jnp.eye(len(zero))
        scores = jax.lax.map(lambda along: jax.jvp(each, (zero,), (along,))[1], unit)

        def information(draws):
            near, equal = self._nearby(params, frames, draws, drawn.evidence, leaves)
            slope = jax.grad(lambda step: near(step, equal))
            hessian = jax.lax.map(lambda along: jax.jvp(slope, (zero,), (along,))[1], unit)
            return -(hessian + hessian.T) / 2

        weighing = self._weighing(params, frames, drawn, leaves, unit)
        return Measured(scores, weighing, information(_stacked(drawn.draws)), jax.lax.map(information, drawn.draws))

    def _weighing(self, params, frames, drawn, leaves, unit):
        """What the importance draws that decide between discrete states add to the noise of the score."""
        if not drawn.parts:
            return jnp.zeros((len(unit), len(unit)))

        def slope(along):
            """Of the score in one direction, with respect to the log evidence of every cell."""

            def score(known):
                near, equal = self._nearby(params, frames, _stacked(drawn.draws), {**drawn.evidence, **known}, leaves)
                return jax.jvp(lambda step: near(step, equal), (jnp.zeros(len(unit)),), (along,))[1]

            return jax.grad(score)({axis: drawn.evidence[axis] for axis in drawn.parts})

        slopes = jax.lax.map(slope, unit)
        total: Any = 0.0
        for axis, parts in drawn.parts.items():
            position = self.program.axes.names.index(axis)
            parts = jnp.where(jnp.isfinite(parts), parts, 0)  # of states that are impossible
            each = jnp.moveaxis(parts * parts.shape[position] - 1, position, 0)
            each = jnp.reshape(each, (len(each), -1)) @ jnp.reshape(slopes[axis], (len(unit), -1)).T
            total = total + each.T @ each / len(each) ** 2
        return total

    def _curvatures(self, params, frames, drawn, leaves, directions) -> Curvatures:
        near, equal = self._nearby(params, frames, _stacked(drawn.draws), drawn.evidence, leaves)
        zero = jnp.zeros(directions.shape[-1])

        def second(function, step, direction):
            slope = lambda length: jax.jvp(lambda t: function(step + t * direction), (length,), (1.0,))[1]  # noqa: E731
            return jax.jvp(slope, (0.0,), (1.0,))[1]

        def entry(step, position):
            moved = self._moved(frames, step)
            return jnp.concatenate([jnp.ravel(moved[name]) for name in self.program.free])[position]

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
        program = self.program
        parts = jnp.split(step, np.cumsum([frames[name].size for name in program.free])[:-1])
        return {
            name: value_at(program.trace.sites[name].constraint, frames[name], part)
            for name, part in zip(program.free, parts, strict=True)
        }

    def _nearby(self, params, frames, draws, evidence, leaves):
        """Log-likelihood plus log prior after a step in local coordinates, given shares of the draws; equal shares."""
        near = nearby_log_likelihood(self.program, params, draws, evidence, leaves)

        def value(step, shares):
            moved = self._moved(frames, step)
            return near({**params, **moved}, shares) + self.program.log_prior({**params, **moved}, leaves)

        number = len(next(iter(draws.values())))
        return value, jnp.full(number, 1 / number)

    def _along(self, frames, found, leaves, prepared):
        """Complete-data log density of every draw after a step in local coordinates."""
        return lambda step: complete_log_densities(self.program, found, prepared, self._moved(frames, step), leaves)


def _stacked(draws):
    """Draws of all chains, one after the other."""
    return {axis: jnp.reshape(one, (-1, *one.shape[2:])) for axis, one in draws.items()}


def batch_error(values: np.ndarray) -> np.ndarray:
    """Covariance of the mean of correlated draws, by batch means.

    Args:
        values: ``(chains, draws, quantities)``.

    Returns:
        ``(quantities, quantities)``.

    Reference:
        Flegal, Haran and Jones (2008), Markov chain Monte Carlo: can we trust the third significant figure?
        Statistical Science 23:250-260.
    """
    chains, number, quantities = values.shape
    size = max(int(np.sqrt(number)), 1)
    count = number // size
    batches = values[:, number - count * size :].reshape(chains, count, size, quantities).mean(2)
    means = batches.reshape(-1, quantities)
    return np.atleast_2d(np.cov(means, rowvar=False)).reshape(quantities, quantities) / len(means)

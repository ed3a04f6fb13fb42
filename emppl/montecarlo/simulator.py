"""The compiled functions of a Monte Carlo fit: draw, improve, wander."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from emppl import estep
from emppl.estep.simulated import begin_chains, complete_log_densities, draw_all, simulated, simulated_expectations
from emppl.fit.loop import smallest_scale
from emppl.montecarlo.derivatives import Derivatives
from emppl.montecarlo.informed import informed_shares
from emppl.program import Program
from emppl.strategies import Simulated


class Improved(NamedTuple):
    """Outcome of an M-step on draws.

    Attributes:
        params: the new values.
        memory: what M-step rules remember.
        unfinished: did an inner iteration stop short?
        gains: for every draw, by how much its complete-data log density rose.
        log_likelihood: at the old parameters, by importance sampling.
        log_prior: at the old parameters.
    """

    params: Any
    memory: Any
    unfinished: Any
    gains: Any
    log_likelihood: Any
    log_prior: Any


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
    """

    def __init__(self, program: Program):
        self.program, self.model = program, program.model
        self.integrals = simulated(self.model)
        self.draw = jax.jit(functools.partial(draw_all, self.model), static_argnames="number")
        self.improve = jax.jit(self._improve)
        self.derivatives = Derivatives(self.model)
        self.informed_shares = jax.jit(functools.partial(informed_shares, self.model))
        self.wander = jax.jit(self._wander, static_argnames="number")

    @property
    def strategy(self) -> Simulated:
        """The options, which all simulated latents share."""
        return next(one for one in self.model.strategies.values() if isinstance(one, Simulated))

    def begin(self):
        """Chains before the first draw."""
        return begin_chains(self.model)

    def _improve(self, params, drawn, shares, data, prepared, memory) -> Improved:
        found = simulated_expectations(self.model, self.program.fused, params, drawn, shares, data, prepared)
        step = self.program.maximise(params, found, data, prepared, memory)
        before, after = (complete_log_densities(self.model, found, prepared, at, data) for at in (params, step.params))
        return Improved(
            step.params,
            step.memory,
            step.unfinished,
            after - before,
            found.log_likelihood,
            self.model.log_prior(params, data),
        )

    def _wander(self, params, memory, chains, key, data, prepared, number: int) -> Wandered:
        program, model = self.program, self.model

        def advance(carry, key):
            params, memory, chains = carry
            one, other = jax.random.split(key)
            floor, _ = smallest_scale(model, params, data, prepared)
            if self.integrals:
                drawn = draw_all(model, params, chains, one, data, self.strategy.num_samples)
                chains = drawn.chains
                found = simulated_expectations(model, program.fused, params, drawn, None, data, prepared, other)
            else:
                found = estep.expectations(model, program.fused, params, data, prepared, key=other)
            step = program.maximise(params, found, data, prepared, memory)
            seen = step.params, found.log_likelihood, model.log_prior(params, data), floor, step.unfinished
            return (step.params, step.memory, chains), seen

        (_, memory, chains), every = jax.lax.scan(advance, (params, memory, chains), jax.random.split(key, number))
        return Wandered(memory, chains, every)


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

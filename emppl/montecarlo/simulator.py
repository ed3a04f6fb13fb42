"""The compiled functions of a Monte Carlo fit: draw, improve, wander."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from emppl import estep
from emppl.estep.informed import informed_shares
from emppl.estep.simulated import Drawn, begin_walkers, draw_all, integrated_by_draws
from emppl.fit.loop import smallest_scale
from emppl.integrals.mcmc import Walkers
from emppl.model.natural import Prepared
from emppl.montecarlo.derivatives import Derivatives
from emppl.program import Program
from emppl.strategies import Simulated
from emppl.types import Data, Params


class Improved(NamedTuple):
    """Outcome of an M-step on draws.

    Attributes:
        params: the new values.
        memory: what M-step rules remember.
        unfinished: whether an inner iteration stopped short.
        gains: for every draw, by how much its complete-data log density rose.
        log_likelihood: at the old parameters, by importance sampling.
        log_prior: at the old parameters.
    """

    params: dict[str, jax.Array]
    memory: Any
    unfinished: jax.Array
    gains: jax.Array
    log_likelihood: jax.Array
    log_prior: jax.Array


class Iterations(NamedTuple):
    """What iterations of stochastic EM went through, a leading axis over them.

    Attributes:
        params: the new values.
        log_likelihood: before them.
        log_prior: before them.
        scale: smallest relative scale of a component before them; below one it has collapsed.
        unfinished: whether an inner iteration of the M-step stopped short.
    """

    params: dict[str, Any]
    log_likelihood: Any
    log_prior: Any
    scale: Any
    unfinished: Any


class Simulator:
    """A program's Monte Carlo steps; each is compiled once per number of draws."""

    def __init__(self, program: Program):
        self.program, self.model = program, program.model
        self.draw = jax.jit(functools.partial(draw_all, self.model), static_argnames="number")
        self.improve = jax.jit(self._improve)
        self.derivatives = Derivatives(self.model)
        self.informed_shares = jax.jit(functools.partial(informed_shares, self.model))
        self.wander = jax.jit(self._wander, static_argnames="number")

    @property
    def strategy(self) -> Simulated:
        """The options, which all simulated latents share."""
        return next(strategy for strategy in self.model.strategies.values() if isinstance(strategy, Simulated))

    def begin(self) -> dict[str, Walkers]:
        """Chains before the first draw."""
        return begin_walkers(self.model)

    def _improve(
        self,
        params: Params,
        drawn: Drawn,
        shares: jax.Array | None,
        data: Data,
        prepared: Mapping[str, Prepared],
        memory: Any,
    ) -> Improved:
        integrated = integrated_by_draws(self.model, params, drawn, shares, data)
        fused = self.program.fused
        expected = estep.expectations(self.model, fused, params, data, prepared, integrated=integrated)
        step = self.program.maximise(params, expected, data, prepared, memory)
        before, after = (step.objective.by_draw(at) for at in (params, step.params))
        log_prior = self.model.log_prior(params, data)
        return Improved(step.params, step.memory, step.unfinished, after - before, expected.log_likelihood, log_prior)

    def _wander(
        self,
        params: Params,
        memory: Any,
        walkers: Mapping[str, Walkers],
        key: jax.Array,
        data: Data,
        prepared: Mapping[str, Prepared],
        number: int,
    ) -> tuple[Any, Mapping[str, Walkers], Iterations]:
        """Iterations of stochastic EM, with what M-step rules remember and where the chains are at their end."""
        program, model = self.program, self.model

        def advance(carry: tuple[Params, Any, Mapping[str, Walkers]], key: jax.Array) -> tuple[tuple, Iterations]:
            params, memory, walkers = carry
            moving_key, choosing_key = jax.random.split(key)
            scale, _ = smallest_scale(model, params, data, prepared)
            integrated = None
            if walkers:
                drawn = draw_all(model, params, walkers, moving_key, data, self.strategy.num_samples)
                walkers, integrated = drawn.walkers, integrated_by_draws(model, params, drawn, None, data)
            expected = estep.expectations(model, program.fused, params, data, prepared, None, integrated, choosing_key)
            step = program.maximise(params, expected, data, prepared, memory)
            log_prior = model.log_prior(params, data)
            iteration = Iterations(step.params, expected.log_likelihood, log_prior, scale, step.unfinished)
            return (step.params, step.memory, walkers), iteration

        start = params, memory, walkers
        (_, memory, walkers), iterations = jax.lax.scan(advance, start, jax.random.split(key, number))
        return memory, walkers, iterations


class Problem(NamedTuple):
    """The compiled steps of a fit, and what they run on.

    Attributes:
        simulator: compiled steps.
        data: arrays of the model's arguments.
        prepared: their statistics.
    """

    simulator: Simulator
    data: Data
    prepared: Mapping[str, Prepared]


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

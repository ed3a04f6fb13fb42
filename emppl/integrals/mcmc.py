"""Draws of continuous latents from their conditional distribution: chains of all groups, moved together.

Every group has a target and chains of its own, and accepts or rejects by itself; what is evaluated is always the log
joint density of all groups at once. The Laplace approximation of every group scales the moves, so that nothing needs
a long adaptation:

- up to four numbers per group: an independence Metropolis proposal from the Student-t distribution at the mode, then a
  random walk step, which moves on where that proposal has tails too light;
- more: a kernel of NumPyro's in coordinates in which the approximation is standard normal (:mod:`.hamiltonian`),
  Hamiltonian trajectories of about a quarter of a period, or NUTS. The step length is kept from call to call, and
  changes where the acceptance rate is far from what it should be; divergences are counted.

Trajectories of fixed length are the default because their length is known here. Effective draws per second of CPU time
(four chains, one core of a 2-core x86 machine; the least of all latents, then the least of all their squares about the
mean), of NumPyro's ``HMC`` and ``NUTS`` in the same coordinates:

====================================  =========  ===============  ==============
latents of one group                  numbers    ``HMC``          ``NUTS``
====================================  =========  ===============  ==============
stochastic volatility                 200        9,700, 7,900     7,700, 1,100
polio counts                          168        14,200, 11,600   9,400, 1,500
40 x 20 crossed effects on a logit    60         11,300, 11,700   9,600, 3,300
====================================  =========  ===============  ==============

NUTS stops at half a period, with negative correlation of the latents from draw to draw, and positive of their squares.

Reference:
    Tierney (1994), Markov chains for exploring posterior distributions, Annals of Statistics 22:1701-1728.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from emppl.integrals.hamiltonian import Trajectories, trajectories
from emppl.integrals.importance import placed, student_draws, student_log_density
from emppl.integrals.integration import climbing_root, find_modes
from emppl.integrals.joint import Joint
from emppl.strategies import MCMCKernel, Simulated

_ACCEPTANCE = 0.8
_BAND = 0.1
"""So far may the acceptance rate be from that before the step length changes."""

_MANY = 25
"""Draws of a group whose acceptance rate is known well enough."""

BURN_IN = 5
"""Moves that are dropped, for chains to follow the parameters: one independence proposal nearly forgets everything."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Chains:
    """Where the chains of one integral are.

    Attributes:
        position: unconstrained, ``(chains, groups, dimensions)``; NaN before the first draw.
        mean: last conditional modes, ``(groups, dimensions)``.
        root: roots of the precisions there, ``(groups, dimensions, dimensions)``.
        step: length of Hamiltonian steps, ``(groups,)``.
        divergences: how many trajectories lost the energy, of those that were counted.
        counted: how many draws of all chains and groups those are, since the count began.
    """

    position: jax.Array
    mean: jax.Array
    root: jax.Array
    step: jax.Array
    divergences: jax.Array
    counted: jax.Array

    def counted_afresh(self) -> Chains:
        """The same, where the count of divergences begins."""
        none = jnp.zeros((), jnp.result_type(float))  # integers of 32 bits would overflow
        return dataclasses.replace(self, divergences=none, counted=none)


def first_chains(groups: int, dimensions: int, chains: int) -> Chains:
    """Before the first draw."""
    dtype = jnp.result_type(float)  # said aloud: a weak type would compile everything twice
    return Chains(
        jnp.full((chains, groups, dimensions), jnp.nan, dtype),
        jnp.zeros((groups, dimensions), dtype),
        jnp.zeros((groups, dimensions, dimensions), dtype),
        jnp.full(groups, 1.2 * dimensions**-0.25, dtype),
        jnp.zeros((), dtype),
        jnp.zeros((), dtype),
    )


def approximation(joint: Joint, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Modes of all groups and roots of the precisions there."""
    mean = find_modes(joint, start)
    return mean, climbing_root(-joint.hessian(mean))


def draw(joint: Joint, chains: Chains, key: jax.Array, number: int) -> tuple[jax.Array, Chains]:
    """Move all chains of an integral.

    Args:
        joint: the log joint density.
        chains: where they are.
        key: random key.
        number: draws to keep of every chain.

    Returns:
        ``(draws, chains)``: ``(chains, number, groups, dimensions)``, and where the chains are now.
    """
    strategy = joint.integral.strategy
    assert isinstance(strategy, Simulated)
    mean, root = approximation(joint, chains.mean)
    kernel, moves = strategy.moved_by(mean.shape[-1]), BURN_IN + number
    first, key = jax.random.split(key)
    noise = student_draws if kernel is MCMCKernel.METROPOLIS else jax.random.normal
    fresh = placed(mean, root, noise(first, chains.position.shape, mean.dtype))
    position = jnp.where(jnp.isnan(chains.position), fresh, chains.position)
    if kernel is MCMCKernel.METROPOLIS:
        found = _metropolis(joint, mean, root, position, key, moves)
    else:
        found = trajectories(joint, mean, root, position, chains.step, key, moves, kernel)
    rate, step = jnp.mean(found.acceptance[BURN_IN:], 0), chains.step
    if kernel is not MCMCKernel.METROPOLIS:
        # Of few draws the rate is noise: it moves the step by little.
        change = min(1, number * len(position) / _MANY) * jnp.clip(rate - _ACCEPTANCE, -0.5, 0.2)
        step = jnp.clip(step * jnp.where(jnp.abs(rate - _ACCEPTANCE) > _BAND, jnp.exp(change), 1), 1e-3, 2.0)
    divergences = chains.divergences + jnp.sum(found.diverging[BURN_IN:])
    counted = chains.counted + number * len(position) * len(mean)
    now = Chains(found.path[-1], mean, root, step, divergences, counted)
    return jnp.moveaxis(found.path[BURN_IN:], 0, 1), now


def _finite(value):
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


def _metropolis(joint: Joint, mean, root, position, key, moves: int) -> Trajectories:
    """Independence proposals, each followed by a step of a random walk."""
    density = jax.vmap(lambda at: _finite(joint.by_group(at)))
    size = mean.shape[-1]

    def advance(carry, key):
        at, value = carry
        one, two, three, four = jax.random.split(key, 4)
        standard = student_draws(one, at.shape, at.dtype)
        here = jnp.einsum("cgi,gij->cgj", at - mean[None], root)  # root^T (at - mean)
        there = placed(mean, root, standard)
        new = density(there)
        ratio = (new - student_log_density(standard, root)) - (value - student_log_density(here, root))
        at, value, moved = _accept(two, ratio, there, new, at, value)
        walk = 2.4 / math.sqrt(size) * jax.random.normal(three, at.shape, at.dtype)
        there = at + placed(jnp.zeros_like(mean), root, walk)
        new = density(there)
        at, value, walked = _accept(four, new - value, there, new, at, value)
        return (at, value), (at, jnp.mean(jnp.maximum(moved, walked), 0))

    _, (path, rate) = jax.lax.scan(advance, (position, density(position)), jax.random.split(key, moves))
    return Trajectories(path, rate, jnp.zeros(moves, int))


def _accept(key, ratio, there, new, at, value):
    yes = jnp.log(jax.random.uniform(key, ratio.shape, ratio.dtype)) < ratio
    # A chain that starts where the density is zero takes anything better.
    yes = yes | (jnp.isneginf(value) & (new > -jnp.inf))
    return jnp.where(yes[..., None], there, at), jnp.where(yes, new, value), yes.astype(ratio.dtype)

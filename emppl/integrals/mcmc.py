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

from emppl.integrals.centre import starting_vectors
from emppl.integrals.hamiltonian import Trajectories, trajectories
from emppl.integrals.importance import placed, student_draws, student_log_density
from emppl.integrals.joint import Joint
from emppl.integrals.modes import approximation
from emppl.strategies import MCMCKernel, Simulated

_ACCEPTANCE_RATE = 0.8
"""Acceptance rate of Hamiltonian trajectories that the step length is kept at."""

_RATE_MARGIN = 0.1
"""So far may the acceptance rate be from that before the step length changes."""

_RELIABLE_DRAWS = 25
"""Draws of a group from which its acceptance rate is known well enough."""

BURN_IN = 5
"""Moves that are dropped, for chains to follow the parameters: one independence proposal nearly forgets everything."""

_FORGETTING_MOVES = 100
"""Moves after which a chain that began at the mode has forgotten where it began."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Walkers:
    """Where the chains of one integral are.

    Attributes:
        position: unconstrained, ``(chains, groups, dimensions)``; NaN before the first draw.
        mean: last conditional modes, ``(groups, dimensions)``; NaN before the first draw.
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

    def counted_afresh(self) -> Walkers:
        """These walkers, with divergences counted from here on."""
        zero = jnp.zeros((), jnp.result_type(float))  # integers of 32 bits would overflow
        return dataclasses.replace(self, divergences=zero, counted=zero)


def first_walkers(groups: int, dimensions: int, chains: int) -> Walkers:
    """Chains before the first draw."""
    dtype = jnp.result_type(float)  # said aloud: a weak type would compile everything twice
    return Walkers(
        jnp.full((chains, groups, dimensions), jnp.nan, dtype),
        jnp.full((groups, dimensions), jnp.nan, dtype),
        jnp.zeros((groups, dimensions, dimensions), dtype),
        jnp.full(groups, 1.2 * dimensions**-0.25, dtype),
        jnp.zeros((), dtype),
        jnp.zeros((), dtype),
    )


def draw(joint: Joint, walkers: Walkers, key: jax.Array, number: int) -> tuple[jax.Array, Walkers]:
    """Move all chains of an integral, after its Laplace approximation has followed the parameters.

    Args:
        joint: the log joint density.
        walkers: where the chains are.
        number: draws to keep of every chain.

    Returns:
        ``(draws, walkers)``: ``(chains, number, groups, dimensions)``, and where the chains are now.
    """
    mean, root = approximation(joint, starting_vectors(joint, walkers.mean))
    return _move(joint, dataclasses.replace(walkers, mean=mean, root=root), key, number)


def draw_once(joint: Joint, mean: jax.Array, root: jax.Array, key: jax.Array) -> jax.Array:
    """One draw of every group, by a chain that is long enough to forget its start.

    Args:
        joint: the log joint density.
        mean: conditional modes, ``(groups, dimensions)``.
        root: roots of the precisions there.

    Returns:
        ``(groups, dimensions)``.
    """
    walkers = dataclasses.replace(first_walkers(mean.shape[0], mean.shape[1], 1), mean=mean, root=root)
    if _kernel_of(joint, mean.shape[-1]) is not MCMCKernel.METROPOLIS:
        return _move(joint, walkers, key, _FORGETTING_MOVES)[0][0, -1]

    # One move at a time, whose path is given up: of many draws at once the whole paths would take gigabytes.
    def advance(walkers: Walkers, key: jax.Array) -> tuple[Walkers, None]:
        return _move(joint, walkers, key, 1, 0)[1], None

    return jax.lax.scan(advance, walkers, jax.random.split(key, BURN_IN + _FORGETTING_MOVES))[0].position[0]


def _kernel_of(joint: Joint, dimensions: int) -> MCMCKernel:
    """The kernel of the strategy; of integrals that are not drawn, Metropolis steps."""
    strategy = joint.integral.strategy
    return strategy.moved_by(dimensions) if isinstance(strategy, Simulated) else MCMCKernel.METROPOLIS


def _move(
    joint: Joint, walkers: Walkers, key: jax.Array, number: int, burn_in: int = BURN_IN
) -> tuple[jax.Array, Walkers]:
    """Move all chains, and keep their path after the burn-in."""
    mean, root = walkers.mean, walkers.root
    kernel = _kernel_of(joint, mean.shape[-1])
    moves = burn_in + number
    start_key, key = jax.random.split(key)
    noise = student_draws if kernel is MCMCKernel.METROPOLIS else jax.random.normal
    fresh = placed(mean, root, noise(start_key, walkers.position.shape, mean.dtype))
    position = jnp.where(jnp.isnan(walkers.position), fresh, walkers.position)
    if kernel is MCMCKernel.METROPOLIS:
        moved = _metropolis(joint, mean, root, position, key, moves)
    else:
        moved = trajectories(joint, mean, root, position, walkers.step, key, moves, kernel)
    rate, step = jnp.mean(moved.acceptance[burn_in:], 0), walkers.step
    if kernel is not MCMCKernel.METROPOLIS:
        # Of few draws the rate is noise: it moves the step by little.
        trust = min(1, number * len(position) / _RELIABLE_DRAWS)
        change = trust * jnp.clip(rate - _ACCEPTANCE_RATE, -0.5, 0.2)
        is_off = jnp.abs(rate - _ACCEPTANCE_RATE) > _RATE_MARGIN
        step = jnp.clip(step * jnp.where(is_off, jnp.exp(change), 1), 1e-3, 2.0)
    divergences = walkers.divergences + jnp.sum(moved.diverging[burn_in:])
    counted = walkers.counted + number * len(position) * len(mean)
    now = Walkers(moved.path[-1], mean, root, step, divergences, counted)
    return jnp.moveaxis(moved.path[burn_in:], 0, 1), now


def _metropolis(
    joint: Joint, mean: jax.Array, root: jax.Array, position: jax.Array, key: jax.Array, moves: int
) -> Trajectories:
    """Independence proposals, each followed by a step of a random walk."""

    def log_density(positions: jax.Array) -> jax.Array:
        values = jax.vmap(joint.by_group)(positions)
        return jnp.where(jnp.isnan(values), -jnp.inf, values)

    def advance(state: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[tuple, tuple]:
        at, value = state
        independent_key, first_key, walk_key, second_key = jax.random.split(key, 4)
        standard = student_draws(independent_key, at.shape, at.dtype)
        standard_at = jnp.einsum("cgi,gij->cgj", at - mean[None], root)  # root^T (at - mean)
        proposal = placed(mean, root, standard)
        height = log_density(proposal)
        ratio = (height - student_log_density(standard, root)) - (value - student_log_density(standard_at, root))
        at, value, moved = _accept(first_key, ratio, proposal, height, at, value)
        walk = 2.4 / math.sqrt(mean.shape[-1]) * jax.random.normal(walk_key, at.shape, at.dtype)
        proposal = at + placed(jnp.zeros_like(mean), root, walk)
        height = log_density(proposal)
        at, value, walked = _accept(second_key, height - value, proposal, height, at, value)
        return (at, value), (at, jnp.mean(jnp.maximum(moved, walked), 0))

    start = position, log_density(position)
    _, (path, rate) = jax.lax.scan(advance, start, jax.random.split(key, moves))
    return Trajectories(path, rate, jnp.zeros(moves, int))


def _accept(
    key: jax.Array, ratio: jax.Array, proposal: jax.Array, height: jax.Array, at: jax.Array, value: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Positions and log densities after a Metropolis decision, and where a proposal was accepted."""
    accepted = jnp.log(jax.random.uniform(key, ratio.shape, ratio.dtype)) < ratio
    # A chain that starts where the density is zero takes anything better.
    accepted = accepted | (jnp.isneginf(value) & (height > -jnp.inf))
    return (
        jnp.where(accepted[..., None], proposal, at),
        jnp.where(accepted, height, value),
        accepted.astype(ratio.dtype),
    )

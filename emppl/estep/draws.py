"""Draws of continuous latents from their conditional distribution: chains of all groups, moved together.

Every group has a target and chains of its own, and accepts or rejects by itself; what is evaluated is always the log
joint density of all groups at once. The Laplace approximation of every group scales the moves, so that nothing needs
a long adaptation:

- up to four numbers per group: an independence Metropolis proposal from the Student-t distribution at the mode, then a
  random walk step, which moves on where that proposal has tails too light;
- more: a Hamiltonian trajectory in coordinates in which the approximation is standard normal, about a quarter of its
  period long, with a step length that follows the acceptance rate.

Reference:
    Tierney (1994), Markov chains for exploring posterior distributions, Annals of Statistics 22:1701-1728;
    Neal (2011), MCMC using Hamiltonian dynamics, Handbook of Markov Chain Monte Carlo.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from emppl.estep.importance import placed, student_draws, student_log_density
from emppl.estep.integration import climbing_root, find_modes
from emppl.estep.joint import Joint
from emppl.positive import lower_inverse

SMALL = 4
"""Most numbers per group for which independence proposals serve."""

_ACCEPTANCE = 0.8
_QUARTER = math.pi / 2
_LONGEST = 32


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
        step: length of Hamiltonian steps.
        acceptance: rate of the slowest group.
    """

    position: jax.Array
    mean: jax.Array
    root: jax.Array
    step: jax.Array
    acceptance: jax.Array


def first_chains(groups: int, dimensions: int, chains: int) -> Chains:
    """Before the first draw."""
    dtype = jnp.result_type(float)  # said aloud: a weak type would compile everything twice
    return Chains(
        jnp.full((chains, groups, dimensions), jnp.nan, dtype),
        jnp.zeros((groups, dimensions), dtype),
        jnp.zeros((groups, dimensions, dimensions), dtype),
        jnp.full((), 1.2 * dimensions**-0.25, dtype),
        jnp.ones((), dtype),
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
    mean, root = approximation(joint, chains.mean)
    first, key = jax.random.split(key)
    fresh = placed(mean, root, student_draws(first, chains.position.shape, mean.dtype))
    position = jnp.where(jnp.isnan(chains.position), fresh, chains.position)
    density = jax.vmap(lambda at: _finite(joint.by_group(at)))
    is_small = mean.shape[-1] <= SMALL
    inverse = lower_inverse(root)
    slope = jax.vmap(joint.gradient)

    def move(at, value, key):
        if is_small:
            return _metropolis(density, mean, root, at, value, key)
        return _hamiltonian(density, slope, inverse, chains.step, at, value, key)

    def advance(carry, key):
        at, value, moved = move(carry[0], carry[1], key)
        return (at, value), (at, jnp.mean(moved, 0))

    keys = jax.random.split(key, BURN_IN + number)
    (position, _), (path, moved) = jax.lax.scan(advance, (position, density(position)), keys)
    rate = jnp.mean(moved, 0)
    step = chains.step * jnp.exp(jnp.clip(jnp.mean(rate) - _ACCEPTANCE, -0.5, 0.2))
    step = jnp.clip(step, 1e-3, 2.0)
    return jnp.moveaxis(path[BURN_IN:], 0, 1), Chains(position, mean, root, step, jnp.min(rate))


def _finite(value):
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


def _metropolis(density, mean, root, at, value, key):
    """An independence proposal, then a random walk."""
    one, two, three, four = jax.random.split(key, 4)
    size = mean.shape[-1]
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
    return at, value, jnp.maximum(moved, walked)


def _hamiltonian(density, slope, inverse, step, at, value, key):
    """A trajectory of a quarter of a period, every group on its own, with a step length that varies."""
    one, two, three = jax.random.split(key, 3)
    speed = jax.random.normal(one, at.shape, at.dtype)
    length = step * jax.random.uniform(two, (), at.dtype, 0.8, 1.2)
    count = jnp.clip(jnp.round(_QUARTER / length), 1, _LONGEST).astype(int)

    def kick(at, speed, share):
        return speed + share * length * jnp.einsum("cgi,gji->cgj", slope(at), inverse)  # inverse . slope

    def leap(_, carry):
        at, speed = carry
        at = at + length * jnp.einsum("cgj,gji->cgi", speed, inverse)  # inverse^T . speed
        return at, kick(at, speed, 1.0)

    there, faster = jax.lax.fori_loop(0, count, leap, (at, kick(at, speed, 0.5)))
    faster = kick(there, faster, -0.5)
    new = density(there)
    ratio = new - value + jnp.sum(speed**2 - faster**2, -1) / 2
    return _accept(three, ratio, there, new, at, value)


def _accept(key, ratio, there, new, at, value):
    yes = jnp.log(jax.random.uniform(key, ratio.shape, ratio.dtype)) < ratio
    # A chain that starts where the density is zero takes anything better.
    yes = yes | (jnp.isneginf(value) & (new > -jnp.inf))
    return jnp.where(yes[..., None], there, at), jnp.where(yes, new, value), yes.astype(ratio.dtype)

"""NumPyro's Hamiltonian kernels for the chains of all groups at once.

The kernels move one vector by the potential of one vector. Here every pair of a chain and a group is such a vector, a
*lane* of a ``vmap``, and accepts and rejects by itself; but the log joint density is a function of all groups. The rule
that ``custom_vmap`` allows a function to have puts the lanes back together: what is evaluated is the joint density of
all groups, once for every chain.

Coordinates are those in which the Laplace approximation of every group is standard normal, so that the mass matrix is
the identity, a period is 2 pi, and nothing but the step length is left to adapt.

Reference:
    Neal (2011), MCMC using Hamiltonian dynamics, Handbook of Markov Chain Monte Carlo; Hoffman and Gelman (2014), The
    No-U-Turn sampler, Journal of Machine Learning Research 15:1593-1623.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from numpyro.infer.hmc import hmc
from numpyro.infer.util import ParamInfo

from emppl.integrals.joint import Joint
from emppl.numerics.small_matrices import lower_inverse
from emppl.strategies import MCMCKernel

_QUARTER_PERIOD = math.pi / 2
"""Length of a trajectory of fixed length: after a quarter of its period a normal variable has forgotten its start."""

_MOST_STEPS = 32
"""Most steps of a trajectory of fixed length."""

_FIRST_STEPS = (1 / 8, 1 / 4, 1 / 2, 1, 1)
"""Steps of the first moves, as shares of the others. Where the density bends sharply, far out on an exponential, say,
steps that are right elsewhere never leave: chains begin there by chance, or because the parameters moved."""


class Trajectories(NamedTuple):
    """Moves of all chains of all groups.

    Attributes:
        path: unconstrained, after every move, ``(moves, chains, groups, dimensions)``.
        acceptance: of every move, the mean over the chains of each group, ``(moves, groups)``.
        diverging: of every move, how many chains lost the energy, those of all groups counted, ``(moves,)``.
    """

    path: jax.Array
    acceptance: jax.Array
    diverging: jax.Array


def trajectories(
    joint: Joint,
    mean: jax.Array,
    root: jax.Array,
    position: jax.Array,
    step: jax.Array,
    key: jax.Array,
    moves: int,
    kernel: MCMCKernel,
) -> Trajectories:
    """Move all chains by one of NumPyro's Hamiltonian kernels.

    Args:
        joint: the log joint density.
        mean: conditional modes, ``(groups, dimensions)``.
        root: roots of the precisions there.
        position: where the chains are, ``(chains, groups, dimensions)``.
        step: length of a step, ``(groups,)``.
        moves: how many.
        kernel: trajectories of fixed length, or NUTS.

    Returns:
        The path.
    """
    chains, groups, size = position.shape
    lanes, steps = chains * groups, jnp.tile(step, chains)
    inverse = lower_inverse(root)

    def place(white: jax.Array) -> jax.Array:
        return jnp.reshape(mean, (1,) * (white.ndim - 2) + mean.shape) + jnp.einsum("...gj,gji->...gi", white, inverse)

    def potentials_and_slopes(white: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Potential of every group of one chain, and its gradient."""

        def total(white: jax.Array) -> tuple[jax.Array, jax.Array]:
            potentials = -joint.by_group(place(white))
            return jnp.sum(potentials), potentials

        (_, potentials), slopes = jax.value_and_grad(total, has_aux=True)(white)
        return jnp.where(jnp.isnan(potentials), jnp.inf, potentials), slopes

    white = jnp.einsum("cgi,gij->cgj", position - mean[None], root)
    # A chain where the density is now zero has no slope to follow: it goes to the mode.
    mode = jnp.zeros((1, groups, size), white.dtype)
    potentials, slopes = jax.vmap(potentials_and_slopes)(jnp.concatenate([white, mode]))
    lost = jnp.isinf(potentials[:-1])
    begin = ParamInfo(
        jnp.where(lost[..., None], 0, white),
        jnp.where(lost, potentials[-1], potentials[:-1]),
        jnp.where(lost[..., None], slopes[-1], slopes[:-1]),
    )
    first, key = jax.random.split(key)
    init, sample = hmc(
        _of_one_lane(potentials_and_slopes, position), algo="NUTS" if kernel is MCMCKernel.NUTS else "HMC"
    )
    state = jax.vmap(
        lambda begin, key: init(
            begin,
            num_warmup=0,
            step_size=1.0,
            inverse_mass_matrix=jnp.ones(size, white.dtype),
            adapt_step_size=False,
            adapt_mass_matrix=False,
            rng_key=key,
        )
    )(jax.tree.map(lambda array: jnp.reshape(array, (lanes, *array.shape[2:])), begin), jax.random.split(first, lanes))

    def advance(state: Any, key_and_share: tuple[jax.Array, jax.Array]) -> tuple[Any, tuple]:
        key, share = key_and_share
        state = state._replace(adapt_state=state.adapt_state._replace(step_size=share * steps))
        if kernel is MCMCKernel.HMC:
            # Lengths vary, so that no coordinate comes back to where it was every time.
            length = jax.random.uniform(key, (), white.dtype, 0.8 * _QUARTER_PERIOD, 1.2 * _QUARTER_PERIOD)
            state = state._replace(trajectory_length=jnp.minimum(jnp.sqrt(share) * length, _MOST_STEPS * share * steps))
        state = jax.vmap(sample)(state)
        rate = jnp.mean(jnp.reshape(state.accept_prob, (chains, groups)), 0)
        return state, (place(jnp.reshape(state.z, position.shape)), rate, jnp.sum(state.diverging))

    shares = jnp.ones(moves, white.dtype).at[: len(_FIRST_STEPS)].set(jnp.asarray(_FIRST_STEPS[:moves], white.dtype))
    _, (path, rate, diverging) = jax.lax.scan(advance, state, (jax.random.split(key, moves), shares))
    return Trajectories(path, rate, diverging)


def _of_one_lane(of_chain: Callable, position: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The potential of one lane, for kernels under a ``vmap`` over all lanes.

    Args:
        of_chain: potentials and gradients of all groups of one chain.
        position: vectors of all chains and groups.
    """
    shape, dtype = position.shape, position.dtype
    lanes, size = shape[0] * shape[1], shape[2]
    # What the potential reads are arguments: the rule is called inside of loops that others trace.
    closed = jax.make_jaxpr(jax.vmap(of_chain))(jax.ShapeDtypeStruct(shape, dtype))

    @custom_vmap
    def both(reads: Sequence[jax.Array], vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        del reads, vector  # one vector alone has no density
        return jnp.full((), jnp.nan, dtype), jnp.full(size, jnp.nan, dtype)

    @both.def_vmap
    def _(number: int, is_batched: Any, reads: Sequence[jax.Array], vectors: jax.Array) -> tuple[tuple, tuple]:
        assert number == lanes and is_batched[1] and not any(is_batched[0])
        of_lanes = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, reads))(jnp.reshape(vectors, shape))
        return tuple(jnp.reshape(array, (lanes, *array.shape[2:])) for array in of_lanes), (True, True)

    @jax.custom_vjp
    def value(reads: Sequence[jax.Array], vector: jax.Array) -> jax.Array:
        return both(reads, vector)[0]

    value.defvjp(both, lambda slope, change: (None, change * slope))
    return lambda vector: value(closed.consts, vector)

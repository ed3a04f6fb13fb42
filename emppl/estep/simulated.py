"""The Monte Carlo E-step: atoms that are draws of chains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emppl.integrals.importance import importance
from emppl.integrals.integrated import Integrated, atoms_of
from emppl.integrals.joint import Joint
from emppl.integrals.mcmc import Walkers, draw, first_walkers
from emppl.integrals.way import integrate
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.strategies import Simulated
from emppl.types import Data, Params

_EVIDENCE_POINTS = 64
"""Draws for the log-likelihood of one iteration, which is only watched."""


def simulated(model: Model) -> list[Integral]:
    """The integrals whose atoms are draws."""
    return [integral for integral in model.integrals if isinstance(integral.strategy, Simulated)]


def begin_walkers(model: Model) -> dict[str, Walkers]:
    """Chains of all integrals before the first draw."""
    walkers = {}
    for integral in simulated(model):
        assert isinstance(integral.strategy, Simulated)
        walkers[integral.axis] = first_walkers(integral.groups, integral.dimensions, integral.strategy.num_chains)
    return walkers


class Drawn(NamedTuple):
    """Outcome of moving all chains.

    Attributes:
        draws: by integral, unconstrained, ``(chains, draws, groups, dimensions)``.
        evidence: by integral, its log evidence by importance sampling, with the common axes.
        walkers: by integral, where the chains are now.
        evidence_shares: by integral whose evidence decides between states, the share of every importance draw in it,
            along the axis of the atoms.
    """

    draws: dict[str, jax.Array]
    evidence: dict[str, jax.Array]
    walkers: dict[str, Walkers]
    evidence_shares: dict[str, jax.Array]


def draw_all(
    model: Model, params: Params, walkers: Mapping[str, Walkers], key: jax.Array, data: Data, number: int
) -> Drawn:
    """Draws of all simulated latents at given parameters.

    Args:
        walkers: where the chains are.
        number: draws to keep of every chain.
    """
    drawn = Drawn({}, {}, {}, {})
    for position, integral in enumerate(simulated(model)):
        axis, joint = integral.axis, Joint(model, integral, params, data)
        moving_key, weighing_key = jax.random.split(jax.random.fold_in(key, position))
        drawn.draws[axis], moved = draw(joint, walkers[axis], moving_key, number)
        drawn.walkers[axis] = moved
        # Where discrete latents are given, the evidence of their states decides between them.
        points = number * len(moved.position) if integral.given else _EVIDENCE_POINTS
        weighed = importance(joint, moved.mean, moved.root, weighing_key, points)
        drawn.evidence[axis] = weighed.evidence
        if integral.given:
            drawn.evidence_shares[axis] = weighed.shares
    return drawn


def integrated_by_draws(
    model: Model, params: Params, drawn: Drawn, shares: jax.Array | None, data: Data
) -> dict[str, Integrated]:
    """Every integral of the model, those that are drawn by their draws.

    Args:
        params: where the integrals are wanted.
        drawn: the draws.
        shares: weight of every draw, chains one after the other; None for equal ones.

    Returns:
        By integral.
    """
    integrated: dict[str, Integrated] = {}
    for integral in model.integrals:
        axis = integral.axis
        if axis not in drawn.draws:
            integrated[axis] = integrate(Joint(model, integral, params, data))
            continue
        joint, walkers = Joint(model, integral, params, data), drawn.walkers[axis]
        points = drawn.draws[axis]
        points = jnp.reshape(points, (-1, *points.shape[2:]))
        table = joint.along_atoms(jnp.full(len(points), 1 / len(points)) if shares is None else shares)
        atoms = atoms_of(joint, points)
        integrated[axis] = Integrated(drawn.evidence[axis], atoms, table, walkers.mean, walkers.root)
    return integrated

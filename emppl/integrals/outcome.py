"""What every way of integrating leaves behind: evidence per cell, and atoms with their shares."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from emppl.integrals.joint import Joint
from emppl.numerics.guarded import logsumexp


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Integrated:
    """What one integral leaves behind.

    Attributes:
        evidence: log of the integral of every cell (natural log), with the common axes.
        atoms: by latent, its atoms: ``(atoms, *states, *plates, *event)``.
        shares: the weights of the atoms, which add up to one in every cell, with the common axes.
        mean: conditional mean (mode where it is approximate) of every group, ``(groups, dimensions)``.
        root: lower triangular root of the conditional precision, ``(groups, dimensions, dimensions)``.
        cancelled: sum of the terms that cancel in the evidence; times the machine epsilon, its rounding error.
    """

    evidence: jax.Array
    atoms: dict[str, jax.Array]
    shares: jax.Array
    mean: jax.Array
    root: jax.Array
    cancelled: jax.Array | float = 0.0


def atoms_of(joint: Joint, points: jax.Array) -> dict[str, jax.Array]:
    """Atoms as values of the latents, from ``(atoms, groups, dimensions)``."""
    return jax.vmap(lambda one: joint.constrained(joint.unpack(one)))(points)


def evidence_and_shares(heights: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Log of the sum over atoms, and their shares in it; zero where a discrete state makes the data impossible."""
    evidence = logsumexp(heights, axis)
    possible = jnp.isfinite(evidence)
    shares = jnp.where(possible, jnp.exp(heights - jnp.where(possible, evidence, 0)), 0)
    return evidence, jax.lax.stop_gradient(shares)

"""What every way of integrating leaves behind: evidence per cell, and atoms with their shares."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from emppl.integrals.joint import Joint
from emppl.numerics.guarded import impossible_to_infinite, logsumexp
from emppl.numerics.small_matrices import half_log_det, lower_inverse, lower_root


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Integrated:
    """What one integral leaves behind.

    Attributes:
        evidence: log of the integral of every cell (natural log), with the common axes.
        atoms: by latent, its atoms: ``(atoms, *states, *plates, *event)``.
        shares: the weights of the atoms, which add up to one in every cell, with the common axes.
        mean: conditional mean (mode where it is approximate) of every group, ``(groups, dimensions)``.
        root: lower triangular root of the conditional precision, ``(groups, dimensions, dimensions)``; None where draws
            need none.
        cancelled: sum of the terms that cancel in the evidence; times the machine epsilon, its rounding error.
    """

    evidence: jax.Array
    atoms: dict[str, jax.Array]
    shares: jax.Array
    mean: jax.Array
    root: jax.Array | None
    cancelled: jax.Array | float = 0.0


def atoms_of(joint: Joint, points: jax.Array) -> dict[str, jax.Array]:
    """Atoms as values of the latents, from ``(atoms, groups, dimensions)``."""
    return jax.vmap(lambda vectors: joint.constrained(joint.unpack(vectors)))(points)


def evidence_and_shares(heights: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Log of the sum over atoms, and their shares in it; zero where a discrete state makes the data impossible."""
    evidence = logsumexp(heights, axis)
    possible = jnp.isfinite(evidence)
    shares = jnp.where(possible, jnp.exp(heights - jnp.where(possible, evidence, 0)), 0)
    return evidence, jax.lax.stop_gradient(shares)


def weighted_points(joint: Joint, points: jax.Array, log_weights: jax.Array) -> Integrated:
    """What a rule of integration leaves: ``sum(exp(log_weights) * density(points))`` in every group.

    Args:
        joint: the log joint density.
        points: unconstrained, ``(atoms, groups, dimensions)``; constants for derivatives.
        log_weights: natural logs, ``(atoms, groups)``, or one for all.

    Returns:
        Evidence and atoms; mean and root of the precision are those of the weighted points.
    """
    heights = jax.vmap(joint.by_group)(points) + log_weights
    # A density that is not a number has no weight.
    heights = jnp.where(jnp.isnan(heights), -jnp.inf, heights)
    _, weights = evidence_and_shares(heights, 0)
    mean = jnp.einsum("ag,agd->gd", weights, points)
    deviations = points - mean[None]
    inverse = lower_inverse(lower_root(jnp.einsum("ag,agi,agj->gij", weights, deviations, deviations)))
    root = lower_root(jnp.matmul(jnp.swapaxes(inverse, -1, -2), inverse))
    evidence, shares = evidence_and_shares(joint.atoms_to_cells(heights), joint.atom_axis)
    return Integrated(impossible_to_infinite(evidence), atoms_of(joint, points), shares, mean, root)


def normal_integral(
    joint: Joint, mean: jax.Array, root: jax.Array, centre: jax.Array, corners: np.ndarray
) -> Integrated:
    """Evidence of a normal integral, and equally weighted sigma points around a centre.

    Args:
        joint: the log joint density.
        mean: where it is largest, ``(groups, dimensions)``.
        root: root of the precision there.
        centre: where the points lie.
        corners: the points for the standard normal distribution, ``(atoms, dimensions)``.
    """
    volume = mean.shape[-1] / 2 * math.log(2 * math.pi) - half_log_det(root)
    evidence = joint.by_cell(joint.tables(joint.unpack(mean))) + joint.to_cells(volume)
    axes = lower_inverse(root)  # its rows are the axes of the covariance
    points = centre[None] + jnp.einsum("sj,gjk->sgk", jnp.asarray(corners, mean.dtype), axes)
    shares = jnp.full((1,) * joint.rank, 1 / len(corners))
    return Integrated(impossible_to_infinite(evidence), atoms_of(joint, points), shares, mean, root)

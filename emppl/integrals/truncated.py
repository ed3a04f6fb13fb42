"""A normal latent of which an observed Delta tells the interval or the point: the exact E-step of tobit and probit.

Without the Delta the log joint density is quadratic: a normal law. With it the evidence gains the log of the mass of
the interval under that law, and its moments there are known. Q is quadratic in the latent, so that two atoms, at mean
plus and minus one standard deviation, make it exact.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from emppl.integrals.joint import Joint
from emppl.integrals.limits import Limits
from emppl.integrals.outcome import Integrated, atoms_of
from emppl.numerics import truncated_normal as interval
from emppl.numerics.guarded import impossible_to_infinite


def truncate(joint: Joint, limits: Limits, mean: jax.Array, root: jax.Array) -> Integrated:
    """Evidence and atoms of a normal law inside its limits.

    Args:
        joint: the log joint density without the Delta sites.
        limits: what these say.
        mean: conditional mean without them, ``(groups, 1)``.
        root: root of the precision, ``(groups, 1, 1)``.
    """
    scale = root[:, 0, 0]
    log_mass, centre, variance = interval.moments(mean[:, 0], scale, limits.lower, limits.upper)
    centre = jnp.where(limits.is_point, limits.place, centre)
    deviation = jnp.where(limits.is_point, 0.0, jnp.sqrt(jnp.where(limits.is_point, 1.0, variance)))
    at = jnp.where(limits.is_point, limits.place, mean[:, 0])[:, None]
    volume = math.log(2 * math.pi) / 2 - jnp.log(scale) + log_mass
    inside = jnp.where(limits.is_point, 0.0, volume) + limits.measure
    inside = jnp.where(limits.is_impossible, -jnp.inf, inside)
    evidence = joint.by_cell(joint.tables(joint.unpack(at))) + joint.to_cells(inside)
    points = jnp.stack([centre + deviation, centre - deviation])[:, :, None]
    shares = jnp.full((1,) * joint.rank, 1 / 2)
    atoms = atoms_of(joint, points)
    return Integrated(impossible_to_infinite(evidence), atoms, shares, centre[:, None], 1 / deviation[:, None, None])


def draw_inside(limits: Limits, mean: jax.Array, root: jax.Array, rng_key: jax.Array) -> jax.Array:
    """One draw from the normal law inside its limits, ``(groups, 1)``."""
    drawn = interval.draw(rng_key, mean[:, 0], root[:, 0, 0], limits.lower, limits.upper)
    return jnp.where(limits.is_point, limits.place, drawn)[:, None]

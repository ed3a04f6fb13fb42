"""Importance sampling of an integral: weighted draws from a Student-t distribution at the conditional mode."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from emppl.integrals.integrated import Integrated, atoms_of, evidence_and_shares
from emppl.integrals.joint import Joint
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.numerics.guarded import impossible_to_infinite
from emppl.numerics.small_matrices import half_log_det, lower_inverse

_POINTS = (50, 1000)
"""Fewest and most draws for functions of the parameters."""

_CELLS = 2**23
"""Table cells that all points together may take."""


def importance_points(model: Model, integral: Integral) -> int:
    """How many draws the functions of the parameters take: as many as a table of moderate size holds."""
    sizes = model.axes.sizes
    sites = [model.factors[name].site for name in integral.factors]
    plates = [model.axes.plates_of(site, site.batch_shape) for site in sites]
    rows = max((math.prod(sizes[name] for name in names) for names in plates), default=1)
    states = math.prod(sizes[name] for name in integral.given)
    return int(np.clip(_CELLS // max(rows * states, 1), *_POINTS))


def degrees_of_freedom(dimensions: int) -> int:
    """Even, for tails heavier than those of most posteriors, and a radius that spreads little more than theirs."""
    return 2 * (3 + dimensions // 4)


def student_draws(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Draws from the standard multivariate Student-t distribution, ``(..., dimensions)``."""
    direction_key, radius_key = jax.random.split(key)
    df = degrees_of_freedom(shape[-1])
    # Chi-squared with an even number of degrees of freedom is a sum of exponentials, which compiles ten times faster
    # than a general gamma.
    squared = 2 * jnp.sum(jax.random.exponential(radius_key, (*shape[:-1], df // 2), dtype), -1)
    return jax.random.normal(direction_key, shape, dtype) * jnp.sqrt(df / squared)[..., None]


def student_log_density(draws: jax.Array, root: jax.Array) -> jax.Array:
    """Log density, at ``mean + root^-T draw``, of the Student-t distribution with that mean and precision root.

    Args:
        draws: standard, ``(..., groups, dimensions)``.
        root: lower triangular, ``(groups, dimensions, dimensions)``.
    """
    size = draws.shape[-1]
    df = degrees_of_freedom(size)
    constant = math.lgamma((df + size) / 2) - math.lgamma(df / 2) - size / 2 * math.log(df * math.pi)
    log_det = half_log_det(root)
    tail = -(df + size) / 2 * jnp.log1p(jnp.sum(draws**2, -1) / df)
    return constant + tail + jnp.reshape(log_det, (1,) * (tail.ndim - 1) + log_det.shape)


def placed(mean: jax.Array, root: jax.Array, draws: jax.Array) -> jax.Array:
    """Standard draws at their mean and scale: ``mean + root^-T draw``."""
    mean = jnp.reshape(mean, (1,) * (draws.ndim - mean.ndim) + mean.shape)
    return mean + jnp.einsum("...gj,gji->...gi", draws, lower_inverse(root))


def importance(joint: Joint, mean: jax.Array, root: jax.Array, key: jax.Array, num_points: int) -> Integrated:
    """Evidence and weighted atoms by importance sampling.

    The draws are constants for derivatives, so that those of the evidence are importance sampling, too.

    Args:
        joint: the log joint density.
        mean: conditional modes, ``(groups, dimensions)``.
        root: roots of the precisions there.
        num_points: number of draws.

    Returns:
        Evidence, and atoms with their shares.
    """
    mean, root = jax.lax.stop_gradient((mean, root))
    draws = student_draws(key, (num_points, *mean.shape), mean.dtype)
    points = placed(mean, root, draws)
    heights = jax.vmap(joint.by_group)(points) - student_log_density(draws, root)
    # A density that is not a number has no weight.
    heights = joint.atoms_to_cells(jnp.where(jnp.isnan(heights), -jnp.inf, heights))
    total, shares = evidence_and_shares(heights, joint.atom_axis)
    evidence = impossible_to_infinite(total - math.log(num_points))
    return Integrated(evidence, atoms_of(joint, points), shares, mean, root)

"""Continuous latents in the E-step: every integral leaves a log evidence per cell, and weighted atoms behind.

The log joint density of a group of latents is seen through automatic differentiation only: its gradient, and its
Hessian by few probes. ``conditional`` gives the conditional mode and precision (exact where the log joint is
quadratic); the strategies differ in what they make of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep.importance import importance, importance_points
from emppl.estep.integrated import Integrated, atoms_of
from emppl.estep.joint import Joint
from emppl.estep.state_space import integrate_states, precision_root
from emppl.integral import Integral
from emppl.numerics import impossible_to_infinite
from emppl.positive import lower_inverse, lower_root, solve_root
from emppl.program import Program
from emppl.strategies import Gaussian, Laplace, Quadrature, Simulated

_NEWTON_STEPS = 50
_HALVINGS = 20


def integrate_all(program: Program, params, leaves, guesses: Mapping[str, jax.Array] | None = None, key=None):
    """Every integral of the model.

    Args:
        program: the derived algorithm.
        params: constrained parameter values.
        leaves: the data.
        guesses: by integral, where to look for the modes first; default: zero.
        key: random numbers of simulated integrals; default: always the same.

    Returns:
        :class:`Integrated` by integral.
    """
    return {
        one.axis: integrate(program, one, params, leaves, (guesses or {}).get(one.axis), key)
        for one in program.integrals
    }


def integrate(program: Program, integral: Integral, params, leaves, guess=None, key=None) -> Integrated:
    """One integral, by its strategy."""
    joint = Joint(program, integral, params, leaves)
    if integral.states is not None:
        evidence, atoms, mean, covariance = integrate_states(joint)
        shares = jnp.full((1,) * joint.rank, 1 / integral.atoms)
        return Integrated(impossible_to_infinite(evidence), atoms, shares, mean, precision_root(covariance))
    start = joint.pack(joint.zeros()) if guess is None else guess
    if not isinstance(integral.strategy, Gaussian):
        start = jax.lax.stop_gradient(find_modes(joint, jax.lax.stop_gradient(start)))
    if isinstance(integral.strategy, Simulated):
        root = lower_root(made_positive(-joint.hessian(start)))
        # By default always the same numbers, so that the outcome is a smooth function of the parameters.
        key = jax.random.key(0) if key is None else key
        return importance(joint, start, root, key, importance_points(program, integral))
    mean, root = conditional(joint, start)
    if isinstance(integral.strategy, Gaussian | Laplace):
        return _normal(joint, mean, root)
    assert isinstance(integral.strategy, Quadrature)
    return _quadrature(joint, mean, root, integral.strategy.num_points)


def conditional(joint: Joint, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and root of the precision of the normal distribution that a quadratic log joint stands for.

    One Newton step solves it; the second recovers the digits that a far start loses, and carries the derivatives with
    respect to the parameters through where the log joint is not quadratic.

    Args:
        joint: the log joint density.
        start: where to begin, ``(groups, dimensions)``.

    Returns:
        ``(mean, root)``, the root lower triangular.
    """
    root = lower_root(-joint.hessian(start))
    mean = start + solve_root(root, joint.gradient(start))
    if not isinstance(joint.integral.strategy, Gaussian):
        root = lower_root(-joint.hessian(mean))
    return mean + solve_root(root, joint.gradient(mean)), root


def find_modes(joint: Joint, start: jax.Array) -> jax.Array:
    """Modes of all groups at once, by Newton steps that every group halves until it climbs.

    Args:
        joint: the log joint density.
        start: where to begin, ``(groups, dimensions)``.

    Returns:
        The modes.
    """
    tolerance = 64 * jnp.finfo(start.dtype).eps

    def keep_going(carry):
        _, _, number, settled = carry
        return (number < _NEWTON_STEPS) & ~settled

    def advance(carry):
        here, value, number, _ = carry
        slope = joint.gradient(here)
        step = solve_root(lower_root(made_positive(-joint.hessian(here))), slope)
        promise = jnp.sum(step * slope, -1)

        def too_far(inner):
            scale, there, halvings = inner
            return (halvings < _HALVINGS) & jnp.any(_worse(there, value, tolerance) & (scale > 0))

        def halve(inner):
            scale, there, halvings = inner
            scale = jnp.where(_worse(there, value, tolerance), scale / 2, scale)
            return scale, joint.by_group(here + scale[:, None] * step), halvings + 1

        scale = jnp.ones_like(value)
        scale, there, _ = jax.lax.while_loop(too_far, halve, (scale, joint.by_group(here + step), 0))
        worse = _worse(there, value, tolerance)
        here = jnp.where(worse[:, None], here, here + scale[:, None] * step)
        settled = jnp.all((promise <= tolerance * (1 + jnp.abs(value))) | worse)
        return here, jnp.where(worse, value, there), number + 1, settled

    found, *_ = jax.lax.while_loop(keep_going, advance, (start, joint.by_group(start), 0, jnp.asarray(False)))
    return found


def _worse(there, value, tolerance):
    return ~(there >= value - tolerance * (1 + jnp.abs(value)))


def made_positive(precision: jax.Array) -> jax.Array:
    """The precision, or where the log joint is not concave, one that makes a step climb all the same."""
    if precision.shape[-1] == 1:
        return jnp.maximum(jnp.abs(precision), jnp.finfo(precision.dtype).tiny ** 0.5)
    values, vectors = jnp.linalg.eigh(precision)
    size = jnp.abs(values)
    size = jnp.maximum(size, 1e-8 * jnp.max(size, -1, keepdims=True))
    return jnp.matmul(vectors * size[..., None, :], jnp.swapaxes(vectors, -1, -2))


def _normal(joint: Joint, mean: jax.Array, root: jax.Array) -> Integrated:
    """Evidence of a normal integral, and sigma points."""
    dimensions = mean.shape[-1]
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), -1)
    volume = dimensions / 2 * math.log(2 * math.pi) - half_log_det
    evidence = joint.by_cell(joint.tables(joint.unpack(mean))) + joint.to_cells(volume)
    # Rows of the inverse root, scaled: mean +- sqrt(d) C^-T e_i reproduces mean and covariance.
    deviations = math.sqrt(dimensions) * jnp.moveaxis(lower_inverse(root), -2, 0)
    points = jnp.concatenate([mean[None] + deviations, mean[None] - deviations])
    shares = jnp.full((1,) * joint.rank, 1 / (2 * dimensions))
    return Integrated(impossible_to_infinite(evidence), atoms_of(joint, points), shares, mean, root)


def _quadrature(joint: Joint, mean: jax.Array, root: jax.Array, num_points: int) -> Integrated:
    """Adaptive Gauss-Hermite quadrature: the nodes move with mode and curvature, but are constants for derivatives."""
    mean, root = jax.lax.stop_gradient((mean, root))
    dimensions = mean.shape[-1]
    nodes, weights = np.polynomial.hermite.hermgauss(num_points)
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*[nodes] * dimensions, indexing="ij")], -1)
    product = np.stack([axis.ravel() for axis in np.meshgrid(*[np.log(weights)] * dimensions, indexing="ij")], -1)
    log_weights = jnp.asarray(product.sum(-1) + (grid**2).sum(-1) + dimensions / 2 * math.log(2), mean.dtype)
    steps = math.sqrt(2) * jnp.asarray(grid, mean.dtype)
    points = mean[None] + jnp.einsum("sj,gji->sgi", steps, lower_inverse(root))
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), -1)
    atoms = atoms_of(joint, points)
    heights = joint.by_cell(joint.tables_at(atoms)) + joint.along_atoms(log_weights) - joint.to_cells(half_log_det)
    if not joint.is_real:
        jacobians = jax.vmap(lambda one: joint.to_cells(joint.log_jacobian(joint.unpack(one))))(points)
        heights = heights + jnp.squeeze(jnp.moveaxis(jacobians, 0, joint.atom_axis + 1), joint.atom_axis)
    evidence = jax.nn.logsumexp(heights, joint.atom_axis, keepdims=True)
    shares = jax.lax.stop_gradient(jnp.exp(heights - evidence))
    return Integrated(impossible_to_infinite(evidence), atoms, shares, mean, root)


def atom_weights(program: Program, integral: Integral, found: Integrated, weight: jax.Array, params, leaves) -> Any:
    """Posterior weights of the cells of every site that depends on an integrated latent.

    Args:
        program: the derived algorithm.
        integral: the latents.
        found: their atoms.
        weight: posterior weight of the evidence of every cell.
        params: constrained parameter values.
        leaves: the data.

    Returns:
        By site, the weights of the cells of its table, in the table's shape.
    """
    joint = Joint(program, integral, params, leaves)
    shapes = jax.eval_shape(joint.tables_at, found.atoms)
    cells = jax.eval_shape(joint.by_cell, shapes)
    back = jax.linear_transpose(joint.by_cell, shapes)
    return back(jnp.broadcast_to(weight * found.shares, cells.shape))[0]

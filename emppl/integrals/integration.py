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

from emppl.integrals.importance import importance, importance_points
from emppl.integrals.joint import Joint
from emppl.integrals.limits import find_limits
from emppl.integrals.nodes import has_heavy_tails, nodes
from emppl.integrals.outcome import Integrated, atoms_of, evidence_and_shares
from emppl.integrals.smoother import integrate_states, precision_root
from emppl.integrals.truncated import truncate
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.numerics.guarded import impossible_to_infinite
from emppl.numerics.small_matrices import half_log_det, lower_inverse, lower_root, simplex, solve_root
from emppl.parameters.constraints import constraint_name
from emppl.strategies import Gaussian, ImportanceSampling, Laplace, Quadrature, Simulated

_NEWTON_STEPS = 50
_HALVINGS = 60


def integrate_all(model: Model, params, data, guesses: Mapping[str, jax.Array] | None = None, key=None, known=None):
    """Every integral of the model.

    Args:
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        guesses: by integral, where to look for the modes first; default: zero.
        key: random numbers of simulated integrals; default: always the same.
        known: by integral, the limits of its latents, where they were found before.

    Returns:
        :class:`Integrated` by integral.
    """
    return {
        one.axis: integrate(model, one, params, data, (guesses or {}).get(one.axis), key, (known or {}).get(one.axis))
        for one in model.integrals
    }


def integrate(model: Model, integral: Integral, params, data, guess=None, key=None, limits=None) -> Integrated:
    """One integral, by its strategy."""
    joint = Joint(model, integral, params, data)
    if integral.states is not None:
        found, atoms = integrate_states(joint)
        shares = jnp.full((1,) * joint.rank, 1 / integral.atoms)
        evidence = impossible_to_infinite(found.evidence)
        return Integrated(evidence, atoms, shares, found.mean, precision_root(found.covariance), found.cancelled)
    start = joint.pack(joint.zeros()) if guess is None else guess
    strategy = integral.strategy
    if integral.limits:
        joint = Joint(model, integral.unlimited, params, data)
        limits = find_limits(model, integral, data) if limits is None else limits
        return truncate(joint, limits, *conditional(joint, start))
    if isinstance(strategy, Gaussian):
        mean, root = conditional(joint, start)
        return _normal(joint, mean, root, mean)
    if isinstance(strategy, Laplace) or (isinstance(strategy, Quadrature) and strategy.is_laplace):
        mode = differentiable_modes(joint, start)
        root = lower_root(-joint.hessian(mode))
        fixed = jax.lax.stop_gradient((mode, root))
        return _normal(joint, mode, root, fixed[0] + skewness_shift(joint, *fixed))
    # Where the atoms lie is a constant for derivatives: the integral does not depend on it, to the order of the rule.
    still = joint.at(jax.lax.stop_gradient(params))
    mode = find_modes(still, start)
    root = climbing_root(-still.hessian(mode))
    if isinstance(strategy, (Simulated, ImportanceSampling)):
        # By default always the same numbers, so that the outcome is a smooth function of the parameters.
        key = jax.random.key(0) if key is None else key
        if isinstance(strategy, ImportanceSampling):
            return importance(joint, mode, root, key, strategy.num_points)
        return importance(joint, mode, root, key, importance_points(model, integral))
    assert isinstance(strategy, Quadrature)
    return _quadrature(joint, mode, root, strategy.num_points)


def conditional(joint: Joint, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and root of the precision of the normal distribution that a quadratic log joint stands for.

    One Newton step solves it; the second recovers the digits that a far start loses.

    Args:
        joint: the log joint density.
        start: where to begin, ``(groups, dimensions)``.

    Returns:
        ``(mean, root)``, the root lower triangular.
    """
    root = lower_root(-joint.hessian(start))
    mean = start + solve_root(root, joint.gradient(start))
    return mean + solve_root(root, joint.gradient(mean)), root


def differentiable_modes(joint: Joint, start: jax.Array) -> jax.Array:
    """Modes of all groups, with their derivatives of every order with respect to parameters (implicit function)."""

    def solve(_, start):
        return find_modes(joint, start)

    def tangent_solve(product, right):
        unit = jnp.eye(right.shape[-1], dtype=right.dtype)
        columns = jax.lax.map(lambda vector: product(jnp.broadcast_to(vector, right.shape)), unit)
        # The precision is positive at a mode; where none was found, NaN says so.
        return -solve_root(lower_root(-jnp.moveaxis(columns, 0, -1)), right)

    return jax.lax.custom_root(joint.gradient, jax.lax.stop_gradient(start), solve, tangent_solve)


def skewness_shift(joint: Joint, mode: jax.Array, root: jax.Array) -> jax.Array:
    """Leading term of mean minus mode, from the third derivatives of the log joint density.

    With it the expectation of a function equals its change of Laplace's log evidence (Tierney and Kadane's fully
    exponential form), to first order.

    Args:
        joint: the log joint density.
        mode: ``(groups, dimensions)``.
        root: lower triangular root of the precision there.
    """

    def along(direction):
        def curvature(at):
            return jax.jvp(joint.gradient, (at,), (direction,))[1]

        return jax.jvp(curvature, (mode,), (direction,))[1]

    # Rows of the inverse root are the axes of the covariance.
    directions = jnp.moveaxis(lower_inverse(root), -2, 0)
    return solve_root(root, jnp.sum(jax.lax.map(along, directions), 0) / 2)


def find_modes(joint: Joint, start: jax.Array) -> jax.Array:
    """Modes of all groups at once, by Newton steps that every group halves until it climbs.

    Args:
        joint: the log joint density.
        start: where to begin, ``(groups, dimensions)``.

    Returns:
        The modes.
    """
    eps = jnp.finfo(start.dtype).eps
    tolerance = 64 * eps

    def worse(there, value):
        return ~(there >= value - tolerance * (1 + jnp.abs(value)))

    def keep_going(carry):
        _, _, number, settled = carry
        return (number < _NEWTON_STEPS) & ~settled

    def advance(carry):
        here, value, number, _ = carry
        slope, hessian = joint.gradient_and_hessian(here)
        step = solve_root(climbing_root(-hessian), slope)
        promise = jnp.sum(step * slope, -1)
        # Where the density is flat to rounding a step may promise anything.
        step = step * jnp.minimum(1, (1 + jnp.abs(value)) / (jnp.sqrt(eps) * promise))[:, None]

        def too_far(inner):
            _, there, halvings = inner
            return (halvings < _HALVINGS) & jnp.any(worse(there, value))

        def halve(inner):
            scale, there, halvings = inner
            scale = jnp.where(worse(there, value), scale / 2, scale)
            return scale, joint.by_group(here + scale[:, None] * step), halvings + 1

        scale, there, _ = jax.lax.while_loop(too_far, halve, (jnp.ones_like(value), joint.by_group(here + step), 0))
        stuck = worse(there, value)
        here = jnp.where(stuck[:, None], here, here + scale[:, None] * step)
        # What a step promises is its squared length: where it was rounding, the step itself gave the last digits.
        settled = jnp.all((promise <= tolerance * (1 + jnp.abs(value))) | stuck)
        return here, jnp.where(stuck, value, there), number + 1, settled

    start = jax.lax.stop_gradient(start)
    found, *_ = jax.lax.while_loop(keep_going, advance, (start, joint.by_group(start), 0, jnp.asarray(False)))
    return found


def climbing_root(precision: jax.Array) -> jax.Array:
    """Lower triangular root of a precision; where that is not positive, of one that makes a step climb all the same.

    Twice the most negative Gershgorin bound is added to the diagonal: in one dimension, the sign is turned round.
    """
    root = lower_root(precision)
    diagonal = jnp.diagonal(precision, axis1=-2, axis2=-1)
    size = jnp.abs(precision)
    lowest = jnp.min(diagonal - jnp.sum(size, -1) + jnp.abs(diagonal), -1)
    limits = jnp.finfo(precision.dtype)
    floor = limits.eps * jnp.max(size, (-2, -1)) + limits.tiny**0.5
    shift = 2 * jnp.maximum(-lowest, 0) + floor
    unit = jnp.broadcast_to(jnp.eye(precision.shape[-1], dtype=precision.dtype), precision.shape)
    positive = lower_root(precision + shift[..., None, None] * unit)
    fails = jnp.any(jnp.isnan(root), (-2, -1), keepdims=True)
    return jnp.where(fails, positive, root)


def _normal(joint: Joint, mean: jax.Array, root: jax.Array, centre: jax.Array) -> Integrated:
    """Evidence of a normal integral, and sigma points around a centre."""
    dimensions = mean.shape[-1]
    volume = dimensions / 2 * math.log(2 * math.pi) - half_log_det(root)
    evidence = joint.by_cell(joint.tables(joint.unpack(mean))) + joint.to_cells(volume)
    axes = lower_inverse(root)  # its rows are the axes of the covariance
    if isinstance(joint.integral.strategy, Gaussian):
        corners = simplex(dimensions)
    else:
        # Not quadratic: symmetric points, which also have the third moments of a normal variable. Along the axes they
        # would lie sqrt(d) deviations apart, in one entry each: no way to see a curve. After a rotation every entry
        # takes values as a normal variable does.
        corners = math.sqrt(dimensions) * np.concatenate([np.eye(dimensions), -np.eye(dimensions)])
        if dimensions > 2:
            corners = corners @ _rotation(dimensions)
    points = centre[None] + jnp.einsum("sj,gjk->sgk", jnp.asarray(corners, mean.dtype), axes)
    shares = jnp.full((1,) * joint.rank, 1 / len(corners))
    return Integrated(impossible_to_infinite(evidence), atoms_of(joint, points), shares, mean, root)


def _quadrature(joint: Joint, mean: jax.Array, root: jax.Array, num_points: int) -> Integrated:
    """Adaptive quadrature by a product rule: nodes move with mode and curvature, but are constants for derivatives."""
    mean, root = jax.lax.stop_gradient((mean, root))
    heavy = _slow_entries(joint)
    steps, log_weights = (
        jnp.asarray(
            np.stack([axis.ravel() for axis in np.meshgrid(*[one] * mean.shape[-1], indexing="ij")], -1), mean.dtype
        )
        for one in nodes(num_points, bool(heavy))
    )
    log_weights = jnp.sum(log_weights, -1)
    points = mean[None] + jnp.einsum("sj,gji->sgi", steps, lower_inverse(root))
    outside = None
    if heavy:
        # Where the exponential of a point is no number, there is no density: such a node has no weight.
        far = jnp.abs(points) > 0.9 * math.log(jnp.finfo(points.dtype).max)
        within_bounds = joint.pack({name: jnp.full_like(one, name in heavy) for name, one in joint.zeros().items()})
        outside = jnp.any(far & (within_bounds > 0)[None], -1, keepdims=True)
        points = jnp.where(outside, mean[None], points)
    atoms = atoms_of(joint, points)
    volume = joint.along_atoms(log_weights) - joint.to_cells(half_log_det(root))
    tables = joint.tables_at(atoms)
    for name, jacobians in jax.vmap(lambda one: joint.log_jacobians(joint.unpack(one)))(points).items():
        tables[name] = tables[name] + joint.over_atoms(jacobians)
    heights = joint.by_cell(tables) + volume
    if outside is not None:
        heights = heights + joint.atoms_to_cells(jnp.where(outside[..., 0], -jnp.inf, 0.0))
    evidence, shares = evidence_and_shares(heights, joint.atom_axis)
    return Integrated(impossible_to_infinite(evidence), atoms, shares, mean, root)


def _slow_entries(joint: Joint) -> frozenset[str]:
    """The latents whose density falls off slowly where they are unconstrained."""
    sites = joint.model.trace.sites
    return frozenset(
        name
        for name in joint.integral.latents
        if has_heavy_tails(constraint_name(joint.constraints[name]), sites[name].distribution)
    )


def _rotation(dimensions: int) -> np.ndarray:
    """An orthogonal matrix without preferred axes, always the same."""
    normal = np.random.default_rng(dimensions).standard_normal((dimensions, dimensions))
    return np.linalg.qr(normal)[0]


def atom_weights(model: Model, integral: Integral, found: Integrated, weight: jax.Array, params, data) -> Any:
    """Posterior weights of the cells of every site that depends on an integrated latent.

    Args:
        model: the model.
        integral: the latents.
        found: their atoms.
        weight: posterior weight of the evidence of every cell.
        params: constrained parameter values.
        data: arrays of the model's arguments.

    Returns:
        By site, the weights of the cells of its table, in the table's shape.
    """
    joint = Joint(model, integral, params, data)
    shapes = jax.eval_shape(joint.tables_at, found.atoms)
    cells = jax.eval_shape(joint.by_cell, shapes)
    back = jax.linear_transpose(joint.by_cell, shapes)
    weights = back(jnp.broadcast_to(weight * found.shares, cells.shape))[0]
    # Observed Delta sites are constants where they are possible; the atoms may lie beyond the edge by rounding.
    return {name: jnp.zeros_like(one) if name in integral.limits else one for name, one in weights.items()}

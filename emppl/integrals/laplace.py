"""Laplace's approximation: the normal distribution at the conditional mode in the place of the conditional one."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import Refusal
from emppl.integrals.exact import normal_draw
from emppl.integrals.integrated import Integrated, normal_integral
from emppl.integrals.joint import Joint
from emppl.integrals.modes import differentiable_modes
from emppl.integrals.way import Question, Way
from emppl.names import model_name
from emppl.numerics.curvature import third_derivative
from emppl.numerics.small_matrices import lower_inverse, lower_root, solve_root
from emppl.strategies import Laplace


class AtMode(Way):
    """Sigma points of the normal distribution at the mode, shifted by the leading term of mean minus mode."""

    strategies = (Laplace,)

    @classmethod
    def propose(cls, question: Question) -> Way | Refusal:
        """It has to be asked for, and needs a smooth density."""
        if question.asked is None:
            return Refusal("it is approximate, without a bound on its error")
        return corner_at_mode(question) or cls(question.asked, reason_at_mode(question))

    def integrate(self, joint: Joint, start: jax.Array) -> Integrated:
        """From the mode."""
        return integrate_at_mode(joint, start)

    def draw(self, joint: Joint, integrated: Integrated, key: jax.Array) -> jax.Array:
        """From the normal distribution."""
        return normal_draw(integrated, key)


def corner_at_mode(question: Question) -> Refusal | None:
    """Why curvature at the mode says nothing: a corner of a latent's own density, where the mode sits."""
    own = [name for name in question.corners if name in map(model_name, question.integral.latents)]
    if not own:
        return None
    return Refusal(
        f"{question.asked!r} needs a smooth density, and that of {', '.join(map(repr, own))} has a corner, where the "
        f"nodes would gather: the log-likelihood would have no bound. Write EM(model, latents={{{own[0]!r}: "
        "MonteCarlo()}), or choose a smooth density, such as SoftLaplace or StudentT."
    )


def reason_at_mode(question: Question) -> str:
    """What kind of density it is, for the plan."""
    return question.reason + (", where quadrature is less accurate" if question.corners else "")


def integrate_at_mode(joint: Joint, start: jax.Array) -> Integrated:
    """Laplace's log evidence, and sigma points."""
    mode = differentiable_modes(joint, start)
    root = lower_root(-joint.hessian(mode))
    fixed_mode, fixed_root = jax.lax.stop_gradient((mode, root))
    dimensions = mode.shape[-1]
    # Not quadratic: symmetric points, which also have the third moments of a normal variable. Along the axes they
    # would lie sqrt(d) deviations apart, in one entry each: no way to see a curve. After a rotation every entry
    # takes values as a normal variable does.
    corners = math.sqrt(dimensions) * np.concatenate([np.eye(dimensions), -np.eye(dimensions)])
    if dimensions > 2:
        corners = corners @ _rotation(dimensions)
    return normal_integral(joint, mode, root, fixed_mode + _skewness_shift(joint, fixed_mode, fixed_root), corners)


def _skewness_shift(joint: Joint, mode: jax.Array, root: jax.Array) -> jax.Array:
    """Leading term of mean minus mode, from the third derivatives of the log joint density.

    With it the expectation of a function equals its change of Laplace's log evidence (Tierney and Kadane's fully
    exponential form), to first order.

    Args:
        joint: the log joint density.
        mode: ``(groups, dimensions)``.
        root: lower triangular root of the precision there.
    """
    # Rows of the inverse root are the axes of the covariance.
    directions = jnp.moveaxis(lower_inverse(root), -2, 0)
    third = jax.lax.map(lambda along: third_derivative(joint.gradient, mode, along), directions)
    return solve_root(root, jnp.sum(third, 0) / 2)


def _rotation(dimensions: int) -> np.ndarray:
    """An orthogonal matrix without preferred axes, always the same."""
    normal = np.random.default_rng(dimensions).standard_normal((dimensions, dimensions))
    return np.linalg.qr(normal)[0]

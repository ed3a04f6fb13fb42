"""Adaptive quadrature by a product rule: its nodes move with the mode and the curvature there.

Gauss-Hermite nodes are exact for a normal density times a polynomial. A latent within bounds is seen as a logarithm or
logit, where the density falls off as an exponential does: the nodes end long before it does. For such latents the
trapezoidal rule takes over, in a variable ``t`` whose hyperbolic sine the integrand's variable is, so that exponential
tails fall off doubly exponentially.

Reference:
    Takahasi and Mori (1974), Double exponential formulas for numerical integration, Publications of the RIMS, Kyoto
    University 9:721-741.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import Refusal
from emppl.integrals.integrated import Integrated, atoms_of, evidence_and_shares
from emppl.integrals.joint import Joint
from emppl.integrals.laplace import corner_at_mode, integrate_at_mode, reason_at_mode
from emppl.integrals.modes import fixed_approximation
from emppl.integrals.way import Question, Way
from emppl.numerics.guarded import impossible_to_infinite
from emppl.numerics.small_matrices import half_log_det, lower_inverse
from emppl.strategies import DEFAULT_NODES, NODES_WITHIN_BOUNDS, Quadrature

_MOST_DIMENSIONS = 3

_BEND = 0.5
"""``sinh(_BEND t) / _BEND`` is the identity near zero."""

_FEWEST_FOR_TAILS = 15
"""With fewer nodes there are none to spend on tails: where the data leave little of these, Hermite's are far better."""

_NORMAL = ("LogNormal", "TransformedDistribution")
"""Distributions within bounds that are those of a function of a real variable, whose tails the nodes are made for."""


class ProductRule(Way):
    """The same nodes in every dimension, up to three."""

    strategies = (Quadrature,)

    @classmethod
    def propose(cls, question: Question) -> Way | Refusal:
        """It needs few dimensions and, unless asked for, a density without corners."""
        dimensions = question.integral.dimensions
        if question.asked is None:
            if dimensions not in DEFAULT_NODES:
                return Refusal("it integrates up to 3 numbers together")
            if question.corners:
                return Refusal("the density has corners")
            nodes = NODES_WITHIN_BOUNDS if question.integral.bounded(question.model.trace) else DEFAULT_NODES
            return cls(Quadrature(nodes[dimensions]), question.reason)
        corner = corner_at_mode(question)
        if corner is None and dimensions > _MOST_DIMENSIONS:
            return Refusal(
                f"Quadrature() integrates up to {_MOST_DIMENSIONS} numbers together, but {question.names} has "
                f"{dimensions} in every group. Use MonteCarlo(), or Laplace(), which is approximate."
            )
        return corner or cls(question.asked, reason_at_mode(question))

    def integrate(self, joint: Joint, start: jax.Array) -> Integrated:
        """Nodes are constants for derivatives: the integral does not depend on them, to the order of the rule."""
        assert isinstance(self.strategy, Quadrature)
        if self.strategy.is_laplace:
            return integrate_at_mode(joint, start)
        mode, root = jax.lax.stop_gradient(fixed_approximation(joint, start))
        return _product_rule(joint, mode, root, self.strategy.num_points)


def _product_rule(joint: Joint, mean: jax.Array, root: jax.Array, num_points: int) -> Integrated:
    trace = joint.model.trace
    # Their density falls off no faster than exponentially where they are unconstrained.
    heavy = [name for name in joint.integral.bounded(trace) if trace.sites[name].distribution not in _NORMAL]
    steps, log_weights = (
        jnp.asarray(
            np.stack([axis.ravel() for axis in np.meshgrid(*[rule] * mean.shape[-1], indexing="ij")], -1), mean.dtype
        )
        for rule in nodes(num_points, bool(heavy))
    )
    log_weights = jnp.sum(log_weights, -1)
    points = mean[None] + jnp.einsum("sj,gji->sgi", steps, lower_inverse(root))
    outside = None
    if heavy:
        # Where the exponential of a point is no number, there is no density: such a node has no weight.
        far = jnp.abs(points) > 0.9 * math.log(jnp.finfo(points.dtype).max)
        within_bounds = joint.pack({name: jnp.full_like(zero, name in heavy) for name, zero in joint.zeros().items()})
        outside = jnp.any(far & (within_bounds > 0)[None], -1, keepdims=True)
        points = jnp.where(outside, mean[None], points)
    atoms = atoms_of(joint, points)
    volume = joint.along_atoms(log_weights) - joint.to_cells(half_log_det(root))
    tables = joint.tables_at(atoms)
    for name, jacobians in jax.vmap(lambda vectors: joint.log_jacobians(joint.unpack(vectors)))(points).items():
        tables[name] = tables[name] + joint.over_atoms(jacobians)
    heights = joint.by_cell(tables) + volume
    if outside is not None:
        heights = heights + joint.atoms_to_cells(jnp.where(outside[..., 0], -jnp.inf, 0.0))
    evidence, shares = evidence_and_shares(heights, joint.atom_axis)
    return Integrated(impossible_to_infinite(evidence), atoms, shares, mean, root)


def nodes(number: int, heavy_tails: bool) -> tuple[np.ndarray, np.ndarray]:
    """Nodes ``z`` and log weights ``w`` in one dimension: the integral of ``f`` is about ``sum(exp(w) f(z))``.

    The integrand has its mode at zero and unit curvature there.

    Args:
        number: how many.
        heavy_tails: for integrands that fall off exponentially.
    """
    if not heavy_tails or number < _FEWEST_FOR_TAILS:
        standard, weights = np.polynomial.hermite.hermgauss(number)
        return math.sqrt(2) * standard, np.log(weights) + standard**2 + math.log(2) / 2
    # More nodes both go further and lie closer. Where they end gave the least error of integrals of gamma, beta,
    # half-normal and exponential latents, of 15 to 61 nodes.
    end = 2.8 + 0.6 * math.sqrt(number)
    t, step = np.linspace(-end, end, number, retstep=True)
    return np.sinh(_BEND * t) / _BEND, np.log(step * np.cosh(_BEND * t))

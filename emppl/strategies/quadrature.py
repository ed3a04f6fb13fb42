"""Strategies whose atoms lie around the conditional mode of a continuous latent: quadrature; Laplace is one node."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from emppl.errors import ParameterError, check_whole
from emppl.strategies.base import Continuous, ObjectiveKind
from emppl.strategies.sampling import ImportanceSampling

DEFAULT_NODES = {1: 15, 2: 9, 3: 7}
"""Default nodes per dimension of the quadrature, by the number of dimensions."""

NODES_WITHIN_BOUNDS = {1: 41, 2: 15, 3: 9}
"""Default nodes for latents within bounds: unconstrained, their densities have heavier tails than the rule expects."""

_MIN_ACCURATE_NODES = 5
"""Nodes per dimension, from which on the error of adaptive quadrature falls fast with every further one."""


@dataclasses.dataclass(frozen=True)
class Laplace(Continuous):
    """Approximate the conditional distribution of a continuous latent by a normal one at its mode.

    The log-likelihood is Laplace's approximation, not the log-likelihood itself. The E-step takes the sigma points of
    the normal distribution, whose mean is the mode plus the leading term of the difference between mean and mode: then
    expectations have the accuracy of the approximation itself, and the iterations end close to its maximum.

    Reference:
        Tierney and Kadane (1986), Accurate approximations for posterior moments and marginal densities, JASA 81:82-86.
        Steele (1996), A modified EM algorithm for estimation in generalized mixed models, Biometrics 52:1295-1310.
    """

    title: ClassVar[str] = "Laplace (approximate)"
    objective_kind: ClassVar[ObjectiveKind] = ObjectiveKind.APPROXIMATE

    def atoms(self, dimensions: int) -> int:
        """Two sigma points per dimension."""
        return 2 * dimensions

    def finer(self, dimensions: int) -> Continuous:
        """Quadrature, as far as its product rules go, then importance sampling."""
        return Quadrature(DEFAULT_NODES[dimensions]) if dimensions in DEFAULT_NODES else ImportanceSampling()


@dataclasses.dataclass(frozen=True)
class Quadrature(Continuous):
    """Integrate a continuous latent by Gauss-Hermite quadrature, the nodes at and around its conditional mode.

    Adaptive: in every plate cell the nodes are centred at the conditional mode and scaled by the curvature there. Up to
    three numbers are integrated together, by a product rule. One node is :class:`Laplace`. The logarithm or logit of a
    latent within bounds has exponential tails: 15 nodes or more are then those of the trapezoidal rule in double
    exponential coordinates.

    ``result.integration_error`` compares the log-likelihood with that of a rule of nearly twice the nodes.

    Args:
        num_points: nodes per dimension; below 5 the plan calls the E-step approximate.

    Reference:
        Pinheiro and Bates (1995), Approximations to the log-likelihood function in the nonlinear mixed-effects model,
        JCGS 4:12-35; Takahasi and Mori (1974), Double exponential formulas for numerical integration, Publications of
        the RIMS 9:721-741.
    """

    num_points: int = 15

    def __post_init__(self) -> None:
        check_whole("num_points of Quadrature", self.num_points)
        if self.num_points < 1:
            raise ParameterError(f"Quadrature needs at least 1 node, not {self.num_points}.")

    @property
    def title(self) -> str:
        """Name in the plan, with the number of nodes."""
        if self.num_points == 1:
            return "Quadrature with one node: Laplace (approximate)"
        order = (
            "approximate"
            if self.objective_kind is ObjectiveKind.APPROXIMATE
            else "approximate to the order of its nodes"
        )
        return f"Quadrature, {self.num_points} nodes per dimension ({order})"

    @property
    def objective_kind(self) -> ObjectiveKind:
        """Quadrature, or an approximation of unknown error where the nodes are few."""
        return ObjectiveKind.QUADRATURE if self.num_points >= _MIN_ACCURATE_NODES else ObjectiveKind.APPROXIMATE

    @property
    def is_laplace(self) -> bool:
        """Whether the only node is the mode."""
        return self.num_points == 1

    def atoms(self, dimensions: int) -> int:
        """The nodes of the product rule; for one node the sigma points of Laplace's approximation."""
        return 2 * dimensions if self.is_laplace else self.num_points**dimensions

    def finer(self, dimensions: int) -> Quadrature:
        """A rule with nearly twice the nodes, at least nine per dimension."""
        return Quadrature(max(2 * self.num_points - 1, 2 * _MIN_ACCURATE_NODES - 1))

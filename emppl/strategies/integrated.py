"""Strategies for continuous latents that move nodes: exact, by quadrature, or by a normal distribution at the mode."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from emppl.errors import ParameterError, check_whole
from emppl.strategies.base import Continuous, ObjectiveKind


@dataclasses.dataclass(frozen=True)
class Gaussian(Continuous):
    """Integrate a continuous latent exactly, where the log joint density is quadratic in it.

    The conditional distribution of the latent is then normal; ``d + 1`` sigma points of equal weights, the corners of a
    simplex, reproduce its mean and covariance, and with them the expectation of every quadratic, so that Q is exact for
    all parameters.

    The default wherever it applies.

    Reference:
        Julier (2003), The spherical simplex unscented transformation, Proc. American Control Conference: 2430-2434.
    """

    title: ClassVar[str] = "Gaussian (exact)"
    objective_kind: ClassVar[ObjectiveKind] = ObjectiveKind.EXACT

    def atoms(self, dimensions: int) -> int:
        """One more than there are dimensions."""
        return dimensions + 1


@dataclasses.dataclass(frozen=True)
class TruncatedGaussian(Gaussian):
    """``Gaussian`` where an observed Delta restricts the latent to an interval or a point; chosen by itself.

    ``sample("y", Delta(jnp.maximum(w, 0)), obs=y)`` is a tobit model, ``Delta(w > 0)`` a probit. The conditional
    distribution of the latent is a truncated normal one. Two atoms reproduce its mean and variance, and with them the
    expectation of every quadratic.
    """

    title: ClassVar[str] = "truncated normal (exact)"


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
        """Two for every dimension."""
        return 2 * dimensions

    def finer(self, dimensions: int) -> Continuous:
        """Quadrature, as far as its product rules go, then importance sampling."""
        return Quadrature(DEFAULT_NODES[dimensions]) if dimensions in DEFAULT_NODES else ImportanceSampling()


@dataclasses.dataclass(frozen=True)
class Quadrature(Continuous):
    """Integrate a continuous latent by Gauss-Hermite quadrature, the nodes at and around its conditional mode.

    Adaptive: in every plate cell the nodes are centred at the conditional mode and scaled by the curvature there. Up to
    three numbers are integrated together, by a product rule. One node is :class:`Laplace`. For a latent within bounds,
    whose logarithm or logit has exponential tails, 15 nodes or more are those of the trapezoidal rule in double
    exponential coordinates.

    How far the log-likelihood is off is told by a rule with nearly twice the nodes: ``result.integration_error``.

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
        """With the number of nodes."""
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
        """With few nodes there is no telling how close the log-likelihood is."""
        return ObjectiveKind.QUADRATURE if self.num_points >= _FEW_NODES else ObjectiveKind.APPROXIMATE

    @property
    def is_laplace(self) -> bool:
        """One node at the mode."""
        return self.num_points == 1

    def atoms(self, dimensions: int) -> int:
        """A product rule."""
        return 2 * dimensions if self.is_laplace else self.num_points**dimensions

    def finer(self, dimensions: int) -> Quadrature:
        """A rule with nearly twice the nodes, and not few."""
        return Quadrature(max(2 * self.num_points - 1, 2 * _FEW_NODES - 1))


@dataclasses.dataclass(frozen=True)
class ImportanceSampling(Continuous):
    """Weighted draws from a Student-t distribution at the mode: what Laplace's approximation is compared with.

    Args:
        num_points: number of draws in one estimate.
        replicates: number of independent estimates, whose spread is the Monte Carlo error.
    """

    num_points: int = 200
    replicates: int = 10

    title: ClassVar[str] = "importance sampling"
    objective_kind: ClassVar[ObjectiveKind] = ObjectiveKind.MONTE_CARLO

    def atoms(self, dimensions: int) -> int:
        """Those of all estimates, however many dimensions there are."""
        return self.num_points * self.replicates


DEFAULT_NODES = {1: 15, 2: 9, 3: 7}
"""By the number of dimensions, nodes per dimension of the quadrature that is taken by default."""

NODES_WITHIN_BOUNDS = {1: 41, 2: 15, 3: 9}
"""The same for latents within bounds: unconstrained, their densities have heavier tails than the rule is made for."""

_FEW_NODES = 5
"""From so many nodes on, the error of adaptive quadrature falls fast with every further one."""

"""How the E-step treats a latent, and what kind of evidence that leaves the loop with."""

from __future__ import annotations

import abc
import dataclasses
import enum
from typing import ClassVar

from emppl.errors import ParameterError


class Evidence(enum.Enum):
    """What the objective of an iteration is; the value orders them from the best to the worst."""

    EXACT = 0
    """The log-likelihood itself: EM cannot lower it."""

    QUADRATURE = 1
    """The log-likelihood to the order of a quadrature rule, whose nodes move with the parameters."""

    APPROXIMATE = 2
    """An approximation without a bound on its error: where the iterations settle need not be its maximum."""

    @property
    def words(self) -> str:
        """For the plan."""
        return {
            Evidence.EXACT: "exact E-step",
            Evidence.QUADRATURE: "E-step by quadrature, approximate to the order of its nodes",
            Evidence.APPROXIMATE: "approximate E-step",
        }[self]


class Strategy(abc.ABC):
    """How the E-step fills the axis of a latent with atoms and gives them weights.

    Attributes:
        title: how the plan calls it.
        evidence: what kind of log-likelihood it gives.
    """

    title: ClassVar[str]
    evidence: ClassVar[Evidence]

    @abc.abstractmethod
    def why_not(self, name: str, kind: str) -> str | None:
        """The reason why it cannot treat a latent, or None.

        Args:
            name: the latent.
            kind: ``"discrete"`` or ``"continuous"``.

        Returns:
            What to do instead, for the error message.
        """


@dataclasses.dataclass(frozen=True)
class Enumerate(Strategy):
    """Sum over every value of a discrete latent, exactly.

    The default for discrete latents; ``EM(model, latents={"z": Enumerate()})`` only says it aloud.
    """

    title: ClassVar[str] = "Enumerate (exact)"
    evidence: ClassVar[Evidence] = Evidence.EXACT

    def why_not(self, name: str, kind: str) -> str | None:
        """It needs a discrete latent."""
        if kind == "discrete":
            return None
        return (
            "a continuous latent has no finite list of values. Integrate it: "
            f"EM(model, latents={{{name!r}: Gaussian()}}), exact where the log joint is quadratic in {name!r}, or "
            f"Quadrature(15). Or maximise over it: EM(model, estimate=[{name!r}])."
        )


class Continuous(Strategy):
    """A strategy that integrates a continuous latent."""

    def why_not(self, name: str, kind: str) -> str | None:
        """It needs a continuous latent."""
        if kind != "discrete":
            return None
        return f"{name!r} is discrete: leave it to Enumerate(), which sums over its values exactly."

    @abc.abstractmethod
    def atoms(self, dimensions: int) -> int:
        """How many atoms a group of latents gets.

        Args:
            dimensions: how many numbers are integrated together.
        """


@dataclasses.dataclass(frozen=True)
class Gaussian(Continuous):
    """Integrate a continuous latent exactly, where the log joint density is quadratic in it.

    The conditional distribution of the latent is then normal; its ``2 d`` sigma points, of equal weights, reproduce its
    mean and covariance, and with them the expectation of every quadratic, so that Q is exact for all parameters.

    The default wherever it applies.

    Reference:
        Julier and Uhlmann (1997), A new extension of the Kalman filter to nonlinear systems (sigma points).
    """

    title: ClassVar[str] = "Gaussian (exact)"
    evidence: ClassVar[Evidence] = Evidence.EXACT

    def atoms(self, dimensions: int) -> int:
        """Two for every dimension."""
        return 2 * dimensions


@dataclasses.dataclass(frozen=True)
class Laplace(Continuous):
    """Approximate the conditional distribution of a continuous latent by a normal one at its mode.

    The log-likelihood is Laplace's approximation, not the log-likelihood itself; the E-step takes the sigma points of
    the normal distribution.

    Reference:
        Tierney and Kadane (1986), Accurate approximations for posterior moments and marginal densities, JASA 81:82-86.
    """

    title: ClassVar[str] = "Laplace (approximate)"
    evidence: ClassVar[Evidence] = Evidence.APPROXIMATE

    def atoms(self, dimensions: int) -> int:
        """Two for every dimension."""
        return 2 * dimensions


@dataclasses.dataclass(frozen=True)
class Quadrature(Continuous):
    """Integrate a continuous latent by Gauss-Hermite quadrature, the nodes at and around its conditional mode.

    Adaptive: in every plate cell the nodes are centred at the conditional mode and scaled by the curvature there. Up to
    three numbers are integrated together, by a product rule.

    Args:
        num_points: nodes per dimension.

    Reference:
        Pinheiro and Bates (1995), Approximations to the log-likelihood function in the nonlinear mixed-effects model,
        JCGS 4:12-35.
    """

    num_points: int = 15

    title: ClassVar[str] = "Quadrature (approximate to the order of its nodes)"
    evidence: ClassVar[Evidence] = Evidence.QUADRATURE

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise ParameterError(f"Quadrature needs at least 1 node, not {self.num_points}.")

    def atoms(self, dimensions: int) -> int:
        """A product rule."""
        return self.num_points**dimensions

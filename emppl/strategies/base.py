"""What a strategy is, and what kind of objective it gives the iterations."""

from __future__ import annotations

import abc
import enum
from typing import Any, ClassVar


class ObjectiveKind(enum.Enum):
    """What the objective of an iteration is; the value orders them from the best to the worst."""

    EXACT = 0
    """The log-likelihood itself: EM cannot lower it."""

    CLASSIFICATION = 1
    """The log-likelihood of data and best assignment together, another objective: hard EM cannot lower it."""

    QUADRATURE = 2
    """The log-likelihood to the order of a quadrature rule, whose nodes move with the parameters."""

    MONTE_CARLO = 3
    """The log-likelihood in the limit of many draws; every gain and every estimate comes with its Monte Carlo error."""

    APPROXIMATE = 4
    """An approximation without a bound on its error: where the iterations settle need not be its maximum."""

    @property
    def is_approximate(self) -> bool:
        """Whether the objective is something else than the log-likelihood."""
        return self is not ObjectiveKind.EXACT

    @property
    def words(self) -> str:
        """Wording in the plan."""
        return {
            ObjectiveKind.EXACT: "exact E-step",
            ObjectiveKind.CLASSIFICATION: "exact maximum over assignments",
            ObjectiveKind.QUADRATURE: "E-step by quadrature, approximate to the order of its nodes",
            ObjectiveKind.MONTE_CARLO: "E-step by Monte Carlo, with a stated error",
            ObjectiveKind.APPROXIMATE: "approximate E-step",
        }[self]


class Strategy(abc.ABC):
    """How the E-step fills the axis of a latent with atoms and gives them weights."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """Name in the plan."""

    @property
    @abc.abstractmethod
    def objective_kind(self) -> ObjectiveKind:
        """Kind of the objective that it leads to."""

    @abc.abstractmethod
    def why_not(self, name: str, kind: str) -> str | None:
        """Reason why a latent cannot be treated this way, or None.

        Args:
            name: the latent.
            kind: ``"discrete"`` or ``"continuous"``.

        Returns:
            The reason and what to do instead, for the error message.
        """


class Continuous(Strategy):
    """A strategy that integrates a continuous latent."""

    def why_not(self, name: str, kind: str) -> str | None:
        """Refuses discrete latents."""
        if kind != "discrete":
            return None
        return f"{name!r} is discrete: leave it to Enumerate(), which sums over its values exactly."

    way: ClassVar[Any] = None
    """How a strategy of one's own is carried out: a subclass of :class:`emppl.integrals.Way`."""

    @abc.abstractmethod
    def atoms(self, dimensions: int) -> int:
        """Number of atoms of a group of latents.

        Args:
            dimensions: how many numbers are integrated together.
        """

    def words(self, dimensions: int) -> str:
        """What makes the atoms, for the plan; empty where the title says it."""
        del dimensions
        return ""

    def finer(self, dimensions: int) -> Continuous | None:
        """A more accurate strategy to compare with, or None.

        Args:
            dimensions: how many numbers are integrated together.
        """
        return None

"""How the E-step treats a latent, and what kind of evidence that leaves the loop with."""

from __future__ import annotations

import abc
import dataclasses
import enum
from typing import ClassVar


class Evidence(enum.Enum):
    """What the objective of an iteration is; the value orders them from the best to the worst."""

    EXACT = 0
    """The log-likelihood itself: EM cannot lower it."""

    @property
    def words(self) -> str:
        """For the plan."""
        return {Evidence.EXACT: "exact E-step"}[self]


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
            "a continuous latent has no finite list of values, and this version has no strategy that integrates one. "
            f"Maximise over it instead: EM(model, estimate=[{name!r}])."
        )

"""Strategies for discrete latents."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from emppl.strategies.base import ObjectiveKind, Strategy


@dataclasses.dataclass(frozen=True)
class Enumerate(Strategy):
    """Sum over every value of a discrete latent, exactly.

    The default for discrete latents; ``EM(model, latents={"z": Enumerate()})`` is the same as leaving it out.
    """

    title: ClassVar[str] = "Enumerate (exact)"
    objective_kind: ClassVar[ObjectiveKind] = ObjectiveKind.EXACT

    def why_not(self, name: str, kind: str) -> str | None:
        """Refuses continuous latents."""
        if kind == "discrete":
            return None
        return (
            "a continuous latent has no finite list of values. Integrate it: "
            f"EM(model, latents={{{name!r}: Gaussian()}}), exact where the log joint is quadratic in {name!r}, or "
            f"Quadrature(15). Or maximise over it: EM(model, estimate=[{name!r}])."
        )


@dataclasses.dataclass(frozen=True)
class Hard(Strategy):
    """Give discrete latents their jointly most probable values, instead of summing over them: hard EM.

    Another objective than the likelihood: the classification likelihood, ``max over z of p(x, z | parameters)``. Its
    iterations are classification EM for mixtures (k-means, where variances are fixed and equal), and Viterbi training
    for hidden Markov models. They never lower it, and end when the assignments no longer change, after finitely many
    steps. The estimates differ from those of maximum likelihood, for endless data too (components that overlap are
    pushed apart), and have no standard errors.

    All discrete latents that meet in a site need it together. Continuous latents beside them are integrated, given the
    assignment.

    Reference:
        Celeux and Govaert (1992), A classification EM algorithm for clustering and two stochastic versions,
        Computational Statistics and Data Analysis 14:315-332; Juang and Rabiner (1990), The segmental k-means algorithm
        for estimating parameters of hidden Markov models, IEEE Transactions on ASSP 38:1639-1641.
    """

    title: ClassVar[str] = "Hard (best assignment: another objective)"
    objective_kind: ClassVar[ObjectiveKind] = ObjectiveKind.CLASSIFICATION

    def why_not(self, name: str, kind: str) -> str | None:
        """Refuses continuous latents."""
        if kind == "discrete":
            return None
        return (
            "the best value of a continuous latent is a maximum over it, together with the parameters. Write "
            f"EM(model, estimate=[{name!r}]) for that; it is no substitute for integrating {name!r} where there is a "
            "value for every few data."
        )

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
        """Is the objective something else than the log-likelihood?"""
        return self is not Evidence.EXACT

    @property
    def words(self) -> str:
        """For the plan."""
        return {
            Evidence.EXACT: "exact E-step",
            Evidence.CLASSIFICATION: "exact maximum over assignments",
            Evidence.QUADRATURE: "E-step by quadrature, approximate to the order of its nodes",
            Evidence.MONTE_CARLO: "E-step by Monte Carlo, with a stated error",
            Evidence.APPROXIMATE: "approximate E-step",
        }[self]


class Strategy(abc.ABC):
    """How the E-step fills the axis of a latent with atoms and gives them weights."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """How the plan calls it."""

    @property
    @abc.abstractmethod
    def evidence(self) -> Evidence:
        """What kind of log-likelihood it gives."""

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


@dataclasses.dataclass(frozen=True)
class Hard(Strategy):
    """Give discrete latents their jointly most probable values, instead of summing over them: hard EM.

    Another objective than the likelihood: the classification likelihood, ``max over z of p(x, z | parameters)``. Its
    iterations are classification EM for mixtures (k-means, where variances are fixed and equal), and Viterbi training
    for hidden Markov models. They never lower it, and end when the assignments no longer change, after finitely many
    steps. The estimates are not those of maximum likelihood, not even for endless data (components that overlap are
    pushed apart), and have no standard errors.

    All discrete latents that meet in a site need it together. Continuous latents beside them are integrated, given the
    assignment.

    Reference:
        Celeux and Govaert (1992), A classification EM algorithm for clustering and two stochastic versions,
        Computational Statistics and Data Analysis 14:315-332; Juang and Rabiner (1990), The segmental k-means algorithm
        for estimating parameters of hidden Markov models, IEEE Transactions on ASSP 38:1639-1641.
    """

    title: ClassVar[str] = "Hard (best assignment: another objective)"
    evidence: ClassVar[Evidence] = Evidence.CLASSIFICATION

    def why_not(self, name: str, kind: str) -> str | None:
        """It needs a discrete latent."""
        if kind == "discrete":
            return None
        return (
            "the best value of a continuous latent is a maximum over it, together with the parameters. Write "
            f"EM(model, estimate=[{name!r}]) for that; it is no substitute for integrating {name!r} where there is a "
            "value for every few data."
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

    def finer(self, dimensions: int) -> Continuous | None:
        """A more accurate strategy to compare with, or None.

        Args:
            dimensions: how many numbers are integrated together.
        """
        return None


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
    evidence: ClassVar[Evidence] = Evidence.EXACT

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
    evidence: ClassVar[Evidence] = Evidence.APPROXIMATE

    def atoms(self, dimensions: int) -> int:
        """Two for every dimension."""
        return 2 * dimensions

    def finer(self, dimensions: int) -> Continuous | None:
        """Quadrature, as far as its product rules go."""
        return Quadrature(DEFAULT_NODES[dimensions]) if dimensions in DEFAULT_NODES else None


@dataclasses.dataclass(frozen=True)
class Quadrature(Continuous):
    """Integrate a continuous latent by Gauss-Hermite quadrature, the nodes at and around its conditional mode.

    Adaptive: in every plate cell the nodes are centred at the conditional mode and scaled by the curvature there. Up to
    three numbers are integrated together, by a product rule. One node is :class:`Laplace`.

    How far the log-likelihood is off is told by a rule with nearly twice the nodes: ``result.integration_error``.

    Args:
        num_points: nodes per dimension; below 5 the plan calls the E-step approximate.

    Reference:
        Pinheiro and Bates (1995), Approximations to the log-likelihood function in the nonlinear mixed-effects model,
        JCGS 4:12-35.
    """

    num_points: int = 15

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise ParameterError(f"Quadrature needs at least 1 node, not {self.num_points}.")

    @property
    def title(self) -> str:
        """With the number of nodes."""
        if self.num_points == 1:
            return "Quadrature with one node: Laplace (approximate)"
        order = "approximate" if self.evidence is Evidence.APPROXIMATE else "approximate to the order of its nodes"
        return f"Quadrature, {self.num_points} nodes per dimension ({order})"

    @property
    def evidence(self) -> Evidence:
        """With few nodes there is no telling how close the log-likelihood is."""
        return Evidence.QUADRATURE if self.num_points >= _FEW_NODES else Evidence.APPROXIMATE

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


DEFAULT_NODES = {1: 15, 2: 9, 3: 7}
"""By the number of dimensions, nodes per dimension of the quadrature that is taken by default."""

NODES_WITHIN_BOUNDS = {1: 41, 2: 15, 3: 9}
"""The same for latents within bounds: unconstrained, their densities have heavier tails than the rule is made for."""

_FEW_NODES = 5
"""From so many nodes on, the error of adaptive quadrature falls fast with every further one."""


@dataclasses.dataclass(frozen=True)
class Simulated(Continuous):
    """A continuous latent whose atoms are draws from its conditional distribution: what its strategies share.

    The draws come from chains, one set for every group of latents, all groups moved at once: independence proposals
    from the Laplace approximation mixed with a random walk for up to four numbers per group, and Hamiltonian steps in
    the metric of that approximation for more. Chains go on from one iteration to the next.

    Discrete latents that a group depends on are summed over, not drawn: there is a set of chains for each of their
    states, and importance sampling weighs them.

    Attributes:
        num_samples: draws of every chain in one iteration, in the first one where their number grows.
        num_chains: chains of every group; they are compared to see whether they mix.
        max_samples: most draws of one chain in one iteration.
    """

    num_samples: int = 100
    num_chains: int = 4
    max_samples: int = 12_800

    evidence: ClassVar[Evidence] = Evidence.MONTE_CARLO
    fewest_chains: ClassVar[int] = 2

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if self.num_samples < 1:
            raise ParameterError(f"{kind} needs at least one draw per chain: num_samples is {self.num_samples}.")
        if self.num_chains < self.fewest_chains:
            raise ParameterError(
                f"{kind} compares chains to see whether they mix: num_chains must be at least 2, not {self.num_chains}."
                if self.fewest_chains > 1
                else f"{kind} needs at least one chain: num_chains is {self.num_chains}."
            )
        if self.max_samples < self.num_samples:
            raise ParameterError(
                f"max_samples of {kind} is {self.max_samples}, less than num_samples, {self.num_samples}."
            )

    def atoms(self, dimensions: int) -> int:
        """All chains together, in the first iteration."""
        return self.num_chains * self.num_samples


@dataclasses.dataclass(frozen=True)
class MonteCarlo(Simulated):
    """Monte Carlo EM: the atoms of a continuous latent are draws from its posterior, as many as the ascent needs.

    An M-step is accepted when the lower confidence bound of the gain in Q is positive; otherwise the draws are doubled
    and the M-step is done again. The iterations end when the upper bound is below the tolerance of ``EM`` (default
    1e-3 nats); a closing phase then steps to the root of the Monte Carlo score and says how far the estimate may be
    from the maximum because draws were used.

    The default where the log joint is not quadratic in more than three numbers per group.

    Args:
        num_samples: draws of every chain in the first iteration.
        num_chains: chains of every group.
        max_samples: most draws of one chain in one iteration.
        ascent: False accepts every step and keeps ``num_samples`` until the end.

    Reference:
        Wei and Tanner (1990), A Monte Carlo implementation of the EM algorithm, JASA 85:699-704;
        Caffo, Jank and Jones (2005), Ascent-based Monte Carlo EM, JRSS B 67:235-251.
    """

    ascent: bool = True

    title: ClassVar[str] = "Monte Carlo (with a stated error)"


@dataclasses.dataclass(frozen=True)
class StochasticEM(Simulated):
    """Stochastic EM: one draw of the latents per iteration, and the average of the estimates.

    Discrete latents are drawn exactly, all that meet together; continuous ones come from a chain per group. The M-step
    takes the draw for the truth. The estimates wander around the maximum; once they no longer drift they are averaged,
    until the error of the average (batch means over the iterations) is below the tolerance of ``EM`` (default 1e-3
    nats, which takes some hundred independent iterations). It does not get caught by saddle points and small maxima.

    The average is not the maximum of the likelihood itself, but as close to it as one over the number of observations;
    ``MonteCarlo()`` and ``SAEM()`` find that. A continuous latent beside a discrete one that it depends on is
    integrated, not drawn.

    Args:
        num_samples: draws of every chain in one iteration.
        num_chains: chains of every group.

    Reference:
        Celeux and Diebolt (1985), The SEM algorithm: a probabilistic teacher algorithm derived from the EM algorithm
        for the mixture problem, Computational Statistics Quarterly 2:73-82; Nielsen (2000), The stochastic EM
        algorithm: estimation and asymptotic results, Bernoulli 6:457-489.
    """

    num_samples: int = 1
    num_chains: int = 1

    title: ClassVar[str] = "stochastic EM (one draw, averaged estimates)"
    fewest_chains: ClassVar[int] = 1

    def why_not(self, name: str, kind: str) -> str | None:
        """It draws latents of both kinds."""
        return None


@dataclasses.dataclass(frozen=True)
class SAEM(Simulated):
    """Stochastic approximation EM: few draws per iteration, and a Q that remembers those of earlier ones.

    Q is the weighted sum of the complete-data log-likelihood over past draws: with step ``g`` the old weights shrink by
    ``1 - g`` and the new draws share ``g``. That is stochastic approximation of the additive statistics where the
    rules are sums of them, and of Q itself elsewhere. Steps are 1 until the estimates no longer drift (burn-in), then
    ``k ** -decay`` while the estimates are averaged; a closing phase as that of :class:`MonteCarlo` ends the fit.

    Args:
        num_samples: draws of every chain in one iteration.
        num_chains: chains of every group.
        max_samples: most draws of one chain in one iteration of the closing phase.
        decay: exponent of the steps after the burn-in, above 1/2 and at most 1.
        window: most draws that are remembered; the oldest are forgotten first.

    Reference:
        Delyon, Lavielle and Moulines (1999), Convergence of a stochastic approximation version of the EM algorithm,
        Annals of Statistics 27:94-128; Kuhn and Lavielle (2004), Coupling a stochastic approximation version of EM
        with an MCMC procedure, ESAIM P&S 8:115-131.
    """

    num_samples: int = 2
    decay: float = 2 / 3
    window: int = 1024

    title: ClassVar[str] = "stochastic approximation (with a stated Monte Carlo error)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.5 < self.decay <= 1:
            raise ParameterError(f"decay of SAEM must be above 1/2 and at most 1; it is {self.decay}.")

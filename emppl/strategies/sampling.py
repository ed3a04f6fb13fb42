"""Strategies that draw latents: chains for every group of them, or weighted draws."""

from __future__ import annotations

import dataclasses
import enum
from typing import ClassVar

from emppl.errors import ParameterError, check_number, check_whole
from emppl.strategies.base import Continuous, ObjectiveKind

_MAX_METROPOLIS_DIMENSIONS = 4
"""Numbers per group; independence proposals are seldom accepted where there are more."""

_MAX_BLOCK_DRAWS = 100
"""Draws of one chain in one call."""


class MCMCKernel(enum.Enum):
    """A Markov kernel that moves the chains; the value is its name among the options."""

    METROPOLIS = "metropolis"
    """Independence proposals from the Laplace approximation, mixed with a random walk."""

    HMC = "hmc"
    """Hamiltonian trajectories, about a quarter of a period of the Laplace approximation long."""

    NUTS = "nuts"
    """The No-U-Turn sampler: Hamiltonian trajectories that find their length themselves."""

    @property
    def words(self) -> str:
        """Wording in the plan."""
        return {
            MCMCKernel.METROPOLIS: "independence Metropolis from the Laplace approximation",
            MCMCKernel.HMC: "Hamiltonian trajectories",
            MCMCKernel.NUTS: "NUTS",
        }[self]


@dataclasses.dataclass(frozen=True)
class Simulated(Continuous):
    """Strategy whose atoms are draws from the conditional distribution of a latent; the base of those that follow.

    The draws come from chains, one set for every group of latents, all groups moved at once. Chains go on from one
    iteration to the next; the Laplace approximation of every group scales their moves. The kernels:

    - ``"metropolis"``: independence proposals from the Laplace approximation mixed with a random walk, the default for
      up to four numbers per group;
    - ``"hmc"``: NumPyro's Hamiltonian trajectories of fixed length, the default for more;
    - ``"nuts"``: NumPyro's No-U-Turn sampler, which chooses their length. In the coordinates of the Laplace
      approximation the right length is known: NUTS learns first moments of the latents about as fast, but squares,
      from which variances are estimated, three to eight times more slowly.

    Discrete latents that a group depends on are summed over, not drawn: there is a set of chains for each of their
    states, and importance sampling weighs them.

    Attributes:
        num_samples: draws of every chain in one iteration, in the first one where their number grows.
        num_chains: chains of every group; they are compared to see whether they mix.
        max_samples: most draws of one chain in one iteration.
        kernel: what moves the chains; None for the default.
    """

    num_samples: int = 100
    num_chains: int = 4
    max_samples: int = 12_800
    kernel: str | None = dataclasses.field(default=None, kw_only=True)

    objective_kind: ClassVar[ObjectiveKind] = ObjectiveKind.MONTE_CARLO
    fewest_chains: ClassVar[int] = 2

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for option in ("num_samples", "num_chains", "max_samples"):
            check_whole(f"{option} of {kind}", getattr(self, option))
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
        names = [kernel.value for kernel in MCMCKernel]
        if self.kernel is not None and self.kernel not in names:
            raise ParameterError(
                f"kernel of {kind} must be one of {', '.join(map(repr, names))}, or None for the default; it is "
                f"{self.kernel!r}."
            )

    @property
    def block(self) -> int:
        """Draws of one chain that are made at once: however many there are, one compiled program makes them."""
        return min(_MAX_BLOCK_DRAWS, self.max_samples)

    def moved_by(self, dimensions: int) -> MCMCKernel:
        """Kernel that moves the chains of a group.

        Args:
            dimensions: how many numbers are integrated together.
        """
        if self.kernel is not None:
            return MCMCKernel(self.kernel)
        return MCMCKernel.METROPOLIS if dimensions <= _MAX_METROPOLIS_DIMENSIONS else MCMCKernel.HMC

    def words(self, dimensions: int) -> str:
        """Wording of the kernel of a group and of the reason for it, for the plan."""
        most = _MAX_METROPOLIS_DIMENSIONS
        number = f"{'up to' if dimensions <= most else 'more than'} {most} numbers in every group"
        reason = number if self.kernel is None else f"kernel={self.kernel!r}"
        return f"drawn by {self.moved_by(dimensions).words} ({reason})"

    def atoms(self, dimensions: int) -> int:
        """The draws of all chains in the first iteration."""
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
        kernel: ``"metropolis"``, ``"hmc"`` or ``"nuts"``, what moves the chains; by default the first for up to four
            numbers in every group, the second for more.

    Reference:
        Wei and Tanner (1990), A Monte Carlo implementation of the EM algorithm, JASA 85:699-704;
        Caffo, Jank and Jones (2005), Ascent-based Monte Carlo EM, JRSS B 67:235-251.
    """

    ascent: bool = True

    title: ClassVar[str] = "Monte Carlo (with a stated error)"

    @property
    def block(self) -> int:
        """Draws of one chain that are made at once: those of an iteration."""
        return self.num_samples


@dataclasses.dataclass(frozen=True)
class StochasticEM(Simulated):
    """Stochastic EM: one draw of the latents per iteration, and the average of the estimates.

    Discrete latents are drawn exactly, all that meet together; continuous ones come from a chain per group. The M-step
    takes the draw for the truth. The estimates wander around the maximum; once they no longer drift they are averaged,
    until the error of the average (batch means over the iterations) is below the tolerance of ``EM`` (default 1e-3
    nats, which takes some hundred independent iterations). The noise leads away from saddle points and small maxima.

    The average is not the maximum of the likelihood itself, but as close to it as one over the number of observations;
    ``MonteCarlo()`` and ``SAEM()`` find that. A continuous latent beside a discrete one that it depends on is
    integrated, not drawn.

    Args:
        num_samples: draws of every chain in one iteration; 1 for discrete latents.
        num_chains: chains of every group; 1 for discrete latents.
        kernel: ``"metropolis"``, ``"hmc"`` or ``"nuts"``, what moves the chains; by default the first for up to four
            numbers in every group, the second for more.

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
        """Refuses options of chains for a discrete latent, which is drawn exactly."""
        if kind != "discrete" or (self.num_samples == self.num_chains == 1 and self.kernel is None):
            return None
        return (
            f"{name!r} is discrete and drawn exactly, once in every iteration, without a chain. Write "
            f"latents={{{name!r}: StochasticEM()}}; a smaller tolerance of EM averages more iterations, which does "
            "what more draws would."
        )


@dataclasses.dataclass(frozen=True)
class SAEM(Simulated):
    """Stochastic approximation EM: few draws per iteration, and a Q that remembers those of earlier ones.

    Q is the weighted sum of the complete-data log-likelihood over past draws: with step ``g`` the old weights shrink by
    ``1 - g`` and the new draws share ``g``. This is stochastic approximation of the sufficient statistics where the
    M-step needs only them, and of Q itself elsewhere. Steps are 1 until the estimates no longer drift (burn-in), then
    ``k ** -decay`` while the estimates are averaged, until they drift by less than half of their spread in the
    burn-in; a closing phase as that of :class:`MonteCarlo` ends the fit.

    Args:
        num_samples: draws of every chain in one iteration.
        num_chains: chains of every group.
        max_samples: most draws of one chain in one iteration of the closing phase.
        decay: exponent of the steps after the burn-in, above 1/2 and at most 1.
        window: most draws that are remembered; the oldest are forgotten first.
        kernel: ``"metropolis"``, ``"hmc"`` or ``"nuts"``, what moves the chains; by default the first for up to four
            numbers in every group, the second for more.

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
        check_whole("window of SAEM", self.window)
        if self.window < 1:
            raise ParameterError(f"window of SAEM is how many draws are remembered, at least 1; it is {self.window}.")
        check_number("decay of SAEM", self.decay)
        if not 0.5 < self.decay <= 1:
            raise ParameterError(f"decay of SAEM must be above 1/2 and at most 1; it is {self.decay}.")


@dataclasses.dataclass(frozen=True)
class ImportanceSampling(Continuous):
    """Weighted draws from a Student-t distribution at the mode, with which Laplace's approximation is compared.

    Args:
        num_points: number of draws in one estimate.
        replicates: number of independent estimates, whose spread is the Monte Carlo error.
    """

    num_points: int = 200
    replicates: int = 10

    title: ClassVar[str] = "importance sampling"
    objective_kind: ClassVar[ObjectiveKind] = ObjectiveKind.MONTE_CARLO

    def atoms(self, dimensions: int) -> int:
        """The draws of all estimates, whatever the number of dimensions."""
        return self.num_points * self.replicates

"""How a fit can end, and what to do about it."""

from __future__ import annotations

import dataclasses
import enum


class StopReason(enum.Enum):
    """Why the iterations stopped; ``.message`` says what it means and what to do.

    Only ``CONVERGED`` counts as converged.
    """

    RUNNING = 0
    CONVERGED = 1
    MAX_ITERATIONS = 2
    NOT_FINITE = 3
    DECREASED = 4
    COLLAPSED = 5
    INTERRUPTED = 6
    SYMMETRIC = 7
    UNFINISHED = 8
    NOISY = 9
    UNMIXED = 10
    SADDLE = 11

    @property
    def message(self) -> str:
        """A sentence or two on meaning, cause and remedy."""
        return _MESSAGES[self]


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a fit ended.

    Attributes:
        reason: why the iterations stopped.
        message: what that means for this fit, with the names of what went wrong.
        notes: remarks about the fit.
    """

    reason: StopReason
    message: str
    notes: list[str] = dataclasses.field(default_factory=list)


_MESSAGES = {
    StopReason.RUNNING: "Still running.",
    StopReason.CONVERGED: "Converged: the estimated gain that is left is below the tolerance.",
    StopReason.MAX_ITERATIONS: (
        "Stopped at max_iterations before converging. Raise max_iterations, or continue with "
        "init_params=result.params. Where the gain per iteration shrinks very slowly the likelihood is nearly flat, or "
        "EM is slow: use EM(..., accelerate='squarem'), unless a latent is drawn."
    ),
    StopReason.NOT_FINITE: (
        "The objective became NaN or infinite; the parameters are those of the last good iteration. Look for an "
        "outlier with probability zero, for a scale near zero, or for overflow in a user-written term."
    ),
    StopReason.DECREASED: (
        "The objective fell by more than rounding, which exact EM cannot do; or, where the E-step is approximate, Q "
        "fell, or the objective by more than its error explains. The parameters are those before the fall. "
        "A user-written m_step that does not raise Q is the usual cause; otherwise please report the model."
    ),
    StopReason.COLLAPSED: (
        "A component collapsed onto too few data points, where the likelihood is unbounded; the parameters are those "
        "before the collapse. Use a prior on the scale (and prior=True), tie the scales across components, "
        "use fewer components, or more restarts."
    ),
    StopReason.INTERRUPTED: "Interrupted by the user; the best parameters so far are kept.",
    StopReason.UNFINISHED: (
        "The objective no longer rises although the M-step is not at its maximum: the optimiser of a numerical update "
        "fails to make the step that the gradient promises. Use a smaller learning rate, or leave out the optimizer "
        "(the default is Newton's method, or L-BFGS with a line search)."
    ),
    StopReason.NOISY: (
        "Convergence could not be confirmed: at max_samples draws per chain the Monte Carlo error of the remaining "
        "gain is larger than the tolerance. The Monte Carlo standard errors say how far the estimate may be off; raise "
        "max_samples of the strategy, or the tolerance."
    ),
    StopReason.UNMIXED: (
        "Chains of the E-step do not agree, so that neither the estimate nor its Monte Carlo error can be trusted: the "
        "posterior of the latent may have several modes or very long tails. Draw more (num_samples), or write the "
        "latent on another scale, such as a standard normal that is multiplied by its standard deviation."
    ),
    StopReason.SYMMETRIC: (
        "All components are identical, so that EM cannot tell them apart: the start was symmetric. Give different "
        "values in init_params (or in numpyro.param), or use restarts=10."
    ),
    StopReason.SADDLE: (
        "The iterations came to rest where the log-likelihood is no maximum: it rises away from there. Start from "
        "other values in init_params, or use restarts=10."
    ),
}

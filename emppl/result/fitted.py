"""What a fit found, and the questions it answers: the part of a result that needs no words or tables."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from emppl.compiled import Fit
from emppl.fit.outcome import Ending, StopReason
from emppl.inputs.trees import as_declared
from emppl.montecarlo.simulation import Simulation
from emppl.result.accuracy import Accuracy
from emppl.result.criteria import Criteria
from emppl.result.integration_error import IntegrationError, integration_error, integration_notes
from emppl.result.latents import Latents


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted model: estimates, how the iterations ended, and what follows from them.

    Attributes:
        params: estimates by site name (constrained values), frozen ones included.
        log_likelihood: of the observed data, without priors, constants included (natural log).
        log_posterior: the same plus the log prior; equal without priors.
        ending: why the iterations stopped, in words too, and remarks about the fit.
        num_iterations: M-steps of the best restart.
        history: arrays by name; see :class:`~emppl.result.result.EMResult`.
        fit: the compiled model and its data.
        simulation: the Monte Carlo error of a stochastic fit, or None.
        classification: under ``Hard()``, the log-likelihood of data and best assignment together; else None.
    """

    params: dict[str, np.ndarray]
    log_likelihood: float
    log_posterior: float
    ending: Ending
    num_iterations: int
    history: dict[str, np.ndarray]
    fit: Fit = dataclasses.field(repr=False)
    simulation: Simulation | None = dataclasses.field(default=None, repr=False)
    classification: float | None = None

    @property
    def objective(self) -> float:
        """What was maximised, at the estimate: the log posterior, or the classification likelihood plus log prior."""
        extra = 0.0 if self.classification is None else self.classification - self.log_likelihood
        return self.log_posterior + extra

    @property
    def stop_reason(self) -> StopReason:
        """Why the iterations stopped; ``stop_reason.message`` says what to do."""
        return self.ending.reason

    @property
    def stop_message(self) -> str:
        """Why the iterations stopped, with the names of what went wrong in this fit."""
        return self.ending.message

    @property
    def notes(self) -> list[str]:
        """Remarks about the fit, such as a switch to the plain path."""
        return self.ending.notes

    @property
    def converged(self) -> bool:
        """Whether the best restart converged."""
        return self.ending.reason is StopReason.CONVERGED

    @property
    def declared_params(self) -> dict[str, Any]:
        """The estimates by site, where a ``numpyro.param`` is a tree of arrays as that tree: for NumPyro's handlers."""
        return as_declared(self.params, self.fit.model.trace.trees)

    @functools.cached_property
    def latents(self) -> Latents:
        """Queries about the latents."""
        return Latents(self.fit, self.params)

    @functools.cached_property
    def criteria(self) -> Criteria:
        """Counts of parameters and observations, and information criteria."""
        return Criteria(self.fit, self.params, self.log_likelihood, lambda: len(self.accuracy.flat))

    @functools.cached_property
    def accuracy(self) -> Accuracy:
        """Information, standard errors and Monte Carlo errors of the estimates."""
        why_none = None
        if self.fit.model.hard:
            why_none = (
                "Hard() has no standard errors: its estimates do not maximise the likelihood. Refit with EM(model, "
                f"latents={{{self.fit.model.hard[0]!r}: Enumerate()}}).run(..., init_params=result.params)."
            )
        elif self.simulation is not None and self.simulation.frozen:
            why_none = f"There are no standard errors. {self.stop_message}"
        is_at_rest = self.stop_reason not in (StopReason.MAX_ITERATIONS, StopReason.INTERRUPTED)
        return Accuracy(self.fit, self.params, self.criteria, self.simulation, why_none, is_at_rest)

    @functools.cached_property
    def integration_error(self) -> IntegrationError | None:
        """How far integrals by quadrature or Laplace are off: log-likelihood and estimates by a finer rule.

        None where every integral is exact, or where no finer rule can be had.
        """
        return integration_error(self.fit, self.accuracy, self.log_likelihood)

    @property
    def remarks(self) -> list[str]:
        """Notes about the fit, what it means that variances go to zero, and how far approximate integrals are off."""
        falls = -np.min(np.diff(self.history["objective"]), initial=0) if self.simulation is None else 0.0
        about_integrals = integration_notes(self.fit.model, falls, lambda: self.integration_error)
        return [*self.notes, *self.accuracy.remarks, *about_integrals]

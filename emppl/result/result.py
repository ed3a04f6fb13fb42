"""``EMResult``: what a user keeps. Everything beyond the estimates is computed when asked for."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep
from emppl.errors import ParameterError
from emppl.fit.outcome import StopReason
from emppl.model.model import Model
from emppl.montecarlo.path import posterior_draws
from emppl.parameters.held import held_dimensions
from emppl.program import Program
from emppl.result import summary
from emppl.result.certificate import Certificate, build_certificate
from emppl.result.components import component_axes
from emppl.result.integration_error import IntegrationError, integration_error, integration_notes
from emppl.uncertainty.boundary import remarks, scales
from emppl.uncertainty.charts import Chart
from emppl.uncertainty.corners import hold_corners, no_standard_errors
from emppl.uncertainty.criteria import entropy, number_of_observations
from emppl.uncertainty.identification import shift_candidates
from emppl.uncertainty.information import (
    Covariance,
    Information,
    boundary_labels,
    charts,
    covariance,
    hold_pressed,
    observed_information,
    optimised_within_bounds,
    spread_over_entries,
)

if TYPE_CHECKING:
    from emppl.em import EM
    from emppl.montecarlo.stochastic import Simulation


@dataclasses.dataclass(frozen=True, eq=False)
class EMResult:
    """A fitted model.

    Attributes:
        params: estimates by site name (constrained values), frozen ones included.
        log_likelihood: of the observed data, without priors, constants included (natural log).
        log_posterior: the same plus the log prior; equal without priors.
        stop_reason: why the iterations stopped; ``stop_reason.message`` says what to do.
        stop_message: the same with the names of what went wrong in this fit.
        num_iterations: M-steps of the best restart.
        history: arrays by name: ``"objective"`` and ``"log_likelihood"`` after every E-step of the best restart
            (entry 0 is the start), and for all restarts ``"final_objectives"`` and ``"final_status"``. Of fits by draws
            also ``"decision"``, ``"draws"``, ``"gain"`` and ``"gain_error"``.
        notes: remarks about the fit, such as a switch to the plain path.
        classification: under ``Hard()``, the log-likelihood of the data and the best assignment together, which (plus
            the log prior) is the objective; else None. ``history`` has it as ``"classification"`` in place of
            ``"log_likelihood"``.
    """

    params: dict[str, np.ndarray]
    log_likelihood: float
    log_posterior: float
    stop_reason: StopReason
    stop_message: str
    num_iterations: int
    history: dict[str, np.ndarray]
    notes: list[str]
    em: EM = dataclasses.field(repr=False)
    args: tuple = dataclasses.field(repr=False)
    kwargs: dict = dataclasses.field(repr=False)
    simulation: Simulation | None = dataclasses.field(default=None, repr=False)
    classification: float | None = None

    @property
    def objective(self) -> float:
        """What was maximised, at the estimate: the log posterior, or the classification likelihood plus log prior."""
        extra = 0.0 if self.classification is None else self.classification - self.log_likelihood
        return self.log_posterior + extra

    @functools.cached_property
    def monte_carlo_errors(self) -> dict[str, np.ndarray]:
        """Monte Carlo standard errors of the estimates: how far they may be from the maximum because draws were used.

        Arrays like ``params``, for the estimated parameters. NaN where they are not known: for a fit without draws, or
        one that was interrupted or ended without its closing phase; and for parameters in which a density has corners.
        """
        closing = None if self.simulation is None else self.simulation.closing
        if self.simulation is not None and self.simulation.errors is not None:
            return self.simulation.errors
        if closing is None or closing.note is not None:
            return {name: np.full(self.params[name].shape, np.nan) for name in self._model.free}
        found = spread_over_entries(self._model, closing.charts, closing.covariance)
        return {**found, **{name: np.full(self.params[name].shape, np.nan) for name in closing.held}}

    @functools.cached_property
    def standard_error_errors(self) -> dict[str, np.ndarray]:
        """Monte Carlo standard errors of :meth:`standard_errors`, where those come from draws.

        Arrays like ``params``, for the estimated parameters. NaN where they are not known, as for
        :attr:`monte_carlo_errors`, and for entries without a standard error.
        """
        closing = None if self.simulation is None else self.simulation.closing
        found = {name: np.full(self.params[name].shape, np.nan) for name in self._model.free}
        if closing is None or closing.note is not None:
            return found
        held = self._measured[0]
        if any(np.any(one.active != held[name].active) for name, one in closing.charts.items()):
            return found  # coordinates are held that were not when the errors were computed
        sizes = np.cumsum([value.size for value in found.values()])[:-1]
        parts = zip(found, np.split(closing.deviations, sizes), strict=True)
        return {
            name: np.where(
                closing.charts[name].boundary | (name in closing.held), np.nan, part.reshape(self.params[name].shape)
            )
            for name, part in parts
        }

    # ------------------------------------------------------------------------------------------- convergence

    @property
    def converged(self) -> bool:
        """Did the best restart converge?"""
        return self.stop_reason is StopReason.CONVERGED

    @functools.cached_property
    def certificate(self) -> Certificate:
        """How far to trust the answer: monotonicity, score at the end, agreement of restarts, boundary."""
        return build_certificate(self)

    @functools.cached_property
    def integration_error(self) -> IntegrationError | None:
        """How far integrals by quadrature or Laplace are off: log-likelihood and estimates by a finer rule.

        None where every integral is exact, or where no finer rule can be had.
        """
        return integration_error(self)

    def _score_norm(self) -> float:
        if self._model.rough:
            return float("nan")
        matrix, score = self._measured[1]
        scale = np.sqrt(np.maximum(np.diagonal(matrix), np.finfo(float).tiny))
        return float(np.max(np.abs(score / scale), initial=0.0))

    @property
    def boundary(self) -> list[str]:
        """Entries of parameters that lie on the boundary of the parameter space, such as ``"theta[1, 3]"``.

        So are entries at a corner of their prior, such as a coefficient that a Laplace prior makes zero. A parameter
        between bounds that a numerical optimiser brought close to one is on it if the likelihood would take
        it farther, and so is a variance beside a continuous latent that EM is taking to zero; for more than 500 free
        dimensions this is looked at after :meth:`standard_errors` only.
        """
        return boundary_labels(self._charts)

    @property
    def remarks(self) -> list[str]:
        """Notes about the fit, what it means that variances go to zero, and how far approximate integrals are off."""
        boundary, local = self.boundary, self._charts
        known = self._model.integrals and (self.uncertainty_is_cheap or "_measured" in self.__dict__)
        information = self._measured[1] if known else None
        at_zero = remarks(self._model, boundary, self._measured[0] if known else local, information)
        corners = no_standard_errors(self._model)
        return [*self.notes, *([corners] if corners else []), *at_zero, *integration_notes(self)]

    # --------------------------------------------------------------------------------------------- posterior

    def posterior(self, site: str) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Posterior of a latent at the estimate.

        Args:
            site: name of the latent.

        Returns:
            For a discrete latent the probabilities of its states (responsibilities), ``(*plates, support)``, summing to
            one over the last axis. For a continuous one ``(mean, covariance)``: ``(*plates, *event)``, and the variance
            ``(*plates,)`` of a number or the matrix ``(*plates, d, d)`` of a vector; discrete latents are summed out.
            Of a latent that is drawn they are those of 1,000 draws of every chain (fewer of very many latents): with
            four chains the mean is off by a fiftieth of the posterior's standard deviation or so.
        """
        if site in self._model.continuous_latents:
            mean, spread = self._moments[site]
            return np.asarray(mean), np.asarray(spread)
        return np.asarray(self._derived.marginals(self._free, self._data)[self._latent(site)])

    @functools.cached_property
    def _moments(self) -> dict[str, tuple[jax.Array, jax.Array]]:
        drawn = None
        if estep.simulated(self._model):
            drawn = posterior_draws(self._derived.simulator, self._free, self._data)
        return self._derived.moments(self._free, self._data, drawn)

    def decode(self) -> dict[str, np.ndarray]:
        """Jointly most probable values of all discrete latents, by site, shaped like their plates.

        Continuous latents are integrated out; without discrete ones there is nothing to decode.
        """
        found = self._derived.decode(self._free, self._data)
        return {_public(self._model, name): self._values(name, index) for name, index in found.items()}

    def sample_posterior(self, rng_key: jax.Array, num_samples: int) -> dict[str, np.ndarray]:
        """Joint draws of all latents from their posterior at the estimate.

        Discrete latents are drawn first, continuous ones given them. The draws are exact for discrete latents and for
        ``Gaussian``; under ``Laplace`` they come from its normal approximation, under ``Quadrature`` from the end of
        100 Metropolis-Hastings steps, whose proposals are close to the posterior.

        Args:
            rng_key: random key.
            num_samples: number of draws.

        Returns:
            Arrays ``(num_samples, *plates, *event)`` by site.
        """
        found = self._derived.sample(self._free, self._data, jax.random.split(rng_key, num_samples))
        return {_public(self._model, name): self._values(name, drawn) for name, drawn in found.items()}

    def _values(self, name: str, drawn) -> np.ndarray:
        if name in self._model.continuous_latents:
            return np.asarray(drawn)
        return self._model.trace.atoms[name].reshape(-1)[np.asarray(drawn)]

    def _latent(self, site: str) -> str:
        for name in (site, f"{site}_unobserved"):
            if name in self._model.model_latents:
                return name
        known = [_public(self._model, name) for name in self._model.model_latents]
        raise ParameterError(f"{site!r} is no latent of the model; it has {known + self._model.continuous_latents}.")

    # --------------------------------------------------------------------------------- information criteria

    @property
    def num_parameters(self) -> int:
        """Number of identified dimensions of the estimated parameters.

        A number counts 1, a K-simplex K - 1, a symmetric D x D matrix D (D + 1) / 2. A parameter that enters only as
        the ``logits`` of a Categorical or Multinomial (or through a softmax as their ``probs``) counts K - 1 for
        every K along its last axis, because a common shift of the logits changes nothing.
        """
        sites = self._model.trace.sites
        total = self._model.free_dimensions
        total -= sum(held_dimensions(sites[n].constraint, held) for n, held in self._model.held.items())
        return total - sum(self.params[name].size // self.params[name].shape[-1] for name in self.only_differences)

    @functools.cached_property
    def only_differences(self) -> list[str]:
        """Parameters that enter only as logits, of which differences along the last axis are all that is identified."""
        derived = self._derived
        if not shift_candidates(self._model):
            return []
        effects = derived.shift_effects(self._free, self._data)
        rounding = float(jnp.finfo(jnp.result_type(float)).eps) ** 0.4
        return [name for name, effect in effects.items() if effect < rounding]

    @functools.cached_property
    def num_observations(self) -> float:
        """Independent cells, which BIC takes for the number of observations.

        The cells of the outermost plates that hold latents, or of the data where no plate holds all continuous latents
        (crossed random effects). Weights (``handlers.scale``) count, masked cells do not. Packages for mixed models
        differ here: for ``b[subject]`` emppl counts subjects, lme4 counts rows of data.
        """
        return number_of_observations(self._model, self._cell_weights)

    @functools.cached_property
    def _cell_weights(self) -> dict[str, np.ndarray]:
        return jax.device_get(self._derived.cell_weights(self._data))

    @property
    def aic(self) -> float:
        """Akaike's criterion, ``2 p - 2 log L``; smaller is better."""
        return 2 * self.num_parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's criterion, ``p log n - 2 log L``; smaller is better."""
        return self.num_parameters * float(np.log(self.num_observations)) - 2 * self.log_likelihood

    @property
    def icl(self) -> float:
        """Integrated completed likelihood: BIC plus twice the entropy of the latents' posterior marginals.

        Only discrete latents have such an entropy; without any, this is BIC. A cell of weight ``w``
        (``handlers.scale``) counts ``w`` times, a masked one not at all.

        Reference:
            Biernacki, Celeux and Govaert (2000), Assessing a mixture model for clustering.
        """
        weights, names = self._cell_weights, self._model.model_latents
        if not names:
            return self.bic
        found = self._derived.marginals(self._free, self._data)
        return self.bic + 2 * sum(entropy(np.asarray(found[name]), weights[name]) for name in names)

    # ------------------------------------------------------------------------------------------- uncertainty

    def standard_errors(self, method: str = "observed") -> dict[str, np.ndarray]:
        """Standard errors of the estimates.

        Square roots of the diagonal of the inverse observed information of the marginal log-likelihood (plus log
        prior). NaN, with a warning that names them: entries on the boundary, and parameters that enter only as
        logits, of which differences are all that is identified. Computed once and kept.

        Args:
            method: ``"observed"``, the only one so far.

        Returns:
            Arrays like ``params``, for the estimated parameters.

        Raises:
            ValueError: the estimate is no interior maximum of the likelihood, or an unknown method.
        """
        if method != "observed":
            raise ValueError(f"method must be 'observed', not {method!r}.")
        deviations = np.sqrt(np.diagonal(self.covariance().matrix))
        errors, position = {}, 0
        for name in self._model.free:
            size = self.params[name].size
            errors[name] = deviations[position : position + size].reshape(self.params[name].shape)
            position += size
        if self.boundary:
            named = summary.shortened(self.boundary)
            warnings.warn(f"No standard error for entries on the boundary: {named}.", stacklevel=2)
        for name in self._held_differences:
            warnings.warn(summary.only_differences(name, self.params[name].shape), stacklevel=2)
        return errors

    def covariance(self) -> Covariance:
        """Covariance matrix of the estimates with its labels, from the observed information."""
        return self._covariance

    @property
    def uncertainty_is_cheap(self) -> bool:
        """May a summary compute standard errors unasked? If not, call :meth:`standard_errors`, which keeps them."""
        if self.classification is not None:  # there is none
            return False
        return self.num_parameters <= summary.LARGEST or "_measured" in self.__dict__

    @functools.cached_property
    def _covariance(self) -> Covariance:
        if self.classification is not None:
            raise ValueError(
                f"Hard() has no standard errors: its estimates do not maximise the likelihood. Refit with "
                f"EM(model, latents={{{self._model.hard[0]!r}: Enumerate()}}).run(..., init_params=result.params)."
            )
        if self.simulation is not None and self.simulation.frozen:
            raise ValueError(f"There are no standard errors. {self.stop_message}")
        return covariance(self._model, *self._measured, self._held_differences)

    @functools.cached_property
    def _measured(self) -> tuple[dict[str, Chart], Information]:
        closing = None if self.simulation is None else self.simulation.closing
        if closing is not None and closing.note is None:
            return hold_pressed(self._program, dict(closing.charts), closing.information)
        local = self._charts_by_position
        information = observed_information(local, self._derived.hessian_columns, self._data)
        return hold_pressed(self._program, local, information)

    @property
    def _charts(self) -> dict[str, Chart]:
        approached = bool(optimised_within_bounds(self._program)) or bool(scales(self._model))
        wanted = self.uncertainty_is_cheap and approached
        return self._measured[0] if wanted or "_measured" in self.__dict__ else self._charts_by_position

    @functools.cached_property
    def _charts_by_position(self) -> dict[str, Chart]:
        found = charts(self._model, self.params, self._held_differences)
        return hold_corners(self._model, found, self.params, self._data)

    @property
    def _held_differences(self) -> list[str]:
        """Logits whose level nothing identifies; a proper prior does."""
        model = self._model
        return [
            name
            for name in self.only_differences
            if not model.use_prior or model.trace.sites[name].distribution in ("param", "ImproperUniform")
        ]

    # ------------------------------------------------------------------------------------------------ tables

    def summary(self, prob: float = 0.95):
        """Estimates, standard errors and Wald intervals as a pandas DataFrame (needs pandas).

        Models of more than 500 free dimensions get no standard errors, and a warning says so, unless
        :meth:`standard_errors` was called before.

        Args:
            prob: coverage of the intervals.

        Returns:
            A DataFrame indexed by parameter entry.
        """
        return summary.data_frame(self, prob)

    def print_summary(self, prob: float = 0.95) -> None:
        """Print estimates, standard errors, intervals and how the fit ended.

        Models of more than 500 free dimensions get no standard errors, and the print says so, unless
        :meth:`standard_errors` was called before.

        Args:
            prob: coverage of the intervals.
        """
        print(summary.text(self, prob))

    def to_arviz(self, num_samples: int = 1000, rng_key: jax.Array | None = None):
        """The estimate as ArviZ data: draws from its large-sample normal distribution (needs arviz).

        Entries on the boundary, which have no standard error, stay at their estimate.

        Args:
            num_samples: number of draws.
            rng_key: random key, default ``jax.random.key(0)``.

        Returns:
            ArviZ's inference data, with one chain in the posterior group.
        """
        return summary.to_arviz(self, num_samples, rng_key)

    def plot_history(self, ax=None):
        """Plot the objective against iterations (needs matplotlib).

        Args:
            ax: axes to draw on; new ones by default.

        Returns:
            The axes.
        """
        return summary.plot_history(self, ax)

    # ----------------------------------------------------------------------------------------------- helpers

    @property
    def _derived(self):
        return self.em._derive(self.args, self.kwargs)[0]

    @property
    def _data(self) -> list:
        return self.em._derive(self.args, self.kwargs)[1]

    @property
    def _model(self) -> Model:
        return self._derived.model

    @property
    def _program(self) -> Program:
        return self._derived.program

    @property
    def _free(self) -> dict[str, jax.Array]:
        return {name: jnp.asarray(self.params[name]) for name in self._model.free}

    def component_axes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """For every latent, the parameter axes that its states index (used to align labels)."""
        return component_axes(self._model)


def _public(model: Model, name: str) -> str:
    return name.removesuffix("_unobserved") if model.trace.sites[name].labels else name

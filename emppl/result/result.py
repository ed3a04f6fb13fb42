"""``EMResult``: what a user keeps. Everything beyond the estimates is computed when asked for."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import numpy as np

from emppl.derivation.plan import Plan
from emppl.result import summary
from emppl.result.certificate import Certificate, build_certificate
from emppl.result.components import component_axes
from emppl.result.fitted import Fitted
from emppl.uncertainty.information import Covariance


class EMResult(Fitted):
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
            also ``"decision"``, ``"draws"``, ``"gain"`` and ``"gain_error"``. ``"noise"`` is the rounding error of the
            objective, in nats, where it had to be measured because the objective seemed to fall.
        notes: remarks about the fit, such as a switch to the plain path.
        classification: under ``Hard()``, the log-likelihood of the data and the best assignment together, which (plus
            the log prior) is the objective; else None. ``history`` has it as ``"classification"`` in place of
            ``"log_likelihood"``.
    """

    @property
    def plan(self) -> Plan:
        """What was derived; the same as ``em.plan`` for these data."""
        return self.fit.plan()

    @functools.cached_property
    def certificate(self) -> Certificate:
        """How far to trust the answer: monotonicity, score at the end, agreement of restarts, boundary."""
        return build_certificate(self)

    @property
    def boundary(self) -> list[str]:
        """Entries of parameters that lie on the boundary of the parameter space, such as ``"theta[1, 3]"``.

        So are entries at a corner of their prior, such as a coefficient that a Laplace prior makes zero. A parameter
        between bounds that a numerical optimiser brought close to one is on it if the likelihood would take
        it farther, and so is a variance beside a continuous latent that EM is taking to zero; for more than 500 free
        dimensions this is looked at after :meth:`standard_errors` only.
        """
        return self.accuracy.boundary

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
        return self.latents.posterior(site)

    def decode(self) -> dict[str, np.ndarray]:
        """Jointly most probable values of all discrete latents, by site, shaped like their plates.

        Continuous latents are integrated out; without discrete ones there is nothing to decode.
        """
        return self.latents.decode()

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
        return self.latents.sample(rng_key, num_samples)

    # --------------------------------------------------------------------------------- information criteria

    @property
    def num_parameters(self) -> int:
        """Number of identified dimensions of the estimated parameters.

        A number counts 1, a K-simplex K - 1, a symmetric D x D matrix D (D + 1) / 2. A parameter that enters only as
        the ``logits`` of a Categorical or Multinomial (or through a softmax as their ``probs``) counts K - 1 for
        every K along its last axis, because a common shift of the logits changes nothing.
        """
        return self.criteria.num_parameters

    @property
    def only_differences(self) -> list[str]:
        """Parameters that enter only as logits, of which differences along the last axis are all that is identified."""
        return self.criteria.only_differences

    @property
    def num_observations(self) -> float:
        """Independent cells, which BIC takes for the number of observations.

        The cells of the outermost plates that hold latents, or of the data where no plate holds all continuous latents
        (crossed random effects). Weights (``handlers.scale``) count, masked cells do not. Packages for mixed models
        differ here: for ``b[subject]`` emppl counts subjects, lme4 counts rows of data.
        """
        return self.criteria.num_observations

    @property
    def aic(self) -> float:
        """Akaike's criterion, ``2 p - 2 log L``; smaller is better."""
        return self.criteria.aic

    @property
    def bic(self) -> float:
        """Schwarz's criterion, ``p log n - 2 log L``; smaller is better."""
        return self.criteria.bic

    @property
    def icl(self) -> float:
        """Integrated completed likelihood: BIC plus twice the entropy of the latents' posterior marginals.

        Only discrete latents have such an entropy; without any, this is BIC. A cell of weight ``w``
        (``handlers.scale``) counts ``w`` times, a masked one not at all.

        Reference:
            Biernacki, Celeux and Govaert (2000), Assessing a mixture model for clustering.
        """
        return self.criteria.icl

    # ------------------------------------------------------------------------------------------- uncertainty

    @property
    def uncertainty_is_cheap(self) -> bool:
        """Whether a summary computes standard errors unasked; if not, call :meth:`standard_errors`."""
        return self.accuracy.is_cheap

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
        errors = self.accuracy.standard_errors()
        if self.boundary:
            named = summary.shortened(self.boundary)
            warnings.warn(f"No standard error for entries on the boundary: {named}.", stacklevel=2)
        for name in self.accuracy.held_differences:
            warnings.warn(summary.only_differences(name, self.params[name].shape), stacklevel=2)
        return errors

    def covariance(self) -> Covariance:
        """Covariance matrix of the estimates with its labels, from the observed information."""
        return self.accuracy.covariance

    @property
    def monte_carlo_errors(self) -> dict[str, np.ndarray]:
        """Monte Carlo standard errors of the estimates: how far they may be from the maximum because draws were used.

        Arrays like ``params``, for the estimated parameters. NaN where they are not known: for a fit without draws, or
        one that was interrupted or ended without its closing phase; and for parameters in which a density has corners.
        """
        return self.accuracy.monte_carlo_errors

    @property
    def standard_error_errors(self) -> dict[str, np.ndarray]:
        """Monte Carlo standard errors of :meth:`standard_errors`, where those come from draws.

        Arrays like ``params``, for the estimated parameters. NaN where they are not known, as for
        :attr:`monte_carlo_errors`, and for entries without a standard error.
        """
        return self.accuracy.standard_error_errors

    def component_axes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """For every latent, the parameter axes that its states index (used to align labels)."""
        return component_axes(self.fit.model)

    # ------------------------------------------------------------------------------------------------ tables

    def summary(self, prob: float = 0.95) -> Any:
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

    def to_arviz(self, num_samples: int = 1000, rng_key: jax.Array | None = None) -> Any:
        """The estimate as ArviZ data: draws from its large-sample normal distribution (needs arviz).

        Entries on the boundary, which have no standard error, stay at their estimate.

        Args:
            num_samples: number of draws.
            rng_key: random key, default ``jax.random.key(0)``.

        Returns:
            ArviZ's inference data, with one chain in the posterior group.
        """
        return summary.to_arviz(self, num_samples, rng_key)

    def plot_history(self, ax: Any = None) -> Any:
        """Plot the objective against iterations (needs matplotlib).

        Args:
            ax: axes to draw on; new ones by default.

        Returns:
            The axes.
        """
        return summary.plot_history(self, ax)

"""Information criteria: what counts as a parameter, what as an observation, and how undecided the latents are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from emppl.compiled import Fit
from emppl.estep.cell_weights import counted_without_states
from emppl.model.model import Model
from emppl.names import model_name
from emppl.parameters.held import held_dimensions
from emppl.uncertainty.identification import shift_candidates


class Criteria:
    """Counts of parameters and observations of a fit, and the criteria made of them.

    Args:
        params: the estimates.
        log_likelihood: of the observed data (natural log).
        count_flat: gives the number of directions in which the log-likelihood does not change.
    """

    def __init__(
        self, fit: Fit, params: Mapping[str, np.ndarray], log_likelihood: float, count_flat: Callable[[], int]
    ):
        self._count_flat = count_flat
        self._fit = fit
        self._params = params
        self._log_likelihood = log_likelihood

    @property
    def num_parameters(self) -> int:
        """Number of identified dimensions of the estimated parameters."""
        return self.dimensions - self._count_flat()

    @property
    def dimensions(self) -> int:
        """Dimensions of the estimated parameters, but for a common shift of logits."""
        model = self._fit.model
        total = model.free_dimensions
        total -= sum(held_dimensions(model.trace.sites[name].constraint, held) for name, held in model.held.items())
        return total - sum(self._params[name].size // self._params[name].shape[-1] for name in self.only_differences)

    @functools.cached_property
    def only_differences(self) -> list[str]:
        """Parameters that enter only as logits, of which only differences along the last axis are identified."""
        if not shift_candidates(self._fit.model):
            return []
        effects = self._fit.compiled.shift_effects(self._fit.free(self._params), self._fit.data)
        rounding = float(jnp.finfo(jnp.result_type(float)).eps) ** 0.4
        return [name for name, effect in effects.items() if effect < rounding]

    @functools.cached_property
    def num_observations(self) -> float:
        """Independent cells, which BIC takes for the number of observations."""
        return number_of_observations(self._fit.model, self._cell_weights)

    @functools.cached_property
    def _cell_weights(self) -> dict[str, np.ndarray]:
        return jax.device_get(self._fit.compiled.cell_weights(self._fit.data))

    @property
    def aic(self) -> float:
        """Akaike's criterion."""
        return 2 * self.num_parameters - 2 * self._log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's criterion."""
        return self.num_parameters * float(np.log(self.num_observations)) - 2 * self._log_likelihood

    @property
    def icl(self) -> float:
        """Integrated completed likelihood."""
        latents = self._fit.model.model_latents
        if not latents:
            return self.bic
        marginals = self._fit.compiled.marginals(self._fit.free(self._params), self._fit.data)
        entropies = (entropy(np.asarray(marginals[name]), self._cell_weights[name]) for name in latents)
        return self.bic + 2 * sum(entropies)


def number_of_observations(model: Model, weights: Mapping[str, np.ndarray]) -> float:
    """Independent cells, weighted: those of the outermost plates that hold latents, or else of the data.

    Args:
        weights: from :func:`~emppl.estep.cell_weights.cell_weights`.
    """
    sites = model.trace.sites
    latents = [*model.model_latents, *model.continuous_latents]
    plates = {name: {plate.name for plate in sites[name].plates} for name in latents}
    continuous = [plates[name] for name in model.continuous_latents]
    if not latents or (continuous and not set.intersection(*continuous)):
        latents = [name for name in counted_without_states(model) if sites[name].kind == "observed"]
        plates = {name: {plate.name for plate in sites[name].plates} for name in latents}
    outermost = min(latents, key=lambda name: (not plates[name], len(plates[name])))
    # The first steps of a continuous chain are sites of their own.
    return float(sum(np.sum(cells) for name, cells in weights.items() if model_name(name) == model_name(outermost)))


def entropy(probabilities: np.ndarray, weights: np.ndarray) -> float:
    """Weighted sum over cells of the entropy of their probabilities (nats; last axis: states)."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    return -float(np.sum(weights * np.sum(probabilities * logs, -1)))

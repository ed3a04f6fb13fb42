"""Queries about the latents of a fit: their posterior, their most probable values, joint draws."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import numpy as np

from emppl import estep
from emppl.compiled import Fit
from emppl.errors import ParameterError
from emppl.montecarlo.path import posterior_draws


class Latents:
    """Queries about the latents of a fit, at its estimate.

    Args:
        params: the estimates.
    """

    def __init__(self, fit: Fit, params: Mapping[str, np.ndarray]):
        self._fit = fit
        self._params = fit.free(params)

    def posterior(self, site: str) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Probabilities of the states of a discrete latent, mean and covariance of a continuous one."""
        if site in self._fit.model.continuous_latents:
            mean, covariance = self._moments[site]
            return np.asarray(mean), np.asarray(covariance)
        return np.asarray(self._fit.compiled.marginals(self._params, self._fit.data)[self._discrete(site)])

    @functools.cached_property
    def _moments(self) -> dict[str, tuple[jax.Array, jax.Array]]:
        compiled, data = self._fit.compiled, self._fit.data
        drawn = None
        if estep.simulated(self._fit.model):
            assert compiled.simulator is not None
            drawn = posterior_draws(compiled.simulator, self._params, data)
        return compiled.moments(self._params, data, drawn)

    def decode(self) -> dict[str, np.ndarray]:
        """Jointly most probable values of all discrete latents."""
        states = self._fit.compiled.decode(self._params, self._fit.data)
        return {self._public(name): self._values(name, index) for name, index in states.items()}

    def sample(self, rng_key: jax.Array, num_samples: int) -> dict[str, np.ndarray]:
        """Joint draws of all latents."""
        draws = self._fit.compiled.sample(self._params, self._fit.data, jax.random.split(rng_key, num_samples))
        return {self._public(name): self._values(name, drawn) for name, drawn in draws.items()}

    def _values(self, name: str, drawn: jax.Array) -> np.ndarray:
        model = self._fit.model
        if name in model.continuous_latents:
            return np.asarray(drawn)
        return model.trace.atoms[name].reshape(-1)[np.asarray(drawn)]

    def _discrete(self, site: str) -> str:
        model = self._fit.model
        for name in (site, f"{site}_unobserved"):
            if name in model.model_latents:
                return name
        known = [*map(self._public, model.model_latents), *model.continuous_latents]
        raise ParameterError(f"{site!r} is no latent of the model; it has {known}.")

    def _public(self, name: str) -> str:
        return name.removesuffix("_unobserved") if self._fit.model.trace.sites[name].labels else name

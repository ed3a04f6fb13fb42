"""One M-step in progress: what the E-step left, and the newest value of every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.estep import QFunction
from emppl.model.natural import NaturalForm, moments_of_values
from emppl.model.regression import COEFFICIENTS, RegressionForm
from emppl.types import Params


class Maximisation:
    """What a rule may use to update its block.

    Args:
        objective: Q, a function of the parameters.
        params: current constrained values; replaced block by block.
        memory: what rules keep from one M-step to the next, by the name of the rule.
    """

    def __init__(self, objective: QFunction, params: Params, memory: Mapping[str, Any]) -> None:
        self.objective = objective
        self.model = objective.model
        self.expectations = objective.expectations
        self.evaluate = objective.evaluate
        self.params: dict[str, jax.Array] = dict(params)
        self.memory = dict(memory)
        self.unfinished = jnp.asarray(False)
        self._moments: dict[str, Mapping[str, jax.Array]] = {}

    def moments(self, site: str) -> Mapping[str, jax.Array]:
        """Named expected statistics of a site with a registered family."""
        factor = self.model.factors[site]
        if not factor.is_exponential:  # given the newest values of the other arguments
            fields = frozenset((site, field) for field in ("arguments", "distribution", "mask", "value"))
            return moments_of_values(factor, self.expectations.weights[site], self.evaluate(self.params, fields))
        reference = self.objective.prepared[site].reference
        regression = self._regression(site)
        if regression is not None:  # of the residuals, at the newest coefficients
            arrays = self.evaluate(self.params, frozenset([(site, "arguments")]))
            coefficients = regression.arguments(arrays)[COEFFICIENTS]
            return regression.residuals(self.expectations.sums[site], coefficients, reference)
        if site not in self._moments:
            self._moments[site] = NaturalForm.of(factor).moments(self._sums(site), reference)
        return self._moments[site]

    def arguments(self, site: str, arrays: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Arguments of a site, to go with its moments: residuals have location zero."""
        if self._regression(site) is not None:
            scale = self.model.factors[site].argument(arrays, "scale")
            return {"loc": jnp.zeros_like(scale), "scale": scale}
        return self.model.factors[site].arguments(arrays)

    def _regression(self, site: str) -> RegressionForm | None:
        return self.model.regressions.get(site) if site in self.expectations.sums else None

    def _sums(self, site: str) -> jax.Array:
        if site in self.expectations.sums:
            return self.expectations.sums[site]
        form, prepared = NaturalForm.of(self.model.factors[site]), self.objective.prepared[site]
        arrays = self.evaluate(self.params, frozenset([(site, "arguments")]))
        shape = jax.eval_shape(lambda: form.natural(form.arguments(arrays), prepared.reference)).shape
        return form.expected_statistics(self.expectations.weights[site], shape, prepared)

    def q(self, block: Params) -> jax.Array:
        """``Q + log prior`` in nats with a block at other values, without the terms that the block does not enter."""
        return self.objective.with_prior({**self.params, **block}, block)

    def rise(self, before: Params) -> jax.Array:
        """How much higher ``Q + log prior`` is at the newest values than at those before, in nats."""
        return self.objective.rise({**self.params, **before}, self.params)

    def report(self, finished: jax.Array) -> None:
        """Say whether an inner iteration came to its end."""
        self.unfinished = self.unfinished | jnp.logical_not(finished)

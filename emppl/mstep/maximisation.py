"""One M-step in progress: what the E-step left, and the newest value of every parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.estep import Expectations
from emppl.model.model import Model
from emppl.model.natural import Prepared
from emppl.model.regression import RegressionFactor
from emppl.numerics.guarded import weighted


class Maximisation:
    """What a rule may use to update its block.

    Args:
        model: the model.
        params: current constrained values; replaced block by block.
        expectations: outcome of the E-step.
        data: arrays of the model's arguments.
        prepared: statistics and their references, by site.
        memory: what rules keep from one M-step to the next, by the name of the rule.
    """

    def __init__(
        self,
        model: Model,
        params,
        expectations: Expectations,
        data,
        prepared: Mapping[str, Prepared],
        memory: Mapping[str, Any],
    ):
        self.model = model
        self.params: dict[str, jax.Array] = dict(params)
        self.expectations = expectations
        self.data = data
        self.prepared = {**prepared, **expectations.prepared}
        self.memory = dict(memory)
        self.unfinished = jnp.asarray(False)
        self._moments: dict[str, Mapping[str, jax.Array]] = {}

    def evaluate(self, params, wanted=None):
        """Arrays of the sites at the atoms of the E-step; see :meth:`Model.evaluate`."""
        return self.model.evaluate(params, self.data, wanted, self.expectations.atoms)

    def moments(self, site: str) -> Mapping[str, jax.Array]:
        """Named expected statistics of a site with a registered family."""
        factor = self.model.factors[site]
        if not factor.is_exponential:  # given the newest values of the other arguments
            fields = frozenset((site, field) for field in ("arguments", "distribution", "mask", "value"))
            return factor.moments_of_values(self.expectations.weights[site], self.evaluate(self.params, fields))
        regression = self._regression(site)
        if regression is not None:  # of the residuals, at the newest coefficients
            arrays = self.evaluate(self.params, frozenset([(site, "arguments")]))
            coefficients = regression.arguments(arrays)["coefficients"]
            return regression.residuals(self.expectations.sums[site], coefficients, self.prepared[site].reference)
        if site not in self._moments:
            self._moments[site] = factor.moments(self._sums(site), self.prepared[site].reference)
        return self._moments[site]

    def arguments(self, site: str, arrays) -> dict[str, jax.Array]:
        """Arguments of a site, to go with its moments: residuals have location zero."""
        if self._regression(site) is not None:
            scale = self.model.factors[site].argument(arrays, "scale")
            return {"loc": jnp.zeros_like(scale), "scale": scale}
        return self.model.factors[site].arguments(arrays)

    def _regression(self, site: str) -> RegressionFactor | None:
        return self.model.regressions.get(site) if site in self.expectations.sums else None

    def _sums(self, name: str) -> jax.Array:
        if name in self.expectations.sums:
            return self.expectations.sums[name]
        factor, prepared = self.model.factors[name], self.prepared[name]
        arrays = self.evaluate(self.params, frozenset([(name, "arguments")]))
        shape = jax.eval_shape(lambda: factor.natural(factor.arguments(arrays), prepared.reference)).shape
        return factor.expected_statistics(self.expectations.weights[name], shape, prepared)

    def q(self, block: Mapping[str, jax.Array]) -> jax.Array:
        """``Q + log prior`` with a block at other values, up to terms that do not hold the block.

        Args:
            block: constrained values of some parameters; the others are at their newest values.

        Returns:
            A scalar (natural log); differentiable in the block.
        """
        model = self.model
        arrays = self.evaluate({**self.params, **block})
        total = jnp.zeros((), jnp.result_type(float)) + model.log_prior_from(arrays)
        for name, factor in model.factors.items():
            if not factor.all_parameters & set(block):
                continue
            if name in self.expectations.sums:
                # Expected statistics are known: their product with the natural parameters needs no pass over rows.
                factor = model.natural_factor(name)
                natural = factor.natural(factor.arguments(arrays), self.prepared[name].reference)
                total = total + jnp.sum(self.expectations.sums[name] * natural)
            else:
                total = total + jnp.sum(weighted(self.expectations.weights[name], factor.table(arrays)))
        return total

    def rise(self, before: Mapping[str, jax.Array]) -> jax.Array:
        """How much higher ``Q + log prior`` is at the newest values than at those before, in nats.

        Differences are added up cell by cell, which keeps the digits that two totals would lose.

        Args:
            before: constrained values of the free parameters.
        """
        model = self.model
        arrays = [self.evaluate({**self.params, **values}) for values in (before, {})]
        old, new = (model.log_prior_from(one) for one in arrays)
        total = new - old
        for name, factor in model.factors.items():
            if not factor.all_parameters & set(model.free):
                continue
            if name in self.expectations.sums:
                factor = model.natural_factor(name)
                reference = self.prepared[name].reference
                old, new = (factor.natural(factor.arguments(one), reference) for one in arrays)
                total = total + jnp.sum(self.expectations.sums[name] * (new - old))
            else:
                old, new = (factor.table(one) for one in arrays)
                total = total + jnp.sum(weighted(self.expectations.weights[name], new - old))
        return total

    def report(self, finished: jax.Array) -> None:
        """Say whether an inner iteration came to its end."""
        self.unfinished = self.unfinished | ~finished

"""Q: the expected complete-data log-likelihood, which an M-step raises."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.estep.expectations import Expectations, Posterior
from emppl.model.log_prob_table import log_prob_table
from emppl.model.model import Model
from emppl.model.natural import Prepared
from emppl.numerics.guarded import weighted
from emppl.strategies import Simulated
from emppl.types import Data, Params


@dataclasses.dataclass(frozen=True)
class QFunction:
    """``sum over sites and cells of weight * log_prob(cell; params)``, as a function of the parameters.

    Where the expected statistics of a site are known, its term is their product with the natural parameters: that needs
    no pass over rows, and leaves out what does not depend on parameters.

    Attributes:
        model: the model.
        expectations: weights and expected statistics, from an E-step at any other parameters.
        data: arrays of the model's arguments.
        prepared: by site whose expected statistics are known, what they are relative to.
    """

    model: Model
    expectations: Expectations
    data: Data
    prepared: Mapping[str, Prepared] = dataclasses.field(default_factory=dict)

    def evaluate(self, params: Params, wanted: frozenset[tuple[str, str]] | None = None) -> dict[str, Any]:
        """Arrays of the sites at the atoms of the E-step; see :meth:`Model.evaluate`."""
        return self.model.evaluate(params, self.data, wanted, self.expectations.atoms)

    def terms(self, params: Params) -> dict[str, jax.Array]:
        """Every site's term of Q, scalars in nats."""
        arrays = self.evaluate(params)
        return {site: self._term(site, arrays) for site in self.model.factors}

    def value(self, params: Params) -> jax.Array:
        """Q without priors, in nats."""
        return sum(self.terms(params).values(), jnp.zeros(()))

    def with_prior(self, params: Params, block: Iterable[str]) -> jax.Array:
        """``Q + log prior`` in nats, without the terms of sites that do not depend on a block of parameters."""
        arrays = self.evaluate(params)
        prior = self.model.log_prior_from(arrays)
        return sum((self._term(site, arrays) for site in touched(self.model, block)), prior)

    def rise(self, before: Params, after: Params) -> jax.Array:
        """How much higher ``Q + log prior`` is at the second parameters than at the first, in nats.

        Differences are added up cell by cell, which keeps the digits that two totals would lose.
        """
        old, new = self.evaluate(before), self.evaluate(after)
        before_prior, after_prior = self.model.log_prior_from(old), self.model.log_prior_from(new)
        total = after_prior - before_prior
        for site in touched(self.model, self.model.free):
            before_form, after_form = self._form(site, old), self._form(site, new)
            total = total + jnp.sum(self._weighted(site, after_form - before_form))
        return total

    def by_draw(self, params: Params) -> jax.Array:
        """Log density of data, latents and estimated parameters for every draw of the latents, ``(draws,)`` in nats.

        Its mean is ``Q + log prior``. Sites without parameters are left out, and terms that no draw enters are in all
        of them. Weights of draws, unless equal, are part of what is summed.
        """
        simulated = [integral for integral in self.model.integrals if isinstance(integral.strategy, Simulated)]
        axis_of = {site: integral.axis for integral in simulated for site in integral.factors}
        arrays = self.evaluate(params)
        total: Any = self.model.log_prior_from(arrays)
        for site in touched(self.model, self.model.trace.parameters):
            cells = self._weighted(site, self._form(site, arrays))
            if site in self.expectations.sums or site not in axis_of:
                total = total + jnp.sum(cells)
                continue
            draws = self.model.axes.names.index(axis_of[site])
            by_draw = jnp.sum(cells, tuple(axis for axis in range(cells.ndim) if axis != draws))
            total = total + by_draw * by_draw.shape[0]
        return total

    def _term(self, site: str, arrays: Mapping[str, Any]) -> jax.Array:
        return jnp.sum(self._weighted(site, self._form(site, arrays)))

    def _form(self, site: str, arrays: Mapping[str, Any]) -> jax.Array:
        """What the expectations of a site multiply: its natural parameters, or the log-probability of every cell."""
        if site not in self.expectations.sums:
            return log_prob_table(self.model.factors[site], arrays)
        form = self.model.natural_form(site)
        return form.natural(form.arguments(arrays), self.prepared[site].reference)

    def _weighted(self, site: str, form: jax.Array) -> jax.Array:
        if site in self.expectations.sums:
            return self.expectations.sums[site] * form
        return weighted(self.expectations.weights[site], form)


def touched(model: Model, names: Iterable[str]) -> list[str]:
    """Likelihood sites that depend on any of some parameters."""
    parameters = set(names)
    return [site for site, factor in model.factors.items() if factor.all_parameters & parameters]


def q(model: Model, params: Params, posterior: Posterior, data: Data) -> jax.Array:
    """Q without priors at some parameters, from the posterior weights of all sites at any others, in nats."""
    return QFunction(model, Expectations.of(jax.lax.stop_gradient(posterior)), data).value(params)

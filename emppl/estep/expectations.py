"""What an E-step leaves: posterior weights of cells, or expected statistics in their place."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from emppl.model.natural import Prepared


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Posterior:
    """Outcome of an E-step.

    Attributes:
        log_likelihood: log-likelihood of the observed data, latents summed out, constants included (natural log).
        weights: for every likelihood site the posterior weight of every cell of its log-probability table.
        atoms: of integrated latents, ``(atoms, *states, *plates, *event)``.
        centers: by integral, where the atoms lie, ``(groups, dimensions)``.
    """

    log_likelihood: jax.Array
    weights: dict[str, jax.Array]
    atoms: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    centers: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Expectations:
    """What an M-step needs.

    Attributes:
        log_likelihood: of the observed data.
        sums: for sites in natural form, the expected statistics (gradient with respect to natural parameters).
        weights: for the other sites, the posterior weights.
        amplification: how much larger than the log-probabilities the terms are that the matrix products add up;
            times the machine epsilon it bounds the rounding error of one row's log-probability.
        atoms: of integrated latents.
        centers: by integral, where the atoms lie.
        prepared: statistics of the atoms, of sites whose value is an integrated latent.
        cancelled: sum of the terms that cancel in the log evidence of integrals.
        evidence_weights: by integral, the posterior weight of every cell, weights of cells included.
    """

    log_likelihood: jax.Array
    sums: dict[str, jax.Array]
    weights: dict[str, jax.Array]
    amplification: jax.Array
    atoms: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    centers: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    prepared: dict[str, Prepared] = dataclasses.field(default_factory=dict)
    cancelled: jax.Array | float = 0.0
    evidence_weights: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, posterior: Posterior) -> Expectations:
        """Expectations from a posterior that holds the weights of all sites."""
        log_likelihood, weights = posterior.log_likelihood, posterior.weights
        return cls(log_likelihood, {}, weights, jnp.zeros(()), posterior.atoms, posterior.centers)

    @property
    def posterior(self) -> Posterior:
        """The posterior, as far as weights are known."""
        return Posterior(self.log_likelihood, self.weights, self.atoms, self.centers)

    @property
    def rounding(self) -> jax.Array:
        """Bound on the error of the log-likelihood beside its own rounding, in units of the machine epsilon."""
        return self.amplification + 4 * self.cancelled

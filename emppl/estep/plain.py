"""The plain E-step: a log-probability table per site, and its posterior weights as a gradient.

It works for every distribution, keeps every weight, and is the twin that the fused path is compared with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination import log_normalizer, log_sum
from emppl.markov import SumOut
from emppl.numerics import impossible_to_infinite, weighted
from emppl.program import Part, Program


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Posterior:
    """Outcome of an E-step.

    Attributes:
        log_likelihood: log-likelihood of the observed data, latents summed out, constants included (natural log).
        weights: for every likelihood site the posterior weight of every cell of its log-probability table.
    """

    log_likelihood: jax.Array
    weights: dict[str, jax.Array]


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
    """

    log_likelihood: jax.Array
    sums: dict[str, jax.Array]
    weights: dict[str, jax.Array]
    amplification: jax.Array


def owners_of(program: Program, scales: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of every latent's cells."""
    return {latent: scales.get(latent) for latent in program.latents}


def part_evidence(part: Part, tables, scales, owners, present=None, sum_out: SumOut = log_sum) -> jax.Array:
    """Log normaliser of one part from log-probability tables (and from zero tables of scanned latents)."""
    chosen = {name: tables[name] for name in (*part.factors, *part.probes) if name in tables}
    return log_normalizer(part.plan, chosen, scales, owners, sum_out, present)


def log_evidence(program: Program, tables, scales, present) -> jax.Array:
    """Log normaliser of all parts from log-probability tables."""
    owners = owners_of(program, scales)
    total = jnp.zeros((), jnp.result_type(float))
    for part in program.parts:
        total = total + part_evidence(part, tables, scales, owners, present)
    return impossible_to_infinite(total)


def log_likelihood(program: Program, params, leaves) -> jax.Array:
    """Log-likelihood of the observed data, by the plain path."""
    arrays = program.evaluate(params, leaves)
    value = log_evidence(program, program.tables(arrays), program.scales(arrays), program.present(arrays))
    return value + program.fault(arrays)


def e_step(program: Program, params, leaves) -> Posterior:
    """Posterior weights of every cell of every likelihood site, by the plain path."""
    arrays = program.evaluate(params, leaves)
    scales, present = program.scales(arrays), program.present(arrays)

    def evidence(tables):
        return log_evidence(program, tables, scales, present)

    value, weights = jax.value_and_grad(evidence)(program.tables(arrays))
    return Posterior(value + program.fault(arrays), weights)


def q(program: Program, params, posterior: Posterior, leaves) -> jax.Array:
    """Expected complete-data log-likelihood: ``sum(stop_gradient(weight) * log_prob(params))`` over sites and cells.

    Args:
        program: the derived algorithm.
        params: where it is evaluated.
        posterior: outcome of an E-step, at any other parameters.
        leaves: the data.

    Returns:
        A scalar (natural log), without priors.
    """
    weights = jax.lax.stop_gradient(posterior.weights)
    tables = program.tables(program.evaluate(params, leaves))
    return sum((jnp.sum(weighted(weights[name], tables[name])) for name in tables), jnp.zeros(()))


def from_posterior(program: Program, params, posterior: Posterior, leaves, local: bool = False):
    """What the M-step needs, from posterior weights.

    Args:
        program: the derived algorithm.
        params: the parameters at which the E-step was done.
        posterior: its outcome.
        leaves: the data.
        local: centre statistics at each component's own location.

    Returns:
        ``(expectations, prepared)``.
    """
    arrays = program.evaluate(params, leaves)
    prepared = {
        name: factor.prepare(arrays, local=local) for name, factor in program.factors.items() if factor.has_statistics
    }
    return Expectations(posterior.log_likelihood, {}, posterior.weights, jnp.zeros(())), prepared

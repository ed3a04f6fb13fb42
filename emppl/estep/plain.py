"""The plain E-step: a log-probability table per site, and its posterior weights as a gradient.

It works for every distribution, keeps every weight, and is the twin that the fused path is compared with.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination.reductions import Picking
from emppl.elimination.run import log_normalizer
from emppl.integrals.integration import atom_weights, integrate_all
from emppl.model.model import Model
from emppl.model.natural import Prepared
from emppl.names import model_name
from emppl.numerics.guarded import impossible_to_infinite, weighted


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

    @property
    def rounding(self) -> jax.Array:
        """What, times the machine epsilon, the log-likelihood may be off beside its own rounding."""
        return self.amplification + 4 * self.cancelled


def owners_of(model: Model, scales: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of every latent's cells."""
    return {latent: scales.get(latent) for latent in model.latents}


def log_evidence(model: Model, tables, scales, present, picking: Picking | None = None) -> jax.Array:
    """Log normaliser of all parts from log-probability tables; some latents may get one value instead of a sum."""
    owners = owners_of(model, scales)
    total = jnp.zeros((), jnp.result_type(float))
    for number, part in enumerate(model.parts):
        mine = {name: tables[name] for name in part.factors}
        how = None if picking is None else picking.part(number)
        total = total + log_normalizer(part.plan, mine, scales, owners, present=present, picking=how)
    return impossible_to_infinite(total)


def absent_cells(model: Model, arrays) -> jax.Array:
    """What the best value of masked latents takes away from their log-probability of ``-log(states)``.

    A masked cell is no part of the model: the sum over its states adds nothing, and so must their maximum.
    """
    total = jnp.zeros((), jnp.result_type(float))
    for name in model.latents:
        factor = model.factors[name]
        mask = factor.mask(arrays)
        if mask is None or model_name(name) not in model.hard or factor.labels_of is not None:
            continue
        scale, states = factor.scale(arrays), factor.site.states
        plates = model.axes.plates_of(factor.site, factor.site.batch_shape)
        shape = [model.axes.sizes[n] if n in plates else 1 for n in model.axes.names]
        inside = jnp.any(mask, tuple(range(model.axes.rank, mask.ndim)))
        gone = jnp.broadcast_to(jnp.where(inside, 0.0, math.log(states)), shape)
        total = total + jnp.sum(gone if scale is None else gone * scale)
    return total


def log_likelihood(model: Model, params, data, key=None) -> jax.Array:
    """Log-likelihood of the observed data, by the plain path.

    Args:
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        key: random numbers of simulated integrals; None for those that are always the same.
    """
    arrays = model.evaluate(params, data)
    tables = model.tables(arrays, model.integrated) | {
        name: one.evidence for name, one in integrate_all(model, params, data, key=key).items()
    }
    value = log_evidence(model, tables, all_scales(model, arrays), model.present(arrays))
    return value + model.fault(arrays)


def all_scales(model: Model, arrays) -> dict[str, Any]:
    """Weights of the cells of every factor, integrals included."""
    scales = model.scales(arrays)
    return scales | {one.axis: scales[one.latents[0]] for one in model.integrals}


def e_step(model: Model, params, data) -> Posterior:
    """Posterior weights of every cell of every likelihood site, by the plain path.

    Under :class:`~emppl.strategies.Hard` they mark the best assignment, and ``log_likelihood`` is that of data and
    assignment together.
    """
    arrays = model.evaluate(params, data)
    scales, present = all_scales(model, arrays), model.present(arrays)
    integrated = integrate_all(model, params, data)

    def evidence(tables):
        return log_evidence(model, tables, scales, present, model.picking)

    tables = model.tables(arrays, model.integrated)
    tables |= {name: one.evidence for name, one in integrated.items()}
    value, weights = jax.value_and_grad(evidence)(tables)
    weights, atoms = spread_over_atoms(model, integrated, weights, params, data)
    centers = {name: one.mean for name, one in integrated.items()}
    value = value + absent_cells(model, arrays)
    return Posterior(value + model.fault(arrays), weights, atoms, centers)


def spread_over_atoms(model: Model, integrated, weights: dict[str, jax.Array], params, data):
    """Weights of the sites that depend on integrated latents, in place of the weights of their integrals.

    Returns:
        ``(weights, atoms)``.
    """
    atoms: dict[str, jax.Array] = {}
    weights = dict(weights)
    for integral in model.integrals:
        found = integrated[integral.axis]
        weights |= atom_weights(model, integral, found, weights.pop(integral.axis), params, data)
        atoms |= found.atoms
    return weights, atoms


def q(model: Model, params, posterior: Posterior, data) -> jax.Array:
    """Expected complete-data log-likelihood: ``sum(stop_gradient(weight) * log_prob(params))`` over sites and cells.

    Args:
        model: the model.
        params: where it is evaluated.
        posterior: outcome of an E-step, at any other parameters.
        data: arrays of the model's arguments.

    Returns:
        A scalar (natural log), without priors.
    """
    weights, atoms = jax.lax.stop_gradient((posterior.weights, posterior.atoms))
    tables = model.tables(model.evaluate(params, data, atoms=atoms))
    return sum((jnp.sum(weighted(weights[name], tables[name])) for name in tables), jnp.zeros(()))


def from_posterior(model: Model, params, posterior: Posterior, data, local: bool = False):
    """What the M-step needs, from posterior weights.

    Args:
        model: the model.
        params: the parameters at which the E-step was done.
        posterior: its outcome.
        data: arrays of the model's arguments.
        local: centre statistics at each component's own location.

    Returns:
        ``(expectations, prepared)``.
    """
    arrays = model.evaluate(params, data, atoms=posterior.atoms)
    prepared = {
        name: factor.prepare(arrays, local=local) for name, factor in model.factors.items() if factor.has_statistics
    }
    found = Expectations(
        posterior.log_likelihood, {}, posterior.weights, jnp.zeros(()), posterior.atoms, posterior.centers
    )
    return found, prepared

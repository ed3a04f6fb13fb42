"""The plain E-step: a log-probability table per site, and its posterior weights as a gradient.

It works for every distribution, keeps every weight, and is the twin that the fused path is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination.reductions import PLAIN_SUM
from emppl.elimination.run import log_normalizer
from emppl.errors import ParameterError
from emppl.estep.expectations import Expectations, Posterior
from emppl.integrals.integrated import Integrated
from emppl.integrals.way import atom_weights, integrate_all
from emppl.model.masked import states_of_flat_cells
from emppl.model.model import Model
from emppl.model.natural import NaturalForm, Prepared
from emppl.names import model_name
from emppl.numerics.guarded import impossible_to_infinite
from emppl.types import Data, Params, Scales, Tables, Weights


def log_evidence(
    model: Model, tables: Tables, scales: Scales, present: Mapping[str, jax.Array], hard: bool = False
) -> jax.Array:
    """Log normaliser of all parts from log-probability tables; ``hard`` latents may get their best values."""
    total = jnp.zeros((), jnp.result_type(float))
    for part in model.parts:
        reductions = model.reductions(part.plan, PLAIN_SUM) if hard else dict.fromkeys(part.plan.reduced, PLAIN_SUM)
        of_part = {name: tables[name] for name in part.factors}
        total = total + log_normalizer(part.plan, of_part, scales, reductions, present)
    return impossible_to_infinite(total)


def absent_cells(model: Model, arrays: Mapping[str, Any]) -> jax.Array:
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
        shape = model.axes.shape(plates)
        inside = jnp.any(mask, tuple(range(model.axes.rank, mask.ndim)))
        gone = jnp.broadcast_to(jnp.where(inside, 0.0, math.log(states)), shape)
        total = total + jnp.sum(gone if scale is None else gone * scale)
    return total


def log_likelihood(model: Model, params: Params, data: Data, key: jax.Array | None = None) -> jax.Array:
    """Log-likelihood of the observed data, by the plain path.

    Args:
        key: random numbers of simulated integrals; None for those that are always the same.
    """
    arrays = model.evaluate(params, data)
    tables = with_evidence(model.tables(arrays, model.integrated), integrate_all(model, params, data, key=key))
    value = log_evidence(model, tables, all_scales(model, arrays), model.present(arrays))
    return value + states_of_flat_cells(model, data) + model.fault(arrays)


def all_scales(model: Model, arrays: Mapping[str, Any]) -> dict[str, jax.Array | None]:
    """Weights of the cells of every factor, integrals included."""
    scales = model.scales(arrays)
    return scales | {integral.axis: scales[integral.latents[0]] for integral in model.integrals}


def e_step(model: Model, params: Params, data: Data) -> Posterior:
    """Posterior weights of every cell of every likelihood site, by the plain path.

    Under :class:`~emppl.strategies.Hard` they mark the best assignment, and ``log_likelihood`` is that of data and
    assignment together.
    """
    arrays = model.evaluate(params, data)
    scales, present = all_scales(model, arrays), model.present(arrays)
    integrated = integrate_all(model, params, data)

    def evidence(tables: Tables) -> jax.Array:
        return log_evidence(model, tables, scales, present, hard=True)

    tables = with_evidence(model.tables(arrays, model.integrated), integrated)
    value, weights = jax.value_and_grad(evidence)(tables)
    weights, atoms = spread_over_atoms(model, integrated, weights, params, data)
    value = value + absent_cells(model, arrays) + states_of_flat_cells(model, data, model.hard)
    centers = {axis: outcome.mean for axis, outcome in integrated.items()}
    return Posterior(value + model.fault(arrays), weights, atoms, centers)


def with_evidence(tables: Tables, integrated: Mapping[str, Integrated]) -> dict[str, jax.Array]:
    """Tables of the sites without integrated latents, and in place of the others the evidence of the integrals."""
    return {**tables, **{axis: outcome.evidence for axis, outcome in integrated.items()}}


def spread_over_atoms(
    model: Model, integrated: Mapping[str, Integrated], weights: Weights, params: Params, data: Data
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Weights of the sites that depend on integrated latents, in place of the weights of their integrals.

    Returns:
        ``(weights, atoms)``.
    """
    atoms: dict[str, jax.Array] = {}
    weights = dict(weights)
    for integral in model.integrals:
        outcome = integrated[integral.axis]
        weights |= atom_weights(model, integral, outcome, weights.pop(integral.axis), params, data)
        atoms |= outcome.atoms
    return weights, atoms


def check_posterior(model: Model, posterior: Posterior) -> None:
    """Refuse the posterior of other data, whose weights would be spread over these.

    Raises:
        ParameterError: a site without weights, or with weights of another shape than its table.
    """
    counted = [axis for axis, name in enumerate(model.axes.names) if name not in model.axes.of_atoms]
    for name, table in model.table_shapes.items():
        if name not in posterior.weights:
            raise ParameterError(f"The posterior has no weights of site {name!r}. Take it from em.e_step(params, ...).")
        shape = jnp.shape(posterior.weights[name])
        if len(shape) != len(table.shape) or any(shape[axis] != table.shape[axis] for axis in counted):
            raise ParameterError(
                f"The posterior has weights of shape {shape} for site {name!r}, whose table has shape {table.shape}: "
                "it is that of other data. Take it from em.e_step(params, ...) with the same arguments."
            )


def from_posterior(
    model: Model, params: Params, posterior: Posterior, data: Data, local: bool = False
) -> tuple[Expectations, dict[str, Prepared]]:
    """What the M-step needs, from posterior weights: expectations, and statistics by site.

    Args:
        params: the parameters at which the E-step was done.
        local: centre statistics at each component's own location.
    """
    arrays = model.evaluate(params, data, atoms=posterior.atoms)
    prepared = {
        name: NaturalForm.of(factor).prepare(arrays, local=local)
        for name, factor in model.factors.items()
        if factor.has_statistics
    }
    return Expectations.of(posterior), prepared

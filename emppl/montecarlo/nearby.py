"""The log-likelihood near the parameters at which draws were made, by weights of the draws in every group by itself.

With ``b`` drawn at ``old``, the evidence of a group is ``evidence(old) * mean(p(y, b; new) / p(y, b; old))``. What is
not drawn (discrete latents, other integrals, weights of cells) enters exactly. The second derivative at ``old`` is
Louis' formula, group by group: draws of different groups are independent, so that the covariances between them, which
are zero, add no noise; and a group that counts ``w`` times misses ``w`` times its own information, not ``w`` squared
times.

Reference:
    Geyer and Thompson (1992), Constrained Monte Carlo maximum likelihood for dependent data, JRSS B 54:657-699;
    Louis (1982), Finding the observed information matrix when using the EM algorithm, JRSS B 44:226-233.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from emppl.estep.plain import all_scales, log_evidence
from emppl.integrals.joint import Joint
from emppl.integrals.way import integrate
from emppl.model.model import Model


def log_densities(model: Model, params, draws: Mapping[str, jax.Array], data) -> dict[str, jax.Array]:
    """Log joint density of every group at every draw.

    Args:
        model: the model.
        params: constrained parameter values.
        draws: by integral, ``(..., groups, dimensions)``.
        data: arrays of the model's arguments.

    Returns:
        By integral, ``(..., groups)``.
    """
    found = {}
    for one in model.integrals:
        if one.axis in draws:
            points = draws[one.axis]
            flat = jax.vmap(Joint(model, one, params, data).by_group)(jnp.reshape(points, (-1, *points.shape[-2:])))
            found[one.axis] = jnp.reshape(flat, points.shape[:-1])
    return found


def nearby_log_likelihood(
    model: Model, params, draws: Mapping[str, jax.Array], evidence: Mapping[str, jax.Array], data
) -> Callable[..., jax.Array]:
    """The log-likelihood as a function of the parameters, and of the shares of the draws.

    Args:
        model: the model.
        params: where the draws were made.
        draws: by integral, unconstrained, ``(draws, groups, dimensions)``.
        evidence: of these integrals, at ``params``.
        data: arrays of the model's arguments.

    Returns:
        ``(params, shares) -> log-likelihood`` (natural log); ``shares`` are those of the draws, ``(draws,)``, in all
        groups alike.
    """
    before = log_densities(model, params, draws, data)

    def log_likelihood(at, shares):
        after = log_densities(model, at, draws, data)
        rises = {
            axis: jax.nn.logsumexp(after[axis] - before[axis], 0, b=shares[:, None]) - jnp.log(jnp.sum(shares))
            for axis in draws
        }
        return risen_log_likelihood(model, at, rises, evidence, data)

    return log_likelihood


def risen_log_likelihood(
    model: Model, params, rises: Mapping[str, jax.Array], evidence: Mapping[str, jax.Array], data
) -> jax.Array:
    """The log-likelihood where the log evidence of some integrals is known, and by how much it rose since.

    Args:
        model: the model.
        params: parameters of everything else.
        rises: by integral, ``(groups,)``.
        evidence: of these integrals, before.
        data: arrays of the model's arguments.

    Returns:
        A scalar (natural log).
    """
    arrays = model.evaluate(params, data)
    tables = model.tables(arrays, model.integrated)
    for one in model.integrals:
        joint = Joint(model, one, params, data)
        if one.axis in rises:
            tables[one.axis] = evidence[one.axis] + joint.to_cells(rises[one.axis])
        else:
            tables[one.axis] = integrate(joint).evidence
    return log_evidence(model, tables, all_scales(model, arrays), model.present(arrays))

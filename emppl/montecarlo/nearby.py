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
from typing import TypeAlias

import jax
import jax.numpy as jnp

from emppl.estep.plain import all_scales, log_evidence
from emppl.integrals.joint import Joint
from emppl.integrals.way import integrate
from emppl.model.model import Model
from emppl.types import Data, Params

ByIntegral: TypeAlias = Mapping[str, jax.Array]
"""An array for every integral that is drawn, by its axis."""


def log_densities(model: Model, params: Params, draws: ByIntegral, data: Data) -> dict[str, jax.Array]:
    """Log joint density of every group at every draw.

    Args:
        draws: by integral, ``(..., groups, dimensions)``.

    Returns:
        By integral, ``(..., groups)``.
    """
    densities = {}
    for integral in model.integrals:
        if integral.axis in draws:
            joint, points = Joint(model, integral, params, data), draws[integral.axis]
            flat = jax.vmap(joint.by_group)(jnp.reshape(points, (-1, *points.shape[-2:])))
            densities[integral.axis] = jnp.reshape(flat, points.shape[:-1])
    return densities


def nearby_log_likelihood(
    model: Model, params: Params, draws: ByIntegral, evidence: ByIntegral, data: Data
) -> Callable[[Params, jax.Array], jax.Array]:
    """The log-likelihood as a function of the parameters, and of the shares of the draws.

    Args:
        params: where the draws were made.
        draws: by integral, unconstrained, ``(draws, groups, dimensions)``.
        evidence: of these integrals, at ``params``.

    Returns:
        ``(params, shares) -> log-likelihood`` (natural log); ``shares`` are those of the draws, ``(draws,)``, in all
        groups alike.
    """
    before = log_densities(model, params, draws, data)

    def log_likelihood(at: Params, shares: jax.Array) -> jax.Array:
        after = log_densities(model, at, draws, data)
        rises = {
            axis: jax.nn.logsumexp(after[axis] - before[axis], 0, b=shares[:, None]) - jnp.log(jnp.sum(shares))
            for axis in draws
        }
        return risen_log_likelihood(model, at, rises, evidence, data)

    return log_likelihood


def risen_log_likelihood(
    model: Model, params: Params, rises: ByIntegral, evidence: ByIntegral, data: Data
) -> jax.Array:
    """The log-likelihood where the log evidence of some integrals is known, and by how much it rose since.

    Args:
        params: parameters of everything else.
        rises: by integral, ``(groups,)``.
        evidence: of these integrals, before.

    Returns:
        A scalar (natural log).
    """
    arrays = model.evaluate(params, data)
    tables = model.tables(arrays, model.integrated)
    for integral in model.integrals:
        axis, joint = integral.axis, Joint(model, integral, params, data)
        if axis in rises:
            tables[axis] = evidence[axis] + joint.to_cells(rises[axis])
        else:
            tables[axis] = integrate(joint).evidence
    return log_evidence(model, tables, all_scales(model, arrays), model.present(arrays))

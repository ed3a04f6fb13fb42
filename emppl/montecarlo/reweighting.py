"""Old draws at new parameters: importance weights, group by group.

Draws ``b`` of a group made at ``theta_0`` serve at ``theta`` with weights proportional to

    p(y, b | theta) / p(y, b | theta_0),

divided by their sum over the draws of that group. Groups are independent given the parameters, so that each has weights
of its own: those of all groups together would be products of as many factors, and soon rest on one draw.

The expectation of every group is then a ratio of means, and so is its error (delta method): that of the mean of

    weight (value - expectation),

the weights scaled to a mean of one.

Reference:
    Levine and Casella (2001), Implementations of the Monte Carlo EM algorithm, JCGS 10:422-439;
    Geyer and Thompson (1992), Constrained Monte Carlo maximum likelihood for dependent data, JRSS B 54:657-699 (the
    ratio of evidences).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep.plain import Expectations
from emppl.integrals.joint import Joint
from emppl.model.model import Model
from emppl.numerics.guarded import weighted
from emppl.strategies import MonteCarlo


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Reweighted:
    """Weights of draws at parameters that they were not made at, chains one after the other.

    Attributes:
        shares: by integral, ``(draws, groups)``; those of every group add up to one.
        rises: by integral, by how much the log evidence of every group is higher than where the draws were made.
    """

    shares: dict[str, Any]
    rises: dict[str, Any]


def why_not_reweighted(model: Model) -> str | None:
    """The reason why every E-step draws afresh although the strategy would re-weight, or None.

    The evidence of the states of discrete latents decides between these. From old draws its noise would be part of
    every gain, through the elimination of all that meets them, and the bound of the ascent does not see it.
    """
    for one in model.integrals:
        if isinstance(one.strategy, MonteCarlo) and one.given:
            names = ", ".join(map(repr, one.given))
            return f"fresh draws decide between the states of {names}"
    return None


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


def reweighted(now: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> tuple[Reweighted, float]:
    """Weights of draws, from their log densities.

    Args:
        now: by integral, ``(chains, draws, groups)``, at the new parameters.
        before: where they were made.

    Returns:
        ``(weights, effective)``: the effective number of draws of the worst group, as a share of all.
    """
    shares, rises, worst = {}, {}, 1.0
    for axis in before:
        groups = before[axis].shape[-1]
        with np.errstate(invalid="ignore"):  # impossible at both
            ratios = (now[axis] - before[axis]).reshape(-1, groups)
        ratios = np.where(np.isfinite(ratios), ratios, -np.inf)
        peak = ratios.max(0)
        weights = np.exp(ratios - np.where(np.isfinite(peak), peak, 0))
        total = weights.sum(0)
        safe = np.where(total > 0, total, 1)
        shares[axis] = weights / safe
        with np.errstate(divide="ignore"):
            rises[axis] = peak + np.log(total / len(ratios))
        effective = np.where(total > 0, 1 / np.maximum((shares[axis] ** 2).sum(0), 1e-300), 0)
        worst = min(worst, float(np.min(effective, initial=len(ratios))) / len(ratios))
    return Reweighted(shares, rises), worst


def unweighted(draws: Mapping[str, Any]) -> Reweighted:
    """Equal weights, of draws where they were made."""
    sizes = {axis: (one.shape[0] * one.shape[1], one.shape[2]) for axis, one in draws.items()}
    dtype = jnp.result_type(float)
    return Reweighted(
        {axis: np.full(size, 1 / size[0], dtype) for axis, size in sizes.items()},
        {axis: np.zeros(size[1], dtype) for axis, size in sizes.items()},
    )


def ratio_residuals(model: Model, found: Expectations, weights: Reweighted, before, after, data) -> jax.Array:
    """What has to be added to the weighted gain of every draw for their spread to be that of ratios.

    A weighted gain ``draws * share * gain`` has the right mean, but varies with its weight even where all gains are
    equal. With ``(1 - draws * share) * mean gain`` of every group it is the mean and the residual of a ratio.

    Args:
        model: the model.
        found: from weighted draws.
        weights: of the draws.
        before: parameters.
        after: those whose gain is asked for.
        data: arrays of the model's arguments.

    Returns:
        ``(draws,)``; zero where the weights are equal, and zero in the mean.
    """
    total = jnp.zeros(())
    for one in model.integrals:
        if one.axis not in weights.shares:
            continue
        joint = Joint(model, one, before, data)
        old, new = (joint.at(params).tables_at(found.atoms) for params in (before, after))
        gains = joint.by_cell({name: new[name] - old[name] for name in old})
        shares = joint.atoms_to_cells(weights.shares[one.axis])
        mean = jnp.sum(weighted(shares, gains), joint.atom_axis, keepdims=True)
        each = found.evidence_weights[one.axis] * mean * (1 - len(weights.shares[one.axis]) * shares)
        total = total + jnp.sum(each, tuple(axis for axis in range(joint.rank) if axis != joint.atom_axis))
    return total

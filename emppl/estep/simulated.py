"""The Monte Carlo E-step: atoms that are draws of chains, and what one draw says about a change of the parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.estep.fused import FusedPlan, expectations
from emppl.estep.plain import Expectations
from emppl.integrals.importance import importance
from emppl.integrals.integration import integrate
from emppl.integrals.joint import Joint
from emppl.integrals.mcmc import Chains, draw, first_chains
from emppl.integrals.outcome import Integrated, atoms_of
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.model.natural import Prepared
from emppl.numerics.guarded import weighted
from emppl.strategies import Simulated

_EVIDENCE_POINTS = 64
"""Draws for the log-likelihood of one iteration, which is only watched."""


def simulated(model: Model) -> list[Integral]:
    """The integrals whose atoms are draws."""
    return [one for one in model.integrals if isinstance(one.strategy, Simulated)]


def begin_chains(model: Model) -> dict[str, Chains]:
    """Chains of all integrals before the first draw."""
    found = {}
    for one in simulated(model):
        assert isinstance(one.strategy, Simulated)
        found[one.axis] = first_chains(one.groups, one.dimensions, one.strategy.num_chains)
    return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Drawn:
    """Outcome of moving all chains.

    Attributes:
        draws: by integral, unconstrained, ``(chains, draws, groups, dimensions)``.
        evidence: by integral, its log evidence by importance sampling, with the common axes.
        chains: by integral, where they are now.
        parts: by integral whose evidence decides between states, the share of every importance draw in it, along the
            axis of the atoms.
    """

    draws: dict[str, jax.Array]
    evidence: dict[str, jax.Array]
    chains: dict[str, Chains]
    parts: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


def draw_all(model: Model, params, chains: Mapping[str, Chains], key: jax.Array, data, number: int) -> Drawn:
    """Draws of all simulated latents at given parameters.

    Args:
        model: the model.
        params: constrained parameter values.
        chains: where the chains are.
        key: random key.
        data: arrays of the model's arguments.
        number: draws to keep of every chain.
    """
    draws, evidence, after, parts = {}, {}, {}, {}
    for position, one in enumerate(simulated(model)):
        joint = Joint(model, one, params, data)
        first, second = jax.random.split(jax.random.fold_in(key, position))
        found, now = draw(joint, chains[one.axis], first, number)
        # Where discrete latents are given, the evidence of their states decides between them.
        points = number * found.shape[0] if one.given else _EVIDENCE_POINTS
        draws[one.axis], after[one.axis] = found, now
        weighed = importance(joint, now.mean, now.root, second, points)
        evidence[one.axis] = weighed.evidence
        if one.given:
            parts[one.axis] = weighed.shares
    return Drawn(draws, evidence, after, parts)


def simulated_expectations(
    model: Model,
    fused: FusedPlan,
    params,
    drawn: Drawn,
    shares: jax.Array | None,
    data,
    prepared,
    key=None,
) -> Expectations:
    """What the M-step needs, from draws.

    Args:
        model: the model.
        fused: static choices of the fused path.
        params: where the expectations are wanted.
        drawn: the draws.
        shares: weight of every draw, chains one after the other; None for equal ones.
        data: arrays of the model's arguments.
        prepared: statistics of the data.
        key: random key of discrete latents that are drawn.

    Returns:
        The expectations; their ``log_likelihood`` is estimated by importance sampling.
    """
    integrated = integrated_by_draws(model, params, drawn, shares, data)
    return expectations(model, fused, params, data, prepared, None, integrated, key)


def integrated_by_draws(model: Model, params, drawn: Drawn, shares: jax.Array | None, data) -> dict[str, Integrated]:
    """Every integral of the model, those that are drawn by their draws.

    Args:
        model: the model.
        params: where the integrals are wanted.
        drawn: the draws.
        shares: weight of every draw, as in :func:`simulated_expectations`.
        data: arrays of the model's arguments.

    Returns:
        By integral.
    """
    integrated: dict[str, Integrated] = {}
    for one in model.integrals:
        if one.axis not in drawn.draws:
            integrated[one.axis] = integrate(model, one, params, data)
            continue
        joint = Joint(model, one, params, data)
        points = drawn.draws[one.axis]
        points = jnp.reshape(points, (-1, *points.shape[2:]))
        chains = drawn.chains[one.axis]
        table = joint.along_atoms(jnp.full(len(points), 1 / len(points)) if shares is None else shares)
        integrated[one.axis] = Integrated(
            drawn.evidence[one.axis], atoms_of(joint, points), table, chains.mean, chains.root
        )
    return integrated


def complete_log_densities(
    model: Model, found: Expectations, prepared: Mapping[str, Prepared], params, data
) -> jax.Array:
    """Log density of data, latents and estimated parameters for every draw: its mean is Q plus the log prior.

    Sites without parameters are left out, and terms that no draw enters are in all of them.

    Args:
        model: the model.
        found: from draws; their weights, unless equal, are part of what is summed.
        prepared: statistics of the data.
        params: where it is evaluated.
        data: arrays of the model's arguments.

    Returns:
        ``(draws,)`` (natural log).
    """
    axis_of = {name: one.axis for one in simulated(model) for name in one.factors}
    arrays = model.evaluate(params, data, atoms=found.atoms)
    total: Any = model.log_prior_from(arrays)
    for name, factor in model.factors.items():
        if not factor.all_parameters:
            continue
        if name in found.sums:
            factor = model.natural_factor(name)
            natural = factor.natural(factor.arguments(arrays), prepared[name].reference)
            total = total + jnp.sum(found.sums[name] * natural)
            continue
        terms = weighted(found.weights[name], factor.table(arrays))
        if name not in axis_of:
            total = total + jnp.sum(terms)
            continue
        position = model.axes.names.index(axis_of[name])
        each = jnp.sum(terms, tuple(axis for axis in range(terms.ndim) if axis != position))
        total = total + each * each.shape[0]
    return total

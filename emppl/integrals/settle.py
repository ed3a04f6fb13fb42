"""How every integral is done: where it falls apart into groups, and in which way, with the reason.

An observed Delta that restricts the latents leaves one way, the truncated normal law. A strategy that the user asks for
has its own: that of a row below, or the ``way`` that it brings along. Else the order of ``_WAYS`` is the policy; the
first way that applies is taken:

1. smoother: a chain whose log joint density is quadratic, step by step.
2. exact: any other quadratic log joint density.
3. product rule: adaptive quadrature of up to three numbers together, where the density has no corners.
4. at the mode: Laplace's approximation; only where it is asked for.
5. sampled: Monte Carlo, which always applies.

All but the first see a chain as one vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from emppl.errors import ModelError, ParameterError, Refusal
from emppl.integrals.exact import Exact
from emppl.integrals.joint import Joint
from emppl.integrals.laplace import AtMode
from emppl.integrals.limits import limiting_sites
from emppl.integrals.quadrature import ProductRule
from emppl.integrals.sampling import Sampled
from emppl.integrals.smoother import Smoother
from emppl.integrals.truncated import Truncated
from emppl.integrals.way import Question, Way
from emppl.jaxpr.jumps import why_not_quadratic
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.model.scans import ChainIntegral
from emppl.names import model_name
from emppl.strategies import Continuous, Strategy
from emppl.types import Data, Params

_NORMAL: tuple[type[Way], ...] = (Truncated, Smoother, Exact)
_WAYS: tuple[type[Way], ...] = (Smoother, Exact, ProductRule, AtMode, Sampled)


def settle_integrals(model: Model, wishes: Mapping[str, Any]) -> Model:
    """Choose groups and way of every integral.

    Args:
        wishes: the user's strategies by latent.

    Returns:
        The model with settled integrals; strategies and numbers of atoms are filled in.

    Raises:
        ModelError: an integral that no way does, or not the one that was asked for.
    """
    integrals: list[Integral] = []
    for integral in model.integrals:

        def tables(values: Params, params: Params, data: Data, integral: Integral = integral) -> dict[str, jax.Array]:
            return Joint(model, integral, params, data).tables(values)

        integral = integral.arranged(model.trace, model.axes, tables, model.trace.parameter_shapes, model.shapes)
        _check_weights(model, integral)
        integrals.append(choose_way(_question(model, integral, wishes)).arranged(integral))
    return _with_integrals(model, integrals) if integrals else model


def choose_way(question: Question) -> Way:
    """The first way that applies.

    Args:
        question: the integral, and what is known of it.

    Raises:
        ModelError: none does, or not the one that was asked for.
    """
    refusal = Refusal(f"{question.asked!r} has no `way`, a subclass of emppl.integrals.Way, to integrate with.")
    for kind in (Truncated,) if question.limits else _ways_of(question.asked):
        if isinstance(question.integral, ChainIntegral) and kind not in _NORMAL:
            question.integral.check_trajectories(question.model.trace)
        proposal = kind.propose(question)
        if isinstance(proposal, Way):
            return proposal
        refusal = proposal
    raise ModelError(refusal.reason)


def _ways_of(strategy: Continuous | None) -> tuple[type[Way], ...]:
    """The ways that carry out a strategy; all of them for None."""
    if strategy is None:
        return _WAYS
    if strategy.way is not None:
        return (strategy.way,)
    return tuple(way for way in _WAYS if isinstance(strategy, way.strategies))


def finer_model(model: Model) -> Model | None:
    """The model with a more accurate rule for every integral that is approximate; None if there is not one for each."""
    integrals = []
    for integral in model.integrals:
        if integral.strategy.objective_kind.is_approximate:
            strategy = integral.strategy.finer(integral.dimensions)
            if strategy is None:
                return None
            integral = dataclasses.replace(integral, way=_ways_of(strategy)[-1](strategy, integral.way.reason))
        integrals.append(integral)
    return None if integrals == list(model.integrals) else _with_integrals(model, integrals)


def _with_integrals(model: Model, integrals: Sequence[Integral]) -> Model:
    strategies: dict[str, Strategy] = dict(model.strategies)
    sizes = dict(model.axes.sizes)
    for integral in integrals:
        strategies.update(dict.fromkeys(integral.latents, integral.strategy))
        sizes[integral.axis] = integral.atoms
    axes = dataclasses.replace(model.axes, sizes=sizes)
    factors = {name: dataclasses.replace(factor, axes=axes) for name, factor in model.factors.items()}
    return dataclasses.replace(model, axes=axes, factors=factors, integrals=tuple(integrals), strategies=strategies)


def _question(model: Model, integral: Integral, wishes: Mapping[str, Any]) -> Question:
    """What is known of an integral."""
    asked = [wishes[name] for name in integral.latents if name in wishes]
    if any(strategy != asked[0] for strategy in asked):
        raise ParameterError(
            f"The latents {', '.join(map(repr, integral.latents))} meet in a site and are integrated together: give "
            f"them one and the same strategy, not {', '.join(sorted(map(repr, set(asked))))}."
        )
    limits = limiting_sites(model, integral)
    free = dataclasses.replace(integral, factors=tuple(name for name in integral.factors if name not in limits))
    corners = () if limits else _corners(model, integral)
    return Question(model, integral, asked[0] if asked else None, limits, _why_not_quadratic(model, free), corners)


def _why_not_quadratic(model: Model, integral: Integral) -> Refusal | None:
    """The reason why the log joint is not quadratic in the latents for every parameter value, or None if it is."""
    for name, constraint in integral.bounded(model.trace).items():
        return Refusal(f"{name!r} is {constraint}")

    def total(values: Params) -> jax.Array:
        # Zeros stand for parameters and data: no arithmetic is ever done with them.
        shapes = model.trace.parameter_shapes, model.shapes
        params, data = jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), shapes)
        joint = Joint(model, integral, params, data)
        return sum((jnp.sum(table) for table in joint.tables(values).values()), jnp.zeros(()))

    block = {name: jax.ShapeDtypeStruct(zero.shape, zero.dtype) for name, zero in integral.zeros().items()}
    reason = why_not_quadratic(total, block)
    return None if reason is None else Refusal(f"the log joint is not quadratic in it ({reason})")


def _corners(model: Model, integral: Integral) -> tuple[str, ...]:
    """Sites whose densities have corners in an integrated latent, as a Laplace distribution has one at its location."""
    cornered = []
    for name in integral.factors:
        factor = model.factors[name]
        fields = (*factor.family.kinks, "value") if factor.family is not None and factor.family.kinks else ()
        if any(integral.axis in factor.latents.get(field, ()) for field in fields):
            cornered.append(model_name(name))
    return tuple(dict.fromkeys(cornered))


def _check_weights(model: Model, integral: Integral) -> None:
    if not integral.is_indexed:
        return
    weighted = [name for name in integral.latents if "cell_weight" in model.factors[name].latents]
    if weighted:
        raise ModelError(
            f"Latents {', '.join(map(repr, weighted))} have weights (handlers.scale), and an index among the data "
            "tells which of their cells an observation belongs to. A weight counts a whole cell, with its "
            "observations: put these in a plate inside the latent's, so that one weight covers them all."
        )

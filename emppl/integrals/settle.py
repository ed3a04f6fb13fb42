"""How every integral is done: where it falls apart into groups, and by which strategy, with the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.errors import ModelError, ParameterError
from emppl.integrals.joint import Joint
from emppl.integrals.limits import limiting_sites, why_not_limits
from emppl.integrals.trajectories import by_trajectory
from emppl.jaxpr.jumps import why_not_quadratic
from emppl.model.integral import Integral, arrange
from emppl.model.model import Model
from emppl.model.scans import arrange_chain
from emppl.names import model_name
from emppl.parameters.constraints import constraint_name
from emppl.strategies import (
    DEFAULT_NODES,
    NODES_WITHIN_BOUNDS,
    Continuous,
    Gaussian,
    Laplace,
    MonteCarlo,
    Quadrature,
    Strategy,
    TruncatedGaussian,
)


def settle_integrals(model: Model, wishes: Mapping[str, Any]) -> Model:
    """Choose groups and strategy of every integral.

    Args:
        model: the model with its factors.
        wishes: the user's strategies by latent.

    Returns:
        The model with settled integrals; strategies and numbers of atoms are filled in.

    Raises:
        ModelError: an integral that no strategy can do, or not the one that was asked for.
    """
    if not model.integrals:
        return model
    integrals = []
    for integral in model.integrals:

        def tables(values, params, data, integral=integral):
            return Joint(model, integral, params, data).tables(values)

        params = model.trace.parameter_shapes
        place = arrange if integral.states is None else arrange_chain
        integral = place(integral, model.trace, model.axes, tables, params, model.shapes)
        _check_weights(model, integral)
        integral = dataclasses.replace(integral, limits=limiting_sites(model, integral))
        obstacle = _why_not_quadratic(model, integral.unlimited, params)
        asked = [wishes[name] for name in integral.latents if name in wishes]
        is_smoothed = all(isinstance(one, Gaussian) for one in asked) if asked else obstacle is None
        if integral.states is not None and not is_smoothed and not integral.limits:
            integral = by_trajectory(integral, model.trace)
        sites = model.trace.sites
        within_bounds = any(not constraint_name(sites[name].constraint).startswith("real") for name in integral.latents)
        if integral.limits:
            strategy, reason = _truncated(model, integral, obstacle, wishes)
        else:
            cornered = _cornered(model, integral)
            strategy = _strategy(integral, obstacle, within_bounds, wishes, cornered)
            reason = obstacle or "the log joint density is quadratic in it"
            if cornered:
                less = ", where quadrature is less accurate" if isinstance(strategy, (Quadrature, Laplace)) else ""
                reason = f"the density of {', '.join(map(repr, cornered))} has corners in it{less}"
        integral = dataclasses.replace(integral, strategy=strategy, reason=reason)
        if integral.is_indexed and isinstance(strategy, Gaussian) and not integral.limits:
            # The total is enough, and needs no sums by index.
            integral = dataclasses.replace(integral, cells=(), is_indexed=False)
        integrals.append(integral)
    return _with_integrals(model, integrals)


def finer_model(model: Model) -> Model | None:
    """The same with a more accurate rule for every integral that is approximate; None if there is not one for each."""
    integrals = []
    for integral in model.integrals:
        strategy: Continuous | None = integral.strategy
        if integral.strategy.objective_kind.is_approximate:
            strategy = integral.strategy.finer(integral.dimensions)
        if strategy is None:
            return None
        integrals.append(dataclasses.replace(integral, strategy=strategy))
    return None if integrals == list(model.integrals) else _with_integrals(model, integrals)


def _with_integrals(model: Model, integrals: list[Integral]) -> Model:
    strategies: dict[str, Strategy] = dict(model.strategies)
    sizes = dict(model.axes.sizes)
    for integral in integrals:
        strategies.update(dict.fromkeys(integral.latents, integral.strategy))
        sizes[integral.axis] = integral.atoms
    axes = dataclasses.replace(model.axes, sizes=sizes)
    factors = {name: dataclasses.replace(factor, axes=axes) for name, factor in model.factors.items()}
    return dataclasses.replace(model, axes=axes, factors=factors, integrals=tuple(integrals), strategies=strategies)


def _why_not_quadratic(model: Model, integral: Integral, params) -> str | None:
    """The reason why the log joint is not quadratic in the latents for every parameter value, or None if it is."""
    for name in integral.latents:
        constraint = constraint_name(model.trace.sites[name].constraint)
        if not constraint.startswith("real"):
            return f"{name!r} is {constraint}"

    def total(values):
        # Zeros stand for parameters and data: no arithmetic is ever done with them.
        nothing, data = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), (params, model.shapes))
        joint = Joint(model, integral, nothing, data)
        return sum((jnp.sum(table) for table in joint.tables(values).values()), jnp.zeros(()))

    block = {name: jax.ShapeDtypeStruct(one.shape, one.dtype) for name, one in integral.zeros().items()}
    reason = why_not_quadratic(total, block)
    return None if reason is None else f"the log joint is not quadratic in it ({reason})"


def _cornered(model: Model, integral: Integral) -> list[str]:
    """Sites whose densities have corners in an integrated latent, as a Laplace distribution has one at its location."""
    found = []
    for name in integral.factors:
        factor = model.factors[name]
        fields = (*factor.family.kinks, "value") if factor.family is not None and factor.family.kinks else ()
        if any(integral.axis in factor.latents.get(field, ()) for field in fields):
            found.append(model_name(name))
    return list(dict.fromkeys(found))


def _truncated(model: Model, integral: Integral, obstacle: str | None, wishes: Mapping[str, Any]):
    """Strategy and reason where an observed Delta restricts a latent to an interval or a point."""
    names, site = ", ".join(map(repr, integral.latents)), integral.limits[0]
    asked = [wishes[name] for name in integral.latents if name in wishes and type(wishes[name]) is not Gaussian]
    reason = obstacle or why_not_limits(model, integral)
    if integral.states is not None:
        reason = "it lies inside a scan"
    elif integral.dimensions != 1:
        reason = f"{integral.dimensions} numbers are integrated together"
    if asked:
        reason = f"{asked[0]!r} needs a density without jumps"
    if reason is not None:
        raise ModelError(
            f"The observed Delta {site!r} restricts {names}. That is integrated exactly, as a truncated normal, where "
            f"one normal latent alone meets it, through a monotone function of the latent and data: {reason}. Write "
            f"numpyro.sample({site!r}, dist.Delta(jnp.maximum(w, 0.0)), obs=y) for a censored value, dist.Delta(w > c) "
            "or jnp.clip, jnp.floor, jnp.digitize(w, edges) for a class. Anything else has to be summed out in the "
            f"model: for a class, write its probability (jax.scipy.stats.norm.cdf) into the distribution of {site!r}."
        )
    return TruncatedGaussian(), "normal, and restricted to an interval or a point by " + ", ".join(
        map(repr, integral.limits)
    )


def _strategy(
    integral: Integral, reason: str | None, within_bounds: bool, wishes: Mapping[str, Any], cornered: list[str]
) -> Continuous:
    names = ", ".join(map(repr, integral.latents))
    asked = {wishes[name] for name in integral.latents if name in wishes}
    if len(asked) > 1:
        raise ParameterError(
            f"The latents {names} meet in a site and are integrated together: give them one and the same strategy, not "
            f"{', '.join(map(repr, sorted(asked, key=repr)))}."
        )
    dimensions = integral.dimensions
    if asked:
        (strategy,) = asked
        if isinstance(strategy, Gaussian) and reason is not None:
            other = "MonteCarlo()})" if integral.chain is not None or cornered else "Quadrature(15)}), MonteCarlo()"
            raise ModelError(
                f"Gaussian() cannot integrate {names}: {reason}. Write EM(model, latents={{{integral.latents[0]!r}: "
                f"{other}{'' if cornered else ', or Laplace(), which is approximate'}."
            )
        own = [name for name in cornered if name in map(model_name, integral.latents)]
        if isinstance(strategy, (Quadrature, Laplace)) and own:
            # The mode sits at the corner, where the curvature that places the nodes says nothing of the width.
            raise ModelError(
                f"{strategy!r} needs a smooth density, and that of {', '.join(map(repr, own))} has a corner, where the "
                "nodes would gather: the log-likelihood would have no bound. Write EM(model, latents={"
                f"{own[0]!r}: MonteCarlo()}}), or choose a smooth density, such as SoftLaplace or StudentT."
            )
        if isinstance(strategy, Quadrature) and dimensions > 3:
            raise ModelError(
                f"Quadrature() integrates up to 3 numbers together, but {names} has {dimensions} in every group. Use "
                "MonteCarlo(), or Laplace(), which is approximate."
            )
        return strategy
    if reason is None:
        return Gaussian()
    if dimensions in DEFAULT_NODES and not cornered:
        nodes = NODES_WITHIN_BOUNDS if within_bounds else DEFAULT_NODES
        return Quadrature(nodes[dimensions])
    return MonteCarlo()


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

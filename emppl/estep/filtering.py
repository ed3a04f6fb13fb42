"""Filters: what the observations so far say about the states of a chain, and how well they predict the next one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from emppl.elimination.chains import ChainAxes, ChainTables, filter_steps
from emppl.elimination.reductions import watch
from emppl.elimination.run import log_normalizer
from emppl.errors import ModelError
from emppl.estep.kalman import filter_states
from emppl.estep.posterior import moments_of_atoms
from emppl.integrals.joint import Joint
from emppl.integrals.smoother import Smoother
from emppl.model.integral import Integral
from emppl.model.model import Model, Part
from emppl.model.scans import ChainIntegral
from emppl.names import model_name
from emppl.types import Data, Params


class Filtered(NamedTuple):
    """What a filter finds out, time first.

    Attributes:
        states: by scanned latent, ``p(state | observations up to this step)``: ``(time, *plates, states)``.
        predicted: by scanned latent, ``p(state | observations before this step)``, from the second step on:
            ``(time - 1, *plates, states)``.
        log_likelihood: by scanned latent, the log-probability of a step's observations given those before (natural
            log): ``(time, *plates)``; its sum over time is the log-likelihood.

    Of a continuous latent of a normal chain, states and predictions are pairs of mean and covariance, ``(time, *plates,
    *event)`` and ``(time, *plates, *event, *event)``.
    """

    states: dict[str, Any]
    predicted: dict[str, Any]
    log_likelihood: dict[str, jax.Array]


def filtered(model: Model, params: Params, data: Data) -> Filtered:
    """Filter every chain of the model.

    Returns:
        The filter.

    Raises:
        ModelError: the model has no chain, or one that cannot be filtered; the message says why.
    """
    if any(isinstance(integral, ChainIntegral) for integral in model.integrals):
        return _normal_chains(model, params, data)
    arrays = model.evaluate(params, data)
    tables, scales, present = model.tables(arrays), model.scales(arrays), model.present(arrays)
    outcome = Filtered({}, {}, {})
    for part in model.parts:

        def show(chain: ChainAxes, tables: ChainTables, part: Part = part) -> None:
            _one_chain(model, part, chain, tables, outcome)

        chosen = {name: tables[name] for name in part.factors}
        log_normalizer(part.plan, chosen, scales, dict.fromkeys(part.plan.reduced, watch(show)), present)
    if not outcome.states:
        raise ModelError("The model has no chain of latents (a scan whose carry holds one), so nothing to filter.")
    fault = model.fault(arrays)
    return jax.tree.map(lambda array: array + fault, outcome)


def _normal_chains(model: Model, params: Params, data: Data) -> Filtered:
    """Filters of the continuous latents of chains.

    Raises:
        ModelError: a chain that cannot be filtered; the message says why.
    """
    outcome = Filtered({}, {}, {})
    for integral in model.integrals:
        why = _no_filter(model, integral)
        if why is not None:
            raise ModelError(
                f"The chain of {integral.latents[0]!r} cannot be filtered: {why}. em.log_likelihood on the first steps "
                "of the data, and result.posterior, answer most questions about it."
            )
        found = filter_states(Joint(model, integral, params, data))
        names = sorted(integral.cells, key=lambda name: model.axes.dims[name])
        order = [1 + integral.cells.index(name) for name in names]
        lanes = jnp.reshape(found.evidence, (-1, *(model.axes.sizes[name] for name in integral.cells)))
        predicted = moments_of_atoms(model, integral, found.predicted)
        outcome.states.update(moments_of_atoms(model, integral, found.atoms))
        outcome.predicted.update({name: (mean[1:], spread[1:]) for name, (mean, spread) in predicted.items()})
        outcome.log_likelihood.update(dict.fromkeys(integral.latents, jnp.transpose(lanes, [0, *order])))
    fault = model.fault(model.evaluate(params, data))
    return jax.tree.map(lambda array: array + fault, outcome)


def _no_filter(model: Model, integral: Integral) -> str | None:
    """Why a chain of continuous latents cannot be filtered, or None if it can."""
    if model.latents or not isinstance(integral, ChainIntegral):
        return "there are other latents beside it"
    if integral.scan.order > 1:
        return f"it is of order {integral.scan.order}"
    if not isinstance(integral.way, Smoother):
        return f"it is integrated by {integral.strategy!r}, which has no filter"
    if any(path[1:2] == ("mask",) and model_name(path[0]) in integral.latents for path in model.trace.outputs):
        return "some of its steps are masked"
    if any("cell_weight" in factor.latents for factor in model.factors.values()):
        return "its cells have weights (handlers.scale)"
    return None


def _one_chain(model: Model, part: Part, chain: ChainAxes, tables: ChainTables, outcome: Filtered) -> None:
    names = part.plan.axes
    outer = [n for n, size in zip(names, tables.shape, strict=True) if size > 1 and n in model.axes.latents - chain.own]
    scan = next(scan for scan in model.trace.scans if scan.time == chain.time)
    latent = chain.current[0]
    if outer or scan.order > 1:
        why = f"latents {outer} outside the scan are summed over" if outer else f"it is of order {scan.order}"
        raise ModelError(
            f"The chain of {latent!r} cannot be filtered: {why}. em.log_likelihood on the first steps of the data, and "
            "result.posterior, answer most questions about it."
        )
    states, predicted, evidence = filter_steps(tables)
    batch = [n for n in names if n not in chain.own]
    lanes = tuple(tables.shape[names.index(n)] for n in batch)
    sizes = tuple(model.axes.sizes[n] for n in chain.current)
    for position, name in enumerate(chain.current):
        site = model.trace.sites[name]
        plates = model.axes.plates_of(site, site.batch_shape) - {chain.time}
        order = [batch.index(n) for n in sorted(plates, key=lambda n: model.axes.dims[n])]
        rest = [number for number in range(len(batch)) if number not in order]

        def of_latent(
            array: jax.Array,
            kept: tuple[int, ...],
            order: list[int] = order,
            rest: list[int] = rest,
            position: int = position,
        ) -> jax.Array:
            table = jnp.reshape(array, (array.shape[0], *kept, *lanes))
            if kept:
                others = tuple(1 + a for a in range(len(kept)) if a != position)
                table = jnp.moveaxis(jnp.sum(table, others), 1, -1)
            moved = jnp.transpose(table, [0, *(1 + a for a in rest + order), *range(1 + len(lanes), table.ndim)])
            return jnp.reshape(moved, (moved.shape[0], *moved.shape[1 + len(rest) :]))

        outcome.states[name] = of_latent(states, sizes)
        outcome.predicted[name] = of_latent(predicted, sizes)
        outcome.log_likelihood[name] = of_latent(evidence, ())

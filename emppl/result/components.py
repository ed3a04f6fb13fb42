"""Which parameter axes run over the states of which latent: to match components, and to see identical ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emppl.model.model import Model
from emppl.names import model_name
from emppl.program import Program


def component_axes(model: Model) -> dict[str, dict[str, tuple[int, ...]]]:
    """For every latent, the axes of each parameter that run over its states.

    Axes that the latent indexes, also behind elementwise functions and sums along other axes, and the axis
    of its own class probabilities.
    """
    indexed = indexed_axes(model)
    own = class_axes(model)
    return {
        latent: {
            name: tuple(sorted({*indexed[latent].get(name, ()), *own[latent].get(name, ())}))
            for name in model.trace.parameters
            if name in indexed[latent] or name in own[latent]
        }
        for latent in model.model_latents
    }


def indexed_axes(model: Model) -> dict[str, dict[str, tuple[int, ...]]]:
    """For every latent, the axes of each parameter that it indexes, one entry per state."""
    by_latent: dict[str, dict[str, tuple[int, ...]]] = {latent: {} for latent in model.model_latents}
    for name in model.trace.parameters:
        shape = model.trace.sites[name].shape
        latents = model.dependence.indexed(name)
        for latent in model.model_latents:
            states = model.trace.sites[latent].states
            axes = tuple(a for a, who in enumerate(latents) if latent in who and shape[a] == states)
            if axes:
                by_latent[latent][name] = axes
    return by_latent


def class_axes(model: Model) -> dict[str, dict[str, tuple[int, ...]]]:
    """For every latent, the axis of each parameter that its own ``probs`` or ``logits`` have as their last."""
    by_latent: dict[str, dict[str, tuple[int, ...]]] = {latent: {} for latent in model.model_latents}
    for latent in model.latents:
        states = model.trace.sites[latent].states
        for argument in ("probs", "logits"):
            position = model.trace.outputs.get((latent, "arguments", argument))
            if position is None:
                continue
            last = len(model.trace.jaxpr.out_avals[position].shape) - 1
            for name in model.trace.parameters:
                shape = model.trace.sites[name].shape
                places = model.dependence.axis_positions(name, position)
                axes = tuple(a for a, where in enumerate(places) if last in where and shape[a] == states)
                if axes:
                    by_latent[model_name(latent)][name] = tuple(
                        sorted({*by_latent[model_name(latent)].get(name, ()), *axes})
                    )
    return by_latent


def symmetric_latent(program: Program, params: Mapping[str, np.ndarray]) -> str | None:
    """A latent with several states whose parameters are all equal across them, or None.

    Its own class probabilities do not count: they may differ between components that are otherwise the same.
    """
    model = program.model
    for latent, axes in indexed_axes(model).items():
        if model.trace.sites[latent].states < 2:
            continue
        steps = [name for name in model.latents if model_name(name) == latent]
        own = frozenset().union(*(model.factors[name].all_parameters for name in steps))
        rest = {name: places for name, places in axes.items() if name not in own}
        equal = all(_constant_along(params[n], places, _rounding(program, n)) for n, places in rest.items())
        if equal and rest.keys() & set(model.free):
            return latent
    return None


def _rounding(program: Program, name: str) -> float:
    """How much equal components may differ, relatively: an optimiser treats them alike only to its tolerance."""
    return 1e-12 if program.rules[name].exact else 1e-8


def _constant_along(value: np.ndarray, axes: tuple[int, ...], rounding: float) -> bool:
    spread = max(np.ptp(value, axis=axis).max(initial=0.0) for axis in axes)
    return bool(spread <= rounding * (1e-300 + np.abs(value).max(initial=0.0)))

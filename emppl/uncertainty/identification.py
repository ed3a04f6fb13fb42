"""Logits of which only differences are identified: a shift along the last axis leaves the likelihood alone.

``softmax(logits + c) == softmax(logits)``, so a vector of ``K`` logits has ``K - 1`` identified dimensions,
and so has every row of coefficients in ``X @ coefficients``. Candidates are read off the trace; whether the shift
leaves the log-probabilities of the data alone is then checked by differentiating them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from emppl.jaxpr.depends import Dependence
from emppl.model.model import Model
from emppl.parameters.constraints import constraint_name
from emppl.types import Data

_FAMILIES = ("CategoricalLogits", "CategoricalProbs", "MultinomialLogits", "MultinomialProbs")


def shift_candidates(model: Model) -> list[str]:
    """Free parameters that enter the likelihood only as class probabilities, along their last axis."""
    dependence = model.dependence
    return [name for name in model.free if _may_shift(model, dependence, name)]


def _may_shift(model: Model, dependence: Dependence, name: str) -> bool:
    site = model.trace.sites[name]
    if not constraint_name(site.constraint).startswith("real") or not site.shape or site.shape[-1] < 2:
        return False
    enters = False
    for path, position in model.trace.outputs.items():
        factor = model.factors.get(path[0])
        if factor is None or ("parameter", name) not in dependence.of_output(position):
            continue
        if factor.labels_of is not None and path[1] in ("distribution", "arguments"):
            continue  # these belong to the latent that the labels are of
        if factor.site.distribution not in _FAMILIES or path[1] not in ("arguments", "distribution"):
            return False
        if path[1] == "arguments":
            last = len(model.trace.jaxpr.out_avals[position].shape) - 1
            if path[2] not in ("probs", "logits") or last not in dependence.axis_positions(name, position)[-1]:
                return False
            enters = True
    return enters


def shift_effects(model: Model, params: Mapping[str, jax.Array], data: Data) -> dict[str, jax.Array]:
    """How much a shift along the last axis changes the log-probabilities, relative to any other change: to be jitted.

    Args:
        params: a point; each candidate is moved away from it, so that nothing hinges on special values.

    Returns:
        By candidate, a number that is zero up to rounding if only differences are identified.
    """
    effects = {}
    for number, name in enumerate(shift_candidates(model)):
        point, along, across = jax.random.normal(jax.random.key(number), (3, *params[name].shape), params[name].dtype)
        point = point + params[name]

        def tables(value: jax.Array, name: str = name) -> dict[str, jax.Array]:
            return model.tables(model.evaluate({**params, name: value}, data))

        def largest(direction: jax.Array, tables: Callable = tables, point: jax.Array = point) -> jax.Array:
            values, tangents = jax.jvp(tables, (point,), (direction,))
            kept = [jnp.max(jnp.where(jnp.isfinite(values[n]), jnp.abs(tangents[n]), 0)) for n in values]
            return jnp.max(jnp.stack(kept))

        shift = jnp.broadcast_to(along[..., :1], along.shape)
        effects[name] = largest(shift) / jnp.maximum(largest(across), jnp.finfo(point.dtype).tiny)
    return effects

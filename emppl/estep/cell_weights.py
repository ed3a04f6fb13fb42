"""How many times every cell of a latent or of the data counts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from emppl.estep.posterior import user_layout, whole_scans
from emppl.model.model import Model
from emppl.types import Data


def cell_weights(model: Model, data: Data) -> dict[str, jax.Array]:
    """How many times every cell counts: ``handlers.scale``, and zero where masked. Pure, to be jitted.

    Returns:
        By discrete latent, shaped like its plates; by continuous latent and by observed site, with the common axes.
    """
    params = model.placeholders()
    counted = [*model.latents, *counted_without_states(model)]
    wanted = frozenset((name, field) for name in counted for field in ("cell_weight", "mask"))
    arrays = model.evaluate(params, data, wanted)
    found = {name: _weight(model, name, arrays) for name in counted}
    discrete = {name: user_layout(model, name, found.pop(name))[..., 0] for name in model.latents}
    return whole_scans(model, discrete) | found


def counted_without_states(model: Model) -> list[str]:
    """Continuous latents (first steps of a scan apart), and the data beside them or alone."""
    continuous = [name for name, factor in model.factors.items() if factor.site.kind == "integrated"]
    data = [name for name, factor in model.factors.items() if factor.site.kind == "observed" and not factor.labels_of]
    return [*continuous, *data] if continuous or not model.latents else []


def _weight(model: Model, name: str, arrays: dict[str, Any]) -> jax.Array:
    factor = model.factors[name]
    plates = model.axes.plates_of(factor.site, factor.site.batch_shape)
    weight = jnp.ones(model.axes.shape(plates))
    scale = factor.scale(arrays)
    mask = factor.presence(arrays) if factor.is_presence else factor.mask(arrays)
    if scale is not None:
        weight = weight * scale
    if mask is not None and not factor.latents.get("mask"):
        mask = jnp.any(mask, tuple(range(model.axes.rank, mask.ndim)))
        weight = jnp.where(mask, weight, 0)
    return weight

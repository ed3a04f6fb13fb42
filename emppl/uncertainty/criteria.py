"""What information criteria count: cells of the data, and how undecided the latents are."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep import user_layout, whole_scans
from emppl.model.model import Model
from emppl.names import model_name


def cell_weights(model: Model, data) -> dict[str, jax.Array]:
    """How many times every cell counts: ``handlers.scale``, and zero where masked. Pure, to be jitted.

    Returns:
        By discrete latent, shaped like its plates; by continuous latent and by observed site, with the common axes.
    """
    params = model.placeholders()
    counted = [*model.latents, *_without_states(model)]
    wanted = frozenset((name, field) for name in counted for field in ("cell_weight", "mask"))
    arrays = model.evaluate(params, data, wanted)
    found = {name: _weight(model, name, arrays) for name in counted}
    discrete = {name: user_layout(model, name, found.pop(name))[..., 0] for name in model.latents}
    return whole_scans(model, discrete) | found


def _without_states(model: Model) -> list[str]:
    """Continuous latents (first steps of a scan apart), and the data beside them or alone."""
    continuous = [name for name, factor in model.factors.items() if factor.site.kind == "integrated"]
    data = [name for name, factor in model.factors.items() if factor.site.kind == "observed" and not factor.labels_of]
    return [*continuous, *data] if continuous or not model.latents else []


def _weight(model: Model, name: str, arrays) -> jax.Array:
    factor = model.factors[name]
    plates = model.axes.plates_of(factor.site, factor.site.batch_shape)
    weight = jnp.ones([model.axes.sizes[n] if n in plates else 1 for n in model.axes.names])
    scale = factor.scale(arrays)
    mask = factor.presence(arrays) if factor.is_presence else factor.mask(arrays)
    if scale is not None:
        weight = weight * scale
    if mask is not None and not factor.latents.get("mask"):
        mask = jnp.any(mask, tuple(range(model.axes.rank, mask.ndim)))
        weight = jnp.where(mask, weight, 0)
    return weight


def number_of_observations(model: Model, weights: Mapping[str, np.ndarray]) -> float:
    """Independent cells, weighted: those of the outermost plates that hold latents, or else of the data."""
    sites = model.trace.sites
    latents = [*model.model_latents, *model.continuous_latents]
    plates = {name: {plate.name for plate in sites[name].plates} for name in latents}
    continuous = [plates[name] for name in model.continuous_latents]
    if not latents or (continuous and not set.intersection(*continuous)):
        latents = [name for name in _without_states(model) if sites[name].kind == "observed"]
        plates = {name: {plate.name for plate in sites[name].plates} for name in latents}
    outermost = min(latents, key=lambda name: (not plates[name], len(plates[name])))
    # The first steps of a continuous chain are sites of their own.
    return float(sum(np.sum(one) for name, one in weights.items() if model_name(name) == model_name(outermost)))


def entropy(probabilities: np.ndarray, weights: np.ndarray) -> float:
    """Weighted sum over cells of the entropy of their probabilities (nats; last axis: states)."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    return -float(np.sum(weights * np.sum(probabilities * logs, -1)))

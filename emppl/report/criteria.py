"""What information criteria count: cells of the data, and how undecided the latents are."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep import user_layout, whole_scans
from emppl.program import Program


def cell_weights(program: Program, leaves) -> dict[str, jax.Array]:
    """How many times every latent's cells count: ``handlers.scale``, and zero where masked. Pure, to be jitted.

    Returns:
        By latent, shaped like its plates.
    """
    params = program.placeholders()
    wanted = frozenset((name, field) for name in program.latents for field in ("cell_weight", "mask"))
    arrays = program.evaluate(params, leaves, wanted)
    found = {}
    for name in program.latents:
        factor = program.factors[name]
        plates = program.axes.plates_of(factor.site, factor.site.batch_shape)
        weight = jnp.ones([program.axes.sizes[n] if n in plates else 1 for n in program.axes.names])
        scale = factor.scale(arrays)
        mask = factor.presence(arrays) if factor.is_presence else factor.mask(arrays)
        if scale is not None:
            weight = weight * scale
        if mask is not None and not factor.latents.get("mask"):
            weight = jnp.where(mask, weight, 0)
        found[name] = user_layout(program, name, weight)[..., 0]
    return whole_scans(program, found)


def number_of_observations(program: Program, weights: Mapping[str, np.ndarray]) -> float:
    """Cells of the outermost plates that hold latents, weighted."""
    plates = {name: len(program.trace.sites[name].plates) for name in program.model_latents}
    outermost = min(program.model_latents, key=lambda name: (plates[name] == 0, plates[name]))
    return float(np.sum(weights[outermost]))


def entropy(probabilities: np.ndarray, weights: np.ndarray) -> float:
    """Weighted sum over cells of the entropy of their probabilities (nats; last axis: states)."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    return -float(np.sum(weights * np.sum(probabilities * logs, -1)))

"""What information criteria count: cells of the data, and how undecided the latents are."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep import user_layout
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
        scale, mask = factor.scale(arrays), arrays[name].mask
        if scale is not None:
            weight = weight * scale
        if mask is not None and not factor.latents.get("mask"):
            weight = jnp.where(program.axes.align(_without_latents(program, mask), factor.site, 0), weight, 0)
        found[name] = user_layout(program, name, weight)[..., 0]
    return found


def _without_latents(program: Program, array: jax.Array) -> jax.Array:
    """One copy along the axes of latents, over which a mask may have been broadcast."""
    for name in program.axes.latents:
        position = array.ndim + program.axes.dims[name]
        if position >= 0:
            array = array[(slice(None),) * position + (slice(0, 1),)]
    return array


def number_of_observations(program: Program, weights: Mapping[str, np.ndarray]) -> float:
    """Cells of the outermost plates that hold latents, weighted."""
    plates = {name: len(program.trace.sites[name].plates) for name in program.latents}
    outermost = min(program.latents, key=lambda name: (plates[name] == 0, plates[name]))
    return float(np.sum(weights[outermost]))


def entropy(probabilities: np.ndarray, weights: np.ndarray) -> float:
    """Weighted sum over cells of the entropy of their probabilities (nats; last axis: states)."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    return -float(np.sum(weights * np.sum(probabilities * logs, -1)))

"""The normal family, whose updates other families share.

Statistics are taken of ``(value - centre) / unit``, so that data far from the origin keep their digits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from emppl.families.family import Arrays, Family, Mean, Quantities, Update
from emppl.families.registry import add
from emppl.families.updates import NONNEGATIVE
from emppl.numerics.guarded import safe_divide

LOG_TWO_PI = float(np.log(2 * np.pi))


def centre_and_unit(value: jax.Array, mean: Mean) -> Arrays:
    """Mean and standard deviation of the data, between which statistics keep their digits."""
    centre = mean(value)
    variance = mean((value - centre) ** 2)
    return {"centre": centre, "unit": jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 1)}


# ------------------------------------------------------------------------------------------------- Normal


def normal_statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    """Standardised values and their squares."""
    standard = (value - reference["centre"]) / reference["unit"]
    return jnp.stack([standard, standard**2], -1)


def _normal_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    loc = (arguments["loc"] - reference["centre"]) / reference["unit"]
    scale = arguments["scale"] / reference["unit"]
    precision = 1 / scale**2
    linear, quadratic = jnp.broadcast_arrays(loc * precision, -precision / 2)
    offset = -0.5 * loc**2 * precision - jnp.log(arguments["scale"]) - 0.5 * LOG_TWO_PI
    return jnp.stack([linear, quadratic], -1), offset


def _normal_moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    return {"count": count, "first": sums[..., 0], "second": sums[..., 1], **reference}


def _total(moments: Arrays, arguments: Arrays, current: jax.Array) -> Quantities:
    return {
        "count": moments["count"],
        "total": moments["centre"] * moments["count"] + moments["unit"] * moments["first"],
    }


def _weighted_residual(moments: Arrays, arguments: Arrays, current: jax.Array) -> Quantities:
    precision = 1 / arguments["scale"] ** 2
    shifted = (current - moments["centre"]) / moments["unit"]
    residual = moments["unit"] * (moments["first"] - shifted * moments["count"])
    return {"precision": precision * moments["count"], "residual": precision * residual}


def _solve_location(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    if stage == 0:
        return safe_divide(pooled["total"], pooled["count"], previous)
    pull = pooled.get("prior_precision", 0.0)
    push = pull * (pooled["prior_loc"] - previous) if "prior_loc" in pooled else 0.0
    return previous + safe_divide(pooled["residual"] + push, pooled["precision"] + pull, jnp.zeros_like(previous))


def _normal_on_location(pooled: Quantities, prior: Any) -> Quantities:
    return pooled | {"prior_precision": 1 / prior.scale**2, "prior_loc": prior.loc}


LOCATION = Update(
    "weighted mean",
    0,
    ("real",),
    (_total, _weighted_residual),
    _solve_location,
    {dist.Normal: _normal_on_location},
    within=jnp.clip,
)


def _squared_residuals(moments: Arrays, arguments: Arrays, current: jax.Array) -> Quantities:
    shifted = (arguments["loc"] - moments["centre"]) / moments["unit"]
    square = moments["second"] - 2 * shifted * moments["first"] + shifted**2 * moments["count"]
    return {"count": moments["count"], "square": moments["unit"] ** 2 * jnp.maximum(square, 0)}


def solve_scale(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    """Root of ``count/s = square/s^3 + linear/s^2 - 2 curvature s`` for the prior terms that are present."""
    count, square = pooled["count"], pooled["square"]
    if "cauchy" in pooled:
        spread = pooled["cauchy"] ** 2
        middle = count * spread - square
        root = jnp.sqrt(middle**2 + 4 * (count + 2) * square * spread)
        variance = jnp.where(
            middle > 0,
            2 * square * spread / jnp.where(middle > 0, middle + root, 1),
            (root - middle) / (2 * (count + 2)),
        )
        return jnp.sqrt(variance)
    if "linear" in pooled:
        linear = pooled["linear"]
        return (linear + jnp.sqrt(linear**2 + 4 * count * square)) / (2 * count)
    curvature = pooled.get("curvature", jnp.zeros_like(count))
    denominator = count + jnp.sqrt(count**2 + 8 * curvature * square)
    return jnp.sqrt(safe_divide(2 * square, denominator, previous**2))


def _half_normal_on_scale(pooled: Quantities, prior: Any) -> Quantities:
    return pooled | {"curvature": 0.5 / prior.scale**2}


def _half_cauchy_on_scale(pooled: Quantities, prior: Any) -> Quantities:
    return pooled | {"cauchy": prior.scale}


def _inverse_gamma_on_scale(pooled: Quantities, prior: Any) -> Quantities:
    return pooled | {"count": pooled["count"] + prior.concentration + 1, "linear": prior.rate}


SCALE = Update(
    "root mean squared residual",
    0,
    NONNEGATIVE,
    (_squared_residuals,),
    solve_scale,
    {
        dist.HalfNormal: _half_normal_on_scale,
        dist.HalfCauchy: _half_cauchy_on_scale,
        dist.InverseGamma: _inverse_gamma_on_scale,
    },
    order=1,
    degrees={"square": -2},
    within=jnp.clip,
)


def _normal_floor(arguments: Arrays, reference: Arrays) -> jax.Array:
    return arguments["scale"] / reference["unit"]


def _normal_start(argument: str, seed: jax.Array, mean: jax.Array, spread: jax.Array) -> jax.Array:
    return seed if argument == "loc" else spread


NORMAL = add(
    Family(
        "Normal",
        (dist.Normal,),
        0,
        {"loc": 0, "scale": 0},
        reference=centre_and_unit,
        statistics=normal_statistics,
        natural=_normal_natural,
        moments=_normal_moments,
        updates={"loc": LOCATION, "scale": SCALE},
        local_reference=lambda arguments: {"centre": arguments["loc"], "unit": arguments["scale"]},
        scale_floor=_normal_floor,
        start=_normal_start,
    )
)

"""Families on the positive half-line: Exponential, Gamma, InverseGamma, Chi2, HalfNormal, LogNormal, Pareto."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammaln

from emppl.families.counts import gamma_on_rate
from emppl.families.family import Arrays, Family, Mean, Quantities, Update
from emppl.families.gaussian import NORMAL, SCALE, centre_and_unit, normal_statistics
from emppl.families.registry import add
from emppl.families.updates import POSITIVE, moments_alone, ratio


def _unit(value: jax.Array, mean: Mean) -> Arrays:
    return {"unit": jnp.where(mean(value) > 0, mean(value), 1)}


# --------------------------------------------------------------------------------------------- Exponential


def _statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    return (value / reference["unit"])[..., None]


def _natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    rate = arguments["rate"]
    return -(rate * reference["unit"])[..., None], jnp.log(rate)


def _moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    return {"exposure": sums[..., 0] * reference["unit"], "events": count}


EXPONENTIAL_RATE = Update(
    "count / total",
    0,
    POSITIVE,
    (moments_alone,),
    ratio("events", "exposure"),
    {dist.Gamma: gamma_on_rate},
    degrees={"exposure": 1},
    within=jnp.clip,
)


def _start(argument: str, seed: jax.Array, mean: jax.Array, spread: jax.Array) -> jax.Array:
    return 2 / (seed + mean)


EXPONENTIAL = add(
    Family(
        "Exponential",
        (dist.Exponential,),
        0,
        {"rate": 0},
        reference=_unit,
        statistics=_statistics,
        natural=_natural,
        moments=_moments,
        updates={"rate": EXPONENTIAL_RATE},
        start=_start,
    )
)


# ------------------------------------------------------------------------------------- Gamma and its relatives
#
# With d = x/unit - 1 and e = log(1 + d) - d, both zero at the unit, the likelihood of data in a narrow range keeps
# its digits: log x - x/unit + 1, which decides on the concentration, is e itself and not a difference.


def _log1p_minus(d: jax.Array) -> jax.Array:
    """``log(1 + d) - d`` without cancellation near zero."""
    is_small = jnp.abs(d) < 0.01
    x = jnp.where(is_small, d, 0)
    series = x**2 * (-1 / 2 + x * (1 / 3 + x * (-1 / 4 + x * (1 / 5 + x * (-1 / 6 + x * (1 / 7 - x / 8))))))
    return jnp.where(is_small, series, jnp.log1p(jnp.where(is_small, 0, d)) - d)


def _stirling(k: jax.Array) -> jax.Array:
    """``k log k - k - log Gamma(k)``, by Stirling's series where its terms would cancel."""
    is_large = k > 30
    x, large = jnp.where(is_large, 1.0, k), jnp.where(is_large, k, 30.0)
    inverse = 1 / large**2
    series = (1 / 12 - inverse * (1 / 360 - inverse * (1 / 1260 - inverse * (1 / 1680 - inverse / 1188)))) / large
    return jnp.where(is_large, 0.5 * jnp.log(large / (2 * np.pi)) - series, x * jnp.log(x) - x - gammaln(x))


def _gamma_statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    d = (value - reference["unit"]) / reference["unit"]
    return jnp.stack([d, _log1p_minus(d)], -1)


def _gamma_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    concentration, rate = arguments["concentration"], arguments["rate"] * reference["unit"]
    linear, logarithmic = jnp.broadcast_arrays(concentration - rate, concentration)
    # The same as concentration log(rate) - log Gamma(concentration) - rate, whose terms are large and nearly cancel.
    offset = concentration * _log1p_minus((rate - concentration) / concentration) + _stirling(concentration)
    return jnp.stack([linear, logarithmic], -1), offset


def _minus_log(value: jax.Array, fixed: Arrays) -> jax.Array:
    return -jnp.log(value)


def _gamma_moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    return {"total": (sums[..., 0] + count) * reference["unit"], "count": count}


def _shape_and_exposure(moments: Arrays, arguments: Arrays, current: jax.Array) -> Quantities:
    return {"events": moments["count"] * arguments["concentration"], "exposure": moments["total"]}


GAMMA_RATE = dataclasses.replace(
    EXPONENTIAL_RATE, title="concentration x count / total", contributions=(_shape_and_exposure,)
)


def _gamma_start(argument: str, seed: jax.Array, mean: jax.Array, spread: jax.Array) -> jax.Array:
    concentration = jnp.clip((mean / spread) ** 2, 0.1, 1e6)
    return concentration if argument == "concentration" else concentration * 2 / (seed + mean)


def _gamma_local_reference(arguments: Arrays) -> Arrays:
    return {"unit": arguments["concentration"] / arguments["rate"]}


def _gamma_floor(arguments: Arrays, reference: Arrays) -> jax.Array:
    return jnp.sqrt(arguments["concentration"]) / (arguments["rate"] * reference["unit"])


GAMMA = add(
    Family(
        "Gamma",
        (dist.Gamma,),
        0,
        {"concentration": 0, "rate": 0},
        reference=_unit,
        statistics=_gamma_statistics,
        natural=_gamma_natural,
        base_measure=_minus_log,
        moments=_gamma_moments,
        updates={"rate": GAMMA_RATE},
        joint=("concentration", "rate"),
        local_reference=_gamma_local_reference,
        scale_floor=_gamma_floor,
        start=_gamma_start,
    )
)

CHI2 = add(
    Family(
        "Chi2",
        (dist.Chi2,),
        0,
        {"df": 0},
        reference=_unit,
        statistics=_gamma_statistics,
        natural=lambda arguments, reference: _gamma_natural(
            {"concentration": arguments["df"] / 2, "rate": jnp.full_like(arguments["df"], 0.5)}, reference
        ),
        base_measure=_minus_log,
        start=lambda argument, seed, mean, spread: (seed + mean) / 2,
    )
)


def _reciprocal_unit(value: jax.Array, mean: Mean) -> Arrays:
    return _unit(1 / value, mean)


def _reciprocal_start(argument: str, seed: jax.Array, mean: jax.Array, spread: jax.Array) -> jax.Array:
    concentration = 2 + jnp.clip((mean / spread) ** 2, 0.1, 1e6)
    return concentration if argument == "concentration" else (concentration - 1) * (seed + mean) / 2


INVERSE_GAMMA = add(
    dataclasses.replace(
        GAMMA,
        name="InverseGamma",
        distributions=(dist.InverseGamma,),
        reference=_reciprocal_unit,
        statistics=lambda value, fixed, reference: _gamma_statistics(1 / value, fixed, reference),
        scale_floor=None,
        start=_reciprocal_start,
    )
)


# ------------------------------------------------------------------------------------------ HalfNormal, LogNormal


def _half_statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    return ((value / reference["unit"]) ** 2)[..., None]


def _half_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    scale = arguments["scale"]
    return -0.5 * ((reference["unit"] / scale) ** 2)[..., None], 0.5 * float(np.log(2 / np.pi)) - jnp.log(scale)


def _half_moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    return {"count": count, "square": reference["unit"] ** 2 * jnp.maximum(sums[..., 0], 0)}


HALF_NORMAL_SCALE = dataclasses.replace(SCALE, title="root mean square", contributions=(moments_alone,))

HALF_NORMAL = add(
    Family(
        "HalfNormal",
        (dist.HalfNormal,),
        0,
        {"scale": 0},
        reference=_unit,
        statistics=_half_statistics,
        natural=_half_natural,
        moments=_half_moments,
        updates={"scale": HALF_NORMAL_SCALE},
        start=lambda argument, seed, mean, spread: (seed + mean) / 2,
    )
)


def _log_start(argument: str, seed: jax.Array, mean: jax.Array, spread: jax.Array) -> jax.Array:
    return jnp.log(seed) if argument == "loc" else jnp.sqrt(jnp.log1p((spread / mean) ** 2))


LOG_NORMAL = add(
    dataclasses.replace(
        NORMAL,
        name="LogNormal",
        distributions=(dist.LogNormal,),
        reference=lambda value, mean: centre_and_unit(jnp.log(value), mean),
        statistics=lambda value, fixed, reference: normal_statistics(jnp.log(value), fixed, reference),
        base_measure=_minus_log,
        start=_log_start,
    )
)


# ------------------------------------------------------------------------------------------------------ Pareto


def _log_excess(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    return (jnp.log(value) - jnp.log(fixed["scale"]))[..., None]


def _pareto_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    return -arguments["alpha"][..., None], jnp.log(arguments["alpha"])


PARETO = add(
    Family(
        "Pareto",
        (dist.Pareto,),
        0,
        {"scale": 0, "alpha": 0},
        statistics=_log_excess,
        natural=_pareto_natural,
        base_measure=_minus_log,
        moments=lambda sums, count, reference: {"exposure": sums[..., 0], "events": count},
        updates={"alpha": dataclasses.replace(EXPONENTIAL_RATE, title="count / total of log(value / scale)")},
        edges={"scale": -1},
        fixed=("scale",),
    )
)

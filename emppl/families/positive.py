"""Families on the positive half-line: Exponential, Gamma, InverseGamma, Chi2, HalfNormal, LogNormal, Pareto."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammaln

from emppl.families.counts import gamma_on_rate
from emppl.families.gaussian import NORMAL, SCALE, centre_and_unit, normal_statistics
from emppl.families.registry import Family, Update, add
from emppl.numerics.guarded import safe_divide

_POSITIVE = ("positive", "softplus_positive", "real")


def _unit(value, mean):
    return {"unit": jnp.where(mean(value) > 0, mean(value), 1)}


# --------------------------------------------------------------------------------------------- Exponential


def _statistics(value, fixed, reference):
    del fixed
    return (value / reference["unit"])[..., None]


def _natural(arguments, reference):
    rate = arguments["rate"]
    return -(rate * reference["unit"])[..., None], jnp.log(rate)


def _moments(sums, count, reference):
    return {"total": sums[..., 0] * reference["unit"], "count": count}


def _events_and_exposure(moments, arguments, current):
    del arguments, current
    return {"events": moments["count"], "exposure": moments["total"]}


def _solve_rate(pooled, previous, stage):
    del stage
    return safe_divide(pooled["events"], pooled["exposure"], previous)


EXPONENTIAL_RATE = Update(
    "count / total",
    0,
    _POSITIVE,
    (_events_and_exposure,),
    _solve_rate,
    {dist.Gamma: gamma_on_rate},
    degrees={"exposure": 1},
)


def _start(argument, seed, mean, spread):
    del argument, spread
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


def _log1p_minus(d):
    """``log(1 + d) - d`` without cancellation near zero."""
    near = jnp.abs(d) < 0.01
    x = jnp.where(near, d, 0)
    series = x**2 * (-1 / 2 + x * (1 / 3 + x * (-1 / 4 + x * (1 / 5 + x * (-1 / 6 + x * (1 / 7 - x / 8))))))
    return jnp.where(near, series, jnp.log1p(jnp.where(near, 0, d)) - d)


def _stirling(k):
    """``k log k - k - log Gamma(k)``, by Stirling's series where its terms would cancel."""
    large = k > 30
    x, far = jnp.where(large, 1.0, k), jnp.where(large, k, 30.0)
    inverse = 1 / far**2
    series = (1 / 12 - inverse * (1 / 360 - inverse * (1 / 1260 - inverse * (1 / 1680 - inverse / 1188)))) / far
    return jnp.where(large, 0.5 * jnp.log(far / (2 * np.pi)) - series, x * jnp.log(x) - x - gammaln(x))


def _gamma_statistics(value, fixed, reference):
    del fixed
    d = (value - reference["unit"]) / reference["unit"]
    return jnp.stack([d, _log1p_minus(d)], -1)


def _gamma_natural(arguments, reference):
    concentration, rate = arguments["concentration"], arguments["rate"] * reference["unit"]
    linear, logarithmic = jnp.broadcast_arrays(concentration - rate, concentration)
    # The same as concentration log(rate) - log Gamma(concentration) - rate, whose terms are large and nearly cancel.
    offset = concentration * _log1p_minus((rate - concentration) / concentration) + _stirling(concentration)
    return jnp.stack([linear, logarithmic], -1), offset


def _minus_log(value, fixed):
    del fixed
    return -jnp.log(value)


def _gamma_moments(sums, count, reference):
    return {"total": (sums[..., 0] + count) * reference["unit"], "count": count}


def _shape_and_exposure(moments, arguments, current):
    del current
    return {"events": moments["count"] * arguments["concentration"], "exposure": moments["total"]}


GAMMA_RATE = Update(
    "concentration x count / total",
    0,
    _POSITIVE,
    (_shape_and_exposure,),
    _solve_rate,
    {dist.Gamma: gamma_on_rate},
    degrees={"exposure": 1},
)


def _gamma_start(argument, seed, mean, spread):
    concentration = jnp.clip((mean / spread) ** 2, 0.1, 1e6)
    return concentration if argument == "concentration" else concentration * 2 / (seed + mean)


def _gamma_local(arguments):
    return {"unit": arguments["concentration"] / arguments["rate"]}


def _gamma_floor(arguments, reference):
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
        local_reference=_gamma_local,
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


def _reciprocal_unit(value, mean):
    return _unit(1 / value, mean)


def _reciprocal_start(argument, seed, mean, spread):
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


def _half_statistics(value, fixed, reference):
    del fixed
    return ((value / reference["unit"]) ** 2)[..., None]


def _half_natural(arguments, reference):
    scale = arguments["scale"]
    return -0.5 * ((reference["unit"] / scale) ** 2)[..., None], 0.5 * float(np.log(2 / np.pi)) - jnp.log(scale)


def _half_moments(sums, count, reference):
    # Residuals of a normal at location zero, so that its update of the scale applies.
    nothing = jnp.zeros_like(count)
    return {"count": count, "first": nothing, "second": sums[..., 0], "centre": 0.0, "unit": reference["unit"]}


def _about_zero(moments, arguments, current):
    return SCALE.contributions[0](moments, {"loc": jnp.zeros_like(arguments["scale"])}, current)


HALF_NORMAL_SCALE = dataclasses.replace(SCALE, title="root mean square", contributions=(_about_zero,))

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


def _log_start(argument, seed, mean, spread):
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


def _log_excess(value, fixed, reference):
    del reference
    return (jnp.log(value) - jnp.log(fixed["scale"]))[..., None]


def _pareto_natural(arguments, reference):
    del reference
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
        moments=lambda sums, count, reference: {"total": sums[..., 0], "count": count},
        updates={"alpha": dataclasses.replace(EXPONENTIAL_RATE, title="count / total of log(value / scale)")},
        edges={"scale": -1},
        fixed=("scale",),
    )
)

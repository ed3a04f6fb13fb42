"""Locations and scales that no sums of statistics describe: where such families start, and have corners.

Their arguments are maximised as weighted medians, by the mean deviation from one, or by Newton steps with NumPyro's
``log_prob``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpyro.distributions as dist

from emppl.families.gaussian import centre_and_unit
from emppl.families.registry import Family, Update, add
from emppl.numerics.guarded import safe_divide


def _start(argument, seed, mean, spread):
    del mean
    return {"loc": seed, "scale": spread}.get(argument)


def _floor(arguments, reference):
    scale = arguments["scale"]
    found = scale / reference["unit"]
    shared = tuple(axis for axis, size in enumerate(scale.shape) if size < found.shape[axis])
    return jnp.min(found, shared, keepdims=True)


def _register(distribution: type, *others: str, **description) -> Family:
    arguments = dict.fromkeys(("loc", "scale", *others), 0)
    description |= {"start": _start, "reference": centre_and_unit, "scale_floor": _floor}
    return add(Family(distribution.__name__, (distribution,), 0, arguments, **description))


# ------------------------------------------------------------------------- log_prob = -log(scale) - deviation / scale


def _as_they_are(moments, arguments, current):
    del arguments, current
    return moments


def _mean(pooled, previous, stage):
    del stage
    return safe_divide(pooled["deviation"], pooled["count"], previous)


def _inverse_gamma(pooled, prior):
    count = pooled["count"] + prior.concentration + 1
    return {"deviation": pooled["deviation"] + prior.rate, "count": count}


_MEAN_DEVIATION = Update(
    "mean absolute deviation",
    0,
    ("positive", "softplus_positive", "real"),
    (_as_they_are,),
    _mean,
    {dist.InverseGamma: _inverse_gamma},
    order=1,
    degrees={"deviation": -1},
)


def _scaled(deviation: Callable, *others: str) -> dict:
    """A scale whose best value is the mean deviation, alone, and Newton steps where other arguments are free."""

    def moments(value, arguments):
        found = deviation(value - arguments["loc"], arguments)
        return {"deviation": found, "count": jnp.ones_like(found)}

    joint = ("scale", *others) if others else ()
    return {
        "kinks": ("loc",),
        "updates": {"scale": _MEAN_DEVIATION},
        "moments_of_value": moments,
        "joint": joint,
    }


def _by_asymmetry(residual, arguments):
    asymmetry = arguments["asymmetry"]
    return jnp.abs(residual) * jnp.where(residual < 0, 1 / asymmetry, asymmetry)


def _by_quantile(residual, arguments):
    return residual * (arguments["quantile"] - (residual < 0))


LAPLACE = _register(dist.Laplace, **_scaled(lambda residual, _: jnp.abs(residual)))
ASYMMETRIC_LAPLACE = _register(dist.AsymmetricLaplace, "asymmetry", **_scaled(_by_asymmetry, "asymmetry"))
ASYMMETRIC_LAPLACE_QUANTILE = _register(dist.AsymmetricLaplaceQuantile, "quantile", **_scaled(_by_quantile, "quantile"))

# ---------------------------------------------------------------------------------------------------- by Newton steps

STUDENT_T = _register(dist.StudentT, "df")
CAUCHY = _register(dist.Cauchy)
GUMBEL = _register(dist.Gumbel)
LOGISTIC = _register(dist.Logistic)
SOFT_LAPLACE = _register(dist.SoftLaplace)

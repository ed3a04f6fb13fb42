"""Families on the real line without sufficient statistics: Laplace and its relatives, Student's t, Gumbel and others.

Locations are weighted medians and scales mean deviations from them, or Newton steps with NumPyro's ``log_prob`` find
both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from emppl.families.family import Arrays, Family, Quantities, Update
from emppl.families.gaussian import centre_and_unit
from emppl.families.registry import add
from emppl.families.updates import POSITIVE, moments_alone, ratio


def _start(argument: str, seed: jax.Array, mean: jax.Array, spread: jax.Array) -> jax.Array | None:
    return {"loc": seed, "scale": spread}.get(argument)


def _floor(arguments: Arrays, reference: Arrays) -> jax.Array:
    scale = arguments["scale"]
    relative = scale / reference["unit"]
    shared = tuple(axis for axis, size in enumerate(scale.shape) if size < relative.shape[axis])
    return jnp.min(relative, shared, keepdims=True)


def _register(distribution: type, *others: str, **description: Any) -> Family:
    arguments = dict.fromkeys(("loc", "scale", *others), 0)
    description |= {"start": _start, "reference": centre_and_unit, "scale_floor": _floor}
    return add(Family(distribution.__name__, (distribution,), 0, arguments, **description))


# ------------------------------------------------------------------------- log_prob = -log(scale) - deviation / scale


def _inverse_gamma_on_scale(pooled: Quantities, prior: Any) -> Quantities:
    count = pooled["count"] + prior.concentration + 1
    return {"deviation": pooled["deviation"] + prior.rate, "count": count}


_MEAN_DEVIATION = Update(
    "mean absolute deviation",
    0,
    POSITIVE,
    (moments_alone,),
    ratio("deviation", "count"),
    {dist.InverseGamma: _inverse_gamma_on_scale},
    order=1,
    degrees={"deviation": -1},
    within=jnp.clip,
)


def _scaled(deviation: Callable[[jax.Array, Arrays], jax.Array], *others: str) -> dict[str, Any]:
    """A scale whose best value is the mean deviation, alone, and Newton steps where other arguments are free."""

    def moments(value: jax.Array, arguments: Arrays) -> Quantities:
        deviations = deviation(value - arguments["loc"], arguments)
        return {"deviation": deviations, "count": jnp.ones_like(deviations)}

    joint = ("scale", *others) if others else ()
    return {"kinks": ("loc",), "updates": {"scale": _MEAN_DEVIATION}, "moments_of_value": moments, "joint": joint}


def _by_asymmetry(residual: jax.Array, arguments: Arrays) -> jax.Array:
    asymmetry = arguments["asymmetry"]
    return jnp.abs(residual) * jnp.where(residual < 0, 1 / asymmetry, asymmetry)


def _by_quantile(residual: jax.Array, arguments: Arrays) -> jax.Array:
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

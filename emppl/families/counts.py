"""Families of counts: Poisson."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln

from emppl.families.registry import Family, Update, add
from emppl.numerics.guarded import finite_log, safe_divide


def _events_and_exposure(moments, arguments, current):
    del arguments, current
    return {"events": moments["total"], "exposure": moments["count"]}


def _solve_rate(pooled, previous, stage):
    """No event at all gives the smallest rate whose log-probability and derivatives are finite."""
    del stage
    rate = safe_divide(pooled["events"], pooled["exposure"], previous)
    return jnp.maximum(rate, jnp.sqrt(jnp.finfo(rate.dtype).tiny))


def gamma_on_rate(pooled, prior):
    """Pseudo-observations of a Gamma(concentration, rate) prior on a rate."""
    return pooled | {
        "events": pooled["events"] + prior.concentration - 1,
        "exposure": pooled["exposure"] + prior.rate,
    }


POISSON_RATE = Update(
    "events / exposure",
    0,
    ("positive", "nonnegative", "softplus_positive", "real"),
    (_events_and_exposure,),
    _solve_rate,
    {dist.Gamma: gamma_on_rate},
    degrees={"exposure": 1},
)


def _statistics(value, fixed, reference):
    del fixed, reference
    return jnp.asarray(value, jnp.result_type(float))[..., None]


def _natural(arguments, reference):
    del reference
    return finite_log(arguments["rate"])[..., None], -arguments["rate"]


def _base_measure(value, fixed):
    del fixed
    return -gammaln(value + 1.0)


def _moments(sums, count, reference):
    del reference
    return {"total": sums[..., 0], "count": count}


def _start(argument, seed, mean, spread):
    del argument, spread
    return (seed + mean + 0.5) / 2


POISSON = add(
    Family(
        "Poisson",
        (dist.Poisson,),
        0,
        {"rate": 0},
        statistics=_statistics,
        natural=_natural,
        base_measure=_base_measure,
        moments=_moments,
        updates={"rate": POISSON_RATE},
        start=_start,
    )
)

"""Families on the positive half-line: Exponential."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist

from emppl.closed_forms.counts import gamma_on_rate
from emppl.families import Family, Update, register
from emppl.numerics import safe_divide


def _reference(value, mean):
    return {"unit": jnp.where(mean(value) > 0, mean(value), 1)}


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
    ("positive", "softplus_positive", "real"),
    (_events_and_exposure,),
    _solve_rate,
    {dist.Gamma: gamma_on_rate},
)


def _start(argument, seed, mean, spread):
    del argument, spread
    return 2 / (seed + mean)


EXPONENTIAL = register(
    Family(
        "Exponential",
        (dist.Exponential,),
        0,
        {"rate": 0},
        reference=_reference,
        statistics=_statistics,
        natural=_natural,
        moments=_moments,
        updates={"rate": EXPONENTIAL_RATE},
        start=_start,
    )
)

"""Families of counts: Poisson."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln

from emppl.families.family import Arrays, Family, Quantities, Update
from emppl.families.registry import add
from emppl.families.updates import NONNEGATIVE, moments_alone, ratio
from emppl.numerics.guarded import finite_log


def _solve_rate(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    """Events per exposure; without any event the smallest rate whose log-probability and derivatives are finite."""
    rate = ratio("events", "exposure")(pooled, previous, stage)
    return jnp.maximum(rate, jnp.sqrt(jnp.finfo(rate.dtype).tiny))


def gamma_on_rate(pooled: Quantities, prior: Any) -> Quantities:
    """Pseudo-observations of a Gamma(concentration, rate) prior on a rate."""
    return pooled | {
        "events": pooled["events"] + prior.concentration - 1,
        "exposure": pooled["exposure"] + prior.rate,
    }


POISSON_RATE = Update(
    "events / exposure",
    0,
    NONNEGATIVE,
    (moments_alone,),
    _solve_rate,
    {dist.Gamma: gamma_on_rate},
    degrees={"exposure": 1},
    within=jnp.clip,
)


def _statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    return jnp.asarray(value, jnp.result_type(float))[..., None]


def _natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    return finite_log(arguments["rate"])[..., None], -arguments["rate"]


def _base_measure(value: jax.Array, fixed: Arrays) -> jax.Array:
    return -gammaln(value + 1.0)


def _moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    return {"events": sums[..., 0], "exposure": count}


def _start(argument: str, seed: jax.Array, mean: jax.Array, spread: jax.Array) -> jax.Array:
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

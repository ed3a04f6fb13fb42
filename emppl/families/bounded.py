"""Families on an interval, the simplex and the circle: Beta, BetaProportion, Dirichlet, VonMises, Uniform.

Their likelihood equations have no closed solution; Newton steps on sums of statistics solve them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammaln, i0e

from emppl.families.family import Arrays, Family, Mean, Quantities, Update
from emppl.families.registry import add

# -------------------------------------------------------------------------------------------------------- Beta


def _log_odds_reference(value: jax.Array, mean: Mean) -> Arrays:
    return {"success": mean(jnp.log(value)), "failure": mean(jnp.log1p(-value))}


def _beta_statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    return jnp.stack([jnp.log(value) - reference["success"], jnp.log1p(-value) - reference["failure"]], -1)


def _beta_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    a, b = jnp.broadcast_arrays(arguments["concentration1"], arguments["concentration0"])
    log_beta = gammaln(a) + gammaln(b) - gammaln(a + b)
    return jnp.stack([a, b], -1), a * reference["success"] + b * reference["failure"] - log_beta


def _beta_base_measure(value: jax.Array, fixed: Arrays) -> jax.Array:
    return -jnp.log(value) - jnp.log1p(-value)


def _beta_start(argument: str, seed: jax.Array, mean: jax.Array, spread: jax.Array) -> jax.Array:
    size = jnp.clip(mean * (1 - mean) / spread**2 - 1, 0.5, 1e6)
    centre = (seed + mean) / 2
    return size * (centre if argument == "concentration1" else 1 - centre)


BETA = add(
    Family(
        "Beta",
        (dist.Beta,),
        0,
        {"concentration1": 0, "concentration0": 0},
        reference=_log_odds_reference,
        statistics=_beta_statistics,
        natural=_beta_natural,
        base_measure=_beta_base_measure,
        joint=("concentration1", "concentration0"),
        start=_beta_start,
    )
)


# --------------------------------------------------------------------------------------------------- Dirichlet


def _dirichlet_reference(value: jax.Array, mean: Mean) -> Arrays:
    return {"log": mean(jnp.log(value))}


def _dirichlet_statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    return jnp.log(value) - reference["log"]


def _dirichlet_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    concentration = arguments["concentration"]
    log_beta = jnp.sum(gammaln(concentration), -1) - gammaln(jnp.sum(concentration, -1))
    return concentration, jnp.sum(concentration * reference["log"], -1) - log_beta


DIRICHLET = add(
    Family(
        "Dirichlet",
        (dist.Dirichlet,),
        1,
        {"concentration": 1},
        reference=_dirichlet_reference,
        statistics=_dirichlet_statistics,
        natural=_dirichlet_natural,
        base_measure=lambda value, fixed: -jnp.sum(jnp.log(value), -1),
        start=lambda argument, seed, mean, spread: (seed + mean) / 2 * mean.shape[-1],
    )
)


# ---------------------------------------------------------------------------------------------------- VonMises


def _direction_statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    return jnp.stack([jnp.cos(value), jnp.sin(value)], -1)


def _direction_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    loc, concentration = jnp.broadcast_arrays(arguments["loc"], arguments["concentration"])
    eta = jnp.stack([concentration * jnp.cos(loc), concentration * jnp.sin(loc)], -1)
    return eta, -jnp.log(i0e(concentration)) - concentration - float(np.log(2 * np.pi))


def _direction_moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    return {"cosine": sums[..., 0], "sine": sums[..., 1]}


def _resultant(moments: Arrays, arguments: Arrays, current: jax.Array) -> Quantities:
    return {name: arguments["concentration"] * moments[name] for name in ("cosine", "sine")}


def _solve_direction(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    known = (pooled["cosine"] != 0) | (pooled["sine"] != 0)
    return jnp.where(known, jnp.arctan2(pooled["sine"], jnp.where(known, pooled["cosine"], 1)), previous)


def _von_mises_on_direction(pooled: Quantities, prior: Any) -> Quantities:
    return {
        "cosine": pooled["cosine"] + prior.concentration * jnp.cos(prior.loc),
        "sine": pooled["sine"] + prior.concentration * jnp.sin(prior.loc),
    }


def _within_arc(direction: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The direction, whole turns away if need be, or the end of the interval that is nearest to it on the circle."""
    turn = 2 * np.pi
    start = jnp.where(jnp.isfinite(low), low, high - turn)
    turned = jnp.where((low <= direction) & (direction <= high), direction, start + (direction - start) % turn)
    nearest = jnp.where(jnp.cos(high - direction) > jnp.cos(low - direction), high, low)
    return jnp.where(turned <= high, turned, nearest)


DIRECTION = Update(
    "direction of the weighted resultant",
    0,
    ("real", "circular"),
    (_resultant,),
    _solve_direction,
    {dist.VonMises: _von_mises_on_direction},
    within=_within_arc,
)

VON_MISES = add(
    Family(
        "VonMises",
        (dist.VonMises,),
        0,
        {"loc": 0, "concentration": 0},
        statistics=_direction_statistics,
        natural=_direction_natural,
        moments=_direction_moments,
        updates={"loc": DIRECTION},
        start=lambda argument, seed, mean, spread: seed if argument == "loc" else None,
    )
)


# ----------------------------------------------------------------------------------------------------- Uniform


def _declared_start(argument: str, seed: jax.Array, mean: jax.Array, spread: jax.Array) -> None:
    """No start from the data, which bounds near them would partly exclude: the declared one is kept."""


UNIFORM = add(
    Family("Uniform", (dist.Uniform,), 0, {"low": 0, "high": 0}, edges={"low": -1, "high": 1}, start=_declared_start)
)

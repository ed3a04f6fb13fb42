"""Families of successes and categories: Bernoulli, Geometric, Binomial, Categorical, Multinomial."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln

from emppl.families.family import Arrays, Family, Quantities, Update
from emppl.families.registry import add
from emppl.families.updates import moments_alone
from emppl.numerics.guarded import IMPOSSIBLE, finite_log, finite_log_complement, safe_divide

# --------------------------------------------------------------------- success probability (binary outcomes)


def _solve_probability(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    return safe_divide(pooled["successes"], pooled["successes"] + pooled["failures"], previous)


def _solve_log_odds(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    odds = finite_log(pooled["successes"]) - finite_log(pooled["failures"])
    largest = -jnp.log(jnp.finfo(odds.dtype).tiny)
    return jnp.where(pooled["successes"] + pooled["failures"] > 0, jnp.clip(odds, -largest, largest), previous)


def _beta_on_probability(pooled: Quantities, prior: Any) -> Quantities:
    return pooled | {
        "successes": pooled["successes"] + prior.concentration1 - 1,
        "failures": pooled["failures"] + prior.concentration0 - 1,
    }


PROBABILITY = Update(
    "successes / trials",
    0,
    ("unit_interval", "real"),
    (moments_alone,),
    _solve_probability,
    {dist.Beta: _beta_on_probability},
    within=jnp.clip,
)
LOG_ODDS = Update("log(successes / failures)", 0, ("real",), (moments_alone,), _solve_log_odds, within=jnp.clip)


def _log_probabilities(arguments: Arrays) -> tuple[jax.Array, jax.Array]:
    """Natural logs of success and failure, with a stand-in for log 0."""
    if "logits" in arguments:
        logits = arguments["logits"]
        return -jax.nn.softplus(-logits), -jax.nn.softplus(logits)
    return finite_log(arguments["probs"]), finite_log_complement(arguments["probs"])


def _bernoulli_statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    return jnp.asarray(value, jnp.result_type(float))[..., None]


def _bernoulli_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    """Natural parameter of the success alone: one statistic instead of two halves the matrix product.

    The stand-in for the log of an impossible failure is the log of the smallest number: a larger one would cancel
    against itself, at the price of all digits.
    """
    success, failure = _log_probabilities(arguments)
    failure = jnp.where(failure == IMPOSSIBLE, jnp.log(jnp.finfo(failure.dtype).tiny), failure)
    return (success - failure)[..., None], failure


def _bernoulli_moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    return {"successes": sums[..., 0], "failures": count - sums[..., 0]}


BERNOULLI = add(
    Family(
        "Bernoulli",
        (dist.BernoulliProbs, dist.BernoulliLogits),
        0,
        {"probs": 0, "logits": 0},
        statistics=_bernoulli_statistics,
        natural=_bernoulli_natural,
        moments=_bernoulli_moments,
        updates={"probs": PROBABILITY, "logits": LOG_ODDS},
    )
)


def _geometric_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    success, failure = _log_probabilities(arguments)
    return failure[..., None], success


def _geometric_moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    return {"successes": count, "failures": sums[..., 0]}


GEOMETRIC = add(
    dataclasses.replace(
        BERNOULLI,
        name="Geometric",
        distributions=(dist.GeometricProbs, dist.GeometricLogits),
        natural=_geometric_natural,
        moments=_geometric_moments,
    )
)


def _binomial_statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    value = jnp.asarray(value, jnp.result_type(float))
    return jnp.stack(jnp.broadcast_arrays(value, fixed["total_count"] - value), -1)


def _binomial_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    success, failure = _log_probabilities(arguments)
    return jnp.stack([success, failure], -1), jnp.zeros_like(success)


def _binomial_base_measure(value: jax.Array, fixed: Arrays) -> jax.Array:
    trials = fixed["total_count"]
    return gammaln(trials + 1.0) - gammaln(value + 1.0) - gammaln(trials - value + 1.0)


def _binomial_moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    return {"successes": sums[..., 0], "failures": sums[..., 1]}


BINOMIAL = add(
    Family(
        "Binomial",
        (dist.BinomialProbs, dist.BinomialLogits),
        0,
        {"probs": 0, "logits": 0, "total_count": 0},
        statistics=_binomial_statistics,
        natural=_binomial_natural,
        base_measure=_binomial_base_measure,
        moments=_binomial_moments,
        updates={"probs": PROBABILITY, "logits": LOG_ODDS},
        fixed=("total_count",),
    )
)


# ------------------------------------------------------------------------------------ category probabilities


def _solve_simplex(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    total = jnp.sum(pooled["counts"], -1, keepdims=True)
    return safe_divide(pooled["counts"], total, previous)


def _solve_logits(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    probabilities = _solve_simplex(pooled, jax.nn.softmax(previous, -1), stage)
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))


def _dirichlet_on_simplex(pooled: Quantities, prior: Any) -> Quantities:
    return pooled | {"counts": pooled["counts"] + prior.concentration - 1}


SIMPLEX = Update(
    "counts / total",
    1,
    ("simplex",),
    (moments_alone,),
    _solve_simplex,
    {dist.Dirichlet: _dirichlet_on_simplex},
    by_entry=True,
)
CATEGORY_LOGITS = Update("log(counts / total)", 1, ("real", "real_vector"), (moments_alone,), _solve_logits)


def _category_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    if "logits" in arguments:
        log_probability = jax.nn.log_softmax(arguments["logits"], -1)
        log_probability = jnp.maximum(log_probability, IMPOSSIBLE)
    else:
        log_probability = finite_log(arguments["probs"])
    return log_probability, jnp.zeros_like(log_probability[..., 0])


def _category_moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    return {"counts": sums}


def _categorical_statistics(value: jax.Array, fixed: Mapping[str, Any], reference: Arrays) -> jax.Array:
    return jax.nn.one_hot(value, fixed["categories"], dtype=jnp.result_type(float))


CATEGORICAL = add(
    Family(
        "Categorical",
        (dist.CategoricalProbs, dist.CategoricalLogits),
        0,
        {"probs": 1, "logits": 1},
        statistics=_categorical_statistics,
        natural=_category_natural,
        moments=_category_moments,
        updates={"probs": SIMPLEX, "logits": CATEGORY_LOGITS},
        indicator=True,
    )
)


def _multinomial_statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    return jnp.asarray(value, jnp.result_type(float))


def _multinomial_base_measure(value: jax.Array, fixed: Arrays) -> jax.Array:
    return gammaln(jnp.sum(value, -1) + 1.0) - jnp.sum(gammaln(value + 1.0), -1)


MULTINOMIAL = add(
    Family(
        "Multinomial",
        (dist.MultinomialProbs, dist.MultinomialLogits),
        1,
        {"probs": 1, "logits": 1, "total_count": 0},
        statistics=_multinomial_statistics,
        natural=_category_natural,
        base_measure=_multinomial_base_measure,
        moments=_category_moments,
        updates={"probs": SIMPLEX, "logits": CATEGORY_LOGITS},
        fixed=("total_count",),
    )
)

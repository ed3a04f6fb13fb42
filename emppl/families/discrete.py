"""Families of successes and categories: Bernoulli, Geometric, Binomial, Categorical, Multinomial."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln

from emppl.families.registry import Family, Update, add
from emppl.numerics.guarded import IMPOSSIBLE, finite_log, finite_log_complement, safe_divide

_PROBABILITY_SUPPORT = ("unit_interval", "real")


# --------------------------------------------------------------------- success probability (binary outcomes)


def _outcomes(moments, arguments, current):
    del arguments, current
    return {"successes": moments["successes"], "failures": moments["failures"]}


def _solve_probability(pooled, previous, stage):
    del stage
    return safe_divide(pooled["successes"], pooled["successes"] + pooled["failures"], previous)


def _solve_log_odds(pooled, previous, stage):
    del stage
    odds = finite_log(pooled["successes"]) - finite_log(pooled["failures"])
    largest = -jnp.log(jnp.finfo(odds.dtype).tiny)
    return jnp.where(pooled["successes"] + pooled["failures"] > 0, jnp.clip(odds, -largest, largest), previous)


def _beta(pooled, prior):
    return pooled | {
        "successes": pooled["successes"] + prior.concentration1 - 1,
        "failures": pooled["failures"] + prior.concentration0 - 1,
    }


PROBABILITY = Update(
    "successes / trials",
    0,
    _PROBABILITY_SUPPORT,
    (_outcomes,),
    _solve_probability,
    {dist.Beta: _beta},
)
LOG_ODDS = Update("log(successes / failures)", 0, ("real",), (_outcomes,), _solve_log_odds)


def _log_probabilities(arguments):
    """Natural logs of success and failure, with a stand-in for log 0."""
    if "logits" in arguments:
        logits = arguments["logits"]
        return -jax.nn.softplus(-logits), -jax.nn.softplus(logits)
    return finite_log(arguments["probs"]), finite_log_complement(arguments["probs"])


def _bernoulli_statistics(value, fixed, reference):
    del fixed, reference
    return jnp.asarray(value, jnp.result_type(float))[..., None]


def _bernoulli_natural(arguments, reference):
    """One statistic, which halves the matrix product.

    A stand-in for the log of a failure that is impossible would cancel against itself, at the price of all digits: it
    is the log of the smallest number.
    """
    del reference
    success, failure = _log_probabilities(arguments)
    failure = jnp.where(failure == IMPOSSIBLE, jnp.log(jnp.finfo(failure.dtype).tiny), failure)
    return (success - failure)[..., None], failure


def _bernoulli_moments(sums, count, reference):
    del reference
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


def _geometric_natural(arguments, reference):
    del reference
    success, failure = _log_probabilities(arguments)
    return failure[..., None], success


def _geometric_moments(sums, count, reference):
    del reference
    return {"successes": count, "failures": sums[..., 0]}


GEOMETRIC = add(
    Family(
        "Geometric",
        (dist.GeometricProbs, dist.GeometricLogits),
        0,
        {"probs": 0, "logits": 0},
        statistics=_bernoulli_statistics,
        natural=_geometric_natural,
        moments=_geometric_moments,
        updates={"probs": PROBABILITY, "logits": LOG_ODDS},
    )
)


def _binomial_statistics(value, fixed, reference):
    del reference
    value = jnp.asarray(value, jnp.result_type(float))
    return jnp.stack(jnp.broadcast_arrays(value, fixed["total_count"] - value), -1)


def _binomial_natural(arguments, reference):
    del reference
    success, failure = _log_probabilities(arguments)
    return jnp.stack([success, failure], -1), jnp.zeros_like(success)


def _binomial_base_measure(value, fixed):
    trials = fixed["total_count"]
    return gammaln(trials + 1.0) - gammaln(value + 1.0) - gammaln(trials - value + 1.0)


def _binomial_moments(sums, count, reference):
    del count, reference
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


def _category_counts(moments, arguments, current):
    del arguments, current
    return {"counts": moments["counts"]}


def _solve_simplex(pooled, previous, stage):
    del stage
    total = jnp.sum(pooled["counts"], -1, keepdims=True)
    return safe_divide(pooled["counts"], total, previous)


def _solve_logits(pooled, previous, stage):
    probabilities = _solve_simplex(pooled, jax.nn.softmax(previous, -1), stage)
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))


def _dirichlet(pooled, prior):
    return pooled | {"counts": pooled["counts"] + prior.concentration - 1}


SIMPLEX = Update(
    "counts / total",
    1,
    ("simplex",),
    (_category_counts,),
    _solve_simplex,
    {dist.Dirichlet: _dirichlet},
    by_entry=True,
)
CATEGORY_LOGITS = Update("log(counts / total)", 1, ("real", "real_vector"), (_category_counts,), _solve_logits)


def _category_natural(arguments, reference):
    del reference
    if "logits" in arguments:
        log_probability = jax.nn.log_softmax(arguments["logits"], -1)
        log_probability = jnp.maximum(log_probability, IMPOSSIBLE)
    else:
        log_probability = finite_log(arguments["probs"])
    return log_probability, jnp.zeros_like(log_probability[..., 0])


def _category_moments(sums, count, reference):
    del count, reference
    return {"counts": sums}


def _categorical_statistics(value, fixed, reference):
    del reference
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


def _multinomial_statistics(value, fixed, reference):
    del fixed, reference
    return jnp.asarray(value, jnp.result_type(float))


def _multinomial_base_measure(value, fixed):
    del fixed
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

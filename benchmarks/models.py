"""The workloads as ordinary NumPyro models, and the common start in their parameters."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from benchmarks.workloads import SYMBOLS


def _mixture(x, K, component, parameter):
    weights = numpyro.param("weights", jnp.ones(K) / K, constraint=constraints.simplex)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", component({name: value[z] for name, value in parameter.items()}), obs=x)


def full(x, K):
    mean = numpyro.param("means", jnp.zeros((K, x.shape[1])))
    unit = jnp.broadcast_to(jnp.eye(x.shape[1]), (K, x.shape[1], x.shape[1]))
    covariance = numpyro.param("spread", unit, constraint=constraints.positive_definite)
    normal = lambda at: dist.MultivariateNormal(at["mean"], covariance_matrix=at["covariance"])  # noqa: E731
    _mixture(x, K, normal, {"mean": mean, "covariance": covariance})


def diagonal(x, K):
    mean = numpyro.param("means", jnp.zeros((K, x.shape[1])))
    scale = numpyro.param("scale", jnp.ones((K, x.shape[1])), constraint=constraints.positive)
    _mixture(x, K, lambda at: dist.Normal(at["mean"], at["scale"]).to_event(1), {"mean": mean, "scale": scale})


def classes(x, K):
    start = jnp.full((K, x.shape[1]), 0.5)
    probability = numpyro.param("probabilities", start, constraint=constraints.unit_interval)
    _mixture(x, K, lambda at: dist.Bernoulli(at["p"]).to_event(1), {"p": probability})


def regressions(x, K):
    weights = numpyro.param("weights", jnp.ones(K) / K, constraint=constraints.simplex)
    intercept = numpyro.param("intercept", jnp.zeros(K))
    slope = numpyro.param("slope", jnp.zeros((K, x.shape[1] - 1)))
    sigma = numpyro.param("sigma", jnp.ones(K), constraint=constraints.positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        loc = intercept[z] + (x[:, :-1] * slope[z]).sum(-1)
        numpyro.sample("y", dist.Normal(loc, sigma[z]), obs=x[:, -1])


def _chain(K, sequences, xs, emit):
    """A hidden Markov model, as NumPyro's documentation writes it."""
    initial = numpyro.param("initial", jnp.ones(K) / K, constraint=constraints.simplex)
    transition = numpyro.param("transition", jnp.ones((K, K)) / K, constraint=constraints.simplex)

    def step(carry, x):
        before, t = carry
        with numpyro.plate("sequences", sequences):
            z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, initial, transition[before])))
            emit(z, x)
        return (z, t + 1), None

    scan(step, (jnp.zeros(sequences, int), 0), xs)


def chain(x, K):
    mean = numpyro.param("means", jnp.zeros((K, x.shape[1])))
    scale = numpyro.param("scale", jnp.ones((K, x.shape[1])), constraint=constraints.positive)
    _chain(K, 1, x, lambda z, x: numpyro.sample("x", dist.Normal(mean[z], scale[z]).to_event(1), obs=x))


def symbols(x, K):
    flat = jnp.ones((K, SYMBOLS)) / SYMBOLS
    emission = numpyro.param("emission", flat, constraint=constraints.simplex)
    _chain(K, x.shape[1], x, lambda z, x: numpyro.sample("x", dist.Categorical(emission[z]), obs=x))


MODELS = {
    "full": full,
    "diagonal": diagonal,
    "classes": classes,
    "regressions": regressions,
    "chain": chain,
    "symbols": symbols,
}


def initial(kind: str, start: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The common start, by the names that the model uses."""
    if kind != "diagonal":
        return dict(start)
    return {"weights": start["weights"], "means": start["means"], "scale": np.sqrt(start["spread"])}

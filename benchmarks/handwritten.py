"""The same EM algorithms written by hand in JAX: what someone who knows both EM and XLA would write.

Each is a mixture of exponential families, ``log p(x | k) = natural[k] . statistics(x)``, with a leading
statistic of one. An E-step is then one matrix product, an M-step starts with a second one, and rows go by in
blocks that fit the cache, components first.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Family(NamedTuple):
    """``expand`` makes the statistics of a block inside the loop, ``prepare`` what is made once before it."""

    prepare: object
    expand: object
    natural: object
    solve: object
    block: int


def _sums(family, blocks, natural):
    """Log-likelihood, and the statistics summed over rows with the responsibilities as weights."""

    def add(total, block):
        statistics = family.expand(block)
        logits = natural @ statistics
        top = logits.max(0)
        odds = jnp.exp(logits - top)
        evidence = odds.sum(0)
        log_likelihood = (top + jnp.log(evidence)).sum()
        return (total[0] + log_likelihood, total[1] + (odds * (1 / evidence)) @ statistics.T), None

    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros_like(natural)), blocks)[0]


def _ones(x):
    return jnp.ones((1, x.shape[1]))


def _normal_prepare(x):
    # Centred, or the squares would swamp the variances.
    return (x - x.mean(0)).T


def _full(columns: int) -> Family:
    above = np.triu_indices(columns)
    twice = np.where(above[0] == above[1], 1.0, 2.0)

    def prepare(x):
        x = _normal_prepare(x)
        return jnp.concatenate([_ones(x), x, x[above[0]] * x[above[1]]])

    def natural(params):
        factor = jnp.linalg.cholesky(params["spread"])
        unit = jnp.broadcast_to(jnp.eye(columns), factor.shape)
        precision = jax.scipy.linalg.cho_solve((factor, True), unit)
        linear = jnp.einsum("kij,kj->ki", precision, params["means"])
        constant = jnp.log(params["weights"]) - jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(1)
        constant -= 0.5 * (linear * params["means"]).sum(1) + 0.5 * columns * jnp.log(2 * jnp.pi)
        return jnp.concatenate([constant[:, None], linear, -0.5 * twice * precision[:, above[0], above[1]]], 1)

    def solve(sums):
        count = sums[:, :1]
        means = sums[:, 1 : 1 + columns] / count
        half = sums[:, 1 + columns :] / count - means[:, above[0]] * means[:, above[1]]
        spread = jnp.zeros((len(sums), columns, columns)).at[:, above[0], above[1]].set(half)
        return {
            "weights": count[:, 0] / count.sum(),
            "means": means,
            "spread": spread.at[:, above[1], above[0]].set(half),
        }

    return Family(prepare, lambda block: block, natural, solve, 4000)


def _diagonal(columns: int) -> Family:
    def expand(block):
        return jnp.concatenate([_ones(block), block, block * block])

    def natural(params):
        precision = 1 / params["spread"]
        linear = precision * params["means"]
        constant = jnp.log(params["weights"]) - 0.5 * (
            linear * params["means"] + jnp.log(2 * jnp.pi * params["spread"])
        ).sum(1)
        return jnp.concatenate([constant[:, None], linear, -0.5 * precision], 1)

    def solve(sums):
        count = sums[:, :1]
        means = sums[:, 1 : 1 + columns] / count
        spread = sums[:, 1 + columns :] / count - means**2
        return {"weights": count[:, 0] / count.sum(), "means": means, "spread": spread}

    # The data go by as they are: making the squares in the cache is cheaper than fetching them from memory.
    return Family(_normal_prepare, expand, natural, solve, 1000)


def _classes(columns: int) -> Family:
    def natural(params):
        yes, no = jnp.log(params["probabilities"]), jnp.log1p(-params["probabilities"])
        return jnp.concatenate([(jnp.log(params["weights"]) + no.sum(1))[:, None], yes - no], 1)

    def solve(sums):
        count = sums[:, :1]
        return {"weights": count[:, 0] / count.sum(), "probabilities": sums[:, 1:] / count}

    return Family(lambda x: jnp.concatenate([_ones(x.T), x.T]), lambda block: block, natural, solve, 2500)


def _regressions(columns: int) -> Family:
    """Statistics ``1, y^2, y d, d d'`` with ``d`` the covariates and an intercept."""
    above = np.triu_indices(columns)
    twice = np.where(above[0] == above[1], 1.0, 2.0)

    def prepare(x):
        response, design = x[:, -1], jnp.concatenate([x[:, :-1], jnp.ones((len(x), 1))], 1).T
        products = design[above[0]] * design[above[1]]
        return jnp.concatenate([_ones(design), (response * response)[None], response * design, products])

    def natural(params):
        coefficients = jnp.concatenate([params["slope"], params["intercept"][:, None]], 1)
        precision = 1 / params["sigma"][:, None] ** 2
        constant = jnp.log(params["weights"] / params["sigma"]) - 0.5 * jnp.log(2 * jnp.pi)
        products = coefficients[:, above[0]] * coefficients[:, above[1]] * twice
        return jnp.concatenate(
            [constant[:, None], -0.5 * precision, precision * coefficients, -0.5 * precision * products], 1
        )

    def solve(sums):
        count, square, cross = sums[:, 0], sums[:, 1], sums[:, 2 : 2 + columns]
        gram = jnp.zeros((len(sums), columns, columns)).at[:, above[0], above[1]].set(sums[:, 2 + columns :])
        gram = gram.at[:, above[1], above[0]].set(sums[:, 2 + columns :])
        factor = jnp.linalg.cholesky(gram)
        found = jax.scipy.linalg.cho_solve((factor, True), cross[..., None])[..., 0]
        residual = (square - (found * cross).sum(1)) / count
        return {
            "weights": count / count.sum(),
            "slope": found[:, :-1],
            "intercept": found[:, -1],
            "sigma": jnp.sqrt(residual),
        }

    return Family(prepare, lambda block: block, natural, solve, 1000)


FAMILIES = {"full": _full, "diagonal": _diagonal, "classes": _classes, "regressions": _regressions}


class Fit:
    """Compiled once; ``fit(data, start, iterations)`` returns the log-likelihood after that many M-steps."""

    def __init__(self, kind: str, columns: int):
        self.kind = kind
        self.family = FAMILIES[kind](columns)
        self._prepare = jax.jit(self._blocks)
        self._iterate = jax.jit(self._run)

    def _blocks(self, x):
        rows = min(len(x), self.family.block)
        if len(x) % rows:
            raise ValueError(f"{len(x)} rows do not divide into blocks of {rows}")
        values = self.family.prepare(x)
        return jnp.swapaxes(values.reshape(len(values), -1, rows), 0, 1)

    def _run(self, params, blocks, iterations):
        def step(_, params):
            return self.family.solve(_sums(self.family, blocks, self.family.natural(params))[1])

        params = jax.lax.fori_loop(0, iterations, step, params)
        return _sums(self.family, blocks, self.family.natural(params))[0]

    def __call__(self, data, start, iterations: int) -> float:
        params = dict(start)
        if "means" in params:
            params["means"] = params["means"] - data.mean(0)
        return float(self._iterate(params, self._prepare(data), iterations))

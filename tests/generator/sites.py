"""Random sites: latents and data of every family, in plates, masked or not."""

from __future__ import annotations

import numpy as np

from tests.generator import expressions as e
from tests.generator.writer import Unfit, Writer


def latent_family(w: Writer, shape, parents: bool) -> tuple[str, int, np.ndarray]:
    """A discrete distribution: its text, the number of values (one past the largest) and its support."""
    only = parents and w.chance(0.7)

    def categorical():
        k = int(w.rng.integers(2, 4))
        return f"dist.Categorical({e.simplex(w, k, shape, only)})", k, np.arange(k)

    def by_logits():
        k = int(w.rng.integers(2, 4))
        return f"dist.Categorical(logits={e.indexed(w, 'real', shape, (k,), only)})", k, np.arange(k)

    def bernoulli():
        return f"dist.Bernoulli({e.probability(w, shape, only)})", 2, np.arange(2)

    def bernoulli_by_logits():
        return f"dist.Bernoulli(logits={e.real(w, shape, 1, only)})", 2, np.arange(2)

    def binomial():
        return f"dist.Binomial(2, {e.probability(w, shape, only)})", 3, np.arange(3)

    def uniform():
        if only:
            raise Unfit
        low = int(w.rng.integers(0, 2))
        return f"dist.DiscreteUniform({low}, {low + 1})", low + 2, np.arange(low, low + 2)

    return w.choose(
        (5, None, categorical),
        (1.5, "Categorical by logits", by_logits),
        (2, "Bernoulli latent", bernoulli),
        (1, "Bernoulli latent by logits", bernoulli_by_logits),
        (0.7, "Binomial latent", binomial),
        (0.6, "DiscreteUniform latent", uniform),
    )


def family(w: Writer, shape, only: bool) -> tuple[str, np.ndarray, int]:
    """A distribution of data, random data, and the rank of one value."""
    rng = w.rng

    def normal():
        if w.chance(0.35):
            text = f"dist.Normal({e.real(w, shape, 0)}, {e.positive(w, shape, only)})"
        else:
            text = f"dist.Normal({e.real(w, shape, 0, only)}, {e.positive(w, shape)})"
        return text, w.values("real", shape) * 1.5, 0

    def poisson():
        return f"dist.Poisson({e.positive(w, shape, only)})", rng.poisson(1.5, shape), 0

    def bernoulli():
        arguments = e.probability(w, shape, only) if w.chance(0.6) else f"logits={e.real(w, shape, 0, only)}"
        return f"dist.Bernoulli({arguments})", rng.integers(0, 2, shape), 0

    def categorical():
        k = int(rng.integers(2, 4))
        return f"dist.Categorical({e.simplex(w, k, shape, only)})", rng.integers(0, k, shape), 0

    def gamma():
        return f"dist.Gamma({e.positive(w, shape)}, {e.positive(w, shape, only)})", w.values("positive", shape), 0

    def exponential():
        return f"dist.Exponential({e.positive(w, shape, only)})", w.values("positive", shape), 0

    def binomial():
        return f"dist.Binomial(4, {e.probability(w, shape, only)})", rng.integers(0, 5, shape), 0

    def multivariate():
        how = w.pick(["covariance_matrix", "precision_matrix"])
        text = f"dist.MultivariateNormal({e.vector(w, 2, shape, only)}, {how}={e.matrix(w, 2, shape)})"
        return text, w.values("real", (*shape, 2)), 1

    def vector():
        text = f"dist.Normal({e.vector(w, 2, shape, only)}, {w.param('positive', (2,))}).to_event(1)"
        return text, w.values("real", (*shape, 2)), 1

    def laplace():
        return f"dist.Laplace({e.real(w, shape, 0, only)}, {e.positive(w, shape)})", w.values("real", shape), 0

    return w.choose(
        (5, "Normal", normal),
        (2, "Poisson", poisson),
        (2, "Bernoulli", bernoulli),
        (1.5, "Categorical", categorical),
        (1, "Gamma", gamma),
        (1, "Exponential", exponential),
        (1, "Binomial", binomial),
        (1, "MultivariateNormal", multivariate),
        (0.7, "vector of normals", vector),
        (0.4, "Laplace", laplace),
    )


def observe(w: Writer, name: str, shape, plates: str, only: bool) -> None:
    """One site of data, in its plates."""
    text, values, event = family(w, shape, only)
    y = w.argument(values, rows=-1 - event, prefix="y")
    opening = [plates] if plates else []
    if shape and w.chance(0.12, "mask"):
        m = w.argument(w.rng.random(shape) < 0.7, prefix="m")
        if w.chance(0.5):
            text = f"{text}.mask({m})"
        else:
            opening.insert(0, f"numpyro.handlers.mask(mask={m})")
    with w.block(f"with {', '.join(opening)}:" if opening else None):
        w.line(f'numpyro.sample("{name}", {text}, obs={y})')

"""Every way of integrating a latent: evidence, its gradient and draws against closed algebra of models that it meets."""

import dataclasses
import functools
import importlib
import inspect
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy import stats
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl.integrals
from emppl.integrals import Way, settle
from emppl.integrals.truncated import Truncated
from tests.kit.fits import compiled_of, fit

# A way of integrating is a class in a module of its own.
WAYS = {
    path.stem: way
    for path in sorted(pathlib.Path(emppl.integrals.__file__).parent.glob("[a-z]*.py"))
    for way in vars(importlib.import_module(f"emppl.integrals.{path.stem}")).values()
    if inspect.isclass(way)
    and issubclass(way, Way)
    and not inspect.isabstract(way)
    and way.__module__.endswith(path.stem)
}
Y = np.array([0.3, -1.2, 2.1, 0.4, 1.7])
AT = {"mu": 0.4, "sd": 0.8}


def parameters():
    return numpyro.param("mu", 0.0), numpyro.param("sd", 1.0, constraint=constraints.positive)


def rows(y, observed=lambda b: dist.Normal(b, 1.0)):
    """A normal latent in every row."""
    mu, sd = parameters()
    with numpyro.plate("rows", len(y)):
        b = numpyro.sample("b", dist.Normal(mu, sd))
        numpyro.sample("y", observed(b), obs=y)


def walk(y):
    """A chain of them."""
    mu, sd = parameters()

    def step(b, y):
        b = numpyro.sample("b", dist.Normal(b, sd))
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)
        return b, None

    scan(step, mu, y)


def of_rows(mu, sd, y):
    """Log-likelihood, posterior means and variances."""
    variance = sd**2 / (1 + sd**2)
    evidence = stats.norm.logpdf(y, mu, jnp.sqrt(1 + sd**2)).sum()
    return evidence, mu + variance * (y - mu), jnp.full(len(y), variance)


def of_walk(mu, sd, y):
    steps = jnp.arange(1, len(y) + 1)
    prior = sd**2 * jnp.minimum(steps[:, None], steps[None, :])
    gain = jnp.linalg.solve(prior + jnp.eye(len(y)), prior).T
    evidence = stats.multivariate_normal.logpdf(y, jnp.full(len(y), mu), prior + jnp.eye(len(y)))
    return evidence, mu + gain @ (y - mu), jnp.diagonal(prior - gain @ prior)


def of_clipped(mu, sd, y):
    """Known where it is positive; below zero elsewhere: moments of a truncated normal."""
    bound = -mu / sd
    ratio = jnp.exp(stats.norm.logpdf(bound) - stats.norm.logcdf(bound))
    evidence = jnp.where(y > 0, stats.norm.logpdf(y, mu, sd), stats.norm.logcdf(bound)).sum()
    variance = jnp.where(y > 0, 0.0, sd**2 * (1 - bound * ratio - ratio**2))
    return evidence, jnp.where(y > 0, y, mu - sd * ratio), variance


@dataclasses.dataclass(frozen=True)
class Example:
    """A model whose latent is integrated in one way.

    Attributes:
        strategy: of the latent; None for the default.
        model: with parameters mu and sd, a latent b and data.
        exact: ``(mu, sd, data) -> log-likelihood, means, variances`` of the latent.
        data: of the model.
        error: how far evidence, its gradient and the moments may be off.
    """

    strategy: emppl.strategies.Strategy | None
    model: Callable = rows
    exact: Callable = of_rows
    data: np.ndarray = dataclasses.field(default_factory=lambda: Y)
    error: float = 1e-9


EXAMPLES: Mapping[str, Example] = {
    "exact": Example(emppl.Gaussian()),
    "quadrature": Example(emppl.Quadrature(9)),
    "laplace": Example(emppl.Laplace()),
    "one_node": Example(emppl.Quadrature(1)),
    # Four hundred weighted draws of a Student t for every row: a twentieth of a standard deviation, in five rows.
    "sampling": Example(emppl.MonteCarlo(), error=0.12),
    "smoother": Example(None, walk, of_walk),
    "trajectories": Example(emppl.Laplace(), walk, of_walk),
    "truncated": Example(
        None,
        functools.partial(rows, observed=lambda b: dist.Delta(jnp.maximum(b, 0.0))),
        of_clipped,
        np.maximum(Y, 0),
    ),
}
EVERY = pytest.mark.parametrize("name", EXAMPLES)


def test_every_way_has_its_functions_and_an_example():
    assert set(WAYS.values()) == {Truncated, *settle._WAYS}
    for name, way in WAYS.items():
        assert name in EXAMPLES, f"emppl/integrals/{name}.py has no example here"
        for function in (way.propose, way.integrate, way.draw):
            assert function.__doc__, (name, function)


@functools.cache
def fitted(name):
    """Without an iteration, at the parameters above."""
    example = EXAMPLES[name]
    latents = {"b": example.strategy} if example.strategy else {}
    em = emppl.EM(example.model, latents=latents)
    return em, fit(example.model, example.data, init_params=AT, max_iterations=0, latents=latents)


@EVERY
def test_evidence_and_gradient(name):
    example, (em, _) = EXAMPLES[name], fitted(name)
    (integral,) = compiled_of(em, example.data)[0].program.model.integrals
    assert WAYS.get(name, type(integral.way)) is type(integral.way)
    at = {parameter: jnp.asarray(value) for parameter, value in AT.items()}
    found = jax.jit(jax.value_and_grad(lambda params: em.log_likelihood(params, example.data)))(at)
    expected = jax.value_and_grad(lambda params: example.exact(**params, y=example.data)[0])(at)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=example.error, atol=example.error), found, expected)


@EVERY
def test_posterior_and_draws(name):
    example, (_, result) = EXAMPLES[name], fitted(name)
    _, *expected = example.exact(**AT, y=example.data)
    np.testing.assert_allclose(result.posterior("b"), expected, atol=example.error)
    number = 1000
    draws = result.sample_posterior(jax.random.key(1), number)["b"]
    mean, deviation = expected[0], np.sqrt(expected[1])
    assert np.all(np.abs(draws.mean(0) - mean) <= 5 * deviation / np.sqrt(number) + 1e-9)
    assert np.all(np.abs(draws.std(0) - deviation) <= 5 * deviation / np.sqrt(2 * number) + 1e-9)

"""Wrapped distributions keep the closed forms of their base: transforms of the value, ``expand``, ``to_event``."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints, transforms

import emppl
from tests.kit.fits import KEY, fit, rules

ROWS = 60
POSITIVE = constraints.positive


@functools.cache
def drawn():
    """Normal values of two components, an offset, weights and a mask."""
    rng = np.random.default_rng(0)
    first = rng.random(ROWS) < 0.4
    w = np.where(first[:, None], rng.normal(-1, 0.5, (ROWS, 2)), rng.normal(1.5, 0.8, (ROWS, 2)))
    return w, rng.normal(size=(ROWS, 2)), rng.integers(0, 3, ROWS) * 1.0, rng.random((ROWS, 2)) < 0.9


EXP, SIGMOID = transforms.ExpTransform(), transforms.SigmoidTransform()
TRANSFORMED = {
    "one": (lambda base, offset: dist.TransformedDistribution(base, EXP), lambda w, offset: np.exp(w)),
    "composed, with data": (
        lambda base, offset: dist.TransformedDistribution(
            base, [transforms.AffineTransform(offset, -2.0), transforms.SoftplusTransform()]
        ),
        lambda w, offset: np.logaddexp(0, offset - 2 * w),
    ),
    "nested and inverse": (
        lambda base, offset: dist.TransformedDistribution(dist.TransformedDistribution(base, SIGMOID), EXP.inv),
        lambda w, offset: np.log(1 / (1 + np.exp(-w))),
    ),
}


def mixture(x, offset, weight, seen, make):
    p = numpyro.param("p", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-0.5, 1.0]))
    sigma = numpyro.param("sigma", jnp.ones(2), constraint=POSITIVE)
    with numpyro.plate("rows", len(x)), numpyro.handlers.scale(scale=weight):
        z = numpyro.sample("z", dist.Categorical(p))[..., None]
        numpyro.sample("x", make(dist.Normal(mu[z], sigma[z]), offset).mask(seen).to_event(1), obs=x)


def fitted(make, x):
    return fit(functools.partial(mixture, make=make), x, *drawn()[1:])


@functools.cache
def of_base():
    return fitted(lambda base, offset: base, drawn()[0])


@pytest.mark.parametrize("name", TRANSFORMED)
def test_closed_forms_of_the_base_are_kept(name):
    w, offset, weight, seen = drawn()
    make, forward = TRANSFORMED[name]
    x = np.where(seen, forward(w, offset), np.nan)
    result = fitted(make, x)
    plan = result.plan
    assert {one.rule for one in plan.parameters} == {"closed form"}
    assert {one.form for one in plan.factors} == {"statistics x natural parameters"}
    assert result.num_iterations == of_base().num_iterations
    for parameter, value in of_base().params.items():
        np.testing.assert_allclose(result.params[parameter], value, rtol=1e-8)
    # By NumPyro's own density of the transformed distribution.
    mu, sigma = (jnp.asarray(result.params[n])[:, None, None] for n in ("mu", "sigma"))
    with jax.numpy_rank_promotion("allow"):
        log_prob = make(dist.Normal(mu, sigma), offset).log_prob(jnp.where(seen, x, forward(0.0, offset)))
    table = jnp.sum(jnp.where(seen, log_prob, 0), -1) + jnp.log(result.params["p"])[:, None]
    expected = np.sum(weight * jax.nn.logsumexp(table, 0))
    np.testing.assert_allclose(result.log_likelihood, expected, rtol=1e-12)
    again = result.fit.compiled.log_likelihood(result.fit.free(result.params), result.fit.data)
    np.testing.assert_allclose(again, expected, rtol=1e-12)


def test_estimated_transforms_and_latents():
    """A scale estimated inside the transform; a latent under a transformed observation, exactly integrated."""
    rng = np.random.default_rng(1)
    y = np.exp(1 + 0.7 * rng.normal(size=50) + 0.4 * rng.normal(size=50))
    copies = np.stack([y, y * np.exp(0.4 * rng.normal(size=50))])

    def model(y):
        loc, spread = numpyro.param("loc", 0.0), numpyro.param("spread", 1.0, constraint=POSITIVE)
        error = numpyro.param("error", 0.5, constraint=POSITIVE)
        with numpyro.plate("rows", y.shape[1]):
            effect = numpyro.sample("effect", dist.Normal(loc, spread))
            with numpyro.plate("copies", len(y)):
                log_value = dist.TransformedDistribution(
                    dist.Normal(effect / error, 1.0), transforms.AffineTransform(0.0, error)
                )
                numpyro.sample("y", dist.TransformedDistribution(log_value, EXP), obs=y)

    em = emppl.EM(model, tolerance=1e-12, max_iterations=5000)
    assert [one.strategy for one in em.plan(copies).latents] == ["Gaussian (exact)"]
    result = em.run(KEY, copies)
    assert result.converged
    # Balanced one-way layout: closed maximum likelihood.
    logs = np.log(copies)
    means = logs.mean(0)
    within = np.sum((logs - means) ** 2) / means.size
    between = 2 * np.mean((means - means.mean()) ** 2)
    np.testing.assert_allclose(result.params["loc"], means.mean(), rtol=1e-6)
    np.testing.assert_allclose(result.params["error"] ** 2, within, rtol=1e-5)
    np.testing.assert_allclose(result.params["spread"] ** 2, (between - within) / 2, rtol=1e-5)


WRAPPED = {
    "expanded": lambda mu, sigma: dist.Normal(mu, sigma).expand((ROWS, 2)).to_event(1),
    "independent twice": lambda mu, sigma: dist.Normal(mu, sigma).expand((ROWS, 1, 2)).to_event(1).to_event(1),
    "expanded after": lambda mu, sigma: dist.Normal(mu, sigma).expand((2,)).to_event(1).expand((ROWS,)),
    "expanded inside": lambda mu, sigma: dist.TransformedDistribution(
        dist.Normal(mu, sigma).expand((2,)).to_event(1), EXP
    ).expand((ROWS,)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_keep_closed_forms(name):
    """Without a latent: the estimates are those of the normal sample, over all entries."""
    w = drawn()[0]

    def model(x):
        mu, sigma = numpyro.param("mu", 0.0), numpyro.param("sigma", 1.0, constraint=POSITIVE)
        with numpyro.plate("rows", ROWS):
            numpyro.sample("x", WRAPPED[name](mu, sigma), obs=x)

    x = {"independent twice": w[:, None], "expanded inside": np.exp(w)}.get(name, w)
    em = emppl.EM(model)
    assert set(rules(em, x).values()) == {"closed form"}
    result = em.run(KEY, x)
    np.testing.assert_allclose(result.params["mu"], w.mean(), rtol=1e-12)
    np.testing.assert_allclose(result.params["sigma"], w.std(), rtol=1e-12)


def test_value_that_the_transform_cannot_make():
    x = np.exp(drawn()[0])
    x[7, 1] = -1.0
    with pytest.raises(emppl.DataError, match="value that ExpTransform cannot have made of Normal"):
        fit(functools.partial(mixture, make=TRANSFORMED["one"][0]), x, *drawn()[1:3], np.ones((ROWS, 2), bool))

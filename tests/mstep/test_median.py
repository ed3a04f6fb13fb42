"""Locations in which Q has corners: the best of all data values."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

import emppl
from emppl import estep
from tests.families.test_families import FIRST, POSITIVE, ROWS, WEIGHTS, stats
from tests.kit.fits import program_of


def laplace(x, weight, site, build):
    with numpyro.plate("rows", len(x)), numpyro.handlers.scale(scale=weight):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS, jnp.result_type(float))))
        loc = numpyro.param("loc", jnp.array([-1.0, 2.0]))
        scale = numpyro.param("scale", jnp.array([1.5, 0.7]), constraint=POSITIVE)
        numpyro.sample(site, build(loc[z], scale[z]), obs=x)


@pytest.mark.parametrize(
    "build",
    [
        dist.Laplace,
        pytest.param(lambda loc, scale: dist.AsymmetricLaplaceQuantile(loc, scale, 0.3), marks=pytest.mark.slow),
        pytest.param(lambda loc, scale: dist.AsymmetricLaplace(loc, scale, 1.4), marks=pytest.mark.slow),
    ],
)
def test_location_with_corners_is_the_best_data_value(build):
    """Q of every data value, evaluated by NumPyro's ``log_prob``: the update is the best of them all."""
    rng = np.random.default_rng(11)
    x, weight = np.where(FIRST, rng.laplace(-2, 1, ROWS), rng.laplace(3, 0.6, ROWS)), rng.uniform(0.5, 2, ROWS)
    start = {"loc": jnp.array([-1.0, 2.0]), "scale": jnp.array([1.5, 0.7])}
    program, leaves = program_of(laplace, x, weight, "x", build, fixed={"scale": start["scale"]})
    assert program.rules["loc"].kind == "weighted median"

    def step(params, leaves):
        found, prepared = estep.from_posterior(
            program.model, params, estep.e_step(program.model, params, leaves), leaves
        )
        return program.m_step(params, found, leaves, prepared)

    new = jax.jit(step)({"loc": start["loc"]}, leaves)["loc"]
    with jax.numpy_rank_promotion("allow"):
        joint = build(start["loc"][:, None], start["scale"][:, None]).log_prob(x[None]) + np.log(WEIGHTS)[:, None]
        responsibility = jax.nn.softmax(joint, 0) * weight
        at_values = build(x[:, None, None], start["scale"][:, None]).log_prob(x)
        best = jnp.argmax(jnp.sum(at_values * responsibility, -1), 0)
    np.testing.assert_allclose(new, x[best], rtol=1e-14)


def deviations(x, seen):
    """Two numbers a row, some of them not seen; a component's scale is that of both."""
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)))
        scale = numpyro.param("scale", jnp.array([1.5, 0.7]), constraint=POSITIVE)
        loc = jnp.array([-2.0, 3.0])
        site = dist.Laplace(loc[z][..., None], scale[z][..., None]).expand((*jnp.shape(z), 2)).mask(seen)
        numpyro.sample("x", site.to_event(1), obs=x)


def test_scale_of_a_laplace_is_the_mean_deviation():
    """Weighted by the responsibilities, over the cells that are seen; computed here."""
    rng = np.random.default_rng(15)
    x = np.where(FIRST[:, None], rng.laplace(-2, 1, (ROWS, 2)), rng.laplace(3, 0.6, (ROWS, 2)))
    seen = rng.random((ROWS, 2)) < 0.8
    program, leaves = program_of(deviations, np.where(seen, x, np.nan), seen)
    assert program.rules["scale"].kind == "closed form"
    found, prepared = estep.from_posterior(program.model, START, estep.e_step(program.model, START, leaves), leaves)
    new = program.m_step(START, found, leaves, prepared)["scale"]
    loc, scale = np.array([-2.0, 3.0])[:, None, None], np.asarray(START["scale"])[:, None, None]
    joint = np.log(WEIGHTS)[:, None] + np.sum(np.where(seen, stats.laplace.logpdf(x, loc, scale), 0), -1)
    responsibility = np.where(seen, scipy.special.softmax(joint, 0)[..., None], 0)
    np.testing.assert_allclose(
        new, np.sum(responsibility * np.abs(x - loc), (1, 2)) / responsibility.sum((1, 2)), rtol=1e-13
    )


START = {"scale": jnp.array([1.5, 0.7])}


def with_priors(x):
    with numpyro.plate("components", 2):
        loc = numpyro.sample("loc", dist.Normal(0.0, 0.2))
        scale = numpyro.sample("scale", dist.InverseGamma(2.0, 1.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)))
        numpyro.sample("x", dist.Laplace(loc[z], scale[z]), obs=x)


def test_priors_move_a_laplace_off_the_data():
    """No direction of scipy's goes up from the estimate, which no gradient of the posterior describes."""

    rng = np.random.default_rng(16)
    x = np.where(FIRST, rng.laplace(-2, 1, ROWS), rng.laplace(3, 0.6, ROWS))
    em = emppl.EM(with_priors)
    plans = {plan.name: (plan.rule, plan.prior) for plan in em.plan(x).parameters}
    assert plans == {"loc": ("weighted median", "Normal"), "scale": ("closed form", "InverseGamma")}
    result = em.run(jax.random.key(0), x)
    assert result.converged, result.stop_message

    def loss(free):
        loc, scale = free[:2, None], np.exp(free[2:, None])
        prior = stats.norm.logpdf(free[:2], 0, 0.2) + stats.invgamma.logpdf(np.exp(free[2:]), 2.0)
        return -np.log(WEIGHTS @ stats.laplace.pdf(x, loc, scale)).sum() - prior.sum()

    here = np.concatenate([result.params["loc"], np.log(result.params["scale"])])
    assert result.objective == pytest.approx(-loss(here), abs=1e-9)
    for method in ("Powell", "Nelder-Mead"):
        assert scipy.optimize.minimize(loss, here, method=method, tol=1e-10).fun > loss(here) - 1e-7
    with pytest.raises(ValueError, match="corners or jumps in loc"):
        result.standard_errors()
    assert np.isnan(result.certificate.score_norm)

"""Elementwise maps of parameters keep the closed forms: against numpy, and the fit of the plain parameterisation."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from numpyro.distributions import constraints

import emppl
from tests.kit.fits import fit, rules

MAPS = {
    "exp": (jnp.exp, np.exp, 0.0),
    "softplus": (jax.nn.softplus, lambda s: np.log1p(np.exp(s)), 0.5),
    "log1p of exp of twice": (lambda s: jnp.exp(2 * s + 1), lambda s: np.exp(2 * s + 1), 0.0),
    "square root": (jnp.sqrt, np.sqrt, 1.0),
    "inverse square root": (lambda v: 1 / jnp.sqrt(v), lambda v: 1 / np.sqrt(v), 1.0),
}


@pytest.mark.parametrize("name", MAPS)
def test_closed_form_through_a_map(x, name):
    """The scale's weighted root mean square, whatever the parameter that it is a function of."""
    to_scale, by_numpy, start = MAPS[name]
    positive = "root" in name

    def model(x):
        s = numpyro.param("s", jnp.full(2, start), constraint=constraints.positive if positive else constraints.real)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(jnp.array([-2.0, 2.0])[z], to_scale(s)[z]), obs=x)

    em = emppl.EM(model)
    (plan,) = em.plan(x).parameters
    assert plan.rule == "closed form" and "through" in plan.update
    params = {"s": jnp.full(2, start)}
    posterior = em.e_step(params, x)
    weight = np.asarray(posterior.weights["x"])
    expected = np.sqrt((weight * (x - np.array([[-2.0], [2.0]])) ** 2).sum(-1) / weight.sum(-1))
    np.testing.assert_allclose(by_numpy(np.asarray(em.m_step(params, posterior, x)["s"])), expected, rtol=1e-12)


def test_maps_of_location_and_probability_reach_the_same_maximum(x):
    """``2 mu + 1``, ``exp`` and a logistic weight: the fit of the plain parameterisation, mapped."""

    def plain(x):
        w = numpyro.param("w", 0.4, constraint=constraints.unit_interval)
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        sigma = numpyro.param("sigma", jnp.ones(2), constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(w))
            numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)

    def mapped(x):
        w = numpyro.param("w", scipy.special.logit(0.4))
        mu = numpyro.param("mu", jnp.array([-1.0, 0.0]))
        sigma = numpyro.param("sigma", jnp.zeros(2))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(jax.nn.sigmoid(w)))
            numpyro.sample("x", dist.Normal(2 * mu[z] + 1, jnp.exp(sigma)[z]), obs=x)

    one, other = fit(plain, x), fit(mapped, x)
    assert set(rules(emppl.EM(mapped), x).values()) == {"closed form"}
    assert other.num_iterations == one.num_iterations
    assert other.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-9)
    np.testing.assert_allclose(2 * other.params["mu"] + 1, one.params["mu"], rtol=1e-8)
    np.testing.assert_allclose(np.exp(other.params["sigma"]), one.params["sigma"], rtol=1e-8)
    np.testing.assert_allclose(scipy.special.expit(other.params["w"]), one.params["w"], rtol=1e-8)
    # Seeds from the data are values of the argument: they are mapped back.
    assert fit(mapped, x, restarts=3).log_likelihood == pytest.approx(one.log_likelihood, abs=1e-8)


def test_maps_that_bind_or_have_a_prior_say_so(x):
    """A location forced to be positive, and a prior before the map, are no closed forms; the plan gives the reason."""

    def model(x):
        mu = numpyro.param("mu", jnp.array([0.0, 1.0]))
        log_sigma = numpyro.sample("log_sigma", dist.Normal(0, 1))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(jnp.exp(mu)[z], jnp.exp(log_sigma)), obs=x)

    text = str(emppl.EM(model).plan(x))
    assert "through a map (exp) whose values lie in (0.0, inf), which may bind" in text
    assert "prior Normal is on the value before the map (exp)" in text

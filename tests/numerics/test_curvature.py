"""Second and third derivatives of functions that can be differentiated backwards alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.experimental.ode import odeint

import emppl
from emppl.numerics.curvature import hessian_product, third_derivative
from tests.kit.fits import fit


def smooth(point):
    return jnp.sum(jnp.sin(point) * jnp.exp(point[::-1] / 3))


@jax.custom_vjp
def backwards(point):
    return smooth(point)


backwards.defvjp(lambda point: (smooth(point), point), lambda point, slope: (slope * jax.grad(smooth)(point),))


def test_products_are_the_same_backwards_and_forwards():
    at, along = jnp.array([0.3, -1.1, 0.7]), jnp.array([1.0, 0.5, -2.0])
    hessian = np.asarray(jax.hessian(smooth)(at))
    third = jax.grad(lambda point: along @ jax.hessian(smooth)(point) @ along)(at)
    for function in (smooth, backwards):
        gradient = jax.grad(function)
        np.testing.assert_allclose(hessian_product(gradient, at)(along), hessian @ along, rtol=1e-12)
        got = third_derivative(gradient, at, along)
        # Backwards by a difference whose step has an error of 1e-6.
        np.testing.assert_allclose(got, third, rtol=1e-12 if function is smooth else 1e-5)


FIXED = {"spread": 0.5, "noise": 0.05}
TIMES = np.array([0.0, 1.0, 2.0])


def decay(solve, y):
    """Exponential decay from a known start, at a rate of one's own: by the equation, or by its solution."""
    centre = numpyro.param("centre", -0.5)
    spread = numpyro.param("spread", 0.4, constraint=dist.constraints.positive)
    noise = numpyro.param("noise", 0.1, constraint=dist.constraints.positive)
    with numpyro.plate("subjects", len(y)):
        rate = jnp.exp(numpyro.sample("u", dist.Normal(centre, spread)))
        numpyro.sample("y", dist.Normal(solve(rate), noise).to_event(1), obs=y)


@functools.partial(jnp.vectorize, signature="()->(t)")
def by_equation(rate):
    return odeint(lambda y, t, k: -k * y, jnp.ones(()), jnp.asarray(TIMES), rate, rtol=1e-9, atol=1e-9)


def by_solution(rate):
    return jnp.exp(-rate[..., None] * TIMES)


@functools.cache
def decays():
    rng = np.random.default_rng(0)
    return np.exp(-rng.lognormal(-0.5, 0.5, 2)[:, None] * TIMES) + 0.05 * rng.normal(size=(2, 3))


def test_a_differential_equation_is_fitted_as_its_solution_is():
    by = [
        fit(functools.partial(decay, solve), decays(), latents={"u": emppl.Laplace()}, fixed=FIXED)
        for solve in (by_equation, by_solution)
    ]
    assert by[0].converged and by[1].converged
    assert by[0].log_likelihood == pytest.approx(by[1].log_likelihood, abs=1e-6)
    assert by[0].params["centre"] == pytest.approx(by[1].params["centre"], rel=1e-5)

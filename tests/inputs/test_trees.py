"""Parameters that are trees of arrays: a network of experts beside the same model with an array for each weight."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.optimize
from numpyro.distributions import constraints

import emppl
from emppl.inputs.trees import ParamTree, as_arrays, as_declared
from tests.kit.fits import KEY, fit

RNG = np.random.default_rng(1)
X = RNG.normal(size=40)
Y = np.where(RNG.random(40) < 1 / (1 + np.exp(-2 * X)), 1.5, -1.5) + 0.5 * RNG.normal(size=40)
START = {"gate": {"bias": jnp.array(0.1), "slope": jnp.array(0.5)}, "mu": jnp.array([-1.0, 1.0])}


def experts(x, y):
    """A gate that is a tree of weights, experts whose noise is a parameter of its own."""
    net = numpyro.param("net", START)
    sigma = numpyro.param("sigma", jnp.array(1.0), constraint=constraints.positive)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(logits=net["gate"]["bias"] + net["gate"]["slope"] * x))
        numpyro.sample("y", dist.Normal(net["mu"][z], sigma), obs=y)


def test_a_tree_is_taken_apart_and_put_together():
    tree = ParamTree.of("net", START)
    assert tree.names == ("net.gate.bias", "net.gate.slope", "net.mu")
    arrays = as_arrays({"net": START, "sigma": 1.0}, {"net": tree})
    assert set(arrays) == {*tree.names, "sigma"}
    again = as_declared(arrays, {"net": tree})
    assert jax.tree.structure(again["net"]) == jax.tree.structure(START) and again["sigma"] == 1.0
    assert ParamTree.of("mu", jnp.zeros(2)) is None


def test_a_network_of_experts_reaches_the_maximum():
    result = fit(experts, X, Y)
    assert result.converged

    def minus(v):
        share = 1 / (1 + np.exp(-(v[0] + v[1] * X)))
        density = [np.exp(-(((Y - m) / v[4]) ** 2) / 2) / v[4] / np.sqrt(2 * np.pi) for m in v[2:4]]
        return -np.sum(np.log((1 - share) * density[0] + share * density[1]))

    bounds = [(None, None)] * 4 + [(0.1, None)]
    right = scipy.optimize.minimize(minus, [0.0, 1.0, -1.0, 1.0, 0.7], bounds=bounds, tol=1e-14)
    np.testing.assert_allclose(result.log_likelihood, -right.fun, atol=1e-6)
    found = [result.params[name] for name in ("net.gate.bias", "net.gate.slope")]
    np.testing.assert_allclose([*found, *result.params["net.mu"], result.params["sigma"]], right.x, atol=1e-3)
    whole = result.declared_params
    trace = numpyro.handlers.substitute(numpyro.handlers.seed(experts, KEY), whole)
    numpyro.handlers.trace(trace).get_trace(X, Y)  # NumPyro's handlers take it
    em = emppl.EM(experts)
    assert float(em.log_likelihood(whole, X, Y)) == float(em.log_likelihood(result.params, X, Y))

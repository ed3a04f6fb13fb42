"""What a fit depends on: equal for equal fits in any process, and different for fits that only look alike."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import emppl
import emppl.em
from emppl.checkpoint.identity import fit_identity
from emppl.inputs.arguments import split_arguments
from emppl.model.options import Options
from emppl.trace import trace_model
from tests.checkpoint.test_file import KINDS

x = np.random.default_rng(2).normal(size=30)


def location(function, **site):
    """A mixture whose locations are made from a square matrix and a vector."""

    def model(x):
        mu = numpyro.param("mu", jnp.array([[0.0, 1.0], [2.0, 4.0]]))
        nu = numpyro.param("nu", jnp.array([0.5, 1.5]), **site)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("x", dist.Normal(function(mu, nu)[z], 1.0), obs=x)

    return model


def scanned(function):
    def step(total, one):
        return total + one, function(total, one)

    return lambda mu, nu: jax.lax.scan(step, nu[0], mu[0])[1]


@jax.jit
def difference(a, b):
    return a - b


def scaled(factor):
    return lambda mu, nu: mu[0] * (nu + np.array([0.0, factor]))


def identity(model, options=None, more=None, memory=None):
    leaves, skeleton = split_arguments((x,), {})
    options = options or Options()
    trace = trace_model(model, leaves, skeleton)
    return fit_identity(trace, leaves, skeleton, jax.random.key(0), {}, memory or {}, options, more or {})


PAIRS = {
    "axis of a sum": (lambda mu, nu: mu.sum(0), lambda mu, nu: mu.sum(1)),
    "order of operands": (lambda mu, nu: mu[0] - nu, lambda mu, nu: nu - mu[0]),
    "integer power": (lambda mu, nu: mu[0] ** 3, lambda mu, nu: mu[0] ** 5),
    "last digit of a literal": (lambda mu, nu: mu[0] * 0.1, lambda mu, nu: mu[0] * (0.1 + 1e-15)),
    "constant array": (scaled(1.0), scaled(1.0 + 1e-15)),
    "entry of an array": (lambda mu, nu: mu[0] + nu, lambda mu, nu: mu[1] + nu),
    "operands of a call": (
        lambda mu, nu: difference(mu[0], nu),
        lambda mu, nu: difference(nu, mu[0]),
    ),
    "inside of a scan": (scanned(lambda a, b: a - b), scanned(lambda a, b: b - a)),
    "branches": (
        lambda mu, nu: jax.lax.cond(mu[0, 0] > 0, jnp.sin, jnp.cos, nu),
        lambda mu, nu: jax.lax.cond(mu[0, 0] > 0, jnp.cos, jnp.sin, nu),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_models_of_the_same_operations_differ(name):
    """Parameters and wiring of operations count; a model traced again is the same."""
    one, other = PAIRS[name]
    first, second = identity(location(one)), identity(location(other))
    assert first["the model"] != second["the model"]
    assert {k: v for k, v in first.items() if k != "the model"} == {k: v for k, v in second.items() if k != "the model"}
    assert identity(location(lambda mu, nu: one(mu, nu))) == first


def test_unused_and_reordered_operations_are_the_same_model():
    def straight(mu, nu):
        a, b = jnp.exp(mu[0]), jnp.sin(nu)
        return a + b

    def reordered(mu, nu):
        b = jnp.sin(nu)
        jnp.cos(nu)
        a = jnp.exp(mu[0])
        return a + b

    assert identity(location(straight)) == identity(location(reordered))


def test_bounds_of_a_constraint_belong_to_the_model():
    models = [
        location(lambda mu, nu: mu[0] + nu, constraint=dist.constraints.interval(0.0, upper)) for upper in (3.0, 5.0)
    ]
    assert identity(models[0])["the model"] != identity(models[1])["the model"]


def test_another_optimiser_or_another_rate_is_refused(tmp_path):
    """Not only an optimiser with another state."""

    def run(rule):
        em = emppl.EM(KINDS["optimiser"][0], m_step={"mu": rule}, max_iterations=2)
        return em.run(jax.random.key(0), x, checkpoint=tmp_path / "fit.npz")

    first = run(optax.sgd(1e-3))
    np.testing.assert_array_equal(run(optax.sgd(1e-3)).params["mu"], first.params["mu"])
    with pytest.raises(emppl.ParameterError, match="of another fit.*optimizer= do"):
        run(optax.sgd(1e-2))
    with pytest.raises(emppl.ParameterError, match=r"of another fit.*optimizer= do, the state of the optimisers"):
        run(optax.adam(1e-1))


def test_functions_differ_by_what_they_close_over():
    """Numbers, schedules, chains, defaults, code; not by their addresses, nor by lists that they write into."""

    def halved(factor, log):
        def rule(params, posterior, power=2):
            log.append(1)
            return factor * params["mu"] ** power

        return rule

    def recursive():
        def again(n):
            return again(n - 1)

        return again

    makers = [
        lambda: optax.adam(1e-2),
        lambda: optax.adam(1e-2, b1=0.8),
        lambda: optax.adam(optax.cosine_decay_schedule(1e-2, 10)),
        lambda: optax.adam(optax.cosine_decay_schedule(1e-2, 20)),
        lambda: optax.chain(optax.clip(1.0), optax.adam(1e-2)),
        lambda: optax.chain(optax.clip(2.0), optax.adam(1e-2)),
        lambda: halved(0.5, []),
        lambda: halved(0.6, []),
        lambda: jax.jit(lambda params, posterior: params["mu"] + 1),
        lambda: jax.jit(lambda params, posterior: params["mu"] + 2),
        lambda: functools.partial(max, 1),
        lambda: functools.partial(max, 2),
        recursive,
    ]
    found = [identity_of_rule(maker()) for maker in makers]
    assert found == [identity_of_rule(maker()) for maker in makers]
    assert len(set(found)) == len(makers)
    assert identity_of_rule(halved(0.5, [])) == identity_of_rule(halved(0.5, [1, 1]))


def identity_of_rule(rule):
    options = Options(m_step={"mu": rule})
    return identity(location(PAIRS["axis of a sum"][0]), options)["what the functions in m_step= and optimizer= do"]


SCRIPT = """
import sys
sys.path[:0] = {path!r}
import jax
jax.config.update("jax_enable_x64", True)
import json
from tests.checkpoint.test_identity import everything
print(json.dumps(everything()))
"""


def everything():
    """Identities of models with constants, scans, distributions and functions."""
    found = [identity(location(model)) for pair in PAIRS.values() for model in pair]
    found += [identity_of_rule(optax.adam(1e-2)), identity_of_rule(lambda p, _: p["mu"] if 1 in {1, "a", 2.5} else 0)]
    leaves, skeleton = split_arguments((np.zeros((7, 20)),), {})
    trace = trace_model(KINDS["stochastic"][0], leaves, skeleton)
    return [*found, fit_identity(trace, leaves, skeleton, jax.random.key(0), {}, {}, Options(), {})]


@pytest.mark.slow
def test_another_process_finds_the_same():
    """Under other orders of sets, and after other traces."""
    script = SCRIPT.format(path=[str(pathlib.Path(__file__).parents[2])])
    mine = json.loads(json.dumps(everything()))
    for seed in ("1", "11"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == mine, seed

"""EM beside draws whose numbers of components were, or were not, exchanged on purpose."""

import inspect

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl
from tests.kit.fits import fit


def mixture(x, K):
    weights = numpyro.param("weights", jnp.ones(K) / K, constraint=constraints.simplex)
    mu = numpyro.param("mu", 6.0 * jnp.arange(K) - 3.0 * (K - 1))
    sigma = numpyro.param("sigma", jnp.ones(K), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)


def around(result, rng, count=200):
    """Draws as a posterior without switching has them: the estimate, and noise of its standard errors."""
    errors = result.standard_errors()
    return {
        name: value + errors[name] * rng.normal(size=(count, *value.shape)) for name, value in result.params.items()
    }


@pytest.mark.parametrize("K", [2, 5, 10])
def test_numbers_are_restored_and_none_invented(K):
    rng = np.random.default_rng(K)
    x = (6.0 * np.arange(K) - 3.0 * (K - 1) + rng.normal(size=(40, K))).ravel()
    result = fit(mixture, x, K)
    draws = around(result, rng)
    mean = np.concatenate([draw.mean(0) for draw in draws.values()])
    sd = np.concatenate([draw.std(0, ddof=1) for draw in draws.values()])
    plain = emppl.compare(result, draws)
    assert plain.relabelled == {"z": 0.0} and not plain.distinct
    orders = np.array([rng.permutation(K) for _ in range(200)])
    switched = {name: np.take_along_axis(draw, orders, 1) for name, draw in draws.items()}
    for draw in switched.values():
        draw.flags.writeable = False
    table = emppl.compare(result, switched)
    for found in (plain, table):
        np.testing.assert_allclose(found.mean, mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.sd, sd, rtol=1e-10)
    assert table.relabelled["z"] == np.mean(np.any(orders != np.arange(K), 1))
    np.testing.assert_array_equal(switched["mu"], np.take_along_axis(draws["mu"], orders, 1))


def numbered(x):
    """Components whose numbers mean something: their means are constants."""
    weights = numpyro.param("weights", jnp.array([0.5, 0.3, 0.2]), constraint=constraints.simplex)
    sigma = numpyro.param("sigma", jnp.ones(3), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(jnp.array([0.0, 0.0, 4.0])[z], sigma[z]), obs=x)


def test_only_exchangeable_components_are_renumbered():
    rng = np.random.default_rng(0)
    x = np.concatenate([0.3 * rng.normal(size=60), 2.0 * rng.normal(size=60), 4 + rng.normal(size=30)])
    result = fit(numbered, x, init_params={"sigma": [0.3, 2.0, 1.0]})
    draws = around(result, rng)
    draws = {name: draw[:, [1, 0, 2]] for name, draw in draws.items()}
    table = emppl.compare(result, draws)
    assert table.distinct == {"z": [[0, 1]]} and table.relabelled == {"z": 1.0}
    np.testing.assert_allclose(table.mean[:3], draws["weights"].mean(0)[[1, 0, 2]], rtol=1e-12)
    assert "numbers that mean something" in str(table)


def chain(y):
    start = numpyro.param("start", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
    move = numpyro.param("move", jnp.array([[0.9, 0.1], [0.3, 0.7]]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 2.0]))

    def step(carry, y_t):
        z, first = carry
        z = numpyro.sample("z", dist.Categorical(jnp.where(first, start, move[z])))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y_t)
        return (z, False), None

    scan(step, (0, True), y)


def test_rows_and_columns_of_a_chain_by_chain_of_draws():
    rng = np.random.default_rng(2)
    y = np.where(np.arange(80) % 13 < 8, -1.0, 2.0) + rng.normal(size=80)
    result = fit(chain, y)
    draws = {n: v + 0.01 * rng.normal(size=(2, 50, *v.shape)) for n, v in result.params.items()}
    other = {name: np.array(draw) for name, draw in draws.items()}
    other["start"][1], other["mu"][1] = draws["start"][1][:, ::-1], draws["mu"][1][:, ::-1]
    other["move"][1] = draws["move"][1][:, ::-1, ::-1]
    table = emppl.compare(result, other)
    np.testing.assert_array_equal(table.relabelled_by_chain["z"], [0.0, 1.0])
    assert table.relabelled == {"z": 0.5}
    mean = np.concatenate([draw.mean((0, 1)).ravel() for draw in draws.values()])
    np.testing.assert_allclose(table.mean, mean, rtol=1e-12)
    assert np.all(table.r_hat < 1.1) and np.all(table.effective_draws > 20)
    arviz = pytest.importorskip("arviz")
    before_1 = "posterior" in inspect.signature(arviz.from_dict).parameters
    same = emppl.compare(result, arviz.from_dict(other) if before_1 else arviz.from_dict({"posterior": other}))
    np.testing.assert_array_equal(same.mean, table.mean)
    with pytest.raises(emppl.ParameterError, match="ArviZ data with a posterior"):
        emppl.compare(result, 3.0)

"""What the uncertainty of a fit costs, and when it is left out."""

import time
import warnings

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import emppl
from tests.kit.compilations import compilations
from tests.kit.fits import KEY, fit

RNG = np.random.default_rng(0)
X = np.where(RNG.random(80) < 0.4, RNG.normal(-1.5, 1, 80), RNG.normal(1.5, 1, 80))


def mixture(x, counts=None, seen=True):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    scale = numpyro.handlers.scale(scale=jnp.ones(len(x)) if counts is None else counts)
    with scale, numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=seen):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def test_uncertainty_compiles_once_and_is_computed_once():
    """A second fit of equal shape compiles no Hessian anew, and one result computes it once."""
    em = emppl.EM(mixture)
    results = [em.run(KEY, data) for data in (X, X + 0.5)]
    compiled = results[0].fit.compiled.hessian_columns
    calls = []

    def counted(*args):
        calls.append(1)
        return compiled(*args)

    results[0].fit.compiled.hessian_columns = counted
    for result in results:
        with compilations() as compiled_anew:
            result.standard_errors()
            result.covariance()
            result.certificate  # noqa: B018
            result.print_summary()
            result.standard_errors()
    assert len(calls) == 2
    assert not compiled_anew


def large(y, K=2):
    weights = numpyro.param("weights", jnp.ones(K) / K, constraint=constraints.simplex)
    width = 2600
    start = jnp.ones((K, width)) + 0.1 * jnp.sin(jnp.arange(K * width)).reshape(K, width)
    table = numpyro.param("table", start / start.sum(-1, keepdims=True), constraint=constraints.simplex)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        with numpyro.plate("words", y.shape[1], dim=-2):
            numpyro.sample("y", dist.Categorical(table[z]), obs=y.T)


def test_a_large_model_is_summarised_without_its_hessian(capsys, monkeypatch):
    """Beyond the stated limit no second derivative is taken unasked, and the line to call is printed."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2600, (30, 40))
    result = fit(large, y, max_iterations=3)
    assert result.num_parameters == 1 + 2 * 2599
    began = time.perf_counter()
    with monkeypatch.context() as patch:
        patch.setattr(result.fit.compiled, "hessian_columns", lambda *args: pytest.fail("a Hessian was computed"))
        result.print_summary()
        certificate = result.certificate
        with pytest.warns(UserWarning, match=r"result.standard_errors\(\)"):
            assert result.summary()["std_error"].isna().all()
        draws = {"table": np.stack([result.params["table"]] * 3)}
        assert np.isnan(emppl.compare(result, draws).std_error).all()
    assert time.perf_counter() - began < 20
    assert "Call result.standard_errors()" in capsys.readouterr().out
    assert np.isnan(certificate.score_norm) and "result.standard_errors()" in certificate.notes[-1]


def test_standard_errors_asked_for_are_shown_afterwards(monkeypatch):
    """The limit is about what is computed unasked: errors that exist are printed."""
    monkeypatch.setattr("emppl.result.accuracy.MOST_DIMENSIONS", 2)
    result = fit(mixture, X)
    with pytest.warns(UserWarning, match="not computed unasked"):
        assert result.summary()["std_error"].isna().all()
    errors = result.standard_errors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(result.summary()["std_error"][2:], errors["mu"])

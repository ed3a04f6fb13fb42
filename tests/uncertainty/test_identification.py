"""Dimensions that data identify."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from tests.kit.fits import fit
from tests.result.test_result import mixture


def class_model(written):
    """A mixture of two groups of categorical rows; class probabilities written in different ways."""

    def model(y, x):
        if written == "probs":
            weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
            table = numpyro.param(
                "table", jnp.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]), constraint=constraints.simplex
            )
            latent, rows = dist.Categorical(weights), lambda z: dist.Categorical(table[z])
        else:
            weights = numpyro.param("weights", jnp.log(jnp.array([0.4, 0.6])))
            table = numpyro.param("table", jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])))
            if written == "softmax":
                latent = dist.Categorical(jax.nn.softmax(weights))
            else:
                latent = dist.Categorical(logits=weights)
            rows = lambda z: dist.Categorical(logits=table[z])  # noqa: E731
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", latent)
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
            numpyro.sample("y", rows(z), obs=y)

    return model


@pytest.fixture(scope="module")
def classes():
    rng = np.random.default_rng(1)
    z = rng.random(200) < 0.5
    y = np.where(z, rng.choice(3, 200, p=[0.6, 0.3, 0.1]), rng.choice(3, 200, p=[0.2, 0.2, 0.6]))
    return y, rng.normal(size=200) + np.where(z, -1.5, 1.5)


@pytest.mark.parametrize("written", ["logits", "softmax"])
def test_logits_count_their_identified_dimensions(classes, written, capsys):
    """The same model in probabilities and in logits has the same criteria and the same standard errors elsewhere."""
    probs, logits = (fit(class_model(how), *classes, tolerance=1e-12) for how in ("probs", written))
    assert probs.num_parameters == logits.num_parameters == 1 + 2 * 2 + 2
    assert logits.aic == pytest.approx(probs.aic, abs=1e-6)
    assert logits.bic == pytest.approx(probs.bic, abs=1e-6)
    with pytest.warns(
        UserWarning, match="No standard error for '(weights|table)'.*constraint=dist.constraints.simplex"
    ):
        errors = logits.standard_errors()
    np.testing.assert_allclose(errors["mu"], probs.standard_errors()["mu"], rtol=1e-4)
    assert np.isnan(errors["weights"]).all() and np.isnan(errors["table"]).all()
    logits.print_summary()
    assert "Fix the last entry at zero: table = jnp.concatenate" in capsys.readouterr().out


@pytest.mark.slow
def test_what_the_warning_says_to_write_has_standard_errors(classes):
    """One logit fixed at zero: its standard error is that of the log odds, by the delta method from probabilities."""

    def model(y, x):
        weights = jnp.concatenate([numpyro.param("weights", jnp.zeros((1,))), jnp.zeros((1,))], -1)
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Categorical(logits=weights))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    _, x = classes
    free = fit(model, *classes, tolerance=1e-12)
    probs = fit(mixture, x, tolerance=1e-12)
    assert free.num_parameters == probs.num_parameters == 3
    w = probs.params["weights"][0]
    expected = probs.standard_errors()["weights"][0] / (w * (1 - w))
    np.testing.assert_allclose(free.standard_errors()["weights"], [expected], rtol=1e-4)


def test_softmax_regression_counts_a_reference_class(classes):
    """Coefficients of a softmax regression: one class per covariate is not identified, and ``mu`` still has an error."""

    def model(y, x):
        beta = numpyro.param("beta", jnp.array([[0.1, 0.0, -0.1], [0.0, 0.1, 0.0]]))
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
            design = jnp.stack([jnp.ones(len(x)), x], -1)
            numpyro.sample("y", dist.Categorical(logits=design @ beta), obs=y)

    result = fit(model, *classes)
    assert result.num_parameters == 2 * 2 + 2
    with pytest.warns(UserWarning, match="No standard error for 'beta'"):
        assert np.all(np.isfinite(result.standard_errors()["mu"]))


def test_logits_that_enter_elsewhere_count_in_full(classes):
    """A parameter whose level matters somewhere keeps all its dimensions, and a Normal mean does anyway."""

    def model(y, x):
        table = numpyro.param("table", jnp.array([-0.5, 0.0, 0.5]))
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z] + table[0], 1.0), obs=x)
            numpyro.sample("y", dist.Categorical(logits=table * jnp.array([1.0, 2.0, 3.0])), obs=y)

    result = fit(model, *classes, max_iterations=0)
    assert result.criteria.dimensions == 5
    # But classes alone do not tell (1, 1/2, 1/3) added to the table, and in x the means make up for it.
    assert result.num_parameters == 4
    assert len(result.accuracy.flat) == 1 and result.accuracy.flat[0].count("table") == 3


def test_a_prior_identifies_logits(classes):
    """With a proper prior the level of the logits has a standard error; the likelihood still counts K - 1."""

    def model(y, x):
        weights = numpyro.sample("weights", dist.Normal(0, 1).expand([2]).to_event(1))
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Categorical(logits=weights))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    result = fit(model, *classes)
    errors = result.standard_errors()["weights"]
    # The sum of the two is seen by the prior only: variance 2; the difference adds at most its own 2.
    assert result.num_parameters == 3
    assert np.all((errors > np.sqrt(0.5)) & (errors < 1))

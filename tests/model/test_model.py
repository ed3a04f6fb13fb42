"""What NumPyro's constructs mean under EM: weights, masks, labels, plates, priors on priors, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import emppl
from tests.kit.fits import KEY, fit

RNG = np.random.default_rng(0)
X = np.where(RNG.random(40) < 0.5, RNG.normal(-2, 1, 40), RNG.normal(2, 1, 40))
PARAMS = {"mu": np.array([-1.0, 1.5])}


def body(x, mu):
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def start():
    return numpyro.param("mu", jnp.array([-1.0, 1.0]))


def plain(x):
    mu = start()
    with numpyro.plate("data", len(x)):
        body(x, mu)


def by_hand(x):
    """Log marginal density of every row at PARAMS, written out."""
    density = [
        w * np.exp(-0.5 * (x - m) ** 2) / np.sqrt(2 * np.pi) for w, m in zip((0.7, 0.3), PARAMS["mu"], strict=True)
    ]
    return np.log(density[0] + density[1])


def log_likelihood(model, *args):
    return float(emppl.EM(model).log_likelihood(PARAMS, *args))


def test_weights_equal_replication():
    """A per-cell weight counts the cell that many times, in the likelihood, the fit, BIC and the posterior."""

    rng = np.random.default_rng(0)

    def weighted(x, counts):
        mu = start()
        with numpyro.handlers.scale(scale=counts), numpyro.plate("data", len(x)):
            body(x, mu)

    counts = rng.integers(1, 4, 40)
    assert log_likelihood(weighted, X, counts) == pytest.approx(np.sum(counts * by_hand(X)), abs=1e-9)
    one = fit(weighted, X, counts)
    other = fit(plain, np.repeat(X, counts))
    np.testing.assert_allclose(one.params["mu"], other.params["mu"], rtol=1e-6)
    assert one.bic == pytest.approx(other.bic, rel=1e-8)
    np.testing.assert_allclose(np.repeat(one.posterior("z"), counts, 0), other.posterior("z"), atol=1e-6)


def test_cells_of_weight_zero_count_nothing_but_have_a_posterior():
    """Empty cells of a table leave likelihood and fit alone; their posterior and decoding are still right."""

    def weighted(x, counts):
        mu = start()
        with numpyro.handlers.scale(scale=counts), numpyro.plate("data", len(x)):
            body(x, mu)

    counts = np.ones(40)
    counts[5] = 0
    assert log_likelihood(weighted, X, counts) == pytest.approx(np.sum(counts * by_hand(X)), abs=1e-9)
    result = fit(weighted, X, counts)
    full = fit(plain, X, init_params=result.params, max_iterations=0)
    np.testing.assert_allclose(result.posterior("z"), full.posterior("z"), atol=1e-12)
    np.testing.assert_array_equal(result.decode()["z"], full.decode()["z"])


def test_masked_rows_are_absent():
    """A mask around latent and data removes the row, without a constant for its states."""

    rng = np.random.default_rng(0)

    def masked(x, seen):
        mu = start()
        with numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=seen):
            body(x, mu)

    seen = rng.random(40) < 0.6
    assert log_likelihood(masked, X, seen) == pytest.approx(by_hand(X)[seen].sum(), abs=1e-9)


def labelled(x, labels, known, seen, inner=False):
    mu = start()
    coin = dist.Bernoulli(0.3)
    with numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=True if inner else seen):
        z = numpyro.sample("z", coin.mask(seen) if inner else coin, obs=labels, obs_mask=known)
        numpyro.sample("x", dist.Normal(mu[z], 1.0).mask(seen), obs=x)


@pytest.mark.parametrize("inner", [False, True])
def test_labels_under_a_mask(inner):
    """Known labels enter as the joint density; masked rows are absent whether the mask is a handler or the user's own."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40)
    known, seen = rng.random(40) < 0.4, rng.random(40) < 0.7
    weight = np.array([0.7, 0.3])[labels]
    joint = np.log(weight * np.exp(-0.5 * (X - PARAMS["mu"][labels]) ** 2) / np.sqrt(2 * np.pi))
    expected = np.where(known, joint, by_hand(X))[seen].sum()
    assert log_likelihood(lambda *args: labelled(*args, inner=inner), X, labels, known, seen) == pytest.approx(
        expected, abs=1e-9
    )


def test_posterior_of_known_labels_is_certain():
    """The posterior of a labelled row is its label."""
    rng = np.random.default_rng(0)
    labels, known = rng.integers(0, 2, 40), rng.random(40) < 0.4
    result = fit(labelled, X, labels, known, np.ones(40, bool))
    np.testing.assert_allclose(result.posterior("z")[known, labels[known]], 1.0, atol=1e-12)
    np.testing.assert_array_equal(result.decode()["z"][known], labels[known])


def test_subsampled_plate_is_scaled_and_said():
    """A subsampled plate counts its rows size/subsample times, and the plan says that it is a subsample."""

    def subsampled(x):
        mu = start()
        with numpyro.plate("data", len(x), subsample_size=10) as index:
            body(x[index], mu)

    em = emppl.EM(subsampled)
    assert "fixed subsample of plate 'data'" in str(em.plan(np.full(40, 0.5)))
    assert log_likelihood(subsampled, np.full(40, 0.5)) == pytest.approx(40 * by_hand(np.array([0.5]))[0], abs=1e-9)
    result = fit(subsampled, X, max_iterations=1)
    assert any("subsample of plate 'data', 10 of its 40 cells" in note for note in result.remarks)


def test_factor_and_deterministic():
    """A log factor multiplies the joint density; a deterministic site changes nothing."""

    def model(x):
        mu = start()
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.factor("tilt", jnp.where(z == 1, jnp.log(0.6), jnp.log(1.4)))
            centre = numpyro.deterministic("centre", mu[z])
            numpyro.sample("x", dist.Normal(centre, 1.0), obs=x)

    assert log_likelihood(model, X) == pytest.approx(by_hand(X).sum(), abs=1e-9)


def test_states_outside_the_support_have_probability_zero():
    """NumPyro's log_prob does not look at the support; a state that makes a value impossible gets weight zero."""

    def model(t):
        rate = numpyro.param("rate", 1.0, constraint=constraints.positive)
        with numpyro.plate("data", len(t)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("t", dist.Exponential(rate), obs=t - jnp.array([0.0, 2.0])[z])

    t = np.array([0.01, 3.0])
    expected = np.log(0.5 * np.exp(-0.01)) + np.log(0.5 * np.exp(-3.0) + 0.5 * np.exp(-1.0))
    assert float(emppl.EM(model).log_likelihood({"rate": 1.0}, t)) == pytest.approx(expected, abs=1e-12)


def test_hyperparameters_feel_the_priors_they_enter():
    """A parameter of another parameter's prior is at a stationary point of the whole objective."""

    def model(x):
        tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
        mu = numpyro.sample("mu", dist.Normal(0, tau).expand([2]).to_event(1))
        with numpyro.plate("data", len(x)):
            body(x, mu)

    em = emppl.EM(model, estimate=["mu"])
    result = em.run(KEY, X)

    def objective(params):
        return em.log_likelihood(params, X) + em.log_prior(params, X)

    gradient = jax.grad(objective)({name: jnp.asarray(value) for name, value in result.params.items()})
    assert abs(float(gradient["tau"])) < 1e-3
    assert np.abs(gradient["mu"]).max() < 1e-3


def refused(model, *args, match):
    with pytest.raises(emppl.ModelError, match=match):
        emppl.EM(model).plan(*args)


def test_a_substituted_parameter_is_a_number():
    """A value set by a handler is not overwritten: nothing is left to estimate."""
    refused(numpyro.handlers.substitute(plain, {"mu": jnp.zeros(2)}), X, match="no parameter to estimate")


def test_sums_over_a_latent_are_refused():
    """Summing a latent over its plate would sum its states instead."""

    def model(x):
        mu = start()
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[0] * z.sum(), 1.0), obs=x)

    refused(model, X, match="across the cells of plate 'data'")


def test_weights_that_are_parameters_are_refused():
    """Weights count data."""

    def model(x):
        power = numpyro.param("power", 1.0, constraint=constraints.positive)
        mu = start()
        with numpyro.handlers.scale(scale=power), numpyro.plate("data", len(x)):
            body(x, mu)

    refused(model, X, match="Weights count data")


def test_unbounded_factor_is_not_called_converged():
    """A parameter that a log factor pushes to infinity has no maximum."""

    def model(x):
        numpyro.factor("push", numpyro.param("b", 0.0))
        plain(x)

    result = fit(model, X)
    assert not result.converged


def test_small_units_are_no_boundary():
    """A scale of 1e-6 in the units of the data is an ordinary value with a standard error."""

    def model(x):
        sigma = numpyro.param("sigma", 1e-6, constraint=constraints.positive)
        mu = numpyro.param("mu", jnp.array([-1e-6, 1e-6]))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], sigma), obs=x)

    result = fit(model, 1e-6 * X)
    assert result.boundary == []
    assert np.all(np.isfinite(result.standard_errors()["sigma"]))

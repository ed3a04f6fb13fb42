"""Fits that come to rest at a saddle, at a minimum or on a ridge, beside maxima found by other means."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
from numpyro.distributions import constraints

import emppl
from models import dyestuff
from tests.kit.fits import fit

RNG = np.random.default_rng(0)


def two_normals(x, start):
    weights = numpyro.param("weights", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-start, start]))
    sigma = numpyro.param("sigma", 3.0 * jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)


APART = np.concatenate([np.random.default_rng(0).normal(-3, 1, 60), np.random.default_rng(1).normal(3, 1, 60)])


def test_components_that_start_next_to_each_other():
    result = fit(two_normals, APART, 0.001, check_maximum=True)
    stuck = fit(two_normals, APART, 0.001, check_maximum=False)

    def minus(v):
        parts = [np.log(p) + scipy.stats.norm.logpdf(APART, m, s) for p, m, s in ((v[0], *v[1:3]), (1 - v[0], *v[3:]))]
        return -np.sum(np.logaddexp(*parts))

    bounds = [(0.01, 0.99), (None, None), (0.1, None), (None, None), (0.1, None)]
    right = scipy.optimize.minimize(minus, [0.5, -2, 2, 2, 2], bounds=bounds, method="L-BFGS-B", tol=1e-12)
    assert result.converged
    assert result.log_likelihood == pytest.approx(-right.fun, abs=1e-5)
    assert stuck.log_likelihood < -right.fun - 50
    assert any("is no maximum; it went on" in note for note in result.notes)
    assert result.num_iterations > stuck.num_iterations
    assert result.certificate.monotone and np.all(np.diff(result.history["objective"]) > -1e-9)


def factors(y, start):
    loadings = numpyro.param("loadings", start)
    noise = numpyro.param("noise", jnp.ones(y.shape[1]), constraint=constraints.positive)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Normal(0, 1).expand([start.shape[1]]).to_event(1))
        numpyro.sample("y", dist.Normal(z @ loadings.T, noise).to_event(1), obs=y)


def test_loadings_that_start_at_zero():
    y = RNG.normal(size=(80, 1)) @ np.array([[1.0, -0.8, 0.6, 0.9]]) + 0.5 * RNG.normal(size=(80, 4))
    result = fit(factors, y, np.zeros((4, 1)), latents={"z": emppl.Gaussian()}, check_maximum=True)

    def minus(v):
        covariance = np.outer(v[:4], v[:4]) + np.diag(v[4:] ** 2)
        return -np.sum(scipy.stats.multivariate_normal.logpdf(y, np.zeros(4), covariance))

    right = scipy.optimize.minimize(minus, [1.0, -1, 1, 1, 1, 1, 1, 1], tol=1e-10)
    assert result.converged
    assert result.log_likelihood == pytest.approx(-right.fun, abs=1e-5)


@pytest.mark.slow
def test_a_rotation_of_factors_is_not_identified():
    loadings = np.array([[1.0, 0.2], [0.8, -0.5], [0.3, 0.9], [-0.4, 0.7], [0.9, 0.4], [-0.3, 0.8]])
    y = RNG.normal(size=(150, 2)) @ loadings.T + 0.5 * RNG.normal(size=(150, 6))
    result = fit(factors, y, loadings, latents={"z": emppl.Gaussian()})
    errors = result.standard_errors()
    assert np.isnan(errors["loadings"]).all() and np.isfinite(errors["noise"]).all()
    assert result.num_parameters == 12 + 6 - 1
    assert sum("Not identified" in remark for remark in result.certificate.notes) == 1


def intercepts(x, y, group, scale):
    beta = numpyro.param("beta", jnp.zeros(x.shape[1]))
    sigma = numpyro.param("sigma", jnp.array(scale), constraint=constraints.positive)
    tau = numpyro.param("tau", jnp.array(1.0), constraint=constraints.positive)
    with numpyro.plate("groups", 12):
        u = numpyro.sample("u", dist.Normal(0.0, tau))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta + u[group], sigma), obs=y)


GROUP = np.repeat(np.arange(12), 5)
X = RNG.normal(size=(60, 3))
Y = X[:, 0] + X[:, 1] + RNG.normal(size=60) + 2 * RNG.normal(size=12)[GROUP]


@pytest.mark.slow
def test_a_covariate_given_twice_leaves_the_others_their_errors(capsys):
    once = fit(intercepts, X, Y, GROUP, 1.0, latents={"u": emppl.Gaussian()})
    twice = fit(intercepts, np.concatenate([X, X[:, 1:2]], 1), Y, GROUP, 1.0, latents={"u": emppl.Gaussian()})
    assert twice.log_likelihood == pytest.approx(once.log_likelihood, abs=1e-7)
    assert (twice.num_parameters, twice.aic) == (5, pytest.approx(once.aic, abs=1e-6))
    right, errors = once.standard_errors(), twice.standard_errors()
    np.testing.assert_allclose(errors["beta"][[0, 2]], right["beta"][[0, 2]], rtol=1e-4)
    assert np.isnan(errors["beta"][[1, 3]]).all()
    for name in ("sigma", "tau"):
        np.testing.assert_allclose(errors[name], right[name], rtol=1e-4)
    twice.print_summary()
    assert "Not identified: beta[1] - beta[3]" in capsys.readouterr().out.replace(
        "-beta[1] + beta[3]", "beta[1] - beta[3]"
    )


@pytest.mark.parametrize("unit", [pytest.param(1e-5, marks=pytest.mark.slow), 1e5])
def test_a_variance_that_starts_far_too_small_or_large(unit):
    """The unit of the data changes the answer by itself alone, though the latent's scale starts at 1."""
    own = fit(intercepts, X, Y, GROUP, 1.0, latents={"u": emppl.Gaussian()})
    other = fit(intercepts, X, unit * Y, GROUP, unit, latents={"u": emppl.Gaussian()}, check_maximum=True)
    assert other.converged
    assert other.log_likelihood == pytest.approx(own.log_likelihood - 60 * np.log(unit), abs=1e-5)
    assert other.params["tau"] == pytest.approx(unit * own.params["tau"], rel=1e-4)
    assert not any("goes to zero" in remark for remark in other.certificate.notes)


def batches(y, per):
    """Dyestuff as people write it, with priors whose scale is that of no data."""
    m = numpyro.sample("m", dist.Normal(0, 1e6))
    s, t = (numpyro.sample(name, dist.HalfNormal(1.0)) for name in ("s", "t"))
    with numpyro.plate("batches", len(y) // per):
        b = numpyro.sample("b", dist.Normal(0.0, t))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(m + b[np.arange(len(y)) // per], s), obs=y)


@pytest.mark.slow
def test_dyestuff_in_milligrams():
    """lme4's deviance is 327.327 in grams; a thousand times the yield adds 60 log 1000."""
    y = 1000.0 * np.ravel(dyestuff.data())
    result = fit(batches, y, 5, latents={"b": emppl.Gaussian()}, prior=False, check_maximum=True)
    assert result.converged
    assert -2 * result.log_likelihood == pytest.approx(327.3270598812 + 60 * np.log(1000.0), abs=1e-5)


def test_no_way_up_is_said(monkeypatch):
    """Where the log-likelihood rises and nothing leads there, the end is called what it is."""
    monkeypatch.setattr("emppl.result.saddle.way_up", lambda *args: None)
    monkeypatch.setattr("emppl.result.saddle.far_along", lambda *args: None)
    result = fit(two_normals, APART, 1e-3, check_maximum=True)
    assert result.converged  # other starting values were tried at last
    monkeypatch.setattr("emppl.result.saddle._other_start", lambda *args: {k: v for k, v in stuck.params.items()})
    stuck = fit(two_normals, APART, 1e-3, check_maximum=False)
    result = fit(two_normals, APART, 1e-3, check_maximum=True)
    assert result.stop_reason is emppl.StopReason.SADDLE and not result.converged
    assert "rises along" in result.stop_message
    with pytest.raises(ValueError, match="no local maximum"):
        result.standard_errors()


def test_maxima_raise_no_alarm():
    for result in (
        fit(two_normals, APART, 2.0, check_maximum=True),
        fit(intercepts, X, Y, GROUP, 1.0, latents={"u": emppl.Gaussian()}, check_maximum=True),
    ):
        assert result.converged and not result.certificate.notes
        assert all(np.isfinite(error).all() for error in result.standard_errors().values())

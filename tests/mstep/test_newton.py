"""Generalised linear models by Newton steps, against scipy on hand-written likelihoods."""

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
from emppl.mstep.newton import climb
from emppl.parameters.layout import Layout
from tests.kit.fits import KEY, fit, never_falls, rules


@pytest.fixture(scope="module")
def covariates():
    rng = np.random.default_rng(7)
    return rng.normal(size=(120, 2)), rng.random(120) < 0.5, rng


# For every response: the distribution at a linear predictor and an auxiliary parameter, one draw, and scipy's density.
RESPONSES = {
    "Bernoulli": (
        lambda eta, extra: dist.Bernoulli(logits=eta),
        lambda rng, eta: (rng.random(eta.shape) < scipy.special.expit(eta)).astype(float),
        lambda y, eta, extra: -np.logaddexp(0, np.where(y == 1, -eta, eta)),
        None,
    ),
    "Bernoulli by probit": (
        lambda eta, extra: dist.Bernoulli(probs=jax.scipy.stats.norm.cdf(eta)),
        lambda rng, eta: (eta + rng.normal(size=eta.shape) > 0).astype(float),
        lambda y, eta, extra: scipy.stats.norm.logcdf(np.where(y == 1, eta, -eta)),
        None,
    ),
    "Poisson": (
        lambda eta, extra: dist.Poisson(jnp.exp(eta)),
        lambda rng, eta: rng.poisson(np.exp(eta)).astype(float),
        lambda y, eta, extra: scipy.stats.poisson.logpmf(y, np.exp(eta)),
        None,
    ),
    "Gamma": (
        lambda eta, extra: dist.Gamma(extra, extra / jnp.exp(eta)),
        lambda rng, eta: rng.gamma(3.0, np.exp(eta) / 3.0),
        lambda y, eta, extra: scipy.stats.gamma.logpdf(y, extra, scale=np.exp(eta) / extra),
        "shape",
    ),
    "NegativeBinomial": (
        lambda eta, extra: dist.NegativeBinomial2(jnp.exp(eta), extra),
        lambda rng, eta: rng.negative_binomial(4, 4 / (4 + np.exp(eta))).astype(float),
        lambda y, eta, extra: scipy.stats.nbinom.logpmf(y, extra, extra / (extra + np.exp(eta))),
        "concentration",
    ),
}


SLOW = ("NegativeBinomial",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in RESPONSES])
def test_m_step_of_a_regression_equals_scipy(covariates, name):
    """Coefficients of two weighted regressions with a common auxiliary parameter: scipy's maximiser of the same Q."""
    distribution, draw, log_density, extra = RESPONSES[name]
    X, group, _ = covariates
    rng = np.random.default_rng(3)
    y = draw(rng, np.where(group, X @ [0.8, 0.3] + 0.5, X @ [-0.5, 0.4] + 1.0))

    def model(X, y):
        beta = numpyro.param("beta", jnp.array([[0.5, 0.0], [-0.5, 0.0]]))
        alpha = numpyro.param("alpha", jnp.array([0.2, 0.8]))
        auxiliary = numpyro.param(extra, 2.0, constraint=constraints.positive) if extra else None
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", distribution((X * beta[z]).sum(-1) + alpha[z], auxiliary), obs=y)

    em = emppl.EM(model)
    assert set(rules(em, X, y).values()) == {"newton"}
    start = {"beta": jnp.array([[0.5, 0.0], [-0.5, 0.0]]), "alpha": jnp.array([0.2, 0.8])}
    start |= {extra: jnp.array(2.0)} if extra else {}
    posterior = em.e_step(start, X, y)
    weight = np.asarray(posterior.weights["y"])

    def negative(v):
        eta = v[:4].reshape(2, 2) @ X.T + v[4:6, None]
        return -(weight * log_density(y, eta, np.exp(v[6]) if extra else None)).sum()

    begin = np.array([0.5, 0, -0.5, 0, 0.2, 0.8] + ([np.log(2.0)] if extra else []))
    best = scipy.optimize.minimize(negative, begin, method="BFGS", options={"gtol": 1e-7})
    new = start
    # One M-step leaves less than a hundredth of its gain; the few after it show where that leads.
    once = em.m_step(start, posterior, X, y)
    reached = -negative(vector(once, extra))
    assert reached - -negative(begin) >= 0.99 * (-best.fun - -negative(begin))
    for _ in range(3):
        new = em.m_step(new, posterior, X, y)
    assert -negative(vector(new, extra)) >= -best.fun - 1e-9
    np.testing.assert_allclose(vector(new, extra), best.x, atol=2e-4)


def vector(params, extra):
    parts = [np.ravel(params["beta"]), params["alpha"]]
    return np.concatenate(parts + ([np.log(params[extra])[None]] if extra else []))


def test_mixture_of_poisson_regressions_with_an_offset(covariates):
    """To the maximum of the marginal likelihood, offset and all; one row of the Hessian per component."""
    X, group, _ = covariates
    rng = np.random.default_rng(5)
    exposure = rng.uniform(0.5, 3.0, len(X))
    y = rng.poisson(exposure * np.exp(np.where(group, 1.5 + X @ [0.5, 0.0], -0.5 + X @ [0.0, 0.7]))).astype(float)

    def model(X, y, exposure):
        w = numpyro.param("w", 0.5, constraint=constraints.unit_interval)
        beta = numpyro.param("beta", jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(w))
            eta = beta[z, 0] + (X * beta[z, 1:]).sum(-1)
            numpyro.sample("y", dist.Poisson(exposure * jnp.exp(eta)), obs=y)

    em = emppl.EM(model)
    assert rules(em, X, y, exposure) == {"w": "closed form", "beta": "newton"}
    assert "(2 groups of 3)" in str(em.plan(X, y, exposure))
    result = em.run(KEY, X, y, exposure)
    assert result.converged and never_falls(result)

    def negative(v):
        eta = v[:6].reshape(2, 3) @ np.concatenate([np.ones((len(X), 1)), X], 1).T
        log_prob = scipy.stats.poisson.logpmf(y, exposure * np.exp(eta))
        log_weight = np.array([-np.logaddexp(0, v[6]), -np.logaddexp(0, -v[6])])
        return -scipy.special.logsumexp(log_prob + log_weight[:, None], 0).sum()

    best = scipy.optimize.minimize(negative, np.array([0.0, 0, 0, 1, 0, 0, 0]), method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-7)
    np.testing.assert_allclose(result.params["beta"].ravel(), best.x[:6], atol=1e-4)


def test_multinomial_logit_on_class_membership(covariates):
    """Covariates on membership in three classes, the gate observed through noisy labels."""
    X, _, _ = covariates
    rng = np.random.default_rng(6)
    eta = np.stack([np.zeros(len(X)), X @ [2.0, 0.0], X @ [0.0, 2.0]], 1)
    truth = (eta + rng.gumbel(size=eta.shape)).argmax(1)
    y = np.where(rng.random(len(X)) < 0.8, truth, rng.integers(0, 3, len(X)))

    def model(X, y):
        gate = numpyro.param("gate", jnp.zeros((2, 2)))
        right = numpyro.param("right", 0.7, constraint=constraints.unit_interval)
        with numpyro.plate("data", len(y)):
            logits = jnp.concatenate([jnp.zeros((len(X), 1)), X @ gate], -1)
            z = numpyro.sample("z", dist.Categorical(logits=logits))
            chances = jnp.where(jnp.eye(3)[z] == 1, right, (1 - right) / 2)
            numpyro.sample("y", dist.Categorical(probs=chances), obs=y)

    em = emppl.EM(model)
    assert rules(em, X, y) == {"gate": "newton", "right": "newton"}
    result = em.run(KEY, X, y)
    assert result.converged and never_falls(result)

    def negative(v):
        logits = np.concatenate([np.zeros((len(X), 1)), X @ v[:4].reshape(2, 2)], 1)
        prior = scipy.special.softmax(logits, 1)
        right = scipy.special.expit(v[4])
        return -np.log((prior * np.where(np.arange(3) == y[:, None], right, (1 - right) / 2)).sum(1)).sum()

    best = scipy.optimize.minimize(negative, np.array([0.0, 0, 0, 0, 1]), method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-6)


def test_newton_climbs_from_where_the_hessian_points_the_wrong_way():
    """A Cauchy location far from the data: Q is convex there, and a plain Newton step would run away."""

    def model(x):
        mu = numpyro.param("mu", 30.0)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Cauchy(mu + 0.0 * z, 1.0), obs=x)

    x = np.random.default_rng(0).standard_cauchy(40)
    far = -scipy.stats.cauchy.logpdf(x, 30.0 - 1e-3).sum() + 2 * scipy.stats.cauchy.logpdf(x, 30.0).sum()
    assert far - scipy.stats.cauchy.logpdf(x, 30.0 + 1e-3).sum() < 0  # the second difference is positive: convex
    result = fit(model, x)
    assert result.converged and never_falls(result)
    best = scipy.optimize.minimize_scalar(
        lambda m: -scipy.stats.cauchy.logpdf(x, m).sum(), bounds=(-2, 2), method="bounded", options={"xatol": 1e-10}
    )
    assert float(result.params["mu"]) == pytest.approx(best.x, abs=1e-6)


def test_a_prior_without_closed_form_takes_newton_steps_on_the_statistics(covariates):
    """No pass over the rows is needed, so the site keeps its natural form; the mode is scipy's."""
    rng = np.random.default_rng(8)
    x = np.where(rng.random(200) < 0.5, rng.normal(-2, 0.5, 200), rng.normal(2, 1.0, 200))

    def model(x):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("components", 2):
            sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)

    em = emppl.EM(model)
    plan = em.plan(x)
    assert rules(em, x) == {"mu": "closed form", "sigma": "newton"}
    assert {one.name: one.form for one in plan.factors}["x"] == "statistics x natural parameters"
    result = em.run(KEY, x, init_params={"sigma": np.ones(2)})
    assert result.converged and never_falls(result)

    def negative(v):
        log_prob = scipy.stats.norm.logpdf(x, v[:2, None], np.exp(v[2:, None])) + np.log(0.5)
        prior = scipy.stats.lognorm.logpdf(np.exp(v[2:]), 0.5).sum()
        return -scipy.special.logsumexp(log_prob, 0).sum() - prior

    best = scipy.optimize.minimize(negative, np.array([-1.0, 1, 0, 0]), method="BFGS")
    assert result.log_posterior == pytest.approx(-best.fun, abs=1e-7)


# --------------------------------------------------------------------- densities that lose their digits far out


@pytest.mark.parametrize("far_out", [np.inf, 1e6, np.nan], ids=str)
def test_no_step_goes_where_the_objective_cannot_be_true(far_out):
    """The first Newton step, 130 long, lands where the objective is infinite, absurdly high or NaN."""
    layout = Layout({"x": ()}, {}, 1)
    objective = lambda block: jnp.where(block["x"] > 10, far_out, -jnp.sqrt(1 + (block["x"] - 1) ** 2))  # noqa: E731
    end, _, finished = climb(objective, layout, {"x": jnp.asarray(-4.0)}, jnp.ones((1, 1)))
    assert finished
    np.testing.assert_allclose(end["x"], 1, atol=1e-3)


def truncated(x, K):
    weights = numpyro.param("weights", jnp.ones(K) / K, constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.linspace(0.0, 10.0, K))
    sd = numpyro.param("sd", jnp.ones(K), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.TruncatedNormal(mu[z], sd[z], low=0.0, high=10.0), obs=x)


def test_a_block_that_stands_still_below_the_maximum_is_not_called_converged():
    """Both components start far outside the interval, where NumPyro's density becomes infinite before them."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-0.5, 2.0, 400), rng.normal(8.5, 1.5, 250)])
    x = x[(x > 0) & (x < 10)]
    start = {"weights": np.array([0.7, 0.3]), "mu": np.array([-14.91, -16.277]), "sd": np.array([17.632, 11.744])}
    result = emppl.EM(truncated, progress_bar=False).run(KEY, x, K=2, init_params=start)
    density = lambda mu, sd: scipy.stats.truncnorm.pdf(x, -mu / sd, (10 - mu) / sd, mu, sd)  # noqa: E731
    attained = np.sum(np.log(0.6 * density(-0.5, 2.0) + 0.4 * density(8.5, 1.5)))
    if result.converged:
        assert result.log_likelihood > attained
    else:
        assert result.stop_reason is emppl.StopReason.UNFINISHED
        assert "no maximum" in result.stop_message and "mu, sd" in result.stop_message

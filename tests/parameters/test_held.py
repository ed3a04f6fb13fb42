"""Parameters of which some entries are fixed: against scipy, given these entries."""

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
from tests.kit.fits import KEY, never_falls, rules
from tests.mstep.test_quadratic import pieces, regressions, weighted_least_squares

NAN = np.nan


def mixture(x):
    weights = numpyro.param("weights", jnp.full(3, 1 / 3), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-2.0, 0.0, 2.0]))
    sigma = numpyro.param("sigma", jnp.ones(3), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)


def test_fixed_entries_keep_the_closed_forms(x):
    """Some means, scales and weights stay; the others are where scipy finds the maximum given these."""
    fixed = {"mu": [NAN, 0.5, NAN], "sigma": [NAN, 1.5, NAN], "weights": [NAN, 0.1, NAN]}
    em = emppl.EM(mixture, fixed=fixed)
    assert set(rules(em, x).values()) == {"closed form"}
    result = em.run(KEY, x)
    assert result.converged and never_falls(result)
    for name, value in fixed.items():
        assert result.params[name][1] == value[1]

    def negative(v):
        weight = 0.9 * scipy.special.expit([v[0], -v[0]])
        log_prob = scipy.stats.norm.logpdf(
            x, np.array([v[1], 0.5, v[2]])[:, None], np.array([np.exp(v[3]), 1.5, np.exp(v[4])])[:, None]
        )
        return -scipy.special.logsumexp(log_prob + np.log([weight[0], 0.1, weight[1]])[:, None], 0).sum()

    best = scipy.optimize.minimize(negative, np.array([0.0, -2, 2, 0, 0]), method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-7)
    assert result.num_parameters == 5
    errors = result.standard_errors()
    assert all(np.isfinite(errors[name][[0, 2]]).all() for name in fixed)
    assert errors["mu"][0] == pytest.approx(np.sqrt(best.hess_inv[1, 1]), rel=0.05)
    assert not result.boundary


def test_fixed_entries_of_a_linear_predictor(table):
    """A coefficient that stays takes its column to the other side of the normal equations, by both paths."""
    X, y = table
    em = emppl.EM(regressions, fixed={"beta": [[NAN, -2.0, NAN], [NAN, NAN, NAN]]})
    start = {"beta": np.array([[1.0, -2.0, 0], [-1.0, 0, 0]]), "alpha": np.array([1.0, -1.0]), "sigma": np.ones(2)}
    fused, plain, posterior = pieces(em, X, y, **start)
    weight = np.asarray(posterior.weights["y"])
    design = np.stack([X[:, 0], X[:, 2], np.ones(len(y))], 1)
    solution = weighted_least_squares(design, y + 2.0 * X[:, 1], weight[0])
    for found in (fused, plain):
        got = [found["beta"][0, 0], found["beta"][0, 2], found["alpha"][0]]
        np.testing.assert_allclose(got, solution, rtol=1e-9)
        assert found["beta"][0, 1] == -2.0


def test_fixed_entries_of_a_smooth_block(table):
    """Newton steps on the free coefficients of a logistic regression."""
    X, y = table
    y = (y > 0).astype(float)

    def model(X, y):
        beta = numpyro.param("beta", jnp.zeros(3))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Bernoulli(logits=X @ beta + jnp.array([-1.0, 1.0])[z]), obs=y)

    em = emppl.EM(model, fixed={"beta": [NAN, 0.5, NAN]})
    assert rules(em, X, y) == {"beta": "newton"}
    result = em.run(KEY, X, y)
    assert result.converged and result.params["beta"][1] == 0.5 and result.num_parameters == 2

    def negative(v):
        eta = X @ np.array([v[0], 0.5, v[1]]) + np.array([[-1.0], [1.0]])
        return -np.log(0.5 * scipy.special.expit(np.where(y == 1, eta, -eta)).sum(0)).sum()

    best = scipy.optimize.minimize(negative, np.zeros(2), method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-8)


def test_fixed_entries_that_cannot_be_are_refused(x):
    with pytest.raises(emppl.ParameterError, match="outside its constraint 'positive'"):
        emppl.EM(mixture, fixed={"sigma": [NAN, -1.0, NAN]}).plan(x)
    with pytest.raises(emppl.ParameterError, match="leaves nothing for the free entries"):
        emppl.EM(mixture, fixed={"weights": [NAN, 0.5, 0.5]}).plan(x)
    with pytest.raises(emppl.ParameterError, match=r"shape \(2,\); the model needs \(3,\)"):
        emppl.EM(mixture, fixed={"mu": [NAN, 0.5]}).plan(x)

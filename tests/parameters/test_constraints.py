"""Values of parameters that a user gives: names, shapes and constraints are checked wherever they can be seen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy.stats import norm

import emppl
from tests.kit.fits import KEY, fit

X = np.array([0.3, -1.1, 2.0, 0.7, -0.2, 3.1])
POINT = {"weights": np.array([0.3, 0.7]), "mu": np.array([0.0, 2.0]), "sigma": np.array(1.0)}


def mixture(x):
    weights = numpyro.param("weights", jnp.ones(2) / 2, constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([0.0, 1.0]))
    sigma = numpyro.param("sigma", jnp.array(1.0), constraint=constraints.positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], sigma), obs=x)


def chain(x):
    weights = numpyro.param("weights", jnp.ones(2) / 2, constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([0.0, 1.0]))
    sigma = numpyro.param("sigma", jnp.array(1.0), constraint=constraints.positive)

    def step(state, value):
        state = numpyro.sample("s", dist.Categorical(jnp.stack([weights, weights[::-1]])[state]))
        numpyro.sample("x", dist.Normal(mu[state], sigma), obs=value)
        return state, None

    scan(step, 0, x)


def pieces(em):
    posterior = em.e_step(POINT, X)
    return {
        "e_step": lambda params, x: em.e_step(params, x).log_likelihood,
        "log_likelihood": em.log_likelihood,
        "log_prior": em.log_prior,
        "q": lambda params, x: em.q(params, posterior, x),
        "m_step": lambda params, x: em.m_step(params, posterior, x),
        "filter": lambda params, x: em.filter(params, x).log_likelihood,
    }


BAD = [
    ({"weights": [0.9, 0.9]}, r"params\['weights'\] = \[0.9 0.9\] is outside its constraint 'simplex'"),
    ({"weights": [1.2, -0.2]}, "outside its constraint 'simplex'"),
    ({"sigma": -1.0}, r"params\['sigma'\] = -1.0 is outside its constraint 'positive'"),
    ({"mu": [0.0, 1.0, 2.0]}, r"params\['mu'\] has shape \(3,\); the model needs \(2,\)"),
    ({"mu": [0.0, np.nan]}, r"params\['mu'\] contains NaN"),
    ({"mean": 0.0}, "params names 'mean'.*mu, sigma, weights"),
    ({"z": 0}, "params names 'z'"),
]


@pytest.mark.parametrize("model", [mixture, chain])
def test_every_piece_checks_parameters_and_data(model):
    em = emppl.EM(model)
    holed = X.copy()
    holed[4] = np.inf
    for name, piece in pieces(em).items():
        if model is mixture and name == "filter":
            continue
        for changed, words in BAD:
            with pytest.raises(emppl.ParameterError, match=words):
                piece({**POINT, **changed}, X)
        with pytest.raises(emppl.ParameterError, match=r"params lacks \['mu'\]"):
            piece({name: value for name, value in POINT.items() if name != "mu"}, X)
        with pytest.raises(emppl.DataError, match=r"'x' holds NaN or infinity \(first at (row|step) 4\)"):
            piece(POINT, holed)


def test_what_is_traced_is_checked_as_far_as_it_can_be_seen():
    em = emppl.EM(mixture)
    densities = (w * norm.pdf(X, m, 1.0) for w, m in zip(POINT["weights"], POINT["mu"], strict=True))
    right = np.log(sum(densities)).sum()
    assert float(jax.jit(em.log_likelihood)(POINT, X)) == pytest.approx(right, rel=1e-12)
    assert jax.jit(em.log_likelihood)({**POINT, "sigma": -1.0}, X).shape == ()  # a value out of sight
    traced = jax.jit(lambda mu: em.log_likelihood({**POINT, "mu": mu}, X))
    assert float(traced(POINT["mu"])) == pytest.approx(right, rel=1e-12)
    with pytest.raises(emppl.ParameterError, match="has shape"):
        jax.eval_shape(lambda mu: em.log_likelihood({**POINT, "mu": mu}, X), np.zeros(3))
    with pytest.raises(emppl.ParameterError, match="'positive'"):
        jax.jit(lambda mu: em.log_likelihood({**POINT, "mu": mu, "sigma": -1.0}, X))(POINT["mu"])
    holed = np.where(X > 3, np.inf, X)
    with pytest.raises(emppl.DataError, match="NaN"):
        jax.jit(lambda mu: em.log_likelihood({**POINT, "mu": mu}, holed))(POINT["mu"])


def test_the_posterior_of_other_data_is_refused():
    em = emppl.EM(mixture)
    for rows in (1, 3):
        posterior = em.e_step(POINT, X[:rows])
        for piece in (em.q, em.m_step):
            with pytest.raises(emppl.ParameterError, match=rf"shape \(2, {rows}\) for site 'x'.*\(2, 6\).*other data"):
                piece(POINT, posterior, X)
    with pytest.raises(emppl.ParameterError, match="no weights of site 'x'"):
        em.q(POINT, dataclasses.replace(em.e_step(POINT, X), weights={}), X)


def test_a_likelihood_needs_neither_a_mode_nor_many_rows():
    """What refuses a fit only is no fault of the data."""

    def sparse(x):
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(2, 0.5)))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(jnp.array([0.0, 2.0])[z], 1.0), obs=x)

    got = emppl.EM(sparse).log_likelihood({"weights": np.array([0.3, 0.7])}, X)
    assert float(got) == pytest.approx(np.log(0.3 * norm.pdf(X) + 0.7 * norm.pdf(X, 2.0)).sum(), rel=1e-12)
    one = X[:1]
    got = emppl.EM(mixture).log_likelihood(POINT, one)
    assert float(got) == pytest.approx(np.log(0.3 * norm.pdf(0.3) + 0.7 * norm.pdf(0.3, 2.0)), rel=1e-12)


def test_estimates_are_parameters():
    """What a fit returns is accepted, fixed parameters and values on the edge included."""
    em = emppl.EM(mixture, fixed={"sigma": 1.0})
    result = em.run(KEY, X)
    assert float(em.log_likelihood(result.params, X)) == pytest.approx(result.log_likelihood, rel=1e-12)
    with pytest.raises(emppl.ParameterError, match=r"params\['sigma'\] = 2.0, but EM\(fixed=...\) holds it at 1.0"):
        em.log_likelihood({**result.params, "sigma": 2.0}, X)
    edge = {**POINT, "weights": np.array([0.0, 1.0])}
    assert float(emppl.EM(mixture).log_likelihood(edge, X)) == pytest.approx(norm.logpdf(X, 2.0).sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("constraint", "inside", "edge", "outside"),
    [
        (constraints.ordered_vector, [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]),
        (constraints.interval(-1.0, 2.0), [0.0, 1.0], [-1.0, 2.0], [0.0, 2.5]),
        (constraints.unit_interval, [0.5, 0.1], [0.0, 1.0], [0.5, -0.1]),
        (constraints.greater_than(2.0), [3.0, 4.0], [2.0, 4.0], [1.0, 4.0]),
        (constraints.nonnegative, [3.0, 4.0], [0.0, 4.0], [-1e-3, 4.0]),
    ],
)
def test_edges_of_constraints(constraint, inside, edge, outside):
    def model(x):
        entries = numpyro.param("entries", jnp.array(inside), constraint=constraint)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("x", dist.Normal(entries[z], 1.0), obs=x)

    em = emppl.EM(model)
    for entries in (inside, edge):
        right = np.log(0.4 * norm.pdf(X, entries[0]) + 0.6 * norm.pdf(X, entries[1])).sum()
        assert float(em.log_likelihood({"entries": np.array(entries)}, X)) == pytest.approx(right, rel=1e-12)
    with pytest.raises(emppl.ParameterError, match="outside its constraint"):
        em.log_likelihood({"entries": np.array(outside)}, X)


def test_init_params_and_fixed_are_checked_alike():
    for changed, words in BAD[:4]:
        with pytest.raises(emppl.ParameterError, match=words.replace("params", "init_params")):
            fit(mixture, X, init_params=changed)

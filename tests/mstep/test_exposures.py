"""Parameters that enter times data, a rate times an exposure: closed forms, against numpy and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
from numpyro.distributions import constraints

import emppl
from tests.kit.fits import KEY, fit, rules

ROWS = 60


def data(seed=0):
    """Values of two kinds of rows, and how long each was seen; one of them was not seen at all."""
    rng = np.random.default_rng(seed)
    exposure = rng.uniform(0.3, 3.0, ROWS)
    return rng.gamma(2.0, 2.0, ROWS), rng.poisson(3.0, ROWS).astype(float), exposure


REAL_VALUES, COUNTS, EXPOSURE = data()
CONSTANT = jnp.asarray(EXPOSURE)

# Distribution of a row, given the parameter of its state and the exposure; which values; where the plan finds the rule.
ENTERS = {
    "poisson": (lambda p, e: dist.Poisson(p * e), COUNTS),
    "poisson, constants": (lambda p, e: dist.Poisson(CONSTANT * p), COUNTS),
    "poisson, per": (lambda p, e: dist.Poisson(p / e), COUNTS),
    "poisson, twice": (lambda p, e: dist.Poisson(2 * p * e * (e + 1)), COUNTS),
    "exponential": (lambda p, e: dist.Exponential(e * p), REAL_VALUES),
    "gamma": (lambda p, e: dist.Gamma(1.7, p * e), REAL_VALUES),
    "normal": (lambda p, e: dist.Normal(3.0, p * jnp.sqrt(e)), REAL_VALUES),
    "log-normal": (lambda p, e: dist.LogNormal(0.5, p * e), REAL_VALUES),
    "laplace": (lambda p, e: dist.Laplace(3.0, p * e), REAL_VALUES),
    "mapped": (lambda p, e: dist.Poisson(jnp.exp(p) * e), COUNTS),
}


def mixture(y, e, name, prior=None):
    constraint = constraints.real if name == "mapped" else constraints.positive
    if prior is None:
        p = numpyro.param("p", jnp.array([0.5, 1.5]), constraint=constraint)
    else:
        with numpyro.plate("states", 2):
            p = numpyro.sample("p", prior)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", ENTERS[name][0](p[z], e), obs=y)


def slope_of_q(em, params, *args):
    """Gradient of Q, and of the priors that are in use, at the M-step's solution, in units of the data's size."""
    posterior = em.e_step(params, *args)
    after = em.m_step(params, posterior, *args)

    def objective(after):
        return em.q(after, posterior, *args) + em.log_prior(after, *args)

    return after, jax.grad(objective)(after)


@pytest.mark.parametrize("name", ENTERS)
def test_q_has_no_slope_at_the_closed_form(name):
    y = ENTERS[name][1]
    em = emppl.EM(mixture)
    (rule,) = [one for one in em.plan(y, EXPOSURE, name).parameters if one.name == "p"]
    assert rule.rule == "closed form" and "of entries times known factors" in rule.update, rule
    after, slope = slope_of_q(em, {"p": jnp.array([0.6, 1.3])}, y, EXPOSURE, name)
    assert np.all(np.abs(after["p"] - np.array([0.6, 1.3])) > 1e-3)
    np.testing.assert_allclose(slope["p"], 0, atol=1e-10 * ROWS)


@pytest.mark.parametrize(
    ("name", "prior"),
    [("poisson", dist.Gamma(3.0, 2.0)), ("exponential", dist.Gamma(3.0, 2.0)), ("normal", dist.HalfCauchy(1.0))],
)
def test_conjugate_priors_are_those_of_the_entries(name, prior):
    y = ENTERS[name][1]
    em = emppl.EM(mixture)
    (rule,) = [one for one in em.plan(y, EXPOSURE, name, prior).parameters if one.name == "p"]
    assert rule.rule == "closed form"
    _, slope = slope_of_q(em, {"p": jnp.array([0.6, 1.3])}, y, EXPOSURE, name, prior)
    np.testing.assert_allclose(slope["p"], 0, atol=1e-10 * ROWS)


def test_events_and_exposure_by_hand():
    """Sums over rows of responsibilities times counts and times exposures; a row that was not seen, masked cells."""
    y, e = COUNTS.copy(), EXPOSURE.copy()
    y[3], e[3] = 0, 0
    seen = np.arange(ROWS) % 5 > 0

    def model(y, e, seen):
        rate = numpyro.param("rate", jnp.array([0.5, 1.5]), constraint=constraints.positive)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            with numpyro.handlers.mask(mask=seen):
                numpyro.sample("y", dist.Poisson(rate[z] * e), obs=y)

    em = emppl.EM(model)
    rates = np.array([0.7, 2.0])
    joint = np.array([0.6, 0.4])[:, None] * scipy.stats.poisson.pmf(y, rates[:, None] * e)
    shares = joint / joint.sum(0) * seen
    params = {"rate": jnp.asarray(rates)}
    found = em.m_step(params, em.e_step(params, y, e, seen), y, e, seen)["rate"]
    np.testing.assert_allclose(found, shares @ y / (shares @ e), rtol=1e-12)


def test_a_rate_shared_by_sites_with_and_without_an_exposure():
    """And a fixed entry, which stays: events and exposures of both sites add up."""

    def model(y, e, w):
        rate = numpyro.param("rate", jnp.array([0.5, 1.5, 4.0]), constraint=constraints.positive)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.3, 0.4, 0.3])))
            numpyro.sample("y", dist.Poisson(rate[z] * e), obs=y)
            numpyro.sample("w", dist.Poisson(rate[z]), obs=w)

    w = np.random.default_rng(5).poisson(2.0, ROWS).astype(float)
    em = emppl.EM(model, fixed={"rate": [np.nan, 1.5, np.nan]})
    assert set(rules(em, COUNTS, EXPOSURE, w).values()) == {"closed form"}
    result = em.run(KEY, COUNTS, EXPOSURE, w)

    def loss(logs):
        rates = np.array([np.exp(logs[0]), 1.5, np.exp(logs[1])])[:, None]
        joint = scipy.stats.poisson.pmf(COUNTS, rates * EXPOSURE) * scipy.stats.poisson.pmf(w, rates)
        return -np.log(np.array([0.3, 0.4, 0.3]) @ joint).sum()

    best = scipy.optimize.minimize(loss, np.log([0.5, 4.0]), method="BFGS", options={"gtol": 1e-8})
    assert result.converged and result.log_likelihood == pytest.approx(-best.fun, abs=1e-7)
    np.testing.assert_allclose(result.params["rate"][[0, 2]], np.exp(best.x), rtol=1e-3)
    assert result.params["rate"][1] == 1.5


def test_exposures_of_a_hidden_markov_model():
    """In a scan the exposures move with time; the same maximum as by Newton steps."""
    from numpyro.contrib.control_flow import scan

    def model(y, e, hidden=False):
        rate = numpyro.param("rate", jnp.array([0.5, 3.0]), constraint=constraints.positive)
        stay = jnp.array([[0.9, 0.1], [0.2, 0.8]])

        def step(z, now):
            count, length = now
            z = numpyro.sample("z", dist.Categorical(stay[z]))
            # A sum that adds nothing hides the exposure from the rule.
            mean = rate[z] * length + 0 * rate[z] if hidden else rate[z] * length
            numpyro.sample("y", dist.Poisson(mean), obs=count)
            return z, None

        scan(step, 0, (y, e))

    rng = np.random.default_rng(2)
    y = rng.poisson(np.repeat([0.6, 3.5, 0.6], 20) * EXPOSURE).astype(float)
    one = emppl.EM(model, tolerance=1e-12)
    rules = [str(next(p.rule for p in one.plan(y, EXPOSURE, how).parameters)) for how in (False, True)]
    assert rules == ["closed form", "newton"]
    found, other = (one.run(KEY, y, EXPOSURE, how) for how in (False, True))
    assert found.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-8)
    np.testing.assert_allclose(found.params["rate"], other.params["rate"], rtol=1e-4)


@pytest.mark.parametrize("known", ["data", "constants", "one number"])
def test_what_is_multiplied_before_a_map_is_none(known):
    """``exp(a e)`` is no multiple of ``exp(a)``: Newton steps find the maximum."""

    def model(y, e):
        a = numpyro.param("a", jnp.array([0.1, 0.3]))
        factor = {"data": e, "constants": CONSTANT, "one number": jnp.log(10.0)}[known]
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("y", dist.Poisson(jnp.exp(a[z] * factor)), obs=y)

    plan = emppl.EM(model).plan(COUNTS, EXPOSURE)
    assert plan.parameters[0].rule == "newton"
    assert known != "data" or "multiplied by data before it goes through a map (exp)" in str(plan)
    result = fit(model, COUNTS, EXPOSURE)

    def loss(a):
        factor = np.log(10) if known == "one number" else EXPOSURE
        joint = scipy.stats.poisson.pmf(COUNTS, np.exp(a[:, None] * factor))
        return -np.log(np.array([0.6, 0.4]) @ joint).sum()

    assert result.log_likelihood == pytest.approx(-loss(result.params["a"]), abs=1e-9)
    best = scipy.optimize.minimize(loss, result.params["a"], method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-6)


def test_entries_that_may_be_negative_have_none():
    """A real parameter times negative data is a rate as well; the closed form would make it positive."""

    def model(y, e):
        p = numpyro.param("p", jnp.array([-0.5, -1.5]))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("y", dist.Poisson(p[z] * -e), obs=y)

    plan = emppl.EM(model).plan(COUNTS, EXPOSURE)
    assert plan.parameters[0].rule == "newton" and "it may be negative" in str(plan)

"""Roles of continuous sites that people expect: random effects without a word, and what is asked."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy import stats

import emppl

GROUP = np.array([0, 0, 1, 1, 1, 2, 2])
Y = np.array([1.2, 0.7, -0.4, 0.1, -0.9, 2.3, 1.6])
AT = {"mu": jnp.array(0.4), "tau": jnp.array(0.9), "sigma": jnp.array(0.6)}


def positive(name):
    return numpyro.param(name, 1.0, constraint=constraints.positive)


def grouped(y, group, effects):
    """A one-way layout whose group effects ``effects(tau)`` samples, in whichever way."""
    mu, tau, sigma = numpyro.param("mu", 0.0), positive("tau"), positive("sigma")
    b = effects(tau)
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mu + b[group], sigma), obs=y)


def in_a_plate(tau):
    with numpyro.plate("groups", 3):
        return numpyro.sample("b", dist.Normal(0, tau))


def as_a_vector(tau):
    return numpyro.sample("b", dist.Normal(jnp.zeros(3), tau).to_event(1))


def standardised(tau):
    with numpyro.plate("groups", 3):
        return tau * numpyro.sample("b", dist.Normal(0, 1))


def dense(params):
    same = GROUP[:, None] == GROUP
    covariance = params["tau"] ** 2 * same + params["sigma"] ** 2 * np.eye(len(Y))
    return stats.multivariate_normal(np.full(len(Y), params["mu"]), covariance).logpdf(Y)


@pytest.mark.parametrize(
    ("effects", "options"),
    [
        (in_a_plate, {}),
        (in_a_plate, {"latents": ["b"]}),
        (as_a_vector, {}),
        (standardised, {"latents": {"b": None}}),
    ],
)
def test_random_effects_are_latents(effects, options):
    """The effects are integrated out exactly, whether the user names them or not."""
    em = emppl.EM(lambda y, g: grouped(y, g, effects), progress_bar=False, **options)
    np.testing.assert_allclose(em.log_likelihood(AT, Y, GROUP), dense(AT), rtol=1e-9)
    if not options:
        assert "its prior depends on parameter 'tau'" in str(em.plan(Y, GROUP))
        held = emppl.EM(lambda y, g: grouped(y, g, effects), fixed={"tau": 0.9}, max_iterations=200, progress_bar=False)
        np.testing.assert_allclose(held.log_likelihood(AT, Y, GROUP), dense(AT), rtol=1e-9)


def test_effects_of_effects_and_counts():
    """A site below a random effect is one too, and what is not normal goes to quadrature."""

    def nested(y, school, county):
        mu, tau, sigma = numpyro.param("mu", 0.0), positive("tau"), positive("sigma")
        with numpyro.plate("counties", 2):
            above = numpyro.sample("above", dist.Normal(mu, tau))
        with numpyro.plate("schools", 3):
            below = numpyro.sample("below", dist.Normal(above[county], 0.5))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(below[school], sigma), obs=y)

    county = np.array([0, 1, 1])
    em = emppl.EM(nested, progress_bar=False)
    same_school, same_county = GROUP[:, None] == GROUP, county[GROUP][:, None] == county[GROUP]
    covariance = 0.25 * same_school + 0.81 * same_county + 0.36 * np.eye(len(Y))
    expected = stats.multivariate_normal(np.full(len(Y), 0.4), covariance).logpdf(Y)
    np.testing.assert_allclose(em.log_likelihood(AT, Y, GROUP, county), expected, rtol=1e-9)
    assert "its prior depends on latent 'above'" in str(em.plan(Y, GROUP, county))

    def counts(y, group):
        b = in_a_plate(positive("tau"))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Poisson(jnp.exp(numpyro.param("mu", 0.0) + b[group])), obs=y)

    y, nodes = np.array([1, 3, 0, 2, 1, 6, 4]), np.linspace(-8, 8, 4001)
    em = emppl.EM(counts, latents={"b": emppl.Quadrature(31)}, progress_bar=False)
    cells = stats.poisson(np.exp(0.4 + nodes)[:, None]).logpmf(y)
    joint = [cells[:, group == GROUP].sum(1) + stats.norm(0, 0.9).logpdf(nodes) for group in range(3)]
    expected = sum(np.log(np.trapezoid(np.exp(log), nodes)) for log in joint)
    at = {name: AT[name] for name in ("mu", "tau")}
    np.testing.assert_allclose(em.log_likelihood(at, y, GROUP), expected, rtol=1e-6)
    assert "Quadrature" in str(emppl.EM(counts, progress_bar=False).plan(y, GROUP))


def test_what_stays_ambiguous_asks():
    """Both lines are shown, and both work."""
    model = lambda y, g: grouped(y, g, standardised)  # noqa: E731
    with pytest.raises(emppl.ModelError) as caught:
        emppl.EM(model).plan(Y, GROUP)
    for line in ("EM(model, estimate=['b'])", "EM(model, latents=['b'])", "EM(model, latents={'b': Quadrature(15)})"):
        assert line in str(caught.value)
        em = eval(line, {"EM": emppl.EM, "Quadrature": emppl.Quadrature, "model": model})
        assert em.plan(Y, GROUP)
    with pytest.raises(emppl.ParameterError, match=r"latents=\['b'\]"):
        emppl.EM(model, latents="b")


def test_means_of_components_stay_parameters():
    """What a discrete latent indexes is no random effect; below an estimated parameter it may be one, and asks."""

    def mixture(y, tau):
        with numpyro.plate("components", 2):
            mu = numpyro.sample("mu", dist.Normal(0, 3.0 if tau is None else positive(tau)))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(numpyro.param("w", 0.4, constraint=constraints.unit_interval)))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    assert "indexed by latent 'z'" in str(emppl.EM(mixture).plan(Y, None))
    with pytest.raises(emppl.ModelError, match="'mu' is ambiguous.*'tau', but it is indexed by latent 'z'"):
        emppl.EM(mixture).plan(Y, "tau")
    assert emppl.EM(mixture, estimate=["mu"]).plan(Y, "tau")


def level(y, seen):
    """A local level whose first state is sampled before the scan: that of the first month."""
    noise, wander = positive("noise"), positive("wander")
    first = numpyro.sample("first", dist.Normal(7, jnp.sqrt(10.0)))

    def month(now, row):
        numpyro.sample("y", dist.Normal(now, jnp.sqrt(noise)).mask(row[1]), obs=row[0])
        return numpyro.sample("level", dist.Normal(now, jnp.sqrt(wander))), None

    scan(month, first, (y, seen))


def level_in_its_steps(y, seen):
    """The same as the message says to write it."""
    noise, wander = positive("noise"), positive("wander")

    def month(carry, row):
        before, t = carry
        mean, scale = jnp.where(t == 0, 7.0, before), jnp.where(t == 0, jnp.sqrt(10.0), jnp.sqrt(wander))
        now = numpyro.sample("level", dist.Normal(mean, scale))
        numpyro.sample("y", dist.Normal(now, jnp.sqrt(noise)).mask(row[1]), obs=row[0])
        return (now, t + 1), None

    scan(month, (0.0, 0), (y, seen))


def test_first_state_of_a_chain_is_no_parameter():
    """It is refused with what to write, which is the marginal likelihood of the model; a parameter is one on demand."""
    y = np.array([6.1, 6.4, 7.2, 7.9, 7.4])
    seen = np.array([True, True, False, True, True])
    for options in ({}, {"latents": ["first"]}):
        with pytest.raises(emppl.ModelError, match="'level' starts from 'first'") as caught:
            emppl.EM(level, **options).plan(y, seen)
    for line in ("jnp.where(t == 0, prior_mean, before)", "scan(step, (0.0, 0), y)", "estimate=['first']"):
        assert line in str(caught.value)
    assert emppl.EM(level, estimate=["first"]).plan(y, seen)
    at = {"noise": jnp.array(0.3), "wander": jnp.array(0.2)}
    steps = np.arange(5)
    covariance = 10 + 0.2 * np.minimum(steps[:, None], steps) + 0.3 * np.eye(5)
    expected = stats.multivariate_normal(np.full(4, 7.0), covariance[np.ix_(seen, seen)]).logpdf(y[seen])
    em = emppl.EM(level_in_its_steps, progress_bar=False)
    np.testing.assert_allclose(em.log_likelihood(at, y, seen), expected, rtol=1e-9)

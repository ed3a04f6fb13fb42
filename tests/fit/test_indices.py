"""An index out of bounds is refused where a density sees it, with the range; a masked placeholder is none."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy.stats import multivariate_normal, norm

import emppl
from tests.kit.fits import KEY

Y = np.array([0.3, -1.1, 2.0, 0.7, -0.2])
NORMAL = {"b": emppl.Gaussian()}
SEEN = np.array([True, True, True, False, False])


def grouped(y, group, seen=None):
    spread = numpyro.param("spread", jnp.array(1.1), constraint=constraints.positive)
    with numpyro.plate("groups", 3):
        b = numpyro.sample("b", dist.Normal(0, spread))
    with numpyro.plate("rows", len(y)):
        fn = dist.Normal(b[group], 0.6)
        numpyro.sample("y", fn if seen is None else fn.mask(seen), obs=y)


def mixture(x, states=3, of_state=None):
    weights = numpyro.param("weights", jnp.ones(states) / states, constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([0.0, 3.0]))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z] if of_state is None else of_state(mu, z), 1.0), obs=x)


def dense(group, rows):
    loadings = np.eye(3)[group]
    covariance = 1.21 * loadings @ loadings.T + 0.36 * np.eye(len(rows))
    return multivariate_normal(np.zeros(len(rows)), covariance).logpdf(Y[rows])


@pytest.mark.parametrize("strategy", [emppl.Gaussian(), emppl.Quadrature(15), emppl.Laplace()])
@pytest.mark.parametrize(("last", "found"), [(3, "entry 3"), (-4, "entry -4"), (99, "entry 99")])
def test_a_group_that_is_not_there(strategy, last, found):
    em, group = emppl.EM(grouped, latents={"b": strategy}), np.array([0, 1, 2, 1, last])
    words = rf"'y' picks {found} .*latent 'b'.*entries 0 to 2 .*array 2 among the model's arguments"
    with pytest.raises(emppl.DataError, match=words):
        em.run(KEY, Y, group)
    with pytest.raises(emppl.DataError, match=words):
        em.log_likelihood({"spread": 1.1}, Y, group)


def test_negative_indices_count_from_the_end():
    em = emppl.EM(grouped, latents=NORMAL)
    got = float(em.log_likelihood({"spread": 1.1}, Y, np.array([0, 1, -1, -3, -2])))
    assert got == pytest.approx(dense([0, 1, 2, 0, 1], np.arange(5)), rel=1e-12)


def test_masked_rows_may_hold_any_placeholder():
    em, right = emppl.EM(grouped, latents=NORMAL), dense([0, 1, 2], np.arange(3))
    for placeholder in (-1, 3, 999, -7):
        group = np.array([0, 1, 2, placeholder, placeholder])
        assert float(em.log_likelihood({"spread": 1.1}, Y, group, SEEN)) == pytest.approx(right, rel=1e-12)
    fits = [em.run(KEY, Y, np.array([0, 1, 2, last, last]), SEEN).params["spread"] for last in (0, 999)]
    assert fits[0] == pytest.approx(fits[1], rel=1e-9)
    with pytest.raises(emppl.DataError, match="entry 999"):
        em.run(KEY, Y, np.array([0, 1, 2, 999, 999]), np.array([True, True, True, True, False]))


def test_rows_of_weight_zero_may_too():
    def model(y, group, weight):
        with numpyro.plate("rows", len(y)), numpyro.handlers.scale(scale=weight):
            mu = numpyro.param("mu", jnp.array([0.0, 1.0, 2.0]))
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("y", dist.Normal(mu[group] + z, 1.0), obs=y)

    em, mu = emppl.EM(model), np.array([0.1, 0.2, 0.3])
    group, weight = np.array([0, 1, 2, 9, 9]), np.array([1.0, 1.0, 2.0, 0.0, 0.0])
    rows = np.log(0.5 * norm.pdf(Y[:3], mu, 1) + 0.5 * norm.pdf(Y[:3], mu + 1, 1)) @ weight[:3]
    assert float(em.log_likelihood({"mu": mu}, Y, group, weight)) == pytest.approx(rows, rel=1e-12)
    with pytest.raises(emppl.DataError, match="entry 9"):
        em.log_likelihood({"mu": mu}, Y, group, np.ones(5))


def test_more_states_than_means():
    with pytest.raises(emppl.ModelError, match=r"'x' picks entry 2 .*parameter 'mu'.*latent 'z'.*0 to 2"):
        emppl.EM(mixture).run(KEY, Y)
    with pytest.raises(emppl.ModelError, match="entry 2"):
        emppl.EM(mixture).e_step({"weights": np.ones(3) / 3, "mu": np.zeros(2)}, Y)


def test_a_state_without_a_mean_where_another_value_is_chosen():
    em = emppl.EM(lambda x: mixture(x, of_state=lambda mu, z: jnp.where(z < 2, mu[z], -3.0)))
    got = em.log_likelihood({"weights": np.array([0.2, 0.3, 0.5]), "mu": np.array([0.1, 2.0])}, Y)
    right = np.log(0.2 * norm.pdf(Y, 0.1) + 0.3 * norm.pdf(Y, 2.0) + 0.5 * norm.pdf(Y, -3.0)).sum()
    assert float(got) == pytest.approx(right, rel=1e-12)


def test_clamping_that_was_asked_for():
    em = emppl.EM(lambda x: mixture(x, of_state=lambda mu, z: mu[jnp.clip(z, 0, 1)]))
    got = em.log_likelihood({"weights": np.array([0.2, 0.3, 0.5]), "mu": np.array([0.1, 2.0])}, Y)
    right = np.log(0.2 * norm.pdf(Y, 0.1) + 0.8 * norm.pdf(Y, 2.0)).sum()
    assert float(got) == pytest.approx(right, rel=1e-12)


def test_an_index_among_the_constants_of_the_model():
    group = np.array([0, 1, 2, 3, 3])
    with pytest.raises(emppl.DataError, match="entry 3"):
        emppl.EM(lambda y: grouped(y, group), latents=NORMAL).run(KEY, Y)


def test_an_index_of_an_index():
    def model(y, city):
        region = jnp.array([0, 1, 2, 0])[city]
        grouped(y, region)

    em = emppl.EM(model, latents=NORMAL)
    got = float(em.log_likelihood({"spread": 1.1}, Y, np.array([0, 1, 2, 3, 3])))
    assert got == pytest.approx(dense([0, 1, 2, 0, 0], np.arange(5)), rel=1e-12)
    with pytest.raises(emppl.DataError, match="entry 4 .*constant"):
        em.run(KEY, Y, np.array([0, 1, 2, 3, 4]))


def test_a_covariate_that_is_looked_up_and_the_prior_of_a_parameter():
    def covariate(y, group, table):
        mu = numpyro.param("mu", jnp.array(0.0))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(mu * table[group] + z, 1.0), obs=y)

    with pytest.raises(emppl.DataError, match="entry 2 .*array 3 among"):
        emppl.EM(covariate).run(KEY, Y, np.array([0, 1, 2, 0, 1]), np.array([1.0, 2.0]))

    def prior(y, level):
        mu = numpyro.sample("mu", dist.Normal(jnp.array([0.0, 1.0])[level], 1.0))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(mu + z, 1.0), obs=y)

    assert emppl.EM(prior).run(KEY, Y, np.array(1)).converged
    with pytest.raises(emppl.DataError, match="'mu' picks entry 2"):
        emppl.EM(prior).run(KEY, Y, np.array(2))


def chain(y, group):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    shift = numpyro.param("shift", jnp.array([0.0, 0.5, 1.0]))

    def step(state, now):
        value, which = now
        state = numpyro.sample("s", dist.Categorical(jnp.array([[0.8, 0.2], [0.3, 0.7]])[state]))
        numpyro.sample("y", dist.Normal(mu[state] + shift[which], 1.0), obs=value)
        return state, None

    scan(step, 0, (y, group))


def test_in_a_scan():
    params = {"mu": np.array([-1.0, 1.0]), "shift": np.array([0.0, 0.5, 1.0])}
    group, em = np.array([0, 1, 2, -1, 0]), emppl.EM(chain)
    forward, transition = np.array([1.0, 0.0]), np.array([[0.8, 0.2], [0.3, 0.7]])
    for value, which in zip(Y, group, strict=True):
        forward = (forward @ transition) * norm.pdf(value, params["mu"] + params["shift"][which])
    assert float(em.log_likelihood(params, Y, group)) == pytest.approx(np.log(forward.sum()), rel=1e-12)
    for bad in (3, -4):
        with pytest.raises(emppl.DataError, match=f"'y' picks entry {bad} .*parameter 'shift'"):
            em.run(KEY, Y, np.array([0, 1, 2, bad, 0]))


def test_under_jit_indices_of_traced_data_are_out_of_sight():
    em = emppl.EM(grouped, latents=NORMAL)
    traced = jax.jit(lambda y, group: em.log_likelihood({"spread": 1.1}, y, group))
    assert np.isfinite(traced(Y, np.array([0, 1, 2, 3, 3])))
    with pytest.raises(emppl.DataError, match="entry 3"):
        jax.jit(lambda spread: em.log_likelihood({"spread": spread}, Y, np.array([0, 1, 2, 3, 3])))(1.1)

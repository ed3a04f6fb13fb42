"""Wrong answers that a review found once, each against a number that emppl did not produce."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.distributions import constraints

import emppl
from emppl import DataError, ModelError
from tests.kit.fits import KEY, fit

WEIGHTS, MEANS = np.array([0.3, 0.7]), np.array([-1.0, 2.0])


def two():
    weights = numpyro.param("w", jnp.asarray(WEIGHTS), constraint=constraints.simplex)
    return weights, numpyro.param("mu", jnp.asarray(MEANS))


def mixture(x):
    weights, mu = two()
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def mixture_log_likelihood(x):
    return np.log(scipy.stats.norm.pdf(x[:, None], MEANS, 1.0) @ WEIGHTS).sum()


PARAMS = {"w": WEIGHTS, "mu": MEANS}


def test_sample_shape_draws_one_latent_per_row():
    def model(x):
        weights, mu = two()
        z = numpyro.sample("z", dist.Categorical(weights), sample_shape=(len(x),))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    x = np.array([-1.2, 0.3, 2.5, 1.9])
    got = emppl.EM(model).log_likelihood(PARAMS, x)
    assert float(got) == pytest.approx(mixture_log_likelihood(x), rel=1e-12)


@pytest.mark.parametrize("estimate", [None, ["b"]])
def test_a_prior_that_depends_on_a_discrete_latent_is_refused(estimate):
    def model(x):
        s = numpyro.sample("s", dist.Bernoulli(0.3))
        b = numpyro.sample("b", dist.Normal(0.0, jnp.where(s == 1, 5.0, 0.1)))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", dist.Normal(b, 1.0), obs=x)

    with pytest.raises(ModelError, match="(?s)'b'.*'s'.*plate"):
        emppl.EM(model, estimate=estimate).plan(np.zeros(3))


def categorical(d):
    with numpyro.plate("rows", len(d)):
        z = numpyro.sample(
            "z", dist.Categorical(numpyro.param("w", jnp.asarray(WEIGHTS), constraint=constraints.simplex))
        )
        numpyro.sample("d", dist.Categorical(jnp.array([[0.5, 0.5, 0.0], [0.3, 0.7, 0.0]])[z]), obs=d)


def multinomial(d):
    with numpyro.plate("rows", len(d)):
        z = numpyro.sample(
            "z", dist.Categorical(numpyro.param("w", jnp.asarray(WEIGHTS), constraint=constraints.simplex))
        )
        probs = jnp.array([[0.5, 0.5, 0.0], [0.3, 0.7, 0.0]])[z]
        numpyro.sample("d", dist.Multinomial(1, probs), obs=jnp.eye(3)[d])


def poisson(d):
    with numpyro.plate("rows", len(d)):
        z = numpyro.sample(
            "z", dist.Categorical(numpyro.param("w", jnp.asarray(WEIGHTS), constraint=constraints.simplex))
        )
        numpyro.sample("d", dist.Poisson(jnp.zeros(2)[z]), obs=jnp.where(d == 2, 1, 0))


@pytest.mark.parametrize("model", [categorical, multinomial, poisson])
def test_a_row_of_probability_zero_is_named(model):
    """Row 2 is impossible under both states."""
    d = np.array([0, 1, 2, 0, 1])
    with pytest.raises(DataError, match="row 2"):
        fit(model, d)
    assert float(emppl.EM(model).log_likelihood({"w": WEIGHTS}, d)) == -np.inf


def test_a_nearly_symmetric_start_is_left():
    """The components start 2e-5 apart: the first gains die away fast, then the components part."""

    def model(x):
        weights = numpyro.param("w", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
        mu = numpyro.param("mu", jnp.array([-0.8 + 1e-5, -0.8 - 1e-5]))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    rng = np.random.default_rng(0)
    x = np.where(rng.random(100) < 0.4, -2.0, 2.0) + rng.normal(size=100)
    result = fit(model, x)
    assert result.converged
    assert np.sort(result.params["mu"]) == pytest.approx([-2, 2], abs=0.5)


@pytest.mark.parametrize("cut", ["tril", "where"])
def test_a_triangle_cut_out_of_a_parameter_is_no_plain_selection(cut):
    """The M-step ends where the gradient of Q is zero (the closed form of the whole matrix does not)."""

    def model(x):
        root = numpyro.param("root", jnp.stack([jnp.eye(2), 2 * jnp.eye(2)]))
        scale_tril = jnp.tril(root) if cut == "tril" else jnp.where(jnp.eye(2) > 0, root, 0.0)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), scale_tril=scale_tril[z]), obs=x)

    x = np.random.default_rng(0).multivariate_normal([0, 0], [[2.0, 0.8], [0.8, 1.0]], 40)
    em = emppl.EM(model)
    new = {"root": jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])}
    posterior = em.e_step(new, x)
    for _ in range(5):
        new = em.m_step(new, posterior, x)
    gradient = jax.grad(lambda params: em.q(params, posterior, x))(new)["root"]
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_a_table_that_a_chunk_of_rows_would_make_too_large_is_refused():
    """Eight latents of ten states: 0.75 GiB a row fits, the 256 rows of a chunk do not."""

    def model(x):
        slope = numpyro.param("slope", 1.0)
        with numpyro.plate("rows", len(x)):
            total = sum(numpyro.sample(f"z{i}", dist.Categorical(jnp.ones(10) / 10)) for i in range(8))
            numpyro.sample("x", dist.Normal(slope * total, 1.0), obs=x)

    with pytest.raises(ModelError, match="GiB"):
        emppl.EM(model).plan(np.zeros(400))


def test_static_arguments_of_different_type_are_different():
    def model(x, flag):
        weights, mu = two()
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(mu[z], 1.0 if flag is True else 2.0), obs=x)

    x, em = np.array([0.5, 1.5]), emppl.EM(model)
    assert float(em.log_likelihood(PARAMS, x, True)) == pytest.approx(mixture_log_likelihood(x))
    assert float(em.log_likelihood(PARAMS, x, 1)) != pytest.approx(mixture_log_likelihood(x))


def test_an_object_that_hides_data_is_refused():
    class Data:
        def __init__(self, x):
            self.x = x

    with pytest.raises(DataError, match="(?s)Data.*register_dataclass"):
        emppl.EM(lambda data: mixture(data.x)).plan(Data(np.zeros(3)))

    @dataclasses.dataclass(frozen=True)
    class Setting:
        rows: int

    emppl.EM(lambda x, setting: mixture(x)).plan(np.zeros(3), Setting(3))


def test_an_array_of_words_is_refused():
    with pytest.raises(DataError, match="(?s)<U.*numbers"):
        emppl.EM(mixture).plan(np.array(["a", "b"]))


def test_an_unbounded_gamma_prior_is_refused():
    def model(x):
        rate = numpyro.sample("rate", dist.Gamma(0.5, 0.1).expand([2]))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("x", dist.Poisson(rate[z]), obs=x)

    with pytest.raises(ModelError, match="(?s)'rate'.*concentration"):
        fit(model, np.array([0, 0, 0, 5, 6]))


def test_a_users_update_sees_the_weights_of_every_site():
    """The user's weighted means equal the closed form."""
    x = np.random.default_rng(1).normal(size=60) * 2

    def means(params, posterior):
        # A weight for every cell of a site's log-probability table: one per row for x, one per state for z.
        return jnp.reshape(posterior.weights["x"], (2, -1)) @ x / jnp.reshape(posterior.weights["z"], (2,))

    own = fit(mixture, x, m_step={"mu": means}, max_iterations=5)
    closed = fit(mixture, x, max_iterations=5)
    np.testing.assert_allclose(own.params["mu"], closed.params["mu"], rtol=1e-10)


def test_missing_cells_of_a_continuous_observation():
    """``obs_mask`` on a data site: the masked cells count nothing."""

    def model(x, seen):
        weights, mu = two()
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x, obs_mask=seen)

    x, seen = np.array([0.1, 3.0, -2.0, 0.7]), np.array([True, False, True, True])
    em = emppl.EM(model)
    assert float(em.log_likelihood(PARAMS, x, seen)) == pytest.approx(mixture_log_likelihood(x[seen]), rel=1e-12)
    result = em.run(KEY, x, seen)
    only = fit(mixture, x[seen])
    assert result.log_likelihood == pytest.approx(only.log_likelihood, abs=1e-8)
    assert set(result.params) == {"w", "mu"}


def test_a_param_in_a_subsampled_plate():
    """A plate may cut a param's value; what is estimated is the whole of it."""

    def model(x):
        weights, mu = two()
        with numpyro.plate("rows", len(x), subsample_size=len(x)):
            shift = numpyro.param("shift", jnp.zeros(len(x)), event_dim=0)
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(mu[z] + shift, 1.0), obs=x)

    x = np.array([0.1, 3.0, -2.0, 0.7])
    shift = np.array([0.5, 0.0, -0.5, 0.0])
    got = emppl.EM(model).log_likelihood({**PARAMS, "shift": shift}, x)
    assert float(got) == pytest.approx(mixture_log_likelihood(x - shift), rel=1e-12)


def test_an_unobserved_delta_is_no_latent():
    def model(x):
        weights, mu = two()
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            mean = numpyro.sample("mean", dist.Delta(mu[z]))
            numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(ModelError, match="(?s)'mean'.*deterministic"):
        emppl.EM(model).plan(np.zeros(3))


def test_pieces_give_minus_infinity_outside_the_support():
    def model(d):
        with numpyro.plate("rows", len(d)):
            z = numpyro.sample("z", dist.Categorical(two()[0]))
            numpyro.sample("d", dist.Categorical(jnp.array([[0.2, 0.8], [0.6, 0.4]])[z]), obs=d)

    assert float(emppl.EM(model).log_likelihood(PARAMS, np.array([0, 1, 7]))) == -np.inf


def test_a_mask_that_depends_on_a_latent():
    """Zero-inflated categories: rows of the second state say nothing about the probabilities, in closed form by hand."""

    def model(d, x):
        probs = numpyro.param("probs", jnp.ones(3) / 3, constraint=constraints.simplex)
        with numpyro.plate("rows", len(d)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("x", dist.Normal(jnp.array([-1.0, 1.0])[z], 1.0), obs=x)
            numpyro.sample("d", dist.Categorical(probs).mask(z == 1), obs=d)

    d, x = np.array([0, 1, 2, 2, 1, 1, 0, 2]), np.linspace(-2, 2, 8)
    density = np.stack([0.4 * scipy.stats.norm.pdf(x, -1), 0.6 * scipy.stats.norm.pdf(x, 1) / 3])
    responsibility = density[1] / density.sum(0)
    expected = np.bincount(d, responsibility) / responsibility.sum()
    em = emppl.EM(model, max_iterations=1)
    params = {"probs": np.ones(3) / 3}
    new = em.m_step(params, em.e_step(params, d, x), d, x)
    np.testing.assert_allclose(new["probs"], expected, rtol=1e-12)
    np.testing.assert_allclose(em.run(KEY, d, x).params["probs"], expected, rtol=1e-12)


def test_more_poisson_components_than_rows_is_refused():
    def model(x, K):
        rate = numpyro.param("rate", jnp.arange(1.0, K + 1), constraint=constraints.positive)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(K) / K))
            numpyro.sample("x", dist.Poisson(rate[z]), obs=x)

    with pytest.raises(DataError, match="more components than data"):
        emppl.EM(model).run(KEY, np.array([1, 2, 3]), K=6)

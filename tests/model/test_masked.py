"""Masked latents: absent where nothing depends on them, of flat density where another site gives it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.handlers import mask

import emppl
from tests.kit.brute_force import BruteForce
from tests.kit.fits import fit, never_falls

NORM, BERNOULLI = scipy.stats.norm, scipy.stats.bernoulli
X, MISSING = np.array([0, 1, 1, 0, 1]), np.array([False, True, False, True, True])
Y = np.array([0.1, 1.2, 0.8, -0.3, 0.9])
START = {"p": 0.3, "mean": np.array([0.0, 1.0])}


def parameters():
    return numpyro.param("p", 0.3, constraint=constraints.unit_interval), numpyro.param("mean", jnp.array([0.0, 1.0]))


def in_the_observed_value(x, missing, y):
    """NumPyro's idiom: the latent has no density of its own, and is part of a value that is observed."""
    p, mean = parameters()
    with numpyro.plate("n", len(y)):
        imputed = numpyro.sample("imputed", dist.Bernoulli(0.5).mask(False))
        both = jnp.where(missing, imputed, x)
        numpyro.sample("x", dist.Bernoulli(p), obs=both)
        numpyro.sample("y", dist.Normal(mean[both], 1.0), obs=y)


def in_a_factor(x, missing, y):
    p, mean = parameters()
    with numpyro.plate("n", len(y)):
        imputed = numpyro.sample("imputed", dist.Bernoulli(0.5).mask(False))
        with mask(mask=missing):
            numpyro.factor("density", dist.Bernoulli(p).log_prob(imputed))
        with mask(mask=~missing):
            numpyro.sample("x", dist.Bernoulli(p), obs=x)
        numpyro.sample("y", dist.Normal(mean[jnp.where(missing, imputed, x)], 1.0), obs=y)


def masked_where_observed(x, missing, y):
    p, mean = parameters()
    with numpyro.plate("n", len(y)):
        imputed = numpyro.sample("imputed", dist.Bernoulli(p).mask(missing))
        with mask(mask=~missing):
            numpyro.sample("x", dist.Bernoulli(p), obs=x)
        numpyro.sample("y", dist.Normal(mean[jnp.where(missing, imputed, x)], 1.0), obs=y)


def by_states(p, mean):
    return np.stack([BERNOULLI.logpmf(x, p) + NORM.logpdf(Y, mean[x], 1) for x in (0, 1)])


@pytest.mark.parametrize("model", [in_the_observed_value, in_a_factor, masked_where_observed])
def test_imputed_labels(model):
    """The sum over both labels where they are missing, the observed one elsewhere, in whichever way it is written."""
    em, of_data = emppl.EM(model), (X, MISSING, Y)
    joint = by_states(**START)
    right = np.where(MISSING, np.logaddexp(*joint), joint[X, np.arange(5)]).sum()
    assert float(em.log_likelihood(START, *of_data)) == pytest.approx(right, rel=1e-12)
    assert float(em.e_step(START, *of_data).log_likelihood) == pytest.approx(right, rel=1e-12)
    result = em.run(jax.random.key(0), *of_data)
    joint = by_states(**result.params)
    right = np.where(MISSING, np.logaddexp(*joint), joint[X, np.arange(5)]).sum()
    assert result.converged and never_falls(result)
    assert result.log_likelihood == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("model", [in_the_observed_value, masked_where_observed])
def test_the_best_imputed_labels(model):
    """Under Hard assignments the larger of both terms."""
    em = emppl.EM(model, latents={"imputed": emppl.Hard()})
    joint = by_states(**START)
    right = np.where(MISSING, joint.max(0), joint[X, np.arange(5)]).sum()
    assert float(em.e_step(START, X, MISSING, Y).log_likelihood) == pytest.approx(right, rel=1e-12)


def test_a_flat_latent_in_an_inner_plate_counts_its_cells():
    """The density of NumPyro, a plain sum over all states: every cell is used, in a plate around its observations."""

    def model(y, seen):
        mean = numpyro.param("mean", jnp.array([0.0, 1.0, 3.0]))
        with numpyro.plate("n", 2, dim=-2):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3).mask(False))
            numpyro.factor("prior", -0.3 * z)
            with numpyro.plate("k", 2, dim=-1), mask(mask=seen):
                numpyro.sample("y", dist.Normal(mean[z], 1.0), obs=y)

    y, seen = np.array([[0.3, 1.4], [2.5, 0.1]]), np.array([[True, False], [True, True]])
    at = {"mean": np.array([0.0, 1.0, 3.0])}
    states = [-0.3 * z + (NORM.logpdf(y, at["mean"][z], 1) * seen).sum(1) for z in range(3)]
    right = np.logaddexp.reduce(states, 0).sum()
    assert float(emppl.EM(model).log_likelihood(at, y, seen)) == pytest.approx(right, rel=1e-12)


def test_padding_is_absent():
    """Latent and data under one mask: the padded cells add nothing, as if they had been left out."""

    def model(y, exists):
        mean = numpyro.param("mean", jnp.array([0.0, 1.0]))
        with numpyro.plate("n", len(y)), mask(mask=exists):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(mean[z], 1.0), obs=y)

    at, exists = {"mean": np.array([0.0, 1.0])}, np.array([True, True, False, True, False])
    value = emppl.EM(model).log_likelihood(at, Y, exists)
    assert float(value) == pytest.approx(
        float(BruteForce(model, at, Y[exists], exists[exists]).log_likelihood()), 1e-12
    )


# ------------------------------------------------------------------------------------------- continuous latents

AT = {"mu": 0.3, "s": 1.2, "b": 0.7}
REAL_X = np.array([0.3, -1.0, 0.2, 0.8, 1.1])


def coefficients():
    mu, b = numpyro.param("mu", 0.3), numpyro.param("b", 0.7)
    return mu, numpyro.param("s", 1.2, constraint=constraints.positive), b


def real_in_the_observed_value(x, missing, y):
    mu, s, b = coefficients()
    with numpyro.plate("n", len(y)):
        imputed = numpyro.sample("imputed", dist.Normal(0.0, 1.0).mask(False))
        both = jnp.where(missing, imputed, x)
        numpyro.sample("x", dist.Normal(mu, s), obs=both)
        numpyro.sample("y", dist.Normal(b * both, 1.0), obs=y)


def real_put_in_its_places(x, missing, y):
    mu, s, b = coefficients()
    with numpyro.plate("missing", 3):
        imputed = numpyro.sample("imputed", dist.Normal(0.0, 1.0).mask(False))
    both = jnp.asarray(x).at[jnp.array([1, 3, 4])].set(imputed)
    with numpyro.plate("n", len(y)):
        numpyro.sample("x", dist.Normal(mu, s), obs=both)
        numpyro.sample("y", dist.Normal(b * both, 1.0), obs=y)


def real_in_a_factor(x, missing, y):
    mu, s, b = coefficients()
    with numpyro.plate("n", len(y)):
        with mask(mask=False):
            imputed = numpyro.sample("imputed", dist.Normal(0.0, 1.0))
        numpyro.factor("density", jnp.where(missing, dist.Normal(mu, s).log_prob(imputed), 0.0))
        with mask(mask=~missing):
            numpyro.sample("x", dist.Normal(mu, s), obs=x)
        numpyro.sample("y", dist.Normal(b * jnp.where(missing, imputed, x), 1.0), obs=y)


def real_masked_where_observed(x, missing, y):
    mu, s, b = coefficients()
    with numpyro.plate("n", len(y)):
        imputed = numpyro.sample("imputed", dist.Normal(mu, s).mask(missing))
        with mask(mask=~missing):
            numpyro.sample("x", dist.Normal(mu, s), obs=x)
        numpyro.sample("y", dist.Normal(b * jnp.where(missing, imputed, x), 1.0), obs=y)


@pytest.mark.parametrize(
    "model", [real_in_the_observed_value, real_put_in_its_places, real_in_a_factor, real_masked_where_observed]
)
@pytest.mark.parametrize("strategy", [emppl.Gaussian(), emppl.Quadrature(7)], ids=["Gaussian", "Quadrature"])
def test_imputed_numbers(model, strategy):
    """Normal data with missing covariates: their marginal distribution in closed form."""

    def right(mu, s, b):
        alone = NORM.logpdf(Y, b * mu, np.sqrt(1 + (b * s) ** 2))
        return np.where(MISSING, alone, NORM.logpdf(REAL_X, mu, s) + NORM.logpdf(Y, b * REAL_X, 1)).sum()

    em = emppl.EM(model, latents={"imputed": strategy})
    assert float(em.log_likelihood(AT, REAL_X, MISSING, Y)) == pytest.approx(right(**AT), rel=1e-9)
    if isinstance(strategy, emppl.Gaussian):
        result = fit(model, REAL_X, MISSING, Y, latents={"imputed": strategy})
        assert never_falls(result)
        assert result.log_likelihood == pytest.approx(right(**result.params), rel=1e-10)


@pytest.mark.parametrize("kind", ["positive", "unit"])
def test_absent_latents_within_bounds(kind):
    """Padded cells of a latent that is not any real number integrate to one, too."""

    def model(y, exists):
        s = numpyro.param("s", 0.8, constraint=constraints.positive)
        with numpyro.plate("n", len(y)), mask(mask=exists):
            base = dist.Normal(0.0, s)
            squash = dist.transforms.ExpTransform() if kind == "positive" else dist.transforms.SigmoidTransform()
            u = numpyro.sample("u", dist.TransformedDistribution(base, squash))
            numpyro.sample("y", dist.Normal(squash.inv(u), 1.0), obs=y)

    exists = np.array([True, True, False, True, False])
    right = NORM.logpdf(Y[exists], 0, np.sqrt(1 + 0.8**2)).sum()
    em = emppl.EM(model, latents={"u": emppl.Quadrature(9)})
    assert float(em.log_likelihood({"s": 0.8}, Y, exists)) == pytest.approx(right, rel=1e-10)


def test_steps_that_do_not_exist_depend_on_no_other_chain():
    """A chain that depends on another latent of its step, which no later step reads: padding adds nothing."""
    w = np.array([[[0.45, 0.55], [0.25, 0.75]], [[0.59, 0.41], [0.73, 0.27]]])
    y = np.array([0.4, -1.0, 2.0])

    def model(y, exists):
        mu = numpyro.param("mu", jnp.array([-0.5, 1.0]))

        def step(before, this):
            y, here = this
            with mask(mask=here):
                a = numpyro.sample("a", dist.Bernoulli(0.3))
            with mask(mask=here):
                b = numpyro.sample("b", dist.Categorical(jnp.asarray(w)[a, before]))
                numpyro.sample("y", dist.Normal(mu[b], 1.0), obs=y)
            return b, None

        scan(step, 0, (y, exists))

    for length in (1, 2):
        alpha = np.array([1.0, 0.0])
        for t in range(length):
            alpha = alpha @ (0.7 * w[0] + 0.3 * w[1]) * NORM([-0.5, 1.0], 1).pdf(y[t])
        found = emppl.EM(model).log_likelihood({"mu": np.array([-0.5, 1.0])}, y, np.arange(3) < length)
        np.testing.assert_allclose(found, np.log(alpha.sum()), rtol=1e-12)

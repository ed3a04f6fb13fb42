"""Missing cells of observations: those that are independent are left out, however the model is written."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import emppl
from tests.kit.fits import KEY

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 3))
X[1, 2] = X[4, 0] = X[6] = np.nan
MEANS, SCALES, WEIGHTS = np.array([[-1.0, 0, 1], [1, 1, 0]]), np.array([[0.5, 1, 2], [1, 1.5, 1]]), np.array([0.3, 0.7])


def right(x, mean=MEANS):
    cells = stats.norm.logpdf(x[:, None], mean, SCALES)
    return np.log(WEIGHTS @ np.exp(np.nansum(cells, -1)).T).sum()


def columns(x, m, s, **masks):
    for j in range(3):
        given = {"obs_mask": ~jnp.isnan(x[:, j])} if masks else {}
        numpyro.sample(f"x{j}", dist.Normal(m[..., j], s[..., j]), obs=x[:, j], **given)


def normal(m, s):
    return dist.MultivariateNormal(m, covariance_matrix=s[..., None] ** 2 * jnp.eye(3))


WAYS = {
    "as it is": lambda x, m, s: numpyro.sample("x", dist.Normal(m, s).to_event(1), obs=x),
    "mask inside": lambda x, m, s: numpyro.sample("x", dist.Normal(m, s).mask(~np.isnan(x)).to_event(1), obs=x),
    "rows outside": lambda x, m, s: numpyro.sample(
        "x", dist.Normal(m, s).to_event(1).mask(~jnp.isnan(x).all(-1)), obs=x
    ),
    "columns": columns,
    "obs_mask": lambda x, m, s: columns(x, m, s, obs_mask=True),
    "multivariate": lambda x, m, s: numpyro.sample("x", normal(m, s), obs=x),
    "multivariate, rows": lambda x, m, s: numpyro.sample("x", normal(m, s).mask(~jnp.isnan(x).all(-1)), obs=x),
}


def mixture(way):
    def model(x):
        m = numpyro.param("m", jnp.array(MEANS))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array(WEIGHTS)))
            WAYS[way](x, m[z], jnp.array(SCALES)[z])

    return model


@pytest.mark.parametrize("way", WAYS)
def test_missing_cells_of_a_mixture(way):
    em = emppl.EM(mixture(way))
    assert float(em.log_likelihood({"m": MEANS}, X)) == pytest.approx(right(X), rel=1e-12)


def test_the_fit_and_its_check():
    """Means of the observed cells; the plan says what is left out, and NumPyro's density is that of the same model."""
    em = emppl.EM(mixture("as it is"))
    result = em.run(KEY, X)
    assert result.converged and not result.notes
    assert result.log_likelihood == pytest.approx(right(X, result.params["m"]), rel=1e-12)
    assert "site x: its missing cells (NaN) are left out" in str(result.plan)
    whole = np.nan_to_num(X)
    assert float(em.log_likelihood({"m": MEANS}, whole)) == pytest.approx(right(whole), rel=1e-12)
    assert em.plan(whole).data == ()


def test_counts_too_and_covariates_not():
    count = np.array([1.0, np.nan, 3.0, 2.0])

    def model(count, slope):
        rate = numpyro.param("rate", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("rows", len(count)):
            numpyro.sample("count", dist.Poisson(rate * jnp.exp(slope)), obs=count)

    slope = np.array([0.1, 0.2, 0.3, 0.4])
    value = stats.poisson.logpmf(count, 2 * np.exp(slope))
    assert float(emppl.EM(model).log_likelihood({"rate": 2.0}, count, slope)) == pytest.approx(np.nansum(value))
    with pytest.raises(emppl.DataError, match="covariate"):
        emppl.EM(model).run(KEY, count, np.array([0.1, 0.2, np.nan, 0.4]))


def test_cells_that_a_latent_fills_are_not_left_out():
    """Values that depend on a latent are no data: the model fills its gaps itself."""
    y = np.array([0.3, np.nan, -1.0, np.nan])

    def model(y):
        mean = numpyro.param("mean", 0.0)
        with numpyro.plate("rows", len(y)):
            fill = numpyro.sample("fill", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=jnp.where(jnp.isnan(y), fill, y))

    # The density of a gap is the integral of N(fill; 0, 1) N(fill; mean, 1).
    value = stats.norm.logpdf(y[[0, 2]], 0.5).sum() + 2 * stats.norm.logpdf(0.5, 0.0, np.sqrt(2.0))
    em = emppl.EM(model, latents={"fill": emppl.Gaussian()})
    assert float(em.log_likelihood({"mean": 0.5}, y)) == pytest.approx(value, rel=1e-12)

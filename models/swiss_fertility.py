"""Swiss fertility in 1888: factor analysis and probabilistic principal components.

Six indicators of 47 provinces, standardised, are explained by few factors: ``x = loading @ factor + noise``. With one
noise variance per indicator this is factor analysis, with a common one probabilistic PCA.

Not identified: the factors may be rotated, so that only ``loading @ loading.T`` means anything. The usual convention,
``triangular``, fixes the loadings above the diagonal at zero; the sign of every column stays open. It leaves the
likelihood as it is, counts the parameters rightly, and makes standard errors possible.

Factor analysis with two factors is a Heywood case: the noise of the first indicator goes to zero.

Reference:
    Mosteller and Tukey (1977), Data analysis and regression (data, R's ``swiss``); Tipping and Bishop (1999),
    Probabilistic principal component analysis, JRSS B 61:611-622 (closed form); Rubin and Thayer (1982), EM algorithms
    for ML factor analysis, Psychometrika 47:69-76.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl


def model(x, factors=1, common=False):
    """Factors in every province.

    Args:
        x: standardised indicators, ``(provinces, indicators)``.
        factors: how many.
        common: one noise variance for all indicators (probabilistic PCA).
    """
    provinces, indicators = x.shape
    start = jnp.cos(jnp.arange(indicators)[:, None] * (1.0 + jnp.arange(factors)))
    loading = numpyro.param("loading", start)
    noise = numpyro.param("noise", 0.5 if common else jnp.full(indicators, 0.5), constraint=constraints.positive)
    with numpyro.plate("provinces", provinces):
        factor = numpyro.sample("factor", dist.Normal(jnp.zeros(factors), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(factor @ loading.T, noise).to_event(1), obs=x)


def triangular(factors: int, indicators: int = 6) -> dict[str, np.ndarray]:
    """For ``EM(model, fixed=...)``: zeros above the diagonal of the loadings, all else free."""
    above = np.triu(np.ones((indicators, factors)), 1) > 0
    return {"loading": np.where(above, 0.0, np.nan)} if above.any() else {}


def data() -> np.ndarray:
    """Six indicators of 47 provinces, mean zero and standard deviation one (divisor n)."""
    raw = np.loadtxt(pathlib.Path(__file__).parent / "data" / "swiss.csv", delimiter=",", skiprows=1)
    return (raw - raw.mean(0)) / raw.std(0)


def principal_components(x, factors: int) -> tuple[np.ndarray, float, float]:
    """Closed form of probabilistic PCA: ``loading @ loading.T``, noise variance and log-likelihood."""
    rows, size = x.shape
    values, vectors = np.linalg.eigh(x.T @ x / rows)
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[factors:].mean()
    product = (vectors[:, :factors] * (values[:factors] - noise)) @ vectors[:, :factors].T
    log_det = np.log(values[:factors]).sum() + (size - factors) * np.log(noise)
    return product, noise, -rows / 2 * (size * np.log(2 * np.pi) + log_det + size)


def main() -> None:
    """Fit and print the answers beside the known ones."""
    jax.config.update("jax_enable_x64", True)
    x = data()
    for factors, common in ((1, True), (2, True), (1, False), (2, False)):
        em = emppl.EM(model, fixed=triangular(factors), max_iterations=5000)
        if (factors, common) == (1, True):
            print(em.plan(x, factors=factors, common=common))
        result = em.run(jax.random.key(0), x, factors=factors, common=common)
        print(f"\n{factors} factor(s), {'common noise' if common else 'one noise variance per indicator'}")
        result.print_summary()
        if common:
            _, noise, log_likelihood = principal_components(x, factors)
            print(f"known: noise {np.sqrt(noise):.6f}, log-likelihood {log_likelihood:.6f}")


if __name__ == "__main__":
    main()

"""Articles of 915 PhD students in biochemistry: a Poisson regression for those who publish, and structural zeros.

Some students would never publish (a hidden yes or no, with odds that depend on the covariates); the others publish as a
Poisson with a log-linear mean.

Reference:
    Long (1990), The origins of sex differences in science, Social Forces 68; Zeileis, Kleiber and Jackman (2008),
    Regression models for count data in R, Journal of Statistical Software 27(8): log-likelihood -1605.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

names = ("intercept", "fem", "mar", "kid5", "phd", "ment")
published = {
    "count": [0.640839, -0.209144, 0.10375, -0.14332, -0.006166, 0.018098],
    "zero": [-0.57706, 0.109752, -0.354018, 0.217095, 0.001275, -0.134114],
    "log_likelihood": -1605,
}


def model(articles, covariates):
    """Students with a log-linear number of articles, or none at all.

    Args:
        articles: number of articles, ``(students,)``.
        covariates: with a column of ones, ``(students, covariates)``.
    """
    count = numpyro.param("count", jnp.zeros(covariates.shape[1]))
    zero = numpyro.param("zero", jnp.zeros(covariates.shape[1]))
    with numpyro.plate("students", articles.shape[0]):
        never = numpyro.sample("never", dist.Bernoulli(logits=covariates @ zero))
        # Who never publishes has no articles for certain; for the others the number is Poisson.
        numpyro.factor("nothing", jnp.where((never == 1) & (articles > 0), -jnp.inf, 0.0))
        with numpyro.handlers.mask(mask=never == 0):
            numpyro.sample("articles", dist.Poisson(jnp.exp(covariates @ count)), obs=articles)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Articles, and covariates: woman, married, children under six, prestige of the department, mentor's articles."""
    table = np.loadtxt(pathlib.Path(__file__).parent / "data" / "biochemists.csv", delimiter=",", skiprows=1)
    return table[:, 0].astype(int), np.column_stack([np.ones(len(table)), table[:, 1:]])


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    articles, covariates = data()
    em = emppl.EM(model)
    print(em.plan(articles, covariates))
    result = em.run(jax.random.key(0), articles, covariates)
    result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

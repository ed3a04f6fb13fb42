"""Seeds on 21 plates: binomial counts that vary more than binomial ones, by a normal effect of the plate.

Reference:
    Crowder (1978), Beta-binomial ANOVA for proportions, Applied Statistics 27:34-37 (data); Breslow and Clayton (1993),
    JASA 88:9-25; the BUGS examples print the maximum likelihood answer: -0.548, 0.097, 1.337, -0.811, sd 0.236.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

published = {"coefficients": [-0.548, 0.097, 1.337, -0.811], "sd": 0.236}


def model(germinated, seeds, covariates):
    """Logistic regression of every plate's counts, with a normal effect of the plate.

    Args:
        germinated: ``(plates,)``.
        seeds: how many there were, ``(plates,)``.
        covariates: with a column of ones, ``(plates, covariates)``.
    """
    coefficients = numpyro.param("coefficients", jnp.zeros(covariates.shape[1]))
    sd = numpyro.param("sd", 0.5, constraint=dist.constraints.positive)
    with numpyro.plate("plates", germinated.shape[0]):
        b = numpyro.sample("b", dist.Normal(0, sd))
        logits = covariates @ coefficients + b
        numpyro.sample("germinated", dist.Binomial(seeds, logits=logits), obs=germinated)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Germinated seeds, all seeds, and the design: variety, root extract and both."""
    germinated = np.array([10, 23, 23, 26, 17, 5, 53, 55, 32, 46, 10, 8, 10, 8, 23, 0, 3, 22, 15, 32, 3])
    seeds = np.array([39, 62, 81, 51, 39, 6, 74, 72, 51, 79, 13, 16, 30, 28, 45, 4, 12, 41, 30, 51, 7])
    variety = np.repeat([0, 1], [11, 10])
    extract = np.repeat([0, 1, 0, 1], [5, 6, 5, 5])
    return germinated, seeds, np.column_stack([np.ones(21), variety, extract, variety * extract])


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

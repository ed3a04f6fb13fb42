"""Contagious bovine pleuropneumonia in 15 herds of cattle: a binomial regression with a random intercept.

Reference:
    Lesnoff et al. (2004), Preventive Veterinary Medicine 64; Bates et al. (2015), Fitting linear mixed-effects models
    using lme4, and the help page of ``cbpp`` there: by adaptive quadrature intercept -1.399, periods -0.991, -1.128 and
    -1.579, standard deviation 0.6475; by Laplace's approximation 0.6421.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

published = {"coefficients": [-1.39929, -0.9914, -1.12782, -1.57947], "sd": 0.6473}


def model(incidence, size, covariates, herd, herds):
    """Cases out of the size of the herd, with a normal effect of the herd.

    Args:
        incidence: number of new cases, ``(rows,)``.
        size: animals in the herd at that time, ``(rows,)``.
        covariates: with a column of ones, ``(rows, covariates)``.
        herd: number of the herd, from 0, ``(rows,)``.
        herds: how many there are.
    """
    coefficients = numpyro.param("coefficients", jnp.zeros(covariates.shape[1]))
    sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("herds", herds):
        u = numpyro.sample("u", dist.Normal(0, sd))
    with numpyro.plate("rows", incidence.shape[0]):
        logits = covariates @ coefficients + u[herd]
        numpyro.sample("incidence", dist.Binomial(size, logits=logits), obs=incidence)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Cases, sizes, indicators of the periods (the first is the base), herds and their number."""
    path = pathlib.Path(__file__).parent / "data" / "cbpp.csv"
    herd, incidence, size, period = np.loadtxt(path, delimiter=",", skiprows=1, dtype=int).T
    covariates = np.column_stack([np.ones(len(herd)), *(period == k for k in (2, 3, 4))])
    return incidence, size, covariates, herd - 1, 15


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, latents={"u": emppl.Quadrature(15)})
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

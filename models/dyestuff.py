"""Yield of dyestuff: how much of the variation lies between batches?

Five samples from each of six batches: one variance component between batches and one within. In a balanced layout the
maximum likelihood estimate has a closed form, which ``closed_form`` computes.

Identified as it stands: the batches' effects have mean zero.

Reference:
    Davies and Goldsmith (1972), Statistical methods in research and production (data); Box and Tiao (1973), Bayesian
    inference in statistical analysis, section 5.1; Bates et al. (2015), lme4: mean 1527.5, standard deviations 37.26
    between and 49.51 within batches, deviance 327.3271 by maximum likelihood.
"""

import pathlib

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {"mu": 1527.5, "sd_batch": 37.26, "sigma": 49.51, "deviance": 327.3271}


def model(yields):
    """Batches around a common mean, samples around their batch.

    Args:
        yields: ``(batches, samples)``, in grams.
    """
    batches, samples = yields.shape
    mu = numpyro.param("mu", 1500.0)
    sd_batch = numpyro.param("sd_batch", 50.0, constraint=constraints.positive)
    sigma = numpyro.param("sigma", 50.0, constraint=constraints.positive)
    with numpyro.plate("batches", batches, dim=-2):
        effect = numpyro.sample("effect", dist.Normal(0.0, sd_batch))
        with numpyro.plate("samples", samples, dim=-1):
            numpyro.sample("yield", dist.Normal(mu + effect, sigma), obs=yields)


def data() -> np.ndarray:
    """Six batches of five samples."""
    path = pathlib.Path(__file__).parent / "data" / "dyestuff.csv"
    return np.loadtxt(path, delimiter=",", skiprows=1, usecols=1).reshape(6, 5)


def closed_form(yields) -> dict[str, float]:
    """Maximum likelihood of the balanced one-way layout, where the component between is not zero."""
    batches, samples = yields.shape
    within = np.sum((yields - yields.mean(1, keepdims=True)) ** 2) / (batches * (samples - 1))
    between = samples * np.mean((yields.mean(1) - yields.mean()) ** 2)
    return {"mu": yields.mean(), "sd_batch": np.sqrt((between - within) / samples), "sigma": np.sqrt(within)}


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, max_iterations=5000)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("deviance:", round(-2 * result.log_likelihood, 4), "published:", published)
    print("effects of the batches:", result.posterior("effect")[0].round(2))


if __name__ == "__main__":
    main()

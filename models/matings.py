"""Matings of females and males, both with effects of their own: a logistic regression with crossed random effects.

Simulated in the layout of McCullagh and Nelder's salamanders: twenty animals of each sex, each of which meets six of
the other. All forty effects depend on each other given the data, so that their integral is one of forty dimensions, out
of reach of quadrature: Laplace's approximation.

Reference:
    McCullagh and Nelder (1989), Generalized linear models, section 14.5; Karim and Zeger (1992), Biometrics 48:631-644.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

known = {"coefficients": [1.0, -1.5], "female_sd": 1.0, "male_sd": 0.7}


def model(mated, mixed, female, male, animals):
    """Logistic regression with normal effects of female and male.

    Args:
        mated: 1 or 0, ``(pairs,)``.
        mixed: 1 for pairs from different populations, ``(pairs,)``.
        female: number of the female, from 0, ``(pairs,)``.
        male: number of the male, from 0, ``(pairs,)``.
        animals: how many there are of each.
    """
    coefficients = numpyro.param("coefficients", jnp.zeros(2))
    female_sd = numpyro.param("female_sd", 1.0, constraint=dist.constraints.positive)
    male_sd = numpyro.param("male_sd", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("females", animals):
        f = numpyro.sample("f", dist.Normal(0, female_sd))
    with numpyro.plate("males", animals):
        m = numpyro.sample("m", dist.Normal(0, male_sd))
    with numpyro.plate("pairs", mated.shape[0]):
        logits = coefficients[0] + coefficients[1] * mixed + f[female] + m[male]
        numpyro.sample("mated", dist.Bernoulli(logits=logits), obs=mated)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """120 pairs, simulated with a fixed seed."""
    rng = np.random.default_rng(1989)
    female = np.repeat(np.arange(20), 6)
    male = (female + np.tile([0, 1, 3, 7, 12, 16], 20)) % 20
    mixed = (female + male) % 2
    f, m = known["female_sd"] * rng.standard_normal(20), known["male_sd"] * rng.standard_normal(20)
    logits = known["coefficients"][0] + known["coefficients"][1] * mixed + f[female] + m[male]
    return (rng.random(120) < 1 / (1 + np.exp(-logits))).astype(int), mixed, female, male, 20


def main() -> None:
    """Fit and print the answer beside the one that is known."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, latents={"f": emppl.Laplace(), "m": emppl.Laplace()})
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("known truth of the simulation:", known)


if __name__ == "__main__":
    main()

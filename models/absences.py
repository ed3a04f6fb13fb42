"""Days of absence of 146 school children: Poisson counts with a multiplier of every child's own.

With gamma multipliers the counts are negative binomial; with log-normal ones nothing is closed, and the model is a
Poisson regression with a normal effect of the child.

Reference:
    Venables and Ripley (2002), Modern Applied Statistics with S, section 7.4, data of Quine: shape of the gamma 1.275,
    twice the log-likelihood -1093.151.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

published = {
    "coefficients": [2.89458, -0.56937, 0.08232, -0.44843, 0.08808, 0.3569, 0.29211],
    "shape": 1.275,
    "log_likelihood": -1093.151 / 2,
}


def model(days, covariates):
    """Poisson counts with gamma multipliers of mean one.

    Args:
        days: ``(children,)``.
        covariates: with a column of ones, ``(children, covariates)``.
    """
    coefficients = numpyro.param("coefficients", jnp.zeros(covariates.shape[1]))
    shape = numpyro.param("shape", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("children", days.shape[0]):
        multiplier = numpyro.sample("multiplier", dist.Gamma(shape, shape))
        numpyro.sample("days", dist.Poisson(multiplier * jnp.exp(covariates @ coefficients)), obs=days)


def log_normal(days, covariates):
    """Poisson counts with a normal effect of the child on the log scale.

    Args:
        days: ``(children,)``.
        covariates: with a column of ones, ``(children, covariates)``.
    """
    coefficients = numpyro.param("coefficients", jnp.zeros(covariates.shape[1]))
    sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("children", days.shape[0]):
        effect = numpyro.sample("effect", dist.Normal(0, sd))
        numpyro.sample("days", dist.Poisson(jnp.exp(covariates @ coefficients + effect)), obs=days)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Days, and covariates: not aboriginal, boy, ages F1 to F3, slow learner."""
    path = pathlib.Path(__file__).parent / "data" / "quine.csv"
    table = np.loadtxt(path, delimiter=",", skiprows=1, converters={2: lambda age: int(age[-1])}, encoding="utf-8")
    origin, boy, age, slow, days = table.astype(int).T
    covariates = np.column_stack([np.ones(len(days)), origin, boy, age == 1, age == 2, age == 3, slow])
    return days, covariates


def main() -> None:
    """Fit both and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    for one in (model, log_normal):
        em = emppl.EM(one)
        print(em.plan(*data()))
        em.run(jax.random.key(0), *data()).print_summary()
    print("published for gamma multipliers:", published)


if __name__ == "__main__":
    main()

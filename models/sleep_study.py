"""Sleep deprivation: a linear mixed model with a random intercept and slope for every subject.

Reaction times of 18 subjects over ten days of little sleep. The coefficients of a subject, ``beta + b[subject]``, vary
around those of all; ``b`` is normal, and so is everything else, so that it is integrated out exactly. Subjects are told
apart by an index among the data, as in a data frame.

Identified as it stands: ``b`` has mean zero, so that ``beta`` is the average line.

Reference:
    Belenky et al. (2003), J. Sleep Research 12:1-12 (data); Bates, Maechler, Bolker and Walker (2015), Fitting linear
    mixed-effects models using lme4, J. Statistical Software 67(1). Maximum likelihood (REML=FALSE): log-likelihood
    -875.97, intercept 251.405, slope 10.467, standard deviations 23.78 and 5.717 with correlation 0.081, residual
    25.592.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {
    "intercept": 251.405,
    "days": 10.467,
    "sd_intercept": 23.78,
    "sd_days": 5.717,
    "corr": 0.081,
    "sigma": 25.592,
    "log_likelihood": -875.97,
}


def model(reaction, days, subject, subjects=18):
    """A line for every subject.

    Args:
        reaction: reaction times in milliseconds, ``(observations,)``.
        days: days of sleep deprivation.
        subject: who it was, counted from zero.
        subjects: how many subjects there are.
    """
    beta = numpyro.param("beta", jnp.array([250.0, 10.0]))
    covariance = numpyro.param(
        "covariance", jnp.diag(jnp.array([600.0, 30.0])), constraint=constraints.positive_definite
    )
    sigma = numpyro.param("sigma", 30.0, constraint=constraints.positive)
    with numpyro.plate("subjects", subjects):
        b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), covariance_matrix=covariance))
    own = beta + b[subject]
    with numpyro.plate("observations", len(reaction)):
        numpyro.sample("reaction", dist.Normal(own[:, 0] + own[:, 1] * days, sigma), obs=reaction)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reaction time, day and number of the subject of 180 observations."""
    path = pathlib.Path(__file__).parent / "data" / "sleepstudy.csv"
    reaction, days, subject = np.loadtxt(path, delimiter=",", skiprows=1).T
    return reaction, days, np.unique(subject, return_inverse=True)[1]


def named(params) -> dict[str, float]:
    """The estimates as lme4 prints them."""
    deviations = np.sqrt(np.diagonal(params["covariance"]))
    return {
        "intercept": params["beta"][0],
        "days": params["beta"][1],
        "sd_intercept": deviations[0],
        "sd_days": deviations[1],
        "corr": params["covariance"][0, 1] / deviations.prod(),
        "sigma": params["sigma"],
    }


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, latents={"b": emppl.Gaussian()})
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("estimate: ", {name: round(float(value), 3) for name, value in named(result.params).items()})
    print("published:", published)
    mean, covariance = result.posterior("b")
    print("intercept and slope of the first subject, beside the average:", mean[0].round(2))
    print("their standard deviations:", np.sqrt(np.diagonal(covariance[0])).round(2))


if __name__ == "__main__":
    main()

"""Potency of penicillin: crossed random effects.

Six samples of penicillin on each of 24 plates of agar; what is measured is the diameter of the zone in which nothing
grows. Plates and samples meet in every measurement, so that their effects are integrated out together, as one normal
vector of 30 numbers.

Identified as it stands: both kinds of effects have mean zero.

Reference:
    Davies and Goldsmith (1972), Statistical methods in research and production (data); Bates et al. (2015), lme4, whose
    maximum likelihood fit has log-likelihood -166.09, intercept 22.9722 (standard error 0.7446), standard deviations
    0.8455 of plates, 1.7706 of samples, 0.5499 of the rest.
"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {"mu": 22.9722, "sd_plate": 0.8455, "sd_sample": 1.7706, "sigma": 0.5499, "log_likelihood": -166.09}


def model(diameter):
    """Effects of plates and of samples, added.

    Args:
        diameter: in millimetres, ``(plates, samples)``.
    """
    plates, samples = diameter.shape
    mu = numpyro.param("mu", 20.0)
    sd_plate, sd_sample, sigma = (
        numpyro.param(name, 1.0, constraint=constraints.positive) for name in ("sd_plate", "sd_sample", "sigma")
    )
    plates, samples = numpyro.plate("plates", plates, dim=-2), numpyro.plate("samples", samples, dim=-1)
    with plates:
        of_plate = numpyro.sample("of_plate", dist.Normal(0.0, sd_plate))
    with samples:
        of_sample = numpyro.sample("of_sample", dist.Normal(0.0, sd_sample))
    with plates, samples:
        numpyro.sample("diameter", dist.Normal(mu + of_plate + of_sample, sigma), obs=diameter)


def data() -> np.ndarray:
    """24 plates, 6 samples."""
    text = """
        27 23 26 23 23 21 27 23 26 23 23 21 25 21 25 24 24 20 26 23 25 23 23 20 25 22 26 22 23 20 24 22 25 23 22 19
        24 20 23 21 22 19 26 22 26 24 24 21 24 21 24 22 22 20 24 21 24 23 22 19 26 23 26 24 24 21 25 22 26 24 24 20
        26 24 26 24 25 22 26 23 26 23 23 20 26 23 25 24 24 22 25 22 25 23 23 20 25 21 24 23 23 20 25 22 24 23 23 19
        24 21 23 21 21 19 26 23 26 24 24 21 25 21 24 22 22 18 25 22 25 22 22 20 24 21 24 22 24 19 24 21 24 22 21 18
        """
    return np.array([float(word) for word in text.split()]).reshape(24, 6)


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, max_iterations=20_000)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("published:", published)
    print("effects of the samples:", result.posterior("of_sample")[0].round(2))


if __name__ == "__main__":
    main()

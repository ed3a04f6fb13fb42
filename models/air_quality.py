"""Air quality in New York, May to September 1973: a multivariate normal with missing values.

Ozone, solar radiation, wind and temperature of 153 days, 44 of the 612 numbers missing. Missing numbers are NaN in the
data, and are integrated out whatever the pattern.

Reference:
    Chambers, Cleveland, Kleiner and Tukey (1983), Graphical Methods for Data Analysis (data); Dempster, Laird and Rubin
    (1977), Maximum likelihood from incomplete data via the EM algorithm, section 4.1.3 (the algorithm).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

known = {"log_likelihood": -2326.6973828}

COLUMNS = ("Ozone", "Solar.R", "Wind", "Temp")


def model(days):
    """Days as rows of one normal distribution.

    Args:
        days: ``(days, 4)``, NaN where a number is missing.
    """
    seen = ~jnp.isnan(days)
    count = seen.sum(0)
    mean_start = jnp.where(seen, days, 0).sum(0) / count
    variance_start = jnp.where(seen, (days - mean_start) ** 2, 0).sum(0) / count
    mean = numpyro.param("mean", mean_start)
    covariance = numpyro.param("covariance", jnp.diag(variance_start), constraint=constraints.positive_definite)
    with numpyro.plate("days", len(days)):
        numpyro.sample("day", dist.MultivariateNormal(mean, covariance), obs=days)


def data() -> np.ndarray:
    """The four measurements of every day."""
    path = pathlib.Path(__file__).parent / "data" / "airquality.csv"
    return np.genfromtxt(path, delimiter=",", skip_header=1, missing_values="NA", filling_values=np.nan)


def main() -> None:
    """Fit and print the answer beside the known one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("known:", known)


if __name__ == "__main__":
    main()

"""The Nile at Aswan, 1871 to 1970: a random walk seen through noise, the local level model.

The E-step is a Kalman smoother, which nothing here spells out. EM crawls towards the variance of the level, on which
the likelihood hardly depends: ``accelerate="squarem"`` leaps.

Reference:
    Durbin and Koopman (2012), Time Series Analysis by State Space Methods, 2nd ed., chapter 2 (variances 15099 and
    1469.1 with a diffuse start); Shumway and Stoffer (1982), An approach to time series smoothing and forecasting using
    the EM algorithm, J. Time Series Anal. 3:253-264 (EM).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl

published = {"observation_variance": 15099, "level_variance": 1469.1}


def model(flow):
    """A level that wanders from year to year, with a nearly flat distribution in the first one.

    Args:
        flow: volume in 10^8 cubic metres, ``(years,)``.
    """
    observation = numpyro.param("observation_variance", 10000.0, constraint=constraints.positive)
    level_variance = numpyro.param("level_variance", 5000.0, constraint=constraints.positive)

    def year(carry, volume):
        before, number = carry
        spread = jnp.where(number == 0, jnp.sqrt(1e7), jnp.sqrt(level_variance))
        level = numpyro.sample("level", dist.Normal(before, spread))
        numpyro.sample("flow", dist.Normal(level, jnp.sqrt(observation)), obs=volume)
        return (level, number + 1), None

    scan(year, (0.0, 0), flow)


def data() -> np.ndarray:
    """Flows of 1871 to 1970."""
    return np.loadtxt(pathlib.Path(__file__).parent / "data" / "nile.csv", skiprows=1)


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, accelerate="squarem", max_iterations=20_000)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("published (diffuse start):", published)


if __name__ == "__main__":
    main()

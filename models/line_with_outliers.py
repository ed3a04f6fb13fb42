"""A straight line through points with known error bars, some of which are wrong.

Every response carries a measurement error of known size; on top of that some points are bad, for reasons nobody
recorded, and come from a broad distribution that has nothing to do with the line. The measurement error is integrated
out by hand: it adds its variance. Which points are bad is the latent, and the line is a regression that weighs every
point by its error bar and by the probability that it is good.

Reference:
    Hogg, Bovy and Lang (2010), Data analysis recipes: fitting a model to data, arXiv:1008.4686, table 1 and section 3.
    Without the four bad points, by weighted least squares (exercise 1): slope 2.24 with standard error 0.11, intercept
    34 with standard error 18.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {"slope": 2.24, "intercept": 34.0}


def model(x, y, error):
    """Points on a line, or not.

    Args:
        x: positions, ``(points,)``.
        y: responses.
        error: standard deviation of each response's measurement error.
    """
    share = numpyro.param("share", 0.2, constraint=constraints.unit_interval)
    slope, intercept = numpyro.param("slope", 2.0), numpyro.param("intercept", 50.0)
    centre = numpyro.param("centre", 400.0)
    spread = numpyro.param("spread", 100.0, constraint=constraints.positive)
    with numpyro.plate("points", len(x)):
        bad = numpyro.sample("bad", dist.Bernoulli(share))
        mean = jnp.where(bad == 1, centre, slope * x + intercept)
        variance = error**2 + jnp.where(bad == 1, spread**2, 0.0)
        numpyro.sample("y", dist.Normal(mean, jnp.sqrt(variance)), obs=y)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, responses and error bars of the twenty points of table 1."""
    x = [201, 244, 47, 287, 203, 58, 210, 202, 198, 158, 165, 201, 157, 131, 166, 160, 186, 125, 218, 146]
    y = [592, 401, 583, 402, 495, 173, 479, 504, 510, 416, 393, 442, 317, 311, 400, 337, 423, 334, 533, 344]
    error = [61, 25, 38, 15, 21, 15, 27, 14, 30, 16, 14, 25, 52, 16, 34, 31, 42, 26, 16, 22]
    return np.array(x, float), np.array(y, float), np.array(error, float)


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("published:", published)
    print("probability of being bad:", np.round(result.posterior("bad")[:, 1], 3))


if __name__ == "__main__":
    main()

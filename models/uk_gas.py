"""Gas consumption in the United Kingdom, 1960 to 1986, by quarter: a smooth trend and a changing seasonal pattern.

The level moves by the slope without noise of its own, so that the level is the state and the slope the difference of
two levels; the seasonal pattern of four quarters adds up to noise. The scan's carry reaches three quarters back.

Reference:
    Durbin and Koopman (2001), Time Series Analysis by State Space Methods, section 8.3 (data and model).
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

known = {"log_likelihood": 165.073727628}


def model(gas):
    """Logarithms of the consumption.

    The level and the slope of the first quarter, and the seasonal effects of the first and of the two quarters before,
    are normal with standard deviation one; the level has mean two.

    Args:
        gas: base-10 logarithms, ``(quarters,)``.
    """
    slope = numpyro.param("slope_variance", 1e-5, constraint=constraints.positive)
    seasonal = numpyro.param("seasonal_variance", 1e-3, constraint=constraints.positive)
    observation = numpyro.param("observation_variance", 1e-3, constraint=constraints.positive)

    # Two quarters before the first: the pattern begins there, unseen.
    unseen = jnp.zeros(2)
    seen = jnp.concatenate([unseen, jnp.ones(len(gas))]) > 0

    def quarter(carry, now):
        levels, seasons, number = carry
        log_gas, is_seen = now
        mean = jnp.where(number < 2, 0.0, jnp.where(number == 2, 2.0, 2 * levels[0] - levels[1]))
        mean = jnp.where(number == 3, levels[0], mean)
        level = numpyro.sample("level", dist.Normal(mean, jnp.sqrt(jnp.where(number < 4, 1.0, slope))))
        season_mean = jnp.where(number < 3, 0.0, -(seasons[0] + seasons[1] + seasons[2]))
        season = numpyro.sample("season", dist.Normal(season_mean, jnp.sqrt(jnp.where(number < 3, 1.0, seasonal))))
        numpyro.sample("gas", dist.Normal(level + season, jnp.sqrt(observation)).mask(is_seen), obs=log_gas)
        return ((level, levels[0]), (season, seasons[0], seasons[1]), number + 1), None

    scan(quarter, ((0.0, 0.0), (0.0, 0.0, 0.0), 0), (jnp.concatenate([unseen, gas]), seen))


def data() -> np.ndarray:
    """Logarithms of quarterly consumption."""
    path = pathlib.Path(__file__).parent / "data" / "ukgas.csv"
    return np.genfromtxt(path, delimiter=",", skip_header=1)[:, -1]


def main() -> None:
    """Fit and print the answer beside the known one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, accelerate="squarem", max_iterations=20_000)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("known:", known)


if __name__ == "__main__":
    main()

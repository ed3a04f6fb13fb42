"""Major earthquakes in the world, 1900 to 2006: a hidden Markov model of Poisson counts.

Seismic activity switches between two to four levels, each with its own yearly rate. The first year follows either the
stationary law of the chain, a function of the transitions (so that these have no closed form), or a law of its own, as
in Baum and Welch.

Reference:
    Zucchini and MacDonald (2009), Hidden Markov Models for Time Series, table 1.1 and sections 3.4, 4.3 and 5.3: two
    states, stationary: rates 15.472 and 26.125, minus log-likelihood 342.3183.
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

STARTS = {2: [15.0, 25.0], 3: [10.0, 20.0, 30.0], 4: [11.3, 13.9, 19.7, 29.7]}

published = {"rate": [15.472, 26.125], "log_likelihood": -342.3183}


def model(counts, states, stationary=True):
    """Yearly counts, each year in one of some states.

    Args:
        counts: earthquakes of magnitude 7 or more, ``(years,)``.
        states: number of states.
        stationary: does the first year follow the stationary law?
    """
    rate = numpyro.param("rate", jnp.array(STARTS[states]), constraint=constraints.positive)
    stay = 0.8 * jnp.eye(states) + 0.2 / (states - 1) * (1 - jnp.eye(states))
    transition = numpyro.param("transition", stay, constraint=constraints.simplex)
    if stationary:
        # pi (I - P + 1) = 1: the stationary law by one linear solve.
        initial = jnp.linalg.solve((jnp.eye(states) - transition + 1).T, jnp.ones(states))
    else:
        initial = numpyro.param("initial", jnp.full(states, 1 / states), constraint=constraints.simplex)

    def year(carry, count):
        before, number = carry
        state = numpyro.sample("state", dist.Categorical(jnp.where(number == 0, initial, transition[before])))
        numpyro.sample("counts", dist.Poisson(rate[state]), obs=count)
        return (state, number + 1), None

    scan(year, (0, 0), counts)


def data() -> np.ndarray:
    """Counts of 1900 to 2006."""
    return np.loadtxt(pathlib.Path(__file__).parent / "data" / "earthquakes.csv", skiprows=1, dtype=int)


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(data(), 2))
    result = em.run(jax.random.key(0), data(), 2)
    result.print_summary()
    print("published:", published)
    print("most probable states:", result.decode()["state"])


if __name__ == "__main__":
    main()

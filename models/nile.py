"""The Nile at Aswan, 1871 to 1970: change points as a left-right hidden Markov model.

The flow starts at one level and moves on to the next, never back: below the diagonal of the transitions are structural
zeros, and the last level is for ever. Every path is a choice of change points.

Reference:
    Cobb (1978), The problem of the Nile: conditional solution to a change-point problem, Biometrika 65:243-251 (data:
    one change, after 1898); Chib (1998), Estimation and comparison of multiple change-point models, J. Econometrics
    86:221-241 (the left-right chain). Means before and after 1898: 1097.75 and 849.97.
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

published = {"last_year": 1898, "level": [1097.75, 849.97]}

STARTS = {2: [1000.0, 900.0], 3: [1100.0, 900.0, 800.0]}


def model(flow, levels=2):
    """Yearly flows around one level after another, with one spread.

    Args:
        flow: volume in 10^8 cubic metres, ``(years,)``.
        levels: number of levels.
    """
    level = numpyro.param("level", jnp.array(STARTS[levels]))
    spread = numpyro.param("spread", 150.0, constraint=constraints.positive)
    move = numpyro.param("move", jnp.full(levels - 1, 0.05), constraint=constraints.unit_interval)
    stay = jnp.concatenate([1 - move, jnp.ones(1)])
    transition = jnp.diag(stay) + jnp.diag(move, 1)

    def year(carry, volume):
        before, number = carry
        first = jnp.eye(levels)[0]
        period = numpyro.sample("period", dist.Categorical(jnp.where(number == 0, first, transition[before])))
        numpyro.sample("flow", dist.Normal(level[period], spread), obs=volume)
        return (period, number + 1), None

    scan(year, (0, 0), flow)


def data() -> np.ndarray:
    """Flows of 1871 to 1970."""
    return np.loadtxt(pathlib.Path(__file__).parent / "data" / "nile.csv", skiprows=1)


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    periods = result.decode()["period"]
    print("last year of the first period:", 1870 + int(np.sum(periods == 0)), "published:", published)


if __name__ == "__main__":
    main()

"""Old Faithful dichotomised: short and long eruptions, in order, as a two-state hidden Markov model.

A short eruption is always followed by a long one, but a long one by either. That is not a Markov chain of first order:
the hidden states are "after which an eruption is long" and "of either kind".

The 299 eruptions of August 1985 are not the 272 of models/old_faithful.py, which are another record.

Reference:
    Azzalini and Bowman (1990), A look at some data on the Old Faithful geyser, Applied Statistics 39:357-365 (data);
    Zucchini and MacDonald (2009), Hidden Markov Models for Time Series, chapter 10, eruptions shorter than 3 minutes
    against all others: two states, stationary: transitions 0.000, 1.000 and 0.827, 0.173, long with probability 0.225
    and 1.000, minus log-likelihood 127.31.
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

published = {"transition": [[0.0, 1.0], [0.827, 0.173]], "long": [0.225, 1.0], "log_likelihood": -127.31}


def model(is_long):
    """A stationary chain of two states.

    Args:
        is_long: did the eruption last three minutes or more, ``(eruptions,)``?
    """
    start = jnp.array([[0.1, 0.9], [0.7, 0.3]])
    transition = numpyro.param("transition", start, constraint=constraints.simplex)
    long = numpyro.param("long", jnp.array([0.3, 0.9]), constraint=constraints.unit_interval)
    leave = jnp.stack([transition[1, 0], transition[0, 1]])

    def eruption(carry, kind):
        before, number = carry
        probs = jnp.where(number == 0, leave / jnp.sum(leave), transition[before])
        state = numpyro.sample("state", dist.Categorical(probs))
        numpyro.sample("is_long", dist.Bernoulli(long[state]), obs=kind)
        return (state, number + 1), None

    scan(eruption, (0, 0), is_long)


def data() -> np.ndarray:
    """The 299 eruptions from 1 to 15 August 1985, one for every long eruption."""
    return np.loadtxt(pathlib.Path(__file__).parent / "data" / "eruptions.csv", skiprows=1, dtype=int)


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

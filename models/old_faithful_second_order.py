"""Old Faithful's short and long eruptions again: hidden states with a memory of two eruptions.

Every hidden state depends on the two before it. The first two follow laws of their own: the first a start law, the
second the law after a pair of equal states.

Reference:
    Zucchini and MacDonald (2009), Hidden Markov Models for Time Series, sections 8.3 and 10.2 (second-order models of
    this series). They start it from the stationary law of pairs, which is another likelihood: the known answer is a
    numerical maximiser's, of a forward recursion over pairs of states written by hand.
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

known = {"log_likelihood": -126.73288}


def model(is_long):
    """A chain of second order with two states.

    Args:
        is_long: did the eruption last three minutes or more, ``(eruptions,)``?
    """
    start = jnp.array([[[0.3, 0.7], [0.6, 0.4]], [[0.1, 0.9], [0.5, 0.5]]])
    initial = numpyro.param("initial", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
    transition = numpyro.param("transition", start, constraint=constraints.simplex)
    long = numpyro.param("long", jnp.array([0.2, 0.9]), constraint=constraints.unit_interval)

    def eruption(carry, kind):
        last_but_one, last, number = carry
        earlier = jnp.where(number == 1, last, last_but_one)
        probs = jnp.where(number == 0, initial, transition[earlier, last])
        state = numpyro.sample("state", dist.Categorical(probs))
        numpyro.sample("is_long", dist.Bernoulli(long[state]), obs=kind)
        return (last, state, number + 1), None

    scan(eruption, (0, 0, 0), is_long, history=2)


def data() -> np.ndarray:
    """The 299 eruptions from 1 to 15 August 1985, one for every long eruption."""
    return np.loadtxt(pathlib.Path(__file__).parent / "data" / "eruptions.csv", skiprows=1, dtype=int)


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

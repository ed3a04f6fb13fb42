"""Earthquakes again: two sources, each quiet or active, as a factorial hidden Markov model.

Two chains run side by side and do not see each other; every year's count is Poisson with a rate that is the product of
a base and a factor for every active source. Four levels of activity, as with the four states of models/earthquakes.py,
but seven numbers instead of nineteen.

Reference:
    Ghahramani and Jordan (1997), Factorial hidden Markov models, Machine Learning 29:245-273 (the model); Zucchini and
    MacDonald (2009), Hidden Markov Models for Time Series, table 1.1 (data). No published fit: the known answer is a
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

known = {"log_likelihood": -329.79529}


def model(counts):
    """Yearly counts under two sources, both quiet before the first year.

    Args:
        counts: earthquakes of magnitude 7 or more, ``(years,)``.
    """
    rise = numpyro.param("rise", jnp.array([0.05, 0.05]), constraint=constraints.unit_interval)
    fall = numpyro.param("fall", jnp.array([0.05, 0.1]), constraint=constraints.unit_interval)
    base = numpyro.param("base", jnp.log(13.0))
    effect = numpyro.param("effect", jnp.array([0.4, 0.4]))

    def year(before, count):
        slow_before, fast_before = before
        slow = numpyro.sample("slow", dist.Bernoulli(jnp.where(slow_before == 1, 1 - fall[0], rise[0])))
        fast = numpyro.sample("fast", dist.Bernoulli(jnp.where(fast_before == 1, 1 - fall[1], rise[1])))
        rate = jnp.exp(base + effect[0] * slow + effect[1] * fast)
        numpyro.sample("counts", dist.Poisson(rate), obs=count)
        return (slow, fast), None

    scan(year, (0, 0), counts)


def data() -> np.ndarray:
    """Counts of 1900 to 2006."""
    return np.loadtxt(pathlib.Path(__file__).parent / "data" / "earthquakes.csv", skiprows=1, dtype=int)


def main() -> None:
    """Fit and print the answer beside the known one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("known:", known)
    states = result.decode()
    print("most probable active sources:", states["slow"] + states["fast"])


if __name__ == "__main__":
    main()

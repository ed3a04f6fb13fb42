"""The Canadian lynx: an autoregression of second order that switches between two regimes.

Lynx trapped per year rise slowly and fall fast. In every regime the logarithm of a year's number is a regression on the
two years before; the regimes follow a Markov chain (a regime switching regression, or autoregressive hidden Markov
model). The two earlier observations are in the carry.

Reference:
    Elton and Nicholson (1942), The ten-year cycle in numbers of the lynx in Canada, J. Animal Ecology 11:215-244
    (data); Hamilton (1989), A new approach to the economic analysis of nonstationary time series and the business
    cycle, Econometrica 57:357-384 (the model). No published fit: the known answer is a numerical maximiser's, of a
    forward recursion written by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl

known = {"log_likelihood": 20.20835}


def model(trapped):
    """Each year's number given the two before it, in one of two regimes.

    Args:
        trapped: decimal logarithms of the lynx trapped, ``(years,)``; the first two are taken as given.
    """
    initial = numpyro.param("initial", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
    stay = jnp.array([[0.8, 0.2], [0.2, 0.8]])
    transition = numpyro.param("transition", stay, constraint=constraints.simplex)
    intercept = numpyro.param("intercept", jnp.array([0.5, 1.0]))
    lag1 = numpyro.param("lag1", jnp.array([1.2, 1.4]))
    lag2 = numpyro.param("lag2", jnp.array([-0.3, -0.8]))
    scale = numpyro.param("scale", jnp.array([0.2, 0.2]), constraint=constraints.positive)

    def year(carry, number):
        before, last, last_but_one, count = carry
        regime = numpyro.sample("regime", dist.Categorical(jnp.where(count == 0, initial, transition[before])))
        mean = intercept[regime] + lag1[regime] * last + lag2[regime] * last_but_one
        numpyro.sample("trapped", dist.Normal(mean, scale[regime]), obs=number)
        return (regime, number, last, count + 1), None

    scan(year, (0, trapped[1], trapped[0], 0), trapped[2:])


def data() -> np.ndarray:
    """Decimal logarithms of the lynx trapped in the Mackenzie River district, 1821 to 1934."""
    text = """269 321 585 871 1475 2821 3928 5943 4950 2577 523 98 184 279 409 2285 2685 3409 1824 409 151 45 68 213
        546 1033 2129 2536 957 361 377 225 360 731 1638 2725 2871 2119 684 299 236 245 552 1623 3311 6721 4254
        687 255 473 358 784 1594 1676 2251 1426 756 299 201 229 469 736 2042 2811 4431 2511 389 73 39 49 59
        188 377 1292 4031 3495 587 105 153 387 758 1307 3465 6991 6313 3794 1836 345 382 808 1388 2713 3800
        3091 2985 3790 674 81 80 108 229 399 1132 2432 3574 2935 1537 529 485 662 1000 1590 2657 3396"""
    return np.log10([float(word) for word in text.split()])


def main() -> None:
    """Fit and print the answer beside the known one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("known:", known)
    print("most probable regimes:", result.decode()["regime"])


if __name__ == "__main__":
    main()

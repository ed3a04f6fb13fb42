"""European dippers, ringed and seen again over seven years: survival and recapture (Cormack, Jolly and Seber).

A bird that was ringed survives every year with some probability, and a bird that is alive is seen with another. Dead
birds stay dead and are never seen: structural zeros. Years with a flood may differ in survival.

Reference:
    Lebreton, Burnham, Clobert and Anderson (1992), Modeling survival and testing biological hypotheses using marked
    animals, Ecological Monographs 62 (data and model). Program MARK, with constant probabilities: logit of survival
    0.2421 (0.5602), of recapture 2.2263 (0.9026), -2 log L = 666.8377.
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

published = {"survival": 0.5602, "recapture": 0.9026, "log_likelihood": -666.8377 / 2}


def model(seen, first, flood, kinds=1):
    """Capture histories, given the first capture.

    Args:
        seen: was the bird seen, ``(years - 1, birds)``, from the second year on?
        first: year of the first capture, ``(birds,)``.
        flood: kind of every interval between years, ``(years - 1,)``; zeros for one survival probability.
        kinds: number of kinds, each with a survival probability of its own.
    """
    survival = numpyro.param("survival", jnp.full(kinds, 0.6), constraint=constraints.unit_interval)
    recapture = numpyro.param("recapture", 0.8, constraint=constraints.unit_interval)

    def year(carry, data):
        alive_before, number = carry
        seen_now, kind = data
        ringed = number > first
        with numpyro.plate("birds", first.shape[0]):
            survives = jnp.where(alive_before == 1, survival[kind], 0.0)
            alive = numpyro.sample("alive", dist.Bernoulli(jnp.where(ringed, survives, 1.0)))
            visible = jnp.where(alive == 1, recapture, 0.0)
            numpyro.sample("seen", dist.Bernoulli(visible).mask(ringed), obs=seen_now)
        return (alive, number + 1), None

    scan(year, (jnp.ones(first.shape[0], int), 1), (seen, flood))


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sightings of 1982 to 1987, year of ringing counted from 1981, and which intervals had a flood."""
    lines = (pathlib.Path(__file__).parent / "data" / "dipper.csv").read_text().split()[1:]
    histories = np.array([[int(digit) for digit in line.split(",")[0][1:]] for line in lines])
    return histories[:, 1:].T, histories.argmax(1), np.array([0, 1, 1, 0, 0, 0])


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    seen, first, flood = data()
    em = emppl.EM(model)
    print(em.plan(seen, first, flood, 2))
    result = em.run(jax.random.key(0), seen, first, flood, 2)
    result.print_summary()
    print("published, without floods:", published)


if __name__ == "__main__":
    main()

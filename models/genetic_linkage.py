"""Genetic linkage of 197 animals: the first example of the paper that named the EM algorithm.

The four observed cells have probabilities 1/2 + pi/4, (1 - pi)/4, (1 - pi)/4 and pi/4. The first is the union of a
cell of probability 1/2, which says nothing about pi, and one of probability pi/4. So an animal falls into one of
three groups, (1/2, 1/4, 1/4), and in the last two it is "linked" with probability pi.

Reference:
    Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, JRSS B 39:1-38,
    section 1: from 0.5 to 0.626821498, gaining a factor of about 7.5 in accuracy per iteration. Louis (1982), JRSS B
    44:226-233, gives the information: complete 435.3, missing 57.8, observed 377.5, hence a standard error of 0.0515.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

# Observed cell of an animal: rows are the groups, columns unlinked and linked.
CELL = np.array([[0, 0], [1, 0], [2, 3]])

start = {"pi": np.array(0.5)}
published = {"pi": 0.626821498, "standard error": 0.0515}


def model(counts):
    """Animals of every observed cell.

    Args:
        counts: animals in every cell, ``(4,)``.
    """
    pi = numpyro.sample("pi", dist.Beta(2.0, 2.0))
    with numpyro.plate("cells", 4), numpyro.handlers.scale(scale=counts):
        group = numpyro.sample("group", dist.Categorical(jnp.array([0.5, 0.25, 0.25])))
        # Animals of the first group were never exposed to linkage: their `linked` does not exist. Without the mask
        # EM would impute it from pi itself, which has the same maximum but takes smaller steps towards it.
        with numpyro.handlers.mask(mask=group != 0):
            linked = numpyro.sample("linked", dist.Bernoulli(pi))
        numpyro.sample("cell", dist.Delta(jnp.asarray(CELL)[group, linked]), obs=jnp.arange(4))


def data() -> np.ndarray:
    """Animals in every cell."""
    return np.array([125.0, 18.0, 20.0, 34.0])


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    counts = data()
    em = emppl.EM(model, prior=False)
    print(em.plan(counts))
    result = em.run(jax.random.key(0), counts, init_params=start)
    result.print_summary()
    print("published:", published)
    hidden = counts[0] * (1 - result.posterior("group")[0, 0])
    print(f"of the {counts[0]:.0f} animals of the first cell, {hidden:.2f} are expected to be linked")


if __name__ == "__main__":
    main()

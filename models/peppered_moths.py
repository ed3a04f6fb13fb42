"""Allele frequencies of the peppered moth, whose phenotypes hide the genotypes.

The wing colour gene has three alleles, C dominant over I dominant over T. Under Hardy-Weinberg equilibrium a moth
draws its two alleles independently; carbonaria carries a C, insularia an I but no C, typica two T. Only the three
phenotypes are counted.

Reference:
    Givens and Hoeting (2013), Computational Statistics, examples 4.2 and 4.4: frequencies 0.07084, 0.18874, 0.74043.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

PHENOTYPES = ("carbonaria", "insularia", "typica")
# The phenotype that two alleles (C, I, T) make together: the lower, more dominant one decides.
PHENOTYPE = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 2]])

start = {"frequency": np.full(3, 1 / 3)}
published = {"frequency": [0.07084, 0.18874, 0.74043]}


def model(counts):
    """Moths of every phenotype, each with a hidden pair of alleles.

    Args:
        counts: moths seen of every phenotype, ``(3,)``.
    """
    frequency = numpyro.param("frequency", jnp.full(3, 1 / 3), constraint=constraints.simplex)
    # One cell per phenotype, counted as often as it was seen: moths that look alike share one posterior.
    with numpyro.plate("phenotypes", 3), numpyro.handlers.scale(scale=counts):
        maternal = numpyro.sample("maternal", dist.Categorical(frequency))
        paternal = numpyro.sample("paternal", dist.Categorical(frequency))
        expressed = jnp.asarray(PHENOTYPE)[maternal, paternal]
        numpyro.sample("phenotype", dist.Delta(expressed), obs=jnp.arange(3))


def data() -> np.ndarray:
    """Counts of carbonaria, insularia and typica."""
    return np.array([85.0, 196.0, 341.0])


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    counts = data()
    em = emppl.EM(model)
    print(em.plan(counts))
    result = em.run(jax.random.key(0), counts, init_params=start)
    result.print_summary()
    print("published:", published)
    print("posterior of the maternal allele       C      I      T")
    for name, alleles in zip(PHENOTYPES, result.posterior("maternal"), strict=True):
        print(f"  in {name:<31}" + "".join(f"{probability:7.3f}" for probability in alleles))


if __name__ == "__main__":
    main()

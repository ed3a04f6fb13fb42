"""Trypanosomes and a drug: two dose-response curves with one slope, and a hidden type for every organism.

The share of dead organisms rises with the dose, stops, and rises again: no single logistic curve fits. With two types
of organism, each with an intercept of its own, the curves are two parallel logistic regressions in the logarithm of the
dose. Their coefficients are one concave block, which takes Newton steps (iteratively reweighted least squares) in EM.

Reference:
    Ashford and Walker (1972), Quantal response analysis for a mixture of populations, Biometrics 28:981-988 (data);
    Follmann and Lambert (1989), Generalizing logistic regression by nonparametric mixing, JASA 84:295-300: slope
    about 125.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

start = {"weights": np.array([0.6, 0.4]), "intercept": np.array([-3.0, 3.0]), "slope": np.array(60.0)}
published = {"slope": 124.8}


def model(dose, died, organisms):
    """A mixture of two logistic regressions with a common slope.

    Args:
        dose: of every cell of the table, ``(cells,)``.
        died: whether its organisms died, ``(cells,)``.
        organisms: how many there are, ``(cells,)``.
    """
    weights = numpyro.param("weights", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
    intercept = numpyro.param("intercept", jnp.array([-1.0, 1.0]))
    slope = numpyro.param("slope", 10.0)
    with numpyro.plate("cells", dose.shape[0]), numpyro.handlers.scale(scale=organisms):
        kind = numpyro.sample("kind", dist.Categorical(weights))
        logits = intercept[kind] + slope * (jnp.log(dose) - 1.6)
        numpyro.sample("died", dist.Bernoulli(logits=logits), obs=died)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dose, outcome and number of organisms of every cell: the dead first, then the survivors."""
    dose = np.array([4.7, 4.8, 4.9, 5.0, 5.1, 5.2, 5.3, 5.4])
    dead = np.array([0.0, 8, 18, 18, 22, 37, 47, 50])
    total = np.array([55.0, 49, 60, 55, 53, 53, 51, 50])
    return np.tile(dose, 2), np.repeat([1.0, 0.0], 8), np.concatenate([dead, total - dead])


def main() -> None:
    """Fit and print the two curves."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data(), init_params=start)
    result.print_summary()
    print("published:", published)
    dose, _, organisms = data()
    logits = result.params["intercept"][:, None] + result.params["slope"] * (np.log(dose[:8]) - 1.6)
    fitted = result.params["weights"] @ (1 / (1 + np.exp(-logits)))
    print("dose      " + "".join(f"{one:7.1f}" for one in dose[:8]))
    print("observed  " + "".join(f"{one:7.2f}" for one in organisms[:8] / (organisms[:8] + organisms[8:])))
    print("fitted    " + "".join(f"{one:7.2f}" for one in fitted))


if __name__ == "__main__":
    main()

"""Chest girths of 5738 Scottish soldiers, recorded to the inch: a normal law from grouped data.

Where a girth lies inside its one-inch class is hidden. Treating class midpoints as measurements inflates the standard
deviation; integrating over the class removes the need for Sheppard's correction. The model says what was done: girths
were rounded. What was recorded is a hard constraint on the latent girth, which is a truncated normal variable.

Reference:
    Quetelet (1846), Lettres sur la theorie des probabilites; Stigler (1986), The History of Statistics, chapter 5. From
    class midpoints: mean 39.83, standard deviation 2.05; grouped maximum likelihood: 39.8318 and 2.0290.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {"mu": 39.8318, "sigma": 2.0290}
published_midpoints = {"mu": 39.83, "sigma": 2.05}


def model(inches, counts):
    """Soldiers of every class, each at a hidden place inside it.

    Args:
        inches: class midpoints; a class reaches half an inch to both sides, ``(classes,)``.
        counts: soldiers in every class, ``(classes,)``.
    """
    mu = numpyro.param("mu", 40.0)
    sigma = numpyro.param("sigma", 2.0, constraint=constraints.positive)
    with numpyro.plate("classes", inches.shape[0]), numpyro.handlers.scale(scale=counts):
        girth = numpyro.sample("girth", dist.Normal(mu, sigma))
        numpyro.sample("inches", dist.Delta(jnp.floor(girth + 0.5)), obs=inches)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Class midpoints in inches, and soldiers in every class."""
    counts = [3, 18, 81, 185, 420, 749, 1073, 1079, 934, 658, 370, 92, 50, 21, 4, 1]
    return np.arange(33.0, 49.0), np.array(counts, float)


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    inches, counts = data()
    em = emppl.EM(model)
    print(em.plan(inches, counts))
    result = em.run(jax.random.key(0), inches, counts)
    result.print_summary()
    print("published:", published, "; from midpoints:", published_midpoints)


if __name__ == "__main__":
    main()

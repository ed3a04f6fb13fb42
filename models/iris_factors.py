"""Fisher's irises: a mixture of factor analysers.

Four measurements of 150 flowers of three species. Every component has a mean, a common cause of its own, size, on which
the measurements load, and noise around it: covariances of a few parameters, between diagonal and full ones.

Conventions: components have no order, and the sign of every component's loadings is open (with several factors, so is
their rotation). Maxima are many: the best of several starts is kept. The noise is common to all components, so that
none can collapse onto a few flowers.

Reference:
    Anderson (1935), The irises of the Gaspe peninsula (data); Ghahramani and Hinton (1997), The EM algorithm for
    mixtures of factor analyzers, technical report CRG-TR-96-1, University of Toronto.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

known = {"flowers of each species": [50, 50, 50]}

# Rough means of the species, to start from.
start_mean = np.array([[5.0, 3.4, 1.5, 0.2], [5.9, 2.8, 4.3, 1.3], [6.6, 3.0, 5.6, 2.0]])


def model(x, K=3, factors=1):
    """Components with factors of their own.

    Args:
        x: sepal length and width, petal length and width in centimetres, ``(flowers, 4)``.
        K: number of components.
        factors: factors of every component.
    """
    flowers, size = x.shape
    weights = numpyro.param("weights", jnp.full(K, 1 / K), constraint=constraints.simplex)
    mean = numpyro.param("mean", jnp.asarray(start_mean[:K]))
    loading = numpyro.param("loading", 0.3 * jnp.cos(jnp.arange(K * size * factors) / 3.0).reshape(K, size, factors))
    noise = numpyro.param("noise", jnp.full(size, 0.3), constraint=constraints.positive)
    with numpyro.plate("flowers", flowers):
        species = numpyro.sample("species", dist.Categorical(weights))
        factor = numpyro.sample("factor", dist.Normal(jnp.zeros(factors), 1.0).to_event(1))
        location = mean[species] + jnp.squeeze(loading[species] @ factor[..., None], -1)
        numpyro.sample("x", dist.Normal(location, noise).to_event(1), obs=x)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Measurements, and the species (which the model does not see)."""
    raw = np.loadtxt(pathlib.Path(__file__).parent / "data" / "iris.csv", delimiter=",", skiprows=1)
    return raw[:, :4], raw[:, 4].astype(int)


def main() -> None:
    """Fit, and print how the components match the species."""
    jax.config.update("jax_enable_x64", True)
    x, species = data()
    em = emppl.EM(model, max_iterations=5000)
    print(em.plan(x))
    result = em.run(jax.random.key(0), x)
    result.print_summary()
    table = np.zeros((3, 3), int)
    np.add.at(table, (species, result.decode()["species"]), 1)
    print("known:", known, "\nspecies by component:\n", table)
    print("sizes of the first flowers:", result.posterior("factor")[0][:5, 0].round(2))


if __name__ == "__main__":
    main()

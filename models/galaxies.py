"""Velocities of 82 galaxies: how many clumps are there?

Mixtures of normals on the line. With a common standard deviation the likelihood is bounded and three to six
components can be compared. With free standard deviations it is not: a component that shrinks onto one galaxy has
infinite likelihood, and "the" estimate is a local maximum, reached here from a sensible start.

Reference:
    Roeder (1990), Density estimation with confidence sets exemplified by superclusters and voids in the galaxies,
    JASA 85:617-624 (data); McLachlan and Peel (2000), Finite Mixture Models. Velocity 78 is 26.960 (MASS in R ships the
    misprint 26.690). Log-likelihoods with a common standard deviation: -212.680, -208.247, -205.342, -197.290.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

start_free = {
    "weights": np.array([0.1, 0.8, 0.1]),
    "mu": np.array([9.7, 21.4, 33.0]),
    "sigma": np.array([0.5, 2.0, 1.0]),
}
published = {3: -212.680, 4: -208.247, 5: -205.342, 6: -197.290}


def model(velocity, K, common=True):
    """A mixture of normals.

    Args:
        velocity: in 1000 km/s, ``(galaxies,)``.
        K: number of components.
        common: do all components share one standard deviation?
    """
    weights = numpyro.param("weights", jnp.full(K, 1 / K), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.linspace(10.0, 33.0, K))
    sigma = numpyro.param("sigma", 2.0 if common else jnp.full(K, 2.0), constraint=constraints.positive)
    with numpyro.plate("galaxies", velocity.shape[0]):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("velocity", dist.Normal(mu[z], sigma if common else sigma[z]), obs=velocity)


def data() -> np.ndarray:
    """Velocities in 1000 km/s, ``(82,)``."""
    return np.loadtxt(pathlib.Path(__file__).parent / "data" / "galaxies.csv", delimiter=",", skiprows=1)


def main() -> None:
    """Compare three to six components with a common standard deviation; fit three with their own."""
    jax.config.update("jax_enable_x64", True)
    velocity = data()
    # Five and six components have many local maxima: keep the best of many starts.
    em = emppl.EM(model, restarts=100, max_iterations=5000)
    print(em.plan(velocity, K=3))
    print("components  log-likelihood       BIC  published log-likelihood")
    for K, known in published.items():
        result = em.run(jax.random.key(K), velocity, K=K)
        print(f"{K:10d}  {result.log_likelihood:14.3f}  {result.bic:8.2f}  {known:24.3f}")
    print("\nthree components, each with a standard deviation of its own (published log-likelihood -203.482)")
    emppl.EM(model).run(jax.random.key(0), velocity, K=3, common=False, init_params=start_free).print_summary()


if __name__ == "__main__":
    main()

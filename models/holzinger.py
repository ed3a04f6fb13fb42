"""Mental tests: confirmatory factor analysis with three correlated factors.

Nine tests of 301 pupils, three for each of three abilities: visual, textual and speed. Every test loads on its own
ability only; abilities are correlated.

Convention: the first loading of every ability is fixed at one, which gives the ability the scale of that test; its
variance is free. (Or fix the variances at one and free all loadings.) Abilities have mean zero.

Reference:
    Holzinger and Swineford (1939), A study in factor analysis (data); Rosseel (2012), lavaan: an R package for
    structural equation modeling, J. Statistical Software 48(2): log-likelihood -3737.745, loadings 0.554, 0.729, 1.113,
    0.926, 1.180, 1.082, variances 0.809, 0.979, 0.384.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

TESTS = np.arange(9)
ABILITY = TESTS // 3
FREE = TESTS[TESTS % 3 > 0]

published = {
    "loading": [0.554, 0.729, 1.113, 0.926, 1.180, 1.082],
    "variance": [0.809, 0.979, 0.384],
    "log_likelihood": -3737.745,
}


def model(x):
    """Three abilities, nine tests.

    Args:
        x: scores, ``(pupils, 9)``.
    """
    intercept = numpyro.param("intercept", jnp.full(9, 4.0))
    free = numpyro.param("loading", jnp.ones(6))
    covariance = numpyro.param("covariance", jnp.eye(3), constraint=constraints.positive_definite)
    noise = numpyro.param("noise", jnp.ones(9), constraint=constraints.positive)
    loading = jnp.zeros((9, 3)).at[TESTS, ABILITY].set(1.0).at[FREE, ABILITY[FREE]].set(free)
    with numpyro.plate("pupils", x.shape[0]):
        ability = numpyro.sample("ability", dist.MultivariateNormal(jnp.zeros(3), covariance_matrix=covariance))
        numpyro.sample("x", dist.Normal(intercept + ability @ loading.T, noise).to_event(1), obs=x)


def data() -> np.ndarray:
    """Nine scores of 301 pupils."""
    return np.loadtxt(pathlib.Path(__file__).parent / "data" / "holzinger.csv", delimiter=",", skiprows=1)


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, max_iterations=5000)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

"""Failures of ten pumps: a rate of its own for every pump, the rates from a gamma distribution.

The rate could be integrated in closed form (the counts are negative binomial); here it is a latent like any other, and
adaptive quadrature on the log scale integrates it.

Reference:
    George, Makov and Smith (1993), Conjugate likelihood distributions, Scandinavian Journal of Statistics 20; the
    Monte Carlo EM example of the NIMBLE manual: shape 0.82, rate 1.26.
"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

published = {"alpha": 0.82, "beta": 1.26}


def model(failures, time):
    """Counts of failures, the rates gamma distributed.

    Args:
        failures: number of failures, ``(pumps,)``.
        time: thousands of hours of operation, ``(pumps,)``.
    """
    alpha = numpyro.param("alpha", 1.0, constraint=dist.constraints.positive)
    beta = numpyro.param("beta", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("pumps", failures.shape[0]):
        rate = numpyro.sample("rate", dist.Gamma(alpha, beta))
        numpyro.sample("failures", dist.Poisson(rate * time), obs=failures)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Failures, and thousands of hours."""
    failures = np.array([5, 1, 5, 14, 3, 19, 1, 1, 4, 22])
    return failures, np.array([94.3, 15.7, 62.9, 126.0, 5.24, 31.4, 1.05, 1.05, 2.1, 10.5])


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

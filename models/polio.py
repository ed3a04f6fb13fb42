"""Polio in the United States, month by month: Poisson counts whose log rate is pushed about by an autoregression.

Nothing about the 168 states of the autoregression is closed given counts: they are integrated together, by Hamiltonian
draws of whole trajectories. Laplace's approximation gives a trend of -3.81 and an autoregression of 0.627.

Reference:
    Zeger (1988), A regression model for time series of counts, Biometrika 75:621-629 (data); Chan and Ledolter (1995),
    Monte Carlo EM estimation for time series models involving counts, JASA 90:242-252; Kuk and Cheng (1997), The Monte
    Carlo Newton-Raphson algorithm, Journal of Statistical Computation and Simulation 59:233-250: -3.82, 0.665, 0.519.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import emppl

published = {"trend": -3.82, "phi": 0.665, "sigma": 0.519}


def model(cases, covariates):
    """Counts of one month after the other.

    Args:
        cases: ``(months,)``.
        covariates: ``(months, covariates)``.
    """
    coefficients = numpyro.param("coefficients", jnp.zeros(covariates.shape[1]))
    phi = numpyro.param("phi", 0.5, constraint=dist.constraints.interval(-1.0, 1.0))
    sigma = numpyro.param("sigma", 0.5, constraint=dist.constraints.positive)

    def month(carry, seen):
        last, number = carry
        count, row = seen
        spread = sigma * jnp.where(number == 0, (1 - phi**2) ** -0.5, 1.0)
        u = numpyro.sample("u", dist.Normal(phi * last, spread))
        numpyro.sample("cases", dist.Poisson(jnp.exp(row @ coefficients + u)), obs=count)
        return (u, number + 1), None

    scan(month, (0.0, 0), (cases, covariates))


def data() -> tuple[np.ndarray, np.ndarray]:
    """Cases from January 1970 to December 1983, and a trend (per 1000 months) with two harmonics of the year."""
    t, cases = np.loadtxt(pathlib.Path(__file__).parent / "data" / "polio.csv", delimiter=",", skiprows=1).T
    year = 2 * np.pi * t / 12
    design = [np.ones(len(t)), (t - 73) / 1000, np.cos(year), np.sin(year), np.cos(2 * year), np.sin(2 * year)]
    return cases, np.column_stack(design)


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, latents={"u": emppl.MonteCarlo(num_samples=1600)}, tolerance=1e-2)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

"""Stochastic volatility: returns whose log variance is an autoregression that nobody sees.

The log variances of all days are integrated together: Monte Carlo EM draws whole trajectories of them.

Reference:
    Kim, Shephard and Chib (1998), Stochastic volatility: likelihood inference and comparison with ARCH models, Review
    of Economic Studies 65:361-393 (model); Shephard (1993), Fitting nonlinear time-series models with applications to
    stochastic variance models, Journal of Applied Econometrics 8:S135-S152 (simulated EM). Simulated; the known answer
    maximises the likelihood of a forward recursion over a fine grid of log variances, written by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import emppl

known = {"level": -1.10392, "phi": 0.80591, "sigma": 0.48942, "log_likelihood": -193.48510}

truth = {"level": -1.0, "phi": 0.9, "sigma": 0.5}


def model(returns):
    """Normal returns, their log variance an autoregression around a level.

    Args:
        returns: ``(days,)``.
    """
    level = numpyro.param("level", 0.0)
    phi = numpyro.param("phi", 0.8, constraint=dist.constraints.interval(-1.0, 1.0))
    sigma = numpyro.param("sigma", 0.3, constraint=dist.constraints.positive)

    def day(carry, seen):
        last, number = carry
        mean = level + jnp.where(number == 0, 0.0, phi * (last - level))
        spread = sigma * jnp.where(number == 0, (1 - phi**2) ** -0.5, 1.0)
        h = numpyro.sample("h", dist.Normal(mean, spread))
        numpyro.sample("returns", dist.Normal(0.0, jnp.exp(h / 2)), obs=seen)
        return (h, number + 1), None

    scan(day, (0.0, 0), returns)


def data(days: int = 200) -> np.ndarray:
    """Returns simulated with a fixed seed."""
    rng = np.random.default_rng(1998)
    h = np.empty(days)
    h[0] = rng.normal(0, truth["sigma"] / np.sqrt(1 - truth["phi"] ** 2))
    for day in range(1, days):
        h[day] = truth["phi"] * h[day - 1] + rng.normal(0, truth["sigma"])
    return rng.standard_normal(days) * np.exp((truth["level"] + h) / 2)


def main() -> None:
    """Fit and print the answer beside the known one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, latents={"h": emppl.MonteCarlo(num_samples=1600)}, tolerance=1e-2)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("known:", known)


if __name__ == "__main__":
    main()

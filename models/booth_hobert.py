"""Booth and Hobert's benchmark for Monte Carlo EM: one slope and a random intercept, in ten clusters of yes and no.

Reference:
    Booth and Hobert (1999), Maximizing generalized linear mixed model likelihoods with an automated Monte Carlo EM
    algorithm, JRSS-B 61:265-285: slope 6.132, variance 1.766.
"""

import pathlib

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

published = {"slope": 6.132, "variance": 1.766}


def model(y, x, cluster, clusters):
    """Logistic regression through the origin with a normal effect of the cluster.

    Args:
        y: 1 or 0, ``(rows,)``.
        x: the covariate, ``(rows,)``.
        cluster: number of the cluster, from 0, ``(rows,)``.
        clusters: how many there are.
    """
    slope = numpyro.param("slope", 2.0)
    sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("clusters", clusters):
        u = numpyro.sample("u", dist.Normal(0, sd))
    with numpyro.plate("rows", y.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=slope * x + u[cluster]), obs=y)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Outcomes, covariate, cluster and the number of clusters."""
    table = np.loadtxt(pathlib.Path(__file__).parent / "data" / "booth_hobert.csv", delimiter=",", skiprows=1)
    return table[:, 0].astype(int), table[:, 1], table[:, 2].astype(int) - 1, 10


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, latents={"u": emppl.Quadrature(21)})
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

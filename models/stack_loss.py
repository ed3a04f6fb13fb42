"""Stack loss of a plant that oxidises ammonia: regression that outliers do not move.

Four of 21 days pull the least squares plane towards them. With errors of a Student t distribution they lose their
weight.

Two ways to write it. ``scaled=False``: the t density itself; no latent is left, and Newton steps go to the maximum.
``scaled=True``: every day has a latent precision, ``weight``, with a gamma distribution, and given it the error is
normal; the posterior mean of the weight tells which days are outliers.

Convention: the degrees of freedom are given, since with 21 days they are hardly estimable. The likelihood can have
several maxima when they are few; from least squares the best one is found.

Reference:
    Brownlee (1965), Statistical theory and methodology, section 13.12 (data); Lange, Little and Taylor (1989), Robust
    statistical modeling using the t distribution, JASA 84:881-896: for 1.1 degrees of freedom -38.5, 0.85, 0.49, -0.07.
"""

import pathlib

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {"coef": [-38.5, 0.85, 0.49, -0.07]}

START = np.array([-39.9, 0.72, 1.3, -0.15])
"""Least squares."""


def model(loss, covariates, df=1.1, scaled=False):
    """A plane with errors of a Student t distribution.

    Args:
        loss: in tenths of a percent, ``(days,)``.
        covariates: with a column of ones, ``(days, covariates)``.
        df: degrees of freedom.
        scaled: write the distribution as a mixture of normal ones.
    """
    coef = numpyro.param("coef", START)
    sigma = numpyro.param("sigma", 2.9, constraint=constraints.positive)
    with numpyro.plate("days", len(loss)):
        if scaled:
            weight = numpyro.sample("weight", dist.Gamma(df / 2, df / 2))
            numpyro.sample("loss", dist.Normal(covariates @ coef, sigma / weight**0.5), obs=loss)
        else:
            numpyro.sample("loss", dist.StudentT(df, covariates @ coef, sigma), obs=loss)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Stack loss; and ones, flow of air, temperature of the cooling water, concentration of acid."""
    raw = np.loadtxt(pathlib.Path(__file__).parent / "data" / "stackloss.csv", delimiter=",", skiprows=1)
    return raw[:, 3], np.column_stack([np.ones(len(raw)), raw[:, :3]])


def main() -> None:
    """Fit both forms and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    for scaled in (False, True):
        em = emppl.EM(model, latents={"weight": emppl.Quadrature(31)} if scaled else None, max_iterations=5000)
        if not scaled:
            print(em.plan(*data()))
        result = em.run(jax.random.key(0), *data(), scaled=scaled)
        result.print_summary()
    outliers = np.argsort(result.posterior("weight")[0])[:4] + 1
    print(f"days of least weight: {sorted(map(int, outliers))}")
    print("published for 1.1 degrees of freedom:", published)


if __name__ == "__main__":
    main()

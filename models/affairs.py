"""Extramarital affairs: Fair's tobit model.

How often 601 married readers of a magazine had an affair in the past year is zero for three in four of them. The tobit
model takes zero for a propensity that is not positive: ``affairs = max(0, propensity)``, and the propensity is normal.
The observed maximum is a hard constraint on the latent propensity, which is then a truncated normal variable, or known.

Reference:
    Tobin (1958), Estimation of relationships for limited dependent variables, Econometrica 26:24-36; Fair (1978), A
    theory of extramarital affairs, Journal of Political Economy 86:45-61; Greene (2003), Econometric analysis, table
    22.3: log-likelihood -705.6, the estimates below.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {"coef": [8.174197, -0.179333, 0.554142, -1.68622, 0.326053, -2.284973], "sigma": 8.24708}


def model(affairs, covariates):
    """A normal propensity, of which only the positive part is seen.

    Args:
        affairs: number in the past year, ``(readers,)``.
        covariates: with a column of ones, ``(readers, covariates)``.
    """
    coef = numpyro.param("coef", jnp.zeros(covariates.shape[1]))
    sigma = numpyro.param("sigma", 5.0, constraint=constraints.positive)
    with numpyro.plate("readers", len(affairs)):
        propensity = numpyro.sample("propensity", dist.Normal(covariates @ coef, sigma))
        numpyro.sample("affairs", dist.Delta(jnp.maximum(propensity, 0.0)), obs=affairs)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Affairs; and ones, age, years married, religiousness, occupation, rating of the marriage."""
    raw = np.loadtxt(pathlib.Path(__file__).parent / "data" / "affairs.csv", delimiter=",", skiprows=1)
    return raw[:, 0], np.column_stack([np.ones(len(raw)), raw[:, [2, 3, 5, 7, 8]]])


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, accelerate="squarem")
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

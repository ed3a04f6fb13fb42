"""Did a new way of teaching economics help? A probit model of who improved.

Of 32 students, 11 improved their grade in a course. A student improves when a normal propensity is positive; only its
sign is seen. The E-step is that of Albert and Chib's data augmentation, with moments in the place of draws.

Reference:
    Spector and Mazzeo (1980), Probit analysis and economic education, Journal of Economic Education 11:37-44; Greene
    (2003), Econometric analysis, table 21.1; Albert and Chib (1993), Bayesian analysis of binary and polychotomous
    response data, JASA 88:669-679.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

published = {"coef": [-7.4523, 1.6258, 0.0517, 1.4263], "standard_errors": [2.542, 0.694, 0.084, 0.595]}


def model(improved, covariates):
    """A normal propensity, of which only the sign is seen.

    Args:
        improved: 0 or 1, ``(students,)``.
        covariates: with a column of ones, ``(students, covariates)``.
    """
    coef = numpyro.param("coef", jnp.zeros(covariates.shape[1]))
    with numpyro.plate("students", len(improved)):
        propensity = numpyro.sample("propensity", dist.Normal(covariates @ coef, 1.0))
        numpyro.sample("improved", dist.Delta(propensity > 0), obs=improved)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Who improved; and ones, grade point average, score of a pretest, taught in the new way."""
    raw = np.loadtxt(pathlib.Path(__file__).parent / "data" / "spector.csv", delimiter=",", skiprows=1)
    return raw[:, 3].astype(int), np.column_stack([np.ones(len(raw)), raw[:, :3]])


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

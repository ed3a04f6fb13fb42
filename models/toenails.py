"""Toenail infections of 294 patients at up to seven visits: a random intercept with a standard deviation of four.

Most patients answer all alike, so that their effect is known on one side only: the few nodes of a rule that is not
adaptive all miss the integrand, which made this example famous.

Reference:
    Lesaffre and Spiessens (2001), On the effect of the number of quadrature points in a logistic random-effects model:
    an example, Applied Statistics 50:325-335: standard deviation 4.0, minus log-likelihood 625.4.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

published = {"coefficients": [-1.618, -0.161, -0.391, -0.137], "sd": 4.008, "log_likelihood": -625.39}


def model(infected, covariates, patient, patients):
    """Logistic regression with a normal effect of the patient.

    Args:
        infected: 1 for a moderate or severe infection, ``(visits,)``.
        covariates: with a column of ones, ``(visits, covariates)``.
        patient: number of the patient, from 0, ``(visits,)``.
        patients: how many there are.
    """
    coefficients = numpyro.param("coefficients", jnp.zeros(covariates.shape[1]))
    sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("patients", patients):
        u = numpyro.sample("u", dist.Normal(0, sd))
    with numpyro.plate("visits", infected.shape[0]):
        logits = covariates @ coefficients + u[patient]
        numpyro.sample("infected", dist.Bernoulli(logits=logits), obs=infected)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Outcomes; treatment, months and their product; patients and their number."""
    path = pathlib.Path(__file__).parent / "data" / "toenail.csv"
    number, infected, treated, months, _ = np.loadtxt(path, delimiter=",", skiprows=1).T
    known, patient = np.unique(number, return_inverse=True)
    covariates = np.column_stack([np.ones(len(patient)), treated, months, treated * months])
    return infected.astype(int), covariates, patient, len(known)


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, latents={"u": emppl.Quadrature(31)})
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

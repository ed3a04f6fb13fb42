"""Does BCG protect from tuberculosis? Thirteen trials: a regression whose responses carry measurement error.

The log risk ratio of a trial, its true effect, is a linear function of the latitude and a normal deviation. It is
measured with an error whose size follows from the trial's counts. A response with error zero is the effect itself: an
observed Delta says so.

Reference:
    Colditz et al. (1994), Efficacy of BCG vaccine in the prevention of tuberculosis, JAMA 271:698-702 (data); van
    Houwelingen, Arends and Stijnen (2002), Advanced methods in meta-analysis, Statistics in Medicine 21:589-624.
    The answer printed beside the fit is the maximum of the marginal likelihood, found by iterated weighted least
    squares.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

TRIALS = """
4 119 11 128 44,  6 300 29 274 55,  3 228 11 209 42,  62 13536 248 12619 52,  33 5036 47 5761 13,
180 1361 372 1079 44,  8 2537 10 619 19,  505 87886 499 87892 13,  29 7470 45 7232 27,  17 1699 65 1600 42,
186 50448 141 27197 18,  5 2493 3 2338 33,  27 16886 29 17825 33
"""
"""Cases and others among the vaccinated, cases and others among the controls, absolute latitude."""


def model(ratio, error, latitude):
    """True effects on a line, some of them measured with error.

    Args:
        ratio: measured log risk ratio, ``(trials,)``.
        error: its standard error; zero where it is exact.
        latitude: distance from the equator in degrees.
    """
    intercept, slope = numpyro.param("intercept", 0.0), numpyro.param("slope", 0.0)
    tau = numpyro.param("tau", 0.3, constraint=constraints.positive)
    exact = error == 0
    with numpyro.plate("trials", len(ratio)):
        effect = numpyro.sample("effect", dist.Normal(intercept + slope * latitude, tau))
        with numpyro.handlers.mask(mask=exact):
            numpyro.sample("exact", dist.Delta(effect), obs=ratio)
        with numpyro.handlers.mask(mask=~exact):
            numpyro.sample("measured", dist.Normal(effect, jnp.where(exact, 1.0, error)), obs=ratio)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log risk ratios, their standard errors (delta method) and latitudes."""
    table = np.array([trial.split() for trial in TRIALS.split(",")], float)
    cases, others, control_cases, control_others, latitude = table.T
    vaccinated, controls = cases + others, control_cases + control_others
    ratio = np.log(cases / vaccinated / (control_cases / controls))
    error = np.sqrt(1 / cases - 1 / vaccinated + 1 / control_cases - 1 / controls)
    return ratio, error, latitude


def weighted_least_squares(ratio, error, latitude, rounds=5000) -> dict[str, float]:
    """The maximum of the marginal likelihood: the variance of a response is ``tau ** 2 + error ** 2``."""
    design, variance = np.column_stack([np.ones_like(latitude), latitude]), 0.1
    for _ in range(rounds):
        weight = 1 / (variance + error**2)
        coef = np.linalg.solve(design.T * weight @ design, design.T * weight @ ratio)
        residual = ratio - design @ coef
        variance = np.sum(weight**2 * (residual**2 - error**2)) / np.sum(weight**2)
    return {"intercept": coef[0], "slope": coef[1], "tau": np.sqrt(variance)}


def main() -> None:
    """Fit and print the answer beside the known one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, accelerate="squarem")
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("known:", weighted_least_squares(*data()))


if __name__ == "__main__":
    main()

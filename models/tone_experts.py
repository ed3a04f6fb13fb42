"""Perception of musical tones, as a mixture of experts: which line a trial follows may depend on the stretch.

The two lines of :mod:`models.tone_perception`, with the chance of tuning to the overtone given by a logistic regression
on the covariate ("covariates on class membership"). The gate is a concave block, which takes Newton steps inside EM;
the lines and the standard deviations keep their exact updates.

Reference:
    Jacobs, Jordan, Nowlan and Hinton (1991), Adaptive mixtures of local experts, Neural Computation 3:79-87 (model);
    data as in :mod:`models.tone_perception`. Without the covariate the log-likelihood is known to be 141.198.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

start = {
    "intercept": np.array([1.9, 0.0]),
    "slope": np.array([0.05, 1.0]),
    "sigma": np.array([0.05, 0.13]),
    "gate_intercept": np.array(-0.8),
    "gate_slope": np.array(0.0),
}
known_without_covariate = 141.198


def model(stretch, tuned):
    """Two regression lines behind a logistic gate.

    Args:
        stretch: ratio of the overtones to the fundamental, ``(trials,)``.
        tuned: ratio of the tone she tuned to the fundamental, ``(trials,)``.
    """
    gate_intercept = numpyro.param("gate_intercept", 0.0)
    gate_slope = numpyro.param("gate_slope", 0.0)
    intercept = numpyro.param("intercept", jnp.array([2.0, 0.0]))
    slope = numpyro.param("slope", jnp.array([0.0, 1.0]))
    sigma = numpyro.param("sigma", jnp.array([0.1, 0.1]), constraint=constraints.positive)
    with numpyro.plate("trials", stretch.shape[0]):
        overtone = numpyro.sample("overtone", dist.Bernoulli(logits=gate_intercept + gate_slope * (stretch - 2.0)))
        loc = intercept[overtone] + slope[overtone] * stretch
        numpyro.sample("tuned", dist.Normal(loc, sigma[overtone]), obs=tuned)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Stretch ratio and tuned ratio of 150 trials."""
    table = np.loadtxt(pathlib.Path(__file__).parent / "data" / "tonedata.csv", delimiter=",", skiprows=1)
    return table[:, 0], table[:, 1]


def main() -> None:
    """Does the stretch tell which line a trial follows?"""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data(), init_params=start)
    result.print_summary()
    ratio = 2 * (result.log_likelihood - known_without_covariate)
    print(f"known log-likelihood without the covariate: {known_without_covariate}")
    print(f"likelihood ratio of the covariate: {ratio:.2f} on one degree of freedom")


if __name__ == "__main__":
    main()

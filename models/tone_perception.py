"""Perception of musical tones: two regression lines, and which of them a trial follows is hidden.

A trained musician tuned an adjustable tone to one octave above a fundamental whose overtones were stretched. Either she
tuned to the nominal octave (a flat line near two), or to the stretched first overtone (the identity line).

Reference:
    Cohen (1980), The influence of inharmonicity on tone perception (data); De Veaux (1989), Mixtures of linear
    regressions, Computational Statistics and Data Analysis 8:227-245; ``tonedata`` in R's mixtools (Benaglia et al.
    2009), which finds weights 0.698 and 0.302, lines 1.9163 + 0.0427 x and -0.0193 + 0.9923 x, standard deviations
    0.0462 and 0.1328.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

# The likelihood has spikes, where a line runs through a few points: start near the two explanations.
start = {
    "weights": np.array([0.7, 0.3]),
    "intercept": np.array([1.9, 0.0]),
    "slope": np.array([0.05, 1.0]),
    "sigma": np.array([0.05, 0.13]),
}
published = {
    "weights": [0.698, 0.302],
    "intercept": [1.9163, -0.0193],
    "slope": [0.0427, 0.9923],
    "sigma": [0.0462, 0.1328],
}


def model(stretch, tuned, common=False):
    """A mixture of two regression lines.

    Args:
        stretch: ratio of the overtones to the fundamental, ``(trials,)``.
        tuned: ratio of the tone she tuned to the fundamental, ``(trials,)``.
        common: do both lines share one standard deviation?
    """
    weights = numpyro.param("weights", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
    intercept = numpyro.param("intercept", jnp.array([2.0, 0.0]))
    slope = numpyro.param("slope", jnp.array([0.0, 1.0]))
    sigma = numpyro.param("sigma", 0.1 if common else jnp.array([0.1, 0.1]), constraint=constraints.positive)
    with numpyro.plate("trials", stretch.shape[0]):
        line = numpyro.sample("line", dist.Categorical(weights))
        scale = sigma if common else sigma[line]
        numpyro.sample("tuned", dist.Normal(intercept[line] + slope[line] * stretch, scale), obs=tuned)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Stretch ratio and tuned ratio of 150 trials."""
    table = np.loadtxt(pathlib.Path(__file__).parent / "data" / "tonedata.csv", delimiter=",", skiprows=1)
    return table[:, 0], table[:, 1]


def main() -> None:
    """Fit with separate and with common standard deviations, beside the published answer."""
    jax.config.update("jax_enable_x64", True)
    stretch, tuned = data()
    em = emppl.EM(model)
    print(em.plan(stretch, tuned))
    result = em.run(jax.random.key(0), stretch, tuned, init_params=start)
    result.print_summary()
    print("published:", published)
    common = em.run(jax.random.key(0), stretch, tuned, common=True, init_params=start | {"sigma": np.array(0.1)})
    print(f"one standard deviation for both lines: log-likelihood {common.log_likelihood:.3f}, BIC {common.bic:.2f}")
    print(f"a standard deviation for each line:    log-likelihood {result.log_likelihood:.3f}, BIC {result.bic:.2f}")


if __name__ == "__main__":
    main()

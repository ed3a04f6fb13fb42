"""Section 7 of the Law School Admission Test: logistic item response models with a slope per item, or one for all.

A thousand examinees answered five items; only the 32 patterns of answers and how often each occurred are kept, and the
frequency is the weight of the examinee's plate cell.

Reference:
    Bock and Lieberman (1970), Fitting a response model for n dichotomously scored items, Psychometrika 35:179-197;
    Chalmers (2012), mirt, Journal of Statistical Software 48(6): log-likelihood -2658.805.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

published = {
    "slopes": [0.988, 1.081, 1.706, 0.765, 0.736],
    "intercepts": [1.856, 0.808, 1.804, 0.486, 1.855],
    "log_likelihood": -2658.805,
    "common_slope": 1.011,
    "log_likelihood_common_slope": -2664.901,
}


def model(answers, frequency):
    """Yes and no to every item, given the examinee's normal ability.

    Args:
        answers: patterns of answers, ``(patterns, items)``.
        frequency: number of examinees with that pattern, ``(patterns,)``.
    """
    patterns, items = answers.shape
    slopes = numpyro.param("slopes", jnp.ones(items))
    intercepts = numpyro.param("intercepts", jnp.zeros(items))
    with numpyro.plate("patterns", patterns), numpyro.handlers.scale(scale=frequency):
        ability = numpyro.sample("ability", dist.Normal(0, 1))
        logits = slopes * ability[:, None] + intercepts
        numpyro.sample("answers", dist.Bernoulli(logits=logits).to_event(1), obs=answers)


def common_slope(answers, frequency):
    """The same with one slope for all items: Rasch's model, the slope in place of the spread of abilities.

    Args:
        answers: patterns of answers, ``(patterns, items)``.
        frequency: number of examinees with that pattern, ``(patterns,)``.
    """
    patterns, items = answers.shape
    slope = numpyro.param("slope", 1.0)
    intercepts = numpyro.param("intercepts", jnp.zeros(items))
    with numpyro.plate("patterns", patterns), numpyro.handlers.scale(scale=frequency):
        ability = numpyro.sample("ability", dist.Normal(0, 1))
        numpyro.sample("answers", dist.Bernoulli(logits=slope * ability[:, None] + intercepts).to_event(1), obs=answers)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Patterns and frequencies."""
    table = np.loadtxt(pathlib.Path(__file__).parent / "data" / "lsat7.csv", delimiter=",", skiprows=1, dtype=int)
    return table[:, :-1], table[:, -1]


def main() -> None:
    """Fit both and print the answers beside the published ones."""
    jax.config.update("jax_enable_x64", True)
    for one in (model, common_slope):
        em = emppl.EM(one, latents={"ability": emppl.Quadrature(21)})
        print(em.plan(*data()))
        result = em.run(jax.random.key(0), *data())
        result.print_summary()
    print("published:", published)


if __name__ == "__main__":
    main()

"""Answers in four grades to five questions: Samejima's graded response model.

Simulated, 500 people, so that the truth is known. Given a person's trait, every question has an ordered logistic
distribution with a slope and thresholds of its own.

Reference:
    Samejima (1969), Estimation of latent ability using a response pattern of graded scores, Psychometrika Monograph 17;
    Bock and Aitkin (1981), Marginal maximum likelihood estimation of item parameters: an application of an EM
    algorithm, Psychometrika 46:443-459.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

known = {
    "slopes": [0.8, 1.0, 1.3, 1.6, 2.0],
    "thresholds": [[-2.0, -0.5, 1.0], [-1.5, 0.0, 1.5], [-1.0, 0.5, 2.0], [-2.5, -1.0, 0.5], [-1.0, 1.0, 2.5]],
}


def model(answers):
    """Grades of every person and question.

    Args:
        answers: grades from 0 to 3, ``(people, questions)``.
    """
    people, questions = answers.shape
    slopes = numpyro.param("slopes", jnp.ones(questions))
    start = jnp.broadcast_to(jnp.array([-1.0, 0.0, 1.0]), (questions, 3))
    thresholds = numpyro.param("thresholds", start, constraint=dist.constraints.ordered_vector)
    with numpyro.plate("people", people, dim=-2):
        trait = numpyro.sample("trait", dist.Normal(0, 1))
        with numpyro.plate("questions", questions, dim=-1):
            numpyro.sample("answers", dist.OrderedLogistic(slopes * trait, thresholds), obs=answers)


def data() -> tuple[np.ndarray]:
    """500 people, simulated with a fixed seed."""
    rng = np.random.default_rng(1969)
    trait = rng.standard_normal((500, 1))
    noise = rng.logistic(size=(500, 5))
    response = np.asarray(known["slopes"]) * trait + noise
    return ((response[:, :, None] > np.asarray(known["thresholds"])).sum(-1),)


def main() -> None:
    """Fit and print the answer beside the one that is known."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, latents={"trait": emppl.Quadrature(21)})
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("known truth of the simulation:", known)


if __name__ == "__main__":
    main()

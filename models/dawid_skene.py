"""Anaesthetists rate patients, no one knows the truth: the model behind most crowd-sourced labels.

Each of 45 patients has a hidden fitness class; each of five raters answers with a confusion matrix of their own.
The first rater saw every patient three times. EM estimates the classes and the raters' errors together.

Reference:
    Dawid and Skene (1979), Maximum likelihood estimation of observer error-rates using the EM algorithm, Applied
    Statistics 28:20-28: prevalences 0.40, 0.42, 0.11, 0.07. Their start, the share of votes for each class, leads to
    a local maximum (log-likelihood -190.731); random starts find one of -189.405.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

CLASSES = 4

published = {"prevalence": [0.40, 0.42, 0.11, 0.07]}


def model(ratings, rater, raters):
    """Hidden classes rated by observers who err.

    Args:
        ratings: class given in every rating slot, from 0, ``(patients, slots)``.
        rater: who rates in every slot, from 0, ``(slots,)``.
        raters: number of raters.
    """
    patients, slots = ratings.shape
    # Uniform priors: they leave the maximum where it is, and restarts draw from them.
    prevalence = numpyro.sample("prevalence", dist.Dirichlet(jnp.ones(CLASSES)))
    with numpyro.plate("raters", raters, dim=-2), numpyro.plate("classes", CLASSES, dim=-1):
        confusion = numpyro.sample("confusion", dist.Dirichlet(jnp.ones(CLASSES)))
    with numpyro.plate("patients", patients, dim=-2):
        fitness = numpyro.sample("fitness", dist.Categorical(prevalence))
        with numpyro.plate("slots", slots, dim=-1):
            numpyro.sample("rating", dist.Categorical(confusion[rater, fitness]), obs=ratings)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Ratings of 45 patients in seven slots, and the rater of every slot."""
    path = pathlib.Path(__file__).parent / "data" / "anesthesia.csv"
    table = np.loadtxt(path, delimiter=",", skiprows=1, dtype=int) - 1
    patient, rater, rating = table[np.lexsort((table[:, 1], table[:, 0]))].T
    slots = np.count_nonzero(patient == 0)
    return rating.reshape(-1, slots), rater[:slots]


def consensus(ratings, rater) -> dict[str, np.ndarray]:
    """The paper's start: each patient belongs to a class with the share of votes for it.

    Args:
        ratings: as for the model.
        rater: as for the model.

    Returns:
        The parameters that one M-step makes of those shares.
    """
    votes = np.eye(CLASSES)[ratings]
    share = votes.mean(1)
    by_rater = np.stack([votes[:, rater == j].sum(1) for j in range(rater.max() + 1)])
    confusion = np.einsum("ik,jil->jkl", share, by_rater)
    return {"prevalence": share.mean(0), "confusion": confusion / confusion.sum(-1, keepdims=True)}


def main() -> None:
    """Fit from the paper's start and from random ones."""
    jax.config.update("jax_enable_x64", True)
    ratings, rater = data()
    em = emppl.EM(model, prior=False)
    print(em.plan(ratings, rater, raters=5))
    result = em.run(jax.random.key(0), ratings, rater, raters=5, init_params=consensus(ratings, rater))
    print(f"from the consensus: log-likelihood {result.log_likelihood:.3f} (published solution -190.731)")
    print("prevalence", np.round(result.params["prevalence"], 2), "published", published["prevalence"])
    print("confusion of the first rater (rows: true class)")
    print(np.round(result.params["confusion"][0], 2))
    best = emppl.EM(model, prior=False, restarts=60).run(jax.random.key(1), ratings, rater, raters=5)
    print(f"best of 60 starts: log-likelihood {best.log_likelihood:.3f} (known -189.405)")


if __name__ == "__main__":
    main()

"""Seven pathologists and 118 slides: latent class analysis of binary ratings.

Slides fall into K hidden classes; given its class, a slide is called carcinoma by the seven raters independently. Three
classes fit: sure negatives, sure positives, and slides on which the raters systematically differ. Several estimated
probabilities are exactly 0 or 1, where standard errors from the information matrix do not exist.

Reference:
    Landis and Koch (1977), Biometrics 33:363-374 (data); Agresti (2002), Categorical Data Analysis, section 13.1.2;
    Linzer and Lewis (2011), poLCA, Journal of Statistical Software 42(10), section 5.1: log-likelihoods -317.2568,
    -293.705 and -289.2858 for two, three and four classes; class weights 0.3736, 0.1817, 0.4447 for three.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

RATERS = "ABCDEFG"

published = {1: -524.4648, 2: -317.2568, 3: -293.7050, 4: -289.2858}
published_weights = [0.3736, 0.1817, 0.4447]


def model(ratings, K):
    """Latent classes with conditionally independent binary ratings.

    Args:
        ratings: 1 where the rater saw carcinoma, ``(slides, raters)``.
        K: number of classes.
    """
    slides, raters = ratings.shape
    # Uniform priors: they leave the maximum where it is, and restarts draw from them.
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(K)))
    with numpyro.plate("classes", K):
        positive = numpyro.sample("positive", dist.Beta(1.0, 1.0).expand([raters]).to_event(1))
    with numpyro.plate("slides", slides):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("ratings", dist.Bernoulli(positive[z]).to_event(1), obs=ratings)


def data() -> np.ndarray:
    """Ratings of 118 slides by seven pathologists, 1 for carcinoma, ``(118, 7)``."""
    coded = np.loadtxt(pathlib.Path(__file__).parent / "data" / "carcinoma.csv", delimiter=",", skiprows=1)
    return (coded == 2).astype(int)


def main() -> None:
    """Fit one to four classes; print the three classes that the literature settled on."""
    jax.config.update("jax_enable_x64", True)
    ratings = data()
    em = emppl.EM(model, prior=False, restarts=30, max_iterations=5000)
    print(em.plan(ratings, K=3))
    print("classes  log-likelihood  published      BIC")
    fits = {K: em.run(jax.random.key(K), ratings, K=K) for K in published}
    for K, result in fits.items():
        print(f"{K:7d}  {result.log_likelihood:14.4f}  {published[K]:9.4f}  {result.bic:7.2f}")
    three = fits[3].params
    order = np.argsort(three["positive"].mean(-1))
    print("\nweights of the three classes", np.round(three["weights"][order], 4), "published", published_weights)
    print("P(carcinoma) by rater      " + "".join(f"{rater:>6}" for rater in RATERS))
    for number, k in enumerate(order, start=1):
        print(f"  class {number}                  " + "".join(f"{p:6.2f}" for p in three["positive"][k]))


if __name__ == "__main__":
    main()

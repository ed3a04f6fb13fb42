"""Votes in the House of Representatives, 1984: semi-supervised naive Bayes with missing votes.

Party membership is known for every tenth member and hidden for the rest; every member votes yes, no, or not at all.
One model covers all of it: a known label is a latent with one possible value, and a missing vote is masked out.

Reference:
    Schlimmer (1987), Congressional Voting Records, UCI Machine Learning Repository (data); Nigam, McCallum, Thrun and
    Mitchell (2000), Text classification from labeled and unlabeled documents using EM, Machine Learning 39:103-134
    (model). No published table; own computation by two programs: share of Republicans 0.462614, log-likelihood
    -3144.934, and 343 of the 391 unlabelled members classified correctly.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {"republican": 0.462614, "log_likelihood": -3144.934, "correct": 343}


def model(votes, party, known):
    """Two parties, sixteen votes, some labels.

    Args:
        votes: 1 for yes, 0 for no, NaN for no vote, ``(members, bills)``.
        party: 1 for Republicans, ``(members,)``; only read where known.
        known: is the party known? ``(members,)``.
    """
    members, bills = votes.shape
    republican = numpyro.param("republican", 0.5, constraint=constraints.unit_interval)
    yes = numpyro.param("yes", jnp.full((2, bills), 0.5), constraint=constraints.unit_interval)
    with numpyro.plate("members", members):
        member = numpyro.sample("party", dist.Bernoulli(republican), obs=party, obs_mask=known)
        numpyro.sample("votes", dist.Bernoulli(yes[member]).mask(~jnp.isnan(votes)).to_event(1), obs=votes)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Votes of 435 members, their parties, and which parties are taken as known (every tenth)."""
    path = pathlib.Path(__file__).parent / "data" / "house_votes.csv"
    table = np.genfromtxt(path, delimiter=",", skip_header=1)
    return table[:, 1:], table[:, 0].astype(int), np.arange(len(table)) % 10 == 0


def from_labels(votes, party, known) -> dict[str, np.ndarray]:
    """Start at what the labelled members say, with one yes and one no added to every count."""
    sides = [votes[known & (party == side)] for side in (0, 1)]
    yes = [(np.nansum(side, 0) + 1) / (np.sum(~np.isnan(side), 0) + 2) for side in sides]
    return {"republican": party[known].mean(), "yes": np.stack(yes)}


def main() -> None:
    """Fit, print the answer beside the known one, and classify the unlabelled members."""
    jax.config.update("jax_enable_x64", True)
    votes, party, known = data()
    em = emppl.EM(model)
    print(em.plan(votes, party, known))
    result = em.run(jax.random.key(0), votes, party, known, init_params=from_labels(votes, party, known))
    result.print_summary()
    guess = result.posterior("party")[:, 1] > 0.5
    print("unlabelled members classified correctly:", np.sum((guess == party)[~known]), "of", np.sum(~known))
    print("known answer:", published)


if __name__ == "__main__":
    main()

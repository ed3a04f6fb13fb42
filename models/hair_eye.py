"""Hair and eye colour of 592 students: probabilistic latent semantic analysis of a two-way table.

The table is a mixture of K tables with independent rows and columns ("topics"). Two topics already describe it well.
The topics themselves are not identified (other pairs give the same table), so fits are compared by likelihood and by
fitted counts.

Reference:
    Snee (1974), Graphical display of two-way contingency tables, The American Statistician 28:9-12 (data); Hofmann
    (1999), Probabilistic latent semantic analysis, UAI; de Leeuw and van der Heijden (1988), Correspondence analysis
    of incomplete contingency tables, Psychometrika 53:223-233. Likelihood ratio against the saturated table for
    independence (one topic): 146.44.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

HAIR = ("black", "brown", "red", "blond")
EYES = ("brown", "blue", "hazel", "green")

published = {"likelihood ratio, one topic": 146.44}


def model(counts, K):
    """A mixture of independence tables.

    Args:
        counts: students by hair and eye colour, ``(hair, eyes)``.
        K: number of topics.
    """
    rows, columns = counts.shape
    # Uniform priors: they leave the maximum where it is, and restarts draw from them.
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(K)))
    with numpyro.plate("topics", K):
        hair = numpyro.sample("hair", dist.Dirichlet(jnp.ones(rows)))
        eyes = numpyro.sample("eyes", dist.Dirichlet(jnp.ones(columns)))
    with (
        numpyro.plate("rows", rows, dim=-2),
        numpyro.plate("columns", columns, dim=-1),
        numpyro.handlers.scale(scale=counts),
    ):
        topic = numpyro.sample("topic", dist.Categorical(weights))
        numpyro.sample("hair_colour", dist.Categorical(hair[topic]), obs=jnp.arange(rows)[:, None])
        numpyro.sample("eye_colour", dist.Categorical(eyes[topic]), obs=jnp.arange(columns))


def data() -> np.ndarray:
    """Students by hair (rows) and eye colour (columns), ``(4, 4)``."""
    return np.array([[68.0, 20, 15, 5], [119, 84, 54, 29], [26, 17, 14, 14], [7, 94, 10, 16]])


def fitted(params, counts) -> np.ndarray:
    """Expected counts of every cell."""
    return counts.sum() * np.einsum("k,ki,kj->ij", params["weights"], params["hair"], params["eyes"])


def main() -> None:
    """Fit one to three topics and print the two-topic table."""
    jax.config.update("jax_enable_x64", True)
    counts = data()
    em = emppl.EM(model, prior=False, restarts=20, max_iterations=20_000)
    print(em.plan(counts, K=2))
    saturated = np.sum(counts * np.log(counts / counts.sum()))
    for K in (1, 2, 3):
        result = em.run(jax.random.key(K), counts, K=K)
        ratio = 2 * (saturated - result.log_likelihood)
        print(f"{K} topics: log-likelihood {result.log_likelihood:.4f}, likelihood ratio {ratio:.2f}")
        if K == 2:
            table = fitted(result.params, counts)
    print("published:", published)
    print("expected counts, two topics\n        " + "".join(f"{colour:>8}" for colour in EYES))
    for colour, row in zip(HAIR, table, strict=True):
        print(f"{colour:>8}" + "".join(f"{count:8.2f}" for count in row))


if __name__ == "__main__":
    main()

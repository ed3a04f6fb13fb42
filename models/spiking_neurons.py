"""Spikes of neurons that are driven by hidden causes: in every bin any combination of causes may be present.

Every cause multiplies the rate of every neuron by a factor of the pair. Given the causes the counts are Poisson with a
log rate that is linear in them, but neither causes nor factors are known; the combinations of causes are enumerated
jointly, because in the posterior one cause explains another away.

Reference:
    Saund (1995), A multiple cause mixture model for unsupervised learning, Neural Computation 7:51-71; Lücke and
    Sahani (2008), Maximal causes for non-linear component extraction, JMLR 9:1227-1267. Simulated.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

known = {
    "presence": [0.2, 0.3, 0.4],
    "baseline": [0.2, 0.0, -0.3, 0.1, -0.5, 0.3, 0.0, -0.2],
    "effect": [
        [1.6, 1.4, 1.2, 0.0, 0.0, 0.0, -0.8, 0.0],
        [0.0, 0.0, 1.1, 1.5, 1.3, 0.0, 0.0, -0.6],
        [-0.7, 0.0, 0.0, 0.0, 1.2, 1.4, 1.5, 1.0],
    ],
}
"""Truth of the simulation: chance of every cause, log rates without any, changes of the log rates by each."""


def model(counts, causes):
    """Poisson counts whose log rates are linear in binary causes.

    Args:
        counts: spikes, ``(bins, neurons)``.
        causes: how many causes there are.
    """
    bins, neurons = counts.shape
    presence = numpyro.param("presence", jnp.linspace(0.2, 0.4, causes), constraint=constraints.unit_interval)
    baseline = numpyro.param("baseline", jnp.zeros(neurons))
    effect = numpyro.param("effect", lambda key: 0.5 * jax.random.normal(key, (causes, neurons)))
    with numpyro.plate("bins", bins, dim=-2):
        present = [numpyro.sample(f"cause_{k}", dist.Bernoulli(presence[k])) for k in range(causes)]
        log_rate = baseline + sum(one * effect[k] for k, one in enumerate(present))
        with numpyro.plate("neurons", neurons, dim=-1):
            numpyro.sample("counts", dist.Poisson(jnp.exp(log_rate)), obs=counts)


def data(bins: int = 400) -> tuple[np.ndarray, int]:
    """Counts of eight neurons, and the number of causes."""
    rng = np.random.default_rng(1995)
    present = rng.random((bins, 3)) < known["presence"]
    return rng.poisson(np.exp(known["baseline"] + present @ np.array(known["effect"]))), 3


def oriented(params) -> dict[str, np.ndarray]:
    """Causes in order of their presence, each present in at most half of the bins: absence would do as well."""
    presence, baseline, effect = (np.array(params[name]) for name in ("presence", "baseline", "effect"))
    other = presence > 0.5
    baseline = baseline + effect[other].sum(0)
    presence = np.where(other, 1 - presence, presence)
    order = np.argsort(presence)
    effect = np.where(other[:, None], -effect, effect)
    return {"presence": presence[order], "baseline": baseline, "effect": effect[order]}


def main() -> None:
    """Fit from several starts and print the answer beside the truth."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, restarts=10)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("causes in order:", {name: value.round(2).tolist() for name, value in oriented(result.params).items()})
    print("known truth of the simulation:", known)


if __name__ == "__main__":
    main()

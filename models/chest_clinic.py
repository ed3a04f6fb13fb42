"""A chest clinic: the tables of a Bayesian network, where some nodes are seen in some patients only.

A visit to Asia raises the chance of tuberculosis, smoking that of lung cancer and bronchitis; either of the first two
shows on the X-ray, and all three take the breath away. Only some patients were examined for each of the three diseases;
everybody else's are summed over, in every combination.

Reference:
    Lauritzen and Spiegelhalter (1988), Local computations with probabilities on graphical structures and their
    application to expert systems, JRSS B 50:157-224 (network and tables); Lauritzen (1995), The EM algorithm for
    graphical association models with missing data, Computational Statistics and Data Analysis 19:191-201.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {
    "asia": 0.01,
    "smoker": 0.5,
    "tuberculosis": [0.01, 0.05],
    "cancer": [0.01, 0.1],
    "bronchitis": [0.3, 0.6],
    "shadow": [0.05, 0.98],
    "breathless": [[0.1, 0.8], [0.7, 0.9]],
}
"""Probabilities of yes, by the states of the parents."""


def model(asia, smoker, tuberculosis, cancer, bronchitis, shadow, breathless):
    """Eight nodes, one of which (is it tuberculosis or cancer?) follows from its parents.

    Args:
        asia: a visit to Asia, 0 or 1, ``(patients,)``, as all others.
        smoker: does the patient smoke?
        tuberculosis: 0, 1, or -1 where nobody looked.
        cancer: the same.
        bronchitis: the same.
        shadow: a shadow on the X-ray.
        breathless: shortness of breath.
    """

    def table(name, *shape):
        start = jnp.broadcast_to(jnp.linspace(0.2, 0.6, shape[-1]) if shape else jnp.array(0.3), shape)
        return numpyro.param(f"p_{name}", start, constraint=constraints.unit_interval)

    def disease(name, probability, seen):
        return numpyro.sample(name, dist.Bernoulli(probability), obs=jnp.maximum(seen, 0), obs_mask=seen >= 0)

    p_asia, p_smoker = table("asia"), table("smoker")
    p_tuberculosis, p_cancer, p_bronchitis = table("tuberculosis", 2), table("cancer", 2), table("bronchitis", 2)
    p_shadow, p_breathless = table("shadow", 2), table("breathless", 2, 2)
    with numpyro.plate("patients", asia.shape[0]):
        numpyro.sample("asia", dist.Bernoulli(p_asia), obs=asia)
        numpyro.sample("smoker", dist.Bernoulli(p_smoker), obs=smoker)
        t = disease("tuberculosis", p_tuberculosis[asia], tuberculosis)
        c = disease("cancer", p_cancer[smoker], cancer)
        b = disease("bronchitis", p_bronchitis[smoker], bronchitis)
        either = t | c
        numpyro.sample("shadow", dist.Bernoulli(p_shadow[either]), obs=shadow)
        numpyro.sample("breathless", dist.Bernoulli(p_breathless[either, b]), obs=breathless)


def data(patients: int = 5000) -> tuple[np.ndarray, ...]:
    """Patients drawn from the published tables; a fifth is examined for each disease, independently."""
    rng = np.random.default_rng(1988)

    def draw(name, *parents):
        return (rng.random(patients) < np.asarray(published[name])[parents]).astype(int)

    asia, smoker = (draw(name) for name in ("asia", "smoker"))
    diseases = draw("tuberculosis", asia), draw("cancer", smoker), draw("bronchitis", smoker)
    either = diseases[0] | diseases[1]
    shadow, breathless = draw("shadow", either), draw("breathless", either, diseases[2])
    seen = (np.where(rng.random(patients) < 0.2, one, -1) for one in diseases)
    return asia, smoker, *seen, shadow, breathless


def main() -> None:
    """Fit and print the answer beside the published tables."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("published tables that the patients were drawn from:", published)


if __name__ == "__main__":
    main()

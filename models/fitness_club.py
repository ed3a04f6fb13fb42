"""A fitness club: probabilistic canonical correlation analysis.

Three measures of the body and three exercises of 20 men have one cause in common, the latent; all else, within either
set, is a noise of any covariance.

Not identified: the two loadings may be exchanged against each other, ``loading_body * c`` and ``loading_exercise / c``
within limits, the noise taking up the rest; sign, and rotation of several latents, are open too. What is identified is
the covariance between the two sets, and with it the canonical correlations: loadings have no standard errors.

Reference:
    Linnerud's data, as in the SAS/STAT user's guide, procedure CANCORR: canonical correlations 0.795608, 0.200556 and
    0.072570. Bach and Jordan (2005), A probabilistic interpretation of canonical correlation analysis, technical report
    688, UC Berkeley.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {"correlations": [0.795608, 0.200556, 0.072570]}


def model(body, exercise, latents=1):
    """Latents that both sets share.

    Args:
        body: weight, waist and pulse, ``(men, 3)``.
        exercise: chins, sit-ups and jumps, ``(men, 3)``.
        latents: how many.
    """
    with numpyro.plate("men", len(body)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(latents), 1.0).to_event(1))
        for name, x in (("body", body), ("exercise", exercise)):
            mean = numpyro.param(f"mean_{name}", jnp.zeros(3))
            loading = numpyro.param(
                f"loading_{name}", jnp.cos(jnp.arange(3)[:, None] + jnp.arange(latents) + len(name))
            )
            noise = numpyro.param(f"noise_{name}", jnp.eye(3), constraint=constraints.positive_definite)
            numpyro.sample(name, dist.MultivariateNormal(mean + z @ loading.T, covariance_matrix=noise), obs=x)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Both sets, standardised."""
    raw = np.loadtxt(pathlib.Path(__file__).parent / "data" / "fitness_club.csv", delimiter=",", skiprows=1)
    standard = (raw - raw.mean(0)) / raw.std(0)
    return standard[:, :3], standard[:, 3:]


def correlations(params) -> np.ndarray:
    """Canonical correlations that the estimate implies."""
    one, other = params["loading_body"], params["loading_exercise"]
    roots = [
        np.linalg.cholesky(loading @ loading.T + params[f"noise_{name}"])
        for name, loading in (("body", one), ("exercise", other))
    ]
    whitened = np.linalg.solve(roots[0], np.linalg.solve(roots[1], (one @ other.T).T).T)
    return np.linalg.svd(whitened, compute_uv=False)[: one.shape[1]]


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, max_iterations=5000)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("canonical correlation:", correlations(result.params).round(6), "published:", published)


if __name__ == "__main__":
    main()

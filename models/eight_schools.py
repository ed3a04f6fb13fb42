"""Eight schools: a hierarchical meta-analysis.

Coaching for an examination was tried in eight schools; for each there is an estimate of its effect with a known
standard error. The true effects vary around a common mean.

The likelihood is largest where the effects do not vary at all: maximum likelihood, ``prior=False``, ends at the
boundary ``tau = 0``, which EM approaches ever more slowly and which the certificate names. The prior on ``tau``, a
gamma of shape 2, is zero there and has next to no say elsewhere: the posterior mode is inside.

Reference:
    Rubin (1981), Estimation in parallel randomized experiments, J. Educational Statistics 6:377-401 (data); Gelman et
    al. (2013), Bayesian data analysis, section 5.5 (pooled estimate 7.7, standard error 4.1, at ``tau = 0``); Chung,
    Rabe-Hesketh, Dorie, Gelman and Liu (2013), A nondegenerate penalized likelihood estimator for variance parameters
    in multilevel models, Psychometrika 78:685-709 (the prior).
"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

published = {"mu at tau = 0": 7.7, "its standard error": 4.1}


def model(effect, error):
    """Effects around a common mean.

    Args:
        effect: estimated effects, ``(schools,)``.
        error: their standard errors.
    """
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    tau = numpyro.sample("tau", dist.Gamma(2.0, 0.01))
    with numpyro.plate("schools", len(effect)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("effect", dist.Normal(theta, error), obs=effect)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Effects and their standard errors, in points."""
    effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    error = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    return effect, error


start = {"mu": 5.0, "tau": 10.0}


def main() -> None:
    """Fit with and without the prior, and print both answers."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, max_iterations=5000)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data(), init_params=start)
    result.print_summary()
    mean, variance = result.posterior("theta")
    print("effects: ", mean.round(1), "standard deviations:", np.sqrt(variance).round(1))
    print("\nmaximum likelihood")
    result = emppl.EM(model, prior=False).run(jax.random.key(0), *data(), init_params=start)
    result.print_summary()
    print(result.certificate)
    print("published:", published)


if __name__ == "__main__":
    main()

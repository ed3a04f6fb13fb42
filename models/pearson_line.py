"""Pearson's line: a regression whose covariate is measured with error.

Both coordinates of ten points are measured with the same error. The true abscissa is a latent; regression of one on the
other would flatten the line.

Convention: the two error variances are equal (or their ratio is known); without that, or repeated measurements, a
normal abscissa leaves the slope unidentified. The estimate is then the line of least squared distances.

Reference:
    Pearson (1901), On lines and planes of closest fit to systems of points in space, Philosophical Magazine 2:559-572:
    y = 5.784 - 0.546 x. Fuller (1987), Measurement error models, section 1.3.
"""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

published = {"intercept": 5.784, "slope": -0.546}


def model(x, y):
    """A line through true abscissas.

    Args:
        x: measured abscissa, ``(points,)``.
        y: measured ordinate.
    """
    centre, intercept, slope = (numpyro.param(name, 0.0) for name in ("centre", "intercept", "slope"))
    spread, error = (numpyro.param(name, 1.0, constraint=constraints.positive) for name in ("spread", "error"))
    with numpyro.plate("points", len(x)):
        truth = numpyro.sample("truth", dist.Normal(centre, spread))
        numpyro.sample("x", dist.Normal(truth, error), obs=x)
        numpyro.sample("y", dist.Normal(intercept + slope * truth, error), obs=y)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Ten points."""
    x = np.array([0.0, 0.9, 1.8, 2.6, 3.3, 4.4, 5.2, 6.1, 6.5, 7.4])
    y = np.array([5.9, 5.4, 4.4, 4.6, 3.5, 3.7, 2.8, 2.8, 2.4, 1.5])
    return x, y


def closed_form(x, y) -> dict[str, float]:
    """The line of least squared distances, and the variances that go with it."""
    (sxx, sxy), (_, syy) = np.cov(x, y, ddof=0)
    slope = (syy - sxx + np.hypot(syy - sxx, 2 * sxy)) / (2 * sxy)
    spread = sxy / slope
    return {
        "centre": x.mean(),
        "intercept": y.mean() - slope * x.mean(),
        "slope": slope,
        "spread": np.sqrt(spread),
        "error": np.sqrt(sxx - spread),
    }


def main() -> None:
    """Fit and print the answer beside the published one."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model, max_iterations=5000)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("published:", published, "closed form:", closed_form(*data()))


if __name__ == "__main__":
    main()

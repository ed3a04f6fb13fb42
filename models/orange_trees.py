"""Circumference of five orange trees over time: a logistic growth curve with an asymptote of every tree's own.

The asymptotes are log-normal, so that none is negative, and the curve is not linear in the normal effect behind them.
(With normal asymptotes, as in Pinheiro and Bates, the log joint density is quadratic in them, and emppl takes
``Gaussian()``, which is exact.)

Reference:
    Draper and Smith (1981), Applied regression analysis (data); Pinheiro and Bates (2000), Mixed-effects models in S
    and S-PLUS, section 8.2: with normal asymptotes their mean is 192, their standard deviation 31.5, midpoint 728,
    scale 348, residual deviation 7.8, log-likelihood -131.6.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

known = {"asymptote": 192, "midpoint": 728, "scale": 348, "residual": 7.8}


def model(circumference, days):
    """Logistic growth, the asymptote of a tree log-normal.

    Args:
        circumference: in millimetres, ``(trees, times)``.
        days: age, ``(times,)``.
    """
    # Sizes in units that are of order one: log of the asymptote, and thousands of days.
    centre = numpyro.param("centre", jnp.log(180.0))
    spread = numpyro.param("spread", 0.2, constraint=dist.constraints.positive)
    midpoint = numpyro.param("midpoint", 0.7)
    scale = numpyro.param("scale", 0.35, constraint=dist.constraints.positive)
    residual = numpyro.param("residual", 10.0, constraint=dist.constraints.positive)
    growth = jax.nn.sigmoid((days / 1000 - midpoint) / scale)
    with numpyro.plate("trees", circumference.shape[0]):
        asymptote = numpyro.sample("asymptote", dist.LogNormal(centre, spread))
        curve = asymptote[:, None] * growth
        numpyro.sample("circumference", dist.Normal(curve, residual).to_event(1), obs=circumference)


def data() -> tuple[np.ndarray, np.ndarray]:
    """Circumferences, and days since the last day of 1968."""
    circumference = np.array(
        [
            [30, 58, 87, 115, 120, 142, 145],
            [33, 69, 111, 156, 172, 203, 203],
            [30, 51, 75, 108, 115, 139, 140],
            [32, 62, 112, 167, 179, 209, 214],
            [30, 49, 81, 125, 142, 174, 177],
        ]
    )
    return circumference, np.array([118, 484, 664, 1004, 1231, 1372, 1582])


def main() -> None:
    """Fit and print the answer beside the one that is known."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    result.print_summary()
    print("known with normal asymptotes:", known)


if __name__ == "__main__":
    main()

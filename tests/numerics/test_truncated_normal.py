"""A normal variable inside an interval, against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from emppl.numerics import truncated_normal as interval
from tests.kit.fits import KEY

# Ends of an interval, log mass, mean, variance under the standard normal law; computed with 60 digits (mpmath).
MOMENTS = np.array(
    [
        [0, np.inf, -0.69314718055994531, 0.79788456080286536, 0.36338022763241866],
        [-1, np.inf, -0.17275377902344989, 0.28759997093917836, 0.6296862857766054],
        [-0.5, 0.25, -1.2372925013224502, -0.11925055896410056, 0.045982520932688995],
        [-2, 1.5, -0.093824350733989967, -0.082955942101852534, 0.66112780029244679],
        [-5, 6, -2.8763820089209495e-7, 1.4806440577742061e-6, 0.99999252994278825],
        [0.5, 9.5, -1.1759117615936186, 1.1410777703680645, 0.26848040715587895],
        [1, 1.0009765625, -8.3508987392246018, 1.000488201738339, 7.9472853380884274e-8],
        [3, np.inf, -6.6077262215103495, 3.2830986549304365, 0.070559186785268117],
        [8, 8.5, -35.028792508579748, 8.1137359894965232, 0.010525740358364855],
        [20, np.inf, -203.91715537109726, 20.049753068527851, 0.0024632616150521636],
        [1000, np.inf, -500007.82669481218, 1000.000999998, 9.9999400004999948e-7],
        [-0.125, np.inf, -0.59831306891242499, 0.72004759550252538, 0.39152551077321592],
        [40, 40.0009765625, -807.86987816872035, 40.000485102377752, 7.946679409579046e-8],
    ]
)


def test_moments_keep_their_digits():
    """In both tails, in narrow intervals, around the mode."""
    low, high, *expected = MOMENTS.T
    for one, two in ((low, high), (-high, -low)):
        log_mass, mean, variance = interval.moments(jnp.zeros(()), jnp.ones(()), one, two)
        np.testing.assert_allclose(log_mass, expected[0], rtol=2e-14)
        np.testing.assert_allclose(np.abs(mean), np.abs(expected[1]), rtol=2e-14)
        np.testing.assert_allclose(variance, expected[2], rtol=5e-14)


def test_derivatives_of_the_mass_are_moments():
    low, high = MOMENTS[:, 0], MOMENTS[:, 1]
    mean, root = jnp.array(0.2), jnp.array(1.3)
    _, inside, variance = interval.moments(mean, root, low, high)

    def log_mass(mean, low, high):
        return interval.moments(mean, root, low, high)[0]

    slope, curvature = (jax.vmap(d(log_mass), (None, 0, 0))(mean, low, high) for d in (jax.grad, jax.hessian))
    np.testing.assert_allclose(slope, root**2 * (inside - mean), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(curvature, root**4 * variance - root**2, rtol=1e-12, atol=1e-12)


def test_draws_follow_the_truncated_law():
    for low, high in ((-np.inf, 0.3), (2.0, 2.5), (8.0, np.inf), (-6.0, 1.0)):
        drawn = interval.draw(KEY, jnp.zeros(4000), jnp.ones(()), jnp.array(low), jnp.array(high))
        assert stats.kstest(drawn, stats.truncnorm(low, high).cdf).pvalue > 1e-3

"""Rounding errors that are measured."""

import jax.numpy as jnp
import numpy as np

from emppl.numerics.rounding import measured


def test_the_noise_of_a_sum_whose_terms_cancel():
    """Terms of 3e7 leave rounding errors of 1e-8, at a maximum where the sum itself is flat."""
    rate = jnp.array([2e6])
    noise = measured(lambda x: 2e6 * jnp.log(x[0]) - x[0] - 27e6, rate)
    assert 1e-9 < noise < 1e-6
    smooth = measured(lambda x: -jnp.sum((x - 1) ** 2) - 3, jnp.ones(3))
    assert smooth < 1e-14


def test_the_noise_next_to_an_impossible_value_is_unknown():
    assert not np.isfinite(measured(lambda x: jnp.where(x[0] < 1, -jnp.inf, 0.0), jnp.ones(1)))

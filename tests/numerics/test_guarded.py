"""Sums of what may be impossible."""

import jax
import jax.numpy as jnp
import numpy as np

from emppl.numerics.guarded import logsumexp


def test_logsumexp_of_impossible_states():
    """Minus infinity where all states are impossible; the derivative is zero there, never NaN."""
    table = jnp.array([[0.0, -jnp.inf, -jnp.inf], [-jnp.inf, -jnp.inf, 1.0]])
    np.testing.assert_array_equal(logsumexp(table, 0)[0], [0.0, -np.inf, 1.0])
    gradient = jax.jacobian(lambda t: logsumexp(t, 0)[0])(table)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[1], 0)
    second = jax.hessian(lambda t: logsumexp(t, 0)[0, 0])(table)
    assert np.all(np.isfinite(second))

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


def test_second_derivatives_of_impossible_states_inside_a_loop():
    """JAX drops derivative rules of loops that it differentiates twice: the guard must be in the value itself."""

    def log_evidence(x):
        move = jnp.array([[x[0], x[1], -jnp.inf], [-jnp.inf, x[0] ** 2, x[1]], [-jnp.inf, -jnp.inf, 0.0]])
        step = lambda alpha, _: (logsumexp(alpha[:, None] + move, 0)[0], None)  # noqa: E731
        alpha = jax.lax.scan(step, jnp.array([0.0, -jnp.inf, -jnp.inf]), None, 3)[0]
        return logsumexp(alpha, 0)[0]

    def by_hand(x):
        move = jnp.array([[jnp.exp(x[0]), jnp.exp(x[1]), 0], [0, jnp.exp(x[0] ** 2), jnp.exp(x[1])], [0, 0, 1.0]])
        return jnp.log(jnp.sum(jnp.linalg.matrix_power(move, 3)[0]))

    at = jnp.array([0.3, -0.8])
    np.testing.assert_allclose(jax.hessian(log_evidence)(at), jax.hessian(by_hand)(at), rtol=1e-12)

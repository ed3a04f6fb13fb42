"""When gains are called an end."""

import jax.numpy as jnp
import numpy as np

from emppl.fit.convergence import Gains, convergence_test
from emppl.strategies import ObjectiveKind


def test_rounding_that_jitters_is_an_end_and_slow_gains_are_none():
    """Gains of both signs, a hundred units of rounding large, never settle; gains as large but all upwards go on."""
    test = convergence_test(ObjectiveKind.EXACT)
    jitter = np.random.default_rng(0).uniform(-1e-11, 1e-11, 60)

    def end(objectives):
        progress = Gains.beginning(1, float)
        for iteration, objective in enumerate(objectives):
            found = test(jnp.asarray([objective]), progress, jnp.asarray([iteration]), jnp.zeros(1), 1e-9)
            assert not found.decreased
            if found.converged:
                return iteration
            progress = found.gains
        return None

    assert end(-472.0 + jitter) in range(30, 45)
    assert end(-472.0 + jitter + 2e-12 * np.arange(60)) is None

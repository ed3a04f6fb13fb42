"""Two orders of the same sums."""

import jax.numpy as jnp
import numpy as np
import pytest

from emppl.numerics.block_tridiagonal import smooth_in_lanes, smooth_in_turn


@pytest.mark.parametrize(
    ("size", "number", "cells", "lanes"), [(2, 7, 1, 2), pytest.param(3, 9, 2, 4, marks=pytest.mark.slow)]
)
def test_lanes_equal_one_block_after_the_other(size, number, cells, lanes):
    rng = np.random.default_rng(size)
    pieces = rng.normal(size=(cells, number, 2 * size, 2 * size))
    pieces = pieces @ np.swapaxes(pieces, -1, -2)
    diagonal, off = np.zeros((size, size, number, cells)), np.zeros((size, size, number, cells))
    for i in range(number):
        diagonal[:, :, i] += np.eye(size)[..., None] + np.moveaxis(pieces[:, i, size:, size:], 0, -1)
        if i:
            diagonal[:, :, i - 1] += np.moveaxis(pieces[:, i, :size, :size], 0, -1)
            off[:, :, i] = np.moveaxis(pieces[:, i, size:, :size], 0, -1)
    linear = rng.normal(size=(size, number, cells))
    arguments = [jnp.asarray(part) for part in (diagonal, off, linear)]
    for one, other in zip(smooth_in_lanes(*arguments, lanes), smooth_in_turn(*arguments), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)

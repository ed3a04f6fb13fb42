"""Axes that stay apart: what is claimed of a computation holds for its values, and what mixes them is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from emppl.jaxpr.cellwise import Apart, Mixed, Place, lanes

RNG = np.random.default_rng(0)
MATRICES = RNG.normal(size=(4, 3, 3)) + 4 * np.eye(3)
SYMMETRIC = MATRICES + np.swapaxes(MATRICES, 1, 2)


def followed(function, x, axis=0):
    """What is known of the first axis of an operand in the (first) result, and the result."""
    start = Apart({("x", ""): Place(axis, 1, x.shape[axis])})
    return lanes(jax.make_jaxpr(function)(x), [start])[0]


# By name: a function of an array, the array, and the axis of the result along which the first one lies.
APART = {
    "lu": (lambda x: lax.linalg.lu(x)[0], MATRICES, 0),
    "pivots": (lambda x: lax.linalg.lu(x)[1], MATRICES, 0),
    "qr": (lambda x: lax.linalg.qr(x)[1], MATRICES, 0),
    "svd": (lambda x: jnp.linalg.svd(x, compute_uv=False), MATRICES, 0),
    "eigh": (lambda x: jnp.linalg.eigvalsh(x), SYMMETRIC, 0),
    "householder": (lambda x: lax.linalg.householder_product(x, x[..., 0] * 0.1), MATRICES, 0),
    "tridiagonal": (
        lambda x: lax.linalg.tridiagonal_solve(0.1 * x[..., 0], 9 + x[..., 1], 0.1 * x[..., 2], x),
        MATRICES,
        0,
    ),
    "inverse": (jnp.linalg.inv, MATRICES, 0),
    "solve": (lambda x: jnp.linalg.solve(x, jnp.ones((4, 3, 2))), MATRICES, 0),
    "determinant": (jnp.linalg.det, MATRICES, 0),
    "flattened and back": (lambda x: jnp.exp(x.reshape(12, 3)).reshape(4, 9), MATRICES, 0),
    "flattened crosswise": (lambda x: x.transpose(1, 0, 2).reshape(12, 3).reshape(3, 4, 3), MATRICES, 1),
    "scan": (lambda x: lax.scan(lambda s, row: (s + row, s * row), x[:, 0], jnp.moveaxis(x, 1, 0))[1], MATRICES, 1),
    "end of a scan": (lambda x: lax.scan(lambda s, row: (s + row, s), x[:, 0], jnp.moveaxis(x, 1, 0))[0], MATRICES, 0),
    "index": (lambda x: jnp.arange(9.0)[jnp.round(x[:, 0]).astype(int) % 9], MATRICES, 0),
    "batched index": (lambda x: jnp.take_along_axis(x, jnp.zeros((4, 1, 3), int), 1), MATRICES, 0),
}


@pytest.mark.parametrize("name", APART)
def test_what_changes_at_one_entry_changes_the_result_there_only(name):
    function, x, axis = APART[name]
    found = followed(function, x)
    assert found.axes == {("x", ""): Place(axis, 1, 4)}
    before = np.asarray(function(x))
    for entry in range(4):
        after = np.asarray(function(jnp.asarray(x).at[entry].multiply(1.3)))
        np.testing.assert_allclose(np.delete(after, entry, axis), np.delete(before, entry, axis), rtol=1e-9, atol=1e-12)


MIXED = {
    "scan": lambda x: lax.scan(lambda s, row: (s + 1, s * row), 0.0, x)[1],
    "while": lambda x: lax.while_loop(lambda s: s.sum() < 0, lambda s: s[::-1], x),
    "cond": lambda x: lax.cond(True, lambda s: s, lambda s: s[::-1], x),
    "fft": lambda x: jnp.fft.fft(x, axis=0).real,
    "rev": lambda x: x[::-1],
    "reduce_sum": lambda x: x + x.sum(0, keepdims=True),
    "sort": lambda x: jnp.sort(x, 0),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_entries_is_named(name):
    found = followed(MIXED[name], MATRICES)
    assert isinstance(found, Mixed)
    assert found.operation == name
    assert len(found.words) > 5


def test_two_places_of_one_axis_do_not_meet():
    square = RNG.normal(size=(3, 3))
    assert isinstance(followed(lambda x: x + x.T, square), Mixed)
    assert followed(lambda x: x * 2 + 1, square) == Apart({("x", ""): Place(0, 1, 3)})


def test_axes_along_which_results_vary_whatever_the_input():
    x = RNG.normal(size=4)
    assert followed(lambda x: x + 1, x).varies == frozenset()
    assert followed(lambda x: jnp.ones((1, 4)) * x[:, None], x).varies == frozenset()
    assert followed(lambda x: jnp.arange(4.0) * x, x).varies == {0}
    assert followed(lambda x: jnp.stack([x, 1 - x], -1), x).varies == {1}

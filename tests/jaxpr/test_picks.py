"""Indices out of bounds: found wherever a computation picks, and told apart by whether the result sees them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from emppl.jaxpr.picks import Picks

A = jnp.array([1.0, 2.0, 4.0])
TABLE = jnp.array([[1, 0, 2], [2, 2, 0]])
KNOWN = frozenset([("data", "0")])


def picks_of(function, index):
    closed = jax.make_jaxpr(function)(A, jnp.asarray(index))
    return closed, Picks(closed, [("parameter", "a"), ("data", "0")], KNOWN)


def in_range(function, index):
    _, picks = picks_of(function, index)
    assert picks.found
    ranges = picks.ranges({("data", "0"): jnp.asarray(index)})
    return all(
        0 <= low and high <= pick.largest[axis]
        for pick, by_axis in zip(picks.found, ranges, strict=True)
        for axis, (low, high) in by_axis.items()
    )


WAYS = {
    "brackets": lambda a, i: a[i],
    "take": lambda a, i: jnp.take(a, i),
    "along an axis": lambda a, i: jnp.take_along_axis(a, i, 0),
    "vmap": lambda a, i: jax.vmap(lambda j: a[j])(i),
    "vmap of rows": lambda a, i: jax.vmap(lambda j: jnp.outer(a, a)[j, 1])(i),
    "one by one": lambda a, i: jnp.stack([a[i[0]], a[i[1]]]),
    "two axes": lambda a, i: jnp.outer(a, a)[1, i],
    "second axis of two indices": lambda a, i: jnp.outer(a, a)[jnp.array([0, 1]), i],
    "rows": lambda a, i: jnp.outer(a, a)[i].sum(1),
    "under jit": lambda a, i: jax.jit(lambda b, j: jnp.exp(b)[j])(a, i),
    "of an index": lambda a, i: a[TABLE[0][i]],
}


@pytest.mark.parametrize("way", WAYS)
def test_ranges(way):
    assert in_range(WAYS[way], [0, 2])
    assert in_range(WAYS[way], [-1, -3])
    assert not in_range(WAYS[way], [0, 3])
    assert not in_range(WAYS[way], [-4, 0])


@pytest.mark.parametrize("way", WAYS)
def test_poison_goes_where_it_was_picked(way):
    closed, picks = picks_of(WAYS[way], [0, 3])
    clean = jaxpr_as_fun(picks.poisoned(None))
    for index in ([0, 2], [0, -2]):
        for pick in (None, *picks.found):
            (got,) = jaxpr_as_fun(picks.poisoned(pick))(A, jnp.array(index))
            np.testing.assert_array_equal(got, WAYS[way](A, jnp.array(index)))
    bad = jnp.array([0, 7])
    (clamped,) = clean(A, bad)
    np.testing.assert_array_equal(clamped, WAYS[way](A, jnp.array([0, 2])))
    poisoned = [np.asarray(jaxpr_as_fun(picks.poisoned(pick))(A, bad)[0]) for pick in picks.found]
    assert any(np.isnan(result[1]) for result in poisoned)
    assert all(result[0] == clamped[0] for result in poisoned)


def test_clamping_that_was_asked_for_is_none_of_these():
    for function in (
        lambda a, i: jnp.take(a, i, mode="clip"),
        lambda a, i: a.at[i].get(mode="clip"),
        lambda a, i: jax.lax.dynamic_slice(a, (i[0],), (2,)),
    ):
        _, picks = picks_of(function, [0, 3])
        assert not picks.found


def test_an_index_that_parameters_move_is_left_alone():
    _, picks = picks_of(lambda a, i: a[jnp.argmax(a) + i], [0, 1])
    assert not picks.found


@pytest.mark.parametrize(
    "table", [jnp.array([True, False, True]), jnp.array([0, 1, 2], jnp.uint8), jnp.array([7, 8, 9], jnp.int8)]
)
def test_picked_numbers_and_truth_values_change(table):
    closed, picks = picks_of(lambda a, i: jnp.where(table[i] == table[2], 1.0, 0.0) + a[0], [0, 5])
    (clamped,) = jaxpr_as_fun(picks.poisoned(None))(A, jnp.array([0, 5]))
    (poisoned,) = jaxpr_as_fun(picks.poisoned(picks.found[0]))(A, jnp.array([0, 5]))
    assert clamped[1] != poisoned[1] and clamped[0] == poisoned[0]

"""A model's arguments, split into arrays (data, traced) and everything else (static)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import DataError
from emppl.inputs.containers import NUMBERS, Known, Readable, array_of, closed, is_column, opened

Skeleton: TypeAlias = tuple[jax.tree_util.PyTreeDef, tuple[Any, ...], tuple[type | str, ...]]
"""A model's arguments without the contents of their arrays, apart from those that are known; hashable."""


def split_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], Skeleton]:
    """Split a model's arguments into arrays (traced) and everything else (static).

    Arrays, wherever they sit in lists, tuples, dicts and records, are data: new values do not recompile. So are columns
    of data frames. Python scalars, strings, None and other objects are static, as ``K=2`` must be. A data frame is
    known by its values, and so are arrays that hold no numbers.

    Args:
        args: positional model arguments.
        kwargs: keyword model arguments.

    Returns:
        ``(data, skeleton)``: the arrays, and the hashable rest that rebuilds the arguments from them.

    Raises:
        DataError: a static argument is not hashable, or a random key.
    """
    leaves, treedef = _flatten(args, kwargs)
    entries = [_entry(leaf) for leaf in leaves]
    static = tuple(entry for entry, _ in entries)
    # True == 1 == 1.0 and 0.0 == -0.0, but a model may tell them apart.
    kinds = (leaf.hex() if type(leaf) is float else type(leaf) for leaf in static)
    return [array for _, array in entries if array is not None], (treedef, static, tuple(kinds))


def own_forms(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """What the caller gave for every array of data: an array, or a column of a data frame."""
    return [leaf for leaf in _flatten(args, kwargs)[0] if _entry(leaf)[1] is not None]


def _flatten(args: Any, kwargs: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(opened((args, kwargs)), is_leaf=lambda node: node is None)


def _entry(leaf: Any) -> tuple[Any, Any]:
    """What of an argument is static, and its array among the data."""
    if isinstance(leaf, Known):
        return leaf, leaf.array
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise DataError(
                f"A model argument is an array of {leaf.dtype}, which is no array of numbers. Pass "
                "jax.random.key_data(key), and in the model write key = jax.random.wrap_key_data(data)."
            )
        return _ARRAY, leaf
    if isinstance(leaf, np.ndarray) or is_column(leaf):
        array = leaf if isinstance(leaf, np.ndarray) else array_of(leaf)
        return (_ARRAY, array) if array.dtype.kind in NUMBERS else (Known(leaf, WITHOUT_NUMBERS), None)
    _check_static(leaf)
    return leaf, None


WITHOUT_NUMBERS = "it holds no numbers"
"""Why an array is known by its values: JAX has no such arrays."""


def _check_static(leaf: Any) -> None:
    """Refuse what could hold data without JAX seeing it: a changed value would silently reuse an old derivation."""
    kind = type(leaf).__name__
    try:
        hash(leaf)
    except TypeError:
        raise DataError(
            f"A model argument is a {kind}, which JAX cannot trace. Pass arrays instead, for example numpy.array(list)."
        ) from None
    if leaf is not None and not callable(leaf) and type(leaf).__eq__ is object.__eq__:
        raise DataError(
            f"A model argument is a {kind} object, whose contents emppl cannot see. Pass its arrays as arguments of "
            f"their own, or make {kind} a pytree (jax.tree_util.register_dataclass)."
        )


def objects_among(skeleton: Skeleton) -> list[Any]:
    """Static arguments that may hold, or read, what changes: functions and objects."""
    plain = (bool, int, float, complex, str, bytes, type(None), _Array, Known)
    return [leaf for leaf in skeleton[1] if not isinstance(leaf, plain)]


def join_arguments(data: Sequence[Any], skeleton: Skeleton) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inverse of :func:`split_arguments`; what is known by its values has these, whatever is among the data."""
    treedef, static, _ = skeleton
    remaining = iter(data)
    leaves = []
    for leaf in static:
        value = next(remaining) if leaf is _ARRAY or (isinstance(leaf, Known) and leaf.array is not None) else leaf
        leaves.append(leaf.fresh() if isinstance(leaf, Known) else value)
    return closed(jax.tree.unflatten(treedef, leaves))


def with_known(skeleton: Skeleton, known: Mapping[int, Known]) -> Skeleton:
    """The skeleton of the same arguments, some of which are known by their values.

    Args:
        known: by position among the data.
    """
    treedef, static, kinds = skeleton
    leaves, types = list(static), list(kinds)
    for position, number in enumerate(_places(skeleton)):
        if position in known:
            leaves[number], types[number] = known[position], Known
    return treedef, tuple(leaves), tuple(types)


def known_among(skeleton: Skeleton) -> dict[int, Known]:
    """Arrays that are known by their values, by position among the data."""
    leaves = [skeleton[1][number] for number in _places(skeleton)]
    return {position: leaf for position, leaf in enumerate(leaves) if isinstance(leaf, Known)}


def _places(skeleton: Skeleton) -> list[int]:
    """Where the arrays of data stand among all leaves."""
    return [
        number
        for number, leaf in enumerate(skeleton[1])
        if leaf is _ARRAY or (isinstance(leaf, Known) and leaf.array is not None)
    ]


def readable(given: Any, array: Any, reason: str) -> Known:
    """An argument by its values.

    Args:
        given: what the caller gave.
        array: the same in the precision of the session.
        reason: where the model reads it.
    """
    values = np.asarray(array)
    if isinstance(given, jax.Array):
        return Known(values.view(Readable), reason, values)
    return Known(values if isinstance(given, np.ndarray) else given, reason, values)


def shortened(skeleton: Skeleton, data: Sequence[Any]) -> Skeleton | None:
    """The skeleton for other data of the same arguments; None if what is known cannot be had for these."""
    known = {}
    for position, leaf in known_among(skeleton).items():
        array = np.asarray(data[position])
        if leaf.array is not None and array.shape == leaf.array.shape and np.array_equal(array, leaf.array):
            continue
        if not isinstance(leaf.value, np.ndarray):
            return None
        known[position] = Known(array.view(type(leaf.value)), leaf.reason, array)
    return with_known(skeleton, known)


def with_array_in_front(skeleton: Skeleton) -> Skeleton:
    """The skeleton of the same arguments after one more array."""
    treedef, static, kinds = skeleton
    args, kwargs = jax.tree.unflatten(treedef, static)
    longer = jax.tree.structure(((_ARRAY, *args), kwargs), is_leaf=lambda node: node is None)
    return longer, (_ARRAY, *static), (_Array, *kinds)


def raised(array: Any) -> jax.Array:
    """An array in the session's precision, where its own is lower.

    A density is computed in the precision of what goes into it: ``lgamma`` of counts kept as float32, or as any
    integers below 64 bits, has seven digits.
    """
    array = array if isinstance(array, jax.Array) else jnp.asarray(array)
    if array.dtype.itemsize < 8:
        for kind, widest in ((jnp.floating, jnp.result_type(float)), (jnp.integer, jnp.result_type(int))):
            if jnp.issubdtype(array.dtype, kind) and array.dtype.itemsize < jnp.dtype(widest).itemsize:
                return jnp.asarray(array, widest)
    return array


class _Array:
    def __repr__(self) -> str:
        return "array"


_ARRAY = _Array()

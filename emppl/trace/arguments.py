"""A model's arguments, split into arrays (data, traced) and everything else (static)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import DataError

Skeleton: TypeAlias = tuple[jax.tree_util.PyTreeDef, tuple[Any, ...], tuple[type | str, ...]]
"""A model's arguments without the contents of their arrays; hashable."""


def split_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[Any], Skeleton]:
    """Split a model's arguments into arrays (traced) and everything else (static).

    Arrays, wherever they sit in lists, tuples and dicts, are data: new values do not recompile. Python
    scalars, strings, None and other objects are static, as ``K=2`` must be.

    Args:
        args: positional model arguments.
        kwargs: keyword model arguments.

    Returns:
        ``(data, skeleton)``: the arrays, and the hashable rest that rebuilds the arguments from them.

    Raises:
        DataError: a static argument is not hashable (a data frame, say), or an array holds no numbers.
    """
    leaves, treedef = jax.tree.flatten((args, kwargs), is_leaf=lambda node: node is None)
    data: list[Any] = []
    static: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, (np.ndarray, jax.Array)):
            if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "biufc":
                raise DataError(
                    f"A model argument is an array of {leaf.dtype}, which JAX cannot use. Code it as numbers first, "
                    "for example codes = numpy.unique(labels, return_inverse=True)[1]."
                )
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
                raise DataError(
                    f"A model argument is an array of {leaf.dtype}, which is no array of numbers. Pass "
                    "jax.random.key_data(key), and in the model write key = jax.random.wrap_key_data(data)."
                )
            static.append(_ARRAY)
            data.append(leaf)
        else:
            _check_static(leaf)
            static.append(leaf)
    # True == 1 == 1.0 and 0.0 == -0.0, but a model may tell them apart.
    kinds = (leaf.hex() if type(leaf) is float else type(leaf) for leaf in static)
    return data, (treedef, tuple(static), tuple(kinds))


def _check_static(leaf: Any) -> None:
    """Refuse what could hold data without JAX seeing it: a changed value would silently reuse an old derivation."""
    kind = type(leaf).__name__
    try:
        hash(leaf)
    except TypeError:
        raise DataError(
            f"A model argument is a {kind}, which JAX cannot trace. Pass arrays instead, "
            f"for example frame[['a', 'b']].to_numpy()."
        ) from None
    if leaf is not None and not callable(leaf) and type(leaf).__eq__ is object.__eq__:
        raise DataError(
            f"A model argument is a {kind} object, whose contents emppl cannot see. Pass its arrays as arguments of "
            f"their own, or make {kind} a pytree (jax.tree_util.register_dataclass)."
        )


def objects_among(skeleton: Skeleton) -> list[Any]:
    """Static arguments that may hold, or read, what changes: functions and objects."""
    plain = (bool, int, float, complex, str, bytes, type(None), _Array)
    return [leaf for leaf in skeleton[1] if not isinstance(leaf, plain)]


def join_arguments(data: Sequence[Any], skeleton: Skeleton) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inverse of :func:`split_arguments`."""
    treedef, static, _ = skeleton
    remaining = iter(data)
    return jax.tree.unflatten(treedef, [next(remaining) if leaf is _ARRAY else leaf for leaf in static])


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

"""A model's arguments, split into arrays (data, traced) and everything else (static)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from emppl.errors import DataError


def split_arguments(args: tuple, kwargs: dict) -> tuple[list, Any]:
    """Split a model's arguments into arrays (traced) and everything else (static).

    Arrays, wherever they sit in lists, tuples and dicts, are data: new values do not recompile. Python
    scalars, strings, None and other objects are static, as ``K=2`` must be.

    Args:
        args: positional model arguments.
        kwargs: keyword model arguments.

    Returns:
        ``(data, skeleton)``: the array leaves and a hashable description that rebuilds the arguments.

    Raises:
        DataError: a static argument is not hashable (a data frame, say), or an array holds no numbers.
    """
    flat, treedef = jax.tree.flatten((args, kwargs), is_leaf=lambda node: node is None)
    leaves, static = [], []
    for leaf in flat:
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
            leaves.append(leaf)
        else:
            _check_static(leaf)
            static.append(leaf)
    # True == 1 == 1.0, but a model may tell them apart.
    return leaves, (treedef, tuple(static), tuple(map(type, static)))


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
    same = getattr(type(leaf), "__eq__", None)
    if leaf is not None and not callable(leaf) and same is object.__eq__:
        raise DataError(
            f"A model argument is a {kind} object, whose contents emppl cannot see. Pass its arrays as arguments of "
            f"their own, or make {kind} a pytree (jax.tree_util.register_dataclass)."
        )


def join_arguments(leaves: list, skeleton: Any) -> tuple[tuple, dict]:
    """Inverse of :func:`split_arguments`."""
    treedef, static, _ = skeleton
    remaining = iter(leaves)
    flat = [next(remaining) if leaf is _ARRAY else leaf for leaf in static]
    return jax.tree.unflatten(treedef, flat)


def with_array_in_front(skeleton: Any) -> Any:
    """The skeleton of the same arguments after one more array."""
    treedef, static, kinds = skeleton
    args, kwargs = jax.tree.unflatten(treedef, static)
    longer = jax.tree.structure(((_ARRAY, *args), kwargs), is_leaf=lambda node: node is None)
    return longer, (_ARRAY, *static), (_Array, *kinds)


class _Array:
    def __repr__(self):
        return "array"


_ARRAY = _Array()

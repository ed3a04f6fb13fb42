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
        ``(leaves, skeleton)``: the array leaves and a hashable description that rebuilds the arguments.

    Raises:
        DataError: a static argument is not hashable (a data frame, say).
    """
    flat, treedef = jax.tree.flatten((args, kwargs), is_leaf=lambda node: node is None)
    leaves, static = [], []
    for leaf in flat:
        if isinstance(leaf, (np.ndarray, jax.Array)):
            static.append(_ARRAY)
            leaves.append(leaf)
        else:
            try:
                hash(leaf)
            except TypeError:
                kind = type(leaf).__name__
                raise DataError(
                    f"A model argument is a {kind}, which JAX cannot trace. Pass arrays instead, "
                    f"for example frame[['a', 'b']].to_numpy()."
                ) from None
            static.append(leaf)
    return leaves, (treedef, tuple(static))


def join_arguments(leaves: list, skeleton: Any) -> tuple[tuple, dict]:
    """Inverse of :func:`split_arguments`."""
    treedef, static = skeleton
    remaining = iter(leaves)
    flat = [next(remaining) if leaf is _ARRAY else leaf for leaf in static]
    return jax.tree.unflatten(treedef, flat)


class _Array:
    def __repr__(self):
        return "array"


_ARRAY = _Array()

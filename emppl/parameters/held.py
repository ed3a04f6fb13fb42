"""Entries of a parameter that stay at given values while the others are estimated: ``fixed={"mu": [0.0, nan]}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import ParameterError
from emppl.parameters.constraints import bounds, constraint_name


def split_fixed(fixed: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Parameters that are fixed as a whole, and those of which some entries are NaN, which leaves them free.

    Both are copies: what the caller writes into his arrays later does not change them.
    """
    whole, partly = {}, {}
    for name, value in fixed.items():
        array = np.array(value, float)
        if array.ndim and np.any(np.isnan(array)) and not np.all(np.isnan(array)):
            partly[name] = array
        else:
            whole[name] = np.array(value) if isinstance(value, (np.ndarray, list)) else value
    return whole, partly


def check_held(name: str, held: np.ndarray, shape: tuple[int, ...], constraint: Any) -> None:
    """Check given entries: their shape and bounds, and that the constraint does not tie them to the others.

    Raises:
        ParameterError: wrong shape, an entry outside its bounds, or a constraint that ties entries together.
    """
    where = f"fixed[{name!r}]"
    if held.shape != tuple(shape):
        raise ParameterError(f"{where} has shape {held.shape}; the model needs {tuple(shape)} (NaN where free).")
    kind = constraint_name(constraint)
    given = held[~np.isnan(held)]
    low, high = (0.0, 1.0) if kind == "simplex" else bounds(constraint) or (None, None)
    if low is None or high is None:
        raise ParameterError(
            f"{where} fixes some entries of a parameter whose constraint {kind!r} ties entries together. Fix all of "
            "it, or none."
        )
    if np.any(given < low) or np.any(given > high) or not np.all(np.isfinite(given)):
        raise ParameterError(f"{where} = {held} is outside its constraint {kind!r}.")
    if kind == "simplex":
        total, free = np.nansum(held, -1), np.isnan(held).any(-1)
        if np.any(free & (total >= 1)) or np.any(~free & (np.abs(total - 1) > 1e-6)):
            raise ParameterError(
                f"{where} = {held} leaves nothing for the free entries: the fixed ones sum to {total}."
            )


def pin(constraint: Any, held: np.ndarray, value: jax.Array) -> jax.Array:
    """The value with its fixed entries in place; the free ones of a simplex share what these leave."""
    free = jnp.asarray(np.isnan(held))
    given = jnp.asarray(np.nan_to_num(held), value.dtype)
    if constraint_name(constraint) == "simplex":
        room = 1 - jnp.sum(given, -1, keepdims=True)
        share = jnp.sum(jnp.where(free, value, 0), -1, keepdims=True)
        equal = room / jnp.maximum(jnp.sum(free, -1, keepdims=True), 1)
        value = jnp.where(share > 0, value * room / jnp.where(share > 0, share, 1), equal)
    return jnp.where(free, value, given)


def held_dimensions(constraint: Any, held: np.ndarray) -> int:
    """Number of dimensions that fixed entries take away."""
    count = ~np.isnan(held)
    if constraint_name(constraint) != "simplex":
        return int(count.sum())
    return int(np.minimum(count.sum(-1), held.shape[-1] - 1).sum())

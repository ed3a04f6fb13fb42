"""Is a function quadratic? Asked of its gradient, without arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax


def affine_gradient(gradient: Callable, block: Mapping[str, jax.ShapeDtypeStruct]) -> str | None:
    """Is a function's gradient affine, so that the function is quadratic? Answered without arithmetic.

    Args:
        gradient: the gradient as a function of the block.
        block: shapes of the block.

    Returns:
        None if it is, else the operation that is not.
    """
    try:
        jax.eval_shape(lambda cotangent: jax.linear_transpose(gradient, block)(cotangent), block)
    except Exception as error:  # noqa: BLE001  jax raises many kinds, all meaning "not linear"
        words = str(error).split("\n")[0]
        return words.split("'")[1] if "'" in words else "a non-linear operation"
    return None

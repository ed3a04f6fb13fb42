"""When few weighted pieces of data do for many, and which: what compression and condensation have in common.

A function that is quadratic in what varies from piece to piece has the same sum over any pieces with the same count,
mean and covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import Refusal
from emppl.jaxpr import jumps
from emppl.jaxpr.groups import SHARED, Meeting
from emppl.jaxpr.separation import Separation
from emppl.model.log_prob_table import log_prob_table
from emppl.model.model import Model
from emppl.numerics.small_matrices import simplex
from emppl.types import Data, Params


def block_of(model: Model, holders: Sequence[int]) -> dict[str, jax.ShapeDtypeStruct]:
    """What varies from piece to piece: arrays of data, as ``data 0``, and integrated latents."""
    shapes = model.trace.value_shapes.items()
    latents = {name: jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for name, shape in shapes}
    return {f"data {n}": model.shapes[n] for n in holders} | latents


def why_not_separate(
    model: Model,
    block: Mapping[str, jax.ShapeDtypeStruct],
    numbers: Mapping[str, np.ndarray],
    sites: Sequence[str],
    axis: int,
    piece: str,
) -> Refusal | None:
    """The reason why the log density of a piece is not one and the same function of each, or None.

    Args:
        block: from :func:`block_of`.
        numbers: by array of the block, the piece that every entry belongs to.
        sites: whose log density it is.
        axis: the common axis along which the pieces lie.
        piece: what one is called.
    """
    sites = sorted(sites)
    tables = _tables(model, sites)
    groups = Separation(tables, block, model.trace.parameter_shapes, list(model.shapes)).groups(numbers)
    for name, group in zip(sites, groups, strict=True):
        if group is None:
            continue
        if isinstance(group, Meeting) or group.varies[axis] or not _in_order(group.numbers, axis):
            return Refusal(f"{piece}s of site {name!r} differ by more than their data, or depend on each other")
    return None


def why_not_quadratic(
    model: Model,
    block: Mapping[str, jax.ShapeDtypeStruct],
    sites: Sequence[str],
    piece: str,
    gaps: bool = False,
) -> Refusal | None:
    """The reason why the log density is not quadratic in a block, at any values of everything else, or None.

    Args:
        block: arrays of data and latents.
        sites: whose log density it is.
        piece: what one piece of the block is called.
        gaps: ask so for every fixed pattern of NaN among the data.
    """
    tables = _tables(model, sorted(sites))
    fixed = {name: shape for name, shape in block_of(model, ()).items() if name not in block}
    rest = (fixed, model.trace.parameter_shapes, list(model.shapes))

    def total(block: Mapping[str, jax.Array]) -> jax.Array:
        fixed, params, data = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), rest)
        return sum((jnp.sum(table) for table in tables(block | fixed, params, data).values()), jnp.zeros(()))

    density = jumps.with_gaps_fixed(total) if gaps else total
    reason = jumps.why_not_quadratic(density, block)
    if reason is None:
        return None
    return Refusal(f"the log density is not quadratic in a {piece} and its latents ({reason})")


def _tables(model: Model, sites: Sequence[str]) -> Callable[[Mapping, Params, Data], dict[str, jax.Array]]:
    """Log-probability tables of some sites as a function of a block, the parameters and the data."""

    def tables(block: Mapping[str, jax.Array], params: Params, data: Data) -> dict[str, jax.Array]:
        filled = [block.get(f"data {n}", leaf) for n, leaf in enumerate(data)]
        atoms = {name: block[name][None] for name in model.trace.value_shapes}
        arrays = model.evaluate(params, filled, atoms=atoms)
        return {name: log_prob_table(model.factors[name], arrays) for name in sites}

    return tables


def _in_order(numbers: np.ndarray, axis: int) -> bool:
    """Whether piece k lies in place k of the axis, for all sites alike."""
    if np.all(numbers == SHARED):
        return True
    expected = np.arange(numbers.shape[axis]).reshape([-1 if a == axis else 1 for a in range(numbers.ndim)])
    return numbers.shape == expected.shape and bool(np.all(numbers == expected))


def other_reader(model: Model, holders: Sequence[int], readers: Sequence[str]) -> str | None:
    """A site outside those given that reads these arrays of data, a prior for instance; or None."""
    labels = {("data", str(number)) for number in holders}
    for path, position in model.trace.outputs.items():
        if path[0] not in readers and labels & model.dependence.of_output(position):
            return path[0]
    return None


def equivalent_pieces(mean: Any, covariance: Any, xp: Any) -> Any:
    """One piece more than there are columns, with this mean and covariance: the corners of a simplex.

    Args:
        mean: ``(..., columns)``.
        covariance: ``(..., columns, columns)``.
        xp: numpy or jax.numpy.

    Returns:
        ``(..., columns + 1, columns)``.
    """
    values, vectors = xp.linalg.eigh(covariance)
    spread = vectors * xp.sqrt(xp.maximum(values, 0))[..., None, :]
    return mean[..., None, :] + xp.asarray(simplex(mean.shape[-1]), mean.dtype) @ xp.swapaxes(spread, -1, -2)

"""When few weighted pieces of data do for many, and which: what compression and condensation have in common.

A function that is quadratic in what varies from piece to piece has the same sum over any pieces with the same count,
mean and covariance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.program import Program
from emppl.structure.quadratic import affine_gradient
from emppl.structure.separation import Grouped, Separation


def block_of(program: Program, shapes: Sequence[jax.ShapeDtypeStruct], holders: Sequence[int]) -> dict[str, tuple]:
    """Shapes of what varies from piece to piece: arrays of data, as ``data 0``, and integrated latents."""
    return {f"data {n}": tuple(shapes[n].shape) for n in holders} | dict(program.trace.value_shapes)


def why_not_quadratic(
    program: Program,
    shapes: Sequence[jax.ShapeDtypeStruct],
    block: Mapping[str, tuple],
    numbers: Mapping[str, np.ndarray],
    sites: Sequence[str],
    axis: int,
    piece: str,
) -> str | None:
    """The reason why the log density of a piece is not one and the same quadratic in each, or None.

    Args:
        program: the derived algorithm.
        shapes: shapes of the data.
        block: from :func:`block_of`.
        numbers: by array of the block, the piece that every entry belongs to.
        sites: whose log density it is.
        axis: the common axis along which the pieces lie.
        piece: what one is called.
    """
    sites = sorted(sites)
    trace = program.trace
    parameters = {n: jax.ShapeDtypeStruct(trace.sites[n].shape, trace.sites[n].dtype) for n in trace.parameters}

    def tables(block, params, leaves) -> dict:
        data = [block.get(f"data {n}", leaf) for n, leaf in enumerate(leaves)]
        atoms = {name: block[name][None] for name in trace.value_shapes}
        arrays = program.evaluate(params, data, atoms=atoms)
        return {name: program.factors[name].table(arrays) for name in sites}

    found = Separation(tables, block, parameters, list(shapes)).groups(numbers)
    for name, one in zip(sites, found, strict=True):
        if not isinstance(one, Grouped) or one.varies[axis]:
            return f"{piece}s of site {name!r} differ by more than their data, or depend on each other"

    def gradient(block):
        params, leaves = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), (parameters, list(shapes)))
        return jax.grad(lambda block: sum(jnp.sum(one) for one in tables(block, params, leaves).values()))(block)

    structs = {name: jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for name, shape in block.items()}
    reason = affine_gradient(gradient, structs)
    return None if reason is None else f"the log density is not quadratic in a {piece} and its latents ({reason})"


def other_reader(program: Program, holders: Sequence[int], readers: Sequence[str]) -> str | None:
    """A site that reads these arrays of data though it is none of those that may, a prior for instance."""
    mine = {("data", str(number)) for number in holders}
    for path, position in program.trace.outputs.items():
        if path[0] not in readers and mine & program.dependence.of_output(position):
            return path[0]
    return None


def equivalent_pieces(mean: Any, covariance: Any, xp: Any) -> Any:
    """Two pieces for every column, with this mean and covariance: ``mean +- sqrt(D) L e_j``.

    Args:
        mean: ``(columns,)``.
        covariance: ``(columns, columns)``, ``L L'``.
        xp: numpy or jax.numpy.

    Returns:
        ``(2 * columns, columns)``.
    """
    values, vectors = xp.linalg.eigh(covariance)
    spread = math.sqrt(len(mean)) * (vectors * xp.sqrt(xp.maximum(values, 0))[None]).T
    return xp.concatenate([mean[None] + spread, mean[None] - spread])

"""Lossless compression of data: few weighted rows in the place of many, where EM cannot tell them apart.

Where the log joint density is quadratic in a row of data together with its latents, for all parameters, the
log-likelihood is a function of the count, the mean and the covariance of the rows. Twice as many rows as there are
columns reproduce these: ``mean +- sqrt(D) L e_j``, each with weight ``N / 2D``, ``L L'`` the covariance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emppl.fit.lossless import block_of, equivalent_pieces, other_reader, why_not_quadratic
from emppl.program import Program
from emppl.strategies import Gaussian
from emppl.structure.layout import group_numbers

_LEAST_SAVING = 4


@dataclasses.dataclass(frozen=True)
class Compression:
    """What is compressed.

    Attributes:
        plate: the plate of the rows.
        leaves: positions of the arrays of data that hold rows.
        columns: numbers in one row, all arrays together.
        rows: how many rows there are.
    """

    plate: str
    leaves: tuple[int, ...]
    columns: int
    rows: int

    @property
    def weight(self) -> float:
        """How many rows each of the new ones stands for."""
        return self.rows / (2 * self.columns)

    def apply(self, leaves: Sequence) -> list[np.ndarray]:
        """The data with few rows in the place of many.

        Args:
            leaves: all arrays of data.

        Returns:
            All arrays, those of ``leaves`` shortened.
        """
        found = [np.asarray(leaf) for leaf in leaves]
        parts = [found[number].reshape(self.rows, -1) for number in self.leaves]
        rows = np.concatenate([part.astype(np.float64) for part in parts], 1)
        covariance = np.cov(rows, rowvar=False, bias=True).reshape(self.columns, self.columns)
        short = equivalent_pieces(rows.mean(0), covariance, np)
        starts = np.cumsum([0, *(part.shape[1] for part in parts)])
        for number, begin, end in zip(self.leaves, starts[:-1], starts[1:], strict=True):
            shape = (len(short), *found[number].shape[1:])
            found[number] = short[:, begin:end].reshape(shape).astype(found[number].dtype)
        return found


def find_compression(program: Program, shapes: Sequence[jax.ShapeDtypeStruct]) -> Compression | str:
    """What of the data can be compressed, or the reason why nothing can.

    Args:
        program: the derived algorithm.
        shapes: shapes of the data.

    Returns:
        The compression, or a clause for the plan.
    """
    plate = program.axes.rows
    rows = program.axes.sizes[plate]
    if not program.integrals or not all(isinstance(one.strategy, Gaussian) for one in program.integrals):
        return "it has no normal latents"
    if any(one.limits for one in program.integrals):
        return "observed Delta sites restrict its normal latents"
    if program.latents:
        return "it has discrete latents"
    if plate not in program.trace.plates or program.trace.plates[plate].is_time:
        return "its rows lie in no plate"
    inside = [n for n, f in program.factors.items() if plate in program.axes.plates_of(f.site, f.site.batch_shape)]
    if any({"mask", "cell_weight"} & set(program.factors[name].latents) for name in inside):
        return "some of its rows are masked or weighted"
    holders = [n for n, one in enumerate(shapes) if one.shape and one.shape[0] == rows]
    if not holders or not all(jnp.issubdtype(shapes[n].dtype, jnp.inexact) for n in holders):
        return "its rows are not all real numbers"
    columns = sum(math.prod(shapes[n].shape[1:]) for n in holders)
    if rows < 2 * _LEAST_SAVING * columns:
        return f"{rows} rows are not many for {columns} columns"
    reason = _why_not(program, shapes, holders, inside)
    return reason if reason is not None else Compression(plate, tuple(holders), columns, rows)


def _why_not(program: Program, shapes, holders, inside) -> str | None:
    trace, axes = program.trace, program.axes
    rows = axes.sizes[axes.rows]
    reader = other_reader(program, holders, inside)
    if reader is not None:
        return f"site {reader!r}, outside the plate, reads the rows too"
    block = block_of(program, shapes, holders)
    numbers = {}
    for name, shape in block.items():
        site = trace.sites.get(name)
        batch = len(shape) - len(site.event_shape) if site is not None else 1
        own = [axis for axis in range(batch) if site is None or axes.of_site(site).get(axis - batch) == axes.rows]
        numbers[name] = group_numbers(shape, tuple(own) if own and shape[own[0]] == rows else None)
    return why_not_quadratic(program, shapes, block, numbers, inside, axes.rank - 1, "row")

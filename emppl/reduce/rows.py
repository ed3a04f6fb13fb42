"""Lossless compression of data: few weighted rows in place of many, where EM is the same on both.

Rows that are equal are one row that counts several times. Where the log density is quadratic in a row (together with
the row's own latents, for all parameters and all other latents), more is true: its sum over rows is a function of their
count, mean and covariance, and one row more than there are columns reproduces these. Both at once: the rows are split
into classes by the columns that must be equal, a group's number say, and by the pattern of their missing cells; the
other columns keep their moments class by class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from emppl.errors import Refusal
from emppl.model.model import Model
from emppl.parameters.layout import group_numbers
from emppl.reduce.moments import block_of, equivalent_pieces, other_reader, why_not_quadratic, why_not_separate
from emppl.strategies import Gaussian, Simulated, TruncatedGaussian

_LEAST_SAVING = 3
"""Ratio of rows to weighted rows from which compression pays for deriving the algorithm a second time."""
_LEAST_ROWS = 1000
"""Rows below which deriving the algorithm a second time takes longer than the fit."""
_SAMPLED_ROWS = 4096
"""Rows of the sample that shows whether any are equal."""


@dataclasses.dataclass(frozen=True)
class Compression:
    """What may be compressed, whatever the values.

    Attributes:
        plate: the plate of the rows.
        keys: positions of the arrays of data in which rows must be equal to become one.
        moments: positions of those of which only count, mean and covariance matter.
        rows: how many rows there are.
        columns: numbers in one row of ``moments``.
    """

    plate: str
    keys: tuple[int, ...]
    moments: tuple[int, ...]
    rows: int
    columns: int

    def apply(self, data: Sequence) -> Compressed | Refusal:
        """The data with few rows in place of many, or the reason why not.

        Args:
            data: all arrays of data.
        """
        arrays = [np.asarray(leaf) for leaf in data]
        keys = [_as_integers(arrays[n].reshape(self.rows, -1)) for n in self.keys]
        parts = [arrays[n].reshape(self.rows, -1).astype(np.float64) for n in self.moments]
        gaps = [np.isnan(part) for part in parts]
        keys += [gap.astype(np.int64) for gap in gaps if np.any(gap)]
        nothing = np.zeros(1, int), np.zeros(self.rows, int)
        first, number = self._classes(np.concatenate(keys, 1)) if keys else nothing
        counts = np.bincount(number, minlength=len(first))
        stays = counts <= self.columns + 1
        few = int(np.sum(np.where(stays, counts, self.columns + 1))) if self.columns else len(first)
        length = _rounded_up(few) if keys else few
        if length * _LEAST_SAVING > self.rows:
            need = f"{few:,} rows are needed" if self.columns else f"{few:,} rows are different"
            return Refusal(f"{need} of {self.rows:,}")
        if not self.columns:
            return self._padded(arrays, first, counts.astype(float), few, length)
        kept = np.flatnonzero(stays[number])
        large = np.flatnonzero(~stays)
        stands_for = np.repeat(first[large], self.columns + 1)
        weights = np.repeat(counts[large] / (self.columns + 1), self.columns + 1)
        order = np.argsort(number, kind="stable")
        order = order[~stays[number[order]]]
        values = np.nan_to_num(np.concatenate(parts, 1)[order])
        pieces = _equivalent_by_class(values, counts[large])
        pieces[np.concatenate(gaps, 1)[stands_for]] = np.nan
        picked = np.concatenate([kept, stands_for])
        compressed = self._padded(arrays, picked, np.concatenate([np.ones(len(kept)), weights]), few, length)
        starts = np.cumsum([0, *(part.shape[1] for part in parts)])
        for n, begin, end in zip(self.moments, starts[:-1], starts[1:], strict=True):
            rows = compressed.arrays[n]
            rows[len(kept) : few] = pieces[:, begin:end].reshape((-1, *rows.shape[1:])).astype(rows.dtype)
        return dataclasses.replace(compressed, classes=len(large))

    def some(self, data: Sequence, number: int) -> Compressed:
        """A random part of the rows, each of which counts once."""
        number = min(number, self.rows)
        picked = np.sort(np.random.default_rng(0).choice(self.rows, number, replace=False))
        return self._padded([np.asarray(leaf) for leaf in data], picked, np.ones(number), number, number)

    def _classes(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First row of every class of equal rows, and every row's class."""
        _, first, number = np.unique(_hashed(keys), return_index=True, return_inverse=True)
        if not np.array_equal(keys[first[number]], keys):  # two different rows with one hash
            _, first, number = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        return first, np.ravel(number)

    def _padded(
        self, arrays: list[np.ndarray], picked: np.ndarray, weights: np.ndarray, few: int, length: int
    ) -> Compressed:
        """Some rows, and a few that count nothing, so that data with about as many rows need no compilation."""
        picked = np.concatenate([picked, np.zeros(length - few, int)])
        weights = np.concatenate([weights, np.zeros(length - few)])
        held = {*self.keys, *self.moments}
        data = [array[picked] if n in held else array for n, array in enumerate(arrays)]
        return Compressed(data, weights, few, 0, self.rows, self.plate)


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Few weighted rows.

    Attributes:
        arrays: all arrays of data, those that hold rows shortened.
        weights: how many rows each of the new ones stands for.
        rows: how many there are that count.
        classes: number of classes whose moments are kept.
        all_rows: how many rows they stand for.
        plate: the plate of the rows.
    """

    arrays: list[np.ndarray]
    weights: np.ndarray
    rows: int
    classes: int
    all_rows: int
    plate: str

    @property
    def words(self) -> str:
        """How the rows were compressed, for the plan."""
        every = f"the {self.all_rows:,} rows in {self.plate!r}"
        if not self.classes:
            return (
                f"fits run on the {self.rows:,} different ones among {every}, weighted by their number: EM is the same"
            )
        within = f", in each of {self.classes:,} classes of rows that agree otherwise" if self.classes > 1 else ""
        return (
            f"fits run on {self.rows:,} weighted rows with the count, mean and covariance of {every}{within}: EM is "
            "the same"
        )


def look_different(model: Model, data: Sequence) -> bool:
    """Whether a sample shows that few rows are equal, so that rows with discrete latents stay."""
    rows = model.axes.sizes[model.axes.rows]
    arrays = [np.asarray(leaf) for leaf in data if leaf.ndim and leaf.shape[0] == rows]
    if not model.latents or not arrays:
        return False
    number = min(rows, _SAMPLED_ROWS)
    picked = np.random.default_rng(0).choice(rows, number, replace=False)
    keys = np.concatenate([_as_integers(array[picked].reshape(number, -1)) for array in arrays], 1)
    # If every row were there three times, a pair would be equal with probability 2 / rows, and more often if some were
    # there more often than others; this is half of what one would find then.
    return number - len(np.unique(_hashed(keys))) < (_LEAST_SAVING - 1) * number**2 / (4 * rows)


def find_compression(model: Model) -> Compression | Refusal:
    """What of the data can be compressed, or the reason why nothing can."""
    trace, axes = model.trace, model.axes
    plate = axes.rows
    rows = axes.sizes[plate]
    if plate not in trace.plates or trace.plates[plate].is_time:
        return Refusal("its rows lie in no plate")
    drawn = model.drawn or any(isinstance(integral.strategy, Simulated) for integral in model.integrals)
    if drawn or any(integral.way.is_by_step for integral in model.integrals):
        return Refusal("latents are drawn, or form a chain")
    inside = [n for n, f in model.factors.items() if plate in axes.plates_of(f.site, f.site.batch_shape)]
    shared = [set(integral.latents) & set(inside) for integral in model.integrals]
    if any(0 < len(own) < len(integral.latents) for own, integral in zip(shared, model.integrals, strict=True)):
        return Refusal("latents of its rows are integrated together with others")
    holders = [number for number, leaf in enumerate(model.shapes) if leaf.shape and leaf.shape[0] == rows]
    if not holders:
        return Refusal("no array holds its rows along the first axis")
    reader = other_reader(model, holders, inside)
    if reader is not None:
        return Refusal(f"site {reader!r}, outside the plate, reads the rows too")
    block = block_of(model, holders)
    numbers = {name: group_numbers(leaf.shape, _row_axes(model, name, leaf.shape)) for name, leaf in block.items()}
    reason = why_not_separate(model, block, numbers, inside, axes.rank - 1, "row")
    if reason is not None:
        return reason
    moments = [n for n in holders if jnp.issubdtype(model.shapes[n].dtype, jnp.floating) and not _weighs(model, n)]
    columns = sum(math.prod(model.shapes[n].shape[1:]) for n in moments)
    reason = _why_no_moments(model, moments, inside)
    if reason is None and rows >= _LEAST_SAVING * (columns + 1):
        return Compression(plate, tuple(n for n in holders if n not in moments), tuple(moments), rows, columns)
    if rows < _LEAST_ROWS:
        return reason or Refusal(f"{rows} rows are not many for {columns} columns")
    return Compression(plate, tuple(holders), (), rows, 0)


def _why_no_moments(model: Model, moments: Sequence[int], inside: Sequence[str]) -> Refusal | None:
    """The reason why rows are not determined by their count, mean and covariance, or None."""
    discrete = [name for name in model.latents if name in inside]
    if discrete:
        return Refusal(f"every row has a discrete latent ({discrete[0]!r})")
    if not moments:
        return Refusal("its rows hold no real numbers")
    own = [integral for integral in model.integrals if set(integral.latents) & set(inside)]
    if not all(isinstance(integral.strategy, Gaussian) for integral in own):
        return Refusal("its rows have latents that are not normal")
    if any(isinstance(integral.strategy, TruncatedGaussian) for integral in own):
        return Refusal("an observed Delta restricts the latents of its rows")
    block = block_of(model, moments)
    block = {n: leaf for n, leaf in block.items() if n.startswith("data ") or _row_axes(model, n, leaf.shape)}
    return why_not_quadratic(model, block, inside, "row", gaps=True)


def _row_axes(model: Model, name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Axes of an array of data or a latent that number the rows, if it has one."""
    axes = model.axes
    rows = axes.sizes[axes.rows]
    site = model.trace.sites.get(name)
    if site is None:
        return (0,)
    batch = len(shape) - len(site.event_shape)
    own = tuple(axis for axis in range(batch) if axes.of_site(site).get(axis - batch) == axes.rows)
    return own if own and shape[own[0]] == rows else None


def _weighs(model: Model, number: int) -> bool:
    """Whether a weight (``handlers.scale``) reads this array."""
    sources = (model.dependence.of_output(p) for path, p in model.trace.outputs.items() if path[1] == "cell_weight")
    return any(("data", str(number)) in labels for labels in sources)


def _as_integers(rows: np.ndarray) -> np.ndarray:
    """Numbers that are equal where the values are, bit for bit."""
    if rows.dtype.kind in "biu":
        return rows.astype(np.int64)
    if rows.dtype.kind == "f":
        return rows.astype(np.float64).view(np.int64)
    return np.ascontiguousarray(rows).view(np.uint8).astype(np.int64)  # bfloat16, complex numbers


def _hashed(keys: np.ndarray) -> np.ndarray:
    """Hashes of the rows, one number each."""
    factors = np.random.default_rng(1).integers(2**62, size=keys.shape[1], dtype=np.int64) * 2 + 1
    return (keys ^ (keys >> 32)) @ factors


def _rounded_up(number: int) -> int:
    """A number rounded up to three binary digits: at most a quarter more."""
    step = 2 ** max(number.bit_length() - 3, 0)
    return -(-number // step) * step


def _equivalent_by_class(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Few rows with the mean and covariance of every class of consecutive rows."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(int)
    size = counts[:, None].astype(float)
    mean = np.add.reduceat(rows, starts) / size
    centred = rows - np.repeat(mean, counts, 0)
    columns = rows.shape[1]
    covariance = np.empty((len(counts), columns, columns))
    if len(counts) == 1:
        covariance[0] = centred.T @ centred / len(rows)
    else:
        for column in range(columns):
            products = np.add.reduceat(centred[:, : column + 1] * centred[:, column : column + 1], starts) / size
            covariance[:, column, : column + 1] = covariance[:, : column + 1, column] = products
    return equivalent_pieces(mean, covariance, np).reshape(-1, columns)

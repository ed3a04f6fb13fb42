"""What a fit may run on in place of all the data: few weighted rows, or an M-step on few weighted steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from emppl.derivation.derive import derive
from emppl.errors import EMError, Refusal
from emppl.inputs.arguments import Skeleton, known_among, shortened, with_array_in_front
from emppl.model.options import Options
from emppl.mstep import is_optimizer
from emppl.program import Program
from emppl.reduce.rows import Compressed, Compression, find_compression, look_different
from emppl.reduce.same_model import is_same_model
from emppl.reduce.steps import Condensation, find_condensation
from emppl.trace import trace_model
from emppl.trace.weighted_rows import WeightedRows


@dataclasses.dataclass(frozen=True)
class Source:
    """What an algorithm is derived from, the shapes of the data apart.

    Attributes:
        function: the NumPyro model.
        skeleton: its static arguments.
        options: the user's options.
        compress: whether fits may run on few weighted rows or steps in place of many.
    """

    function: Callable
    skeleton: Any
    options: Options
    compress: bool = True

    def derive(self, data: Sequence) -> Program:
        """The algorithm for data of these shapes."""
        return derive(self.function, data, self.skeleton, self.options)


@dataclasses.dataclass(frozen=True)
class FewRows:
    """The algorithm for few weighted rows, and these.

    Attributes:
        source: what it is derived from: the model with weights as its first argument.
        program: the algorithm.
        data: the weights, and the other arrays.
        compressed: what was done.
    """

    source: Source
    program: Program
    data: list[jax.Array]
    compressed: Compressed


class Reducer:
    """The fewest weighted pieces of data on which a program does the same, found once for every shape.

    Args:
        source: what the program is derived from.
        program: the algorithm for all data.
    """

    def __init__(self, source: Source, program: Program):
        self._source = source
        self._program = program
        self._few: dict[tuple[int, Skeleton | None], tuple[Source, Program] | Refusal] = {}

    def _not_wanted(self, pieces: str) -> Refusal | None:
        if not self._source.compress:
            return Refusal("compress=False")
        rules = self._source.options.m_step.values()
        if any(not is_optimizer(rule) for rule in rules):
            return Refusal(f"m_step has a function, which may expect all {pieces}")
        return None

    @functools.cached_property
    def rows(self) -> Compression | Refusal:
        """Which rows a fit may compress."""
        return self._not_wanted("rows") or find_compression(self._program.model)

    def few_rows(self, data: Sequence[jax.Array]) -> FewRows | Refusal:
        """The algorithm for few weighted rows, or the reason why all are needed."""
        if self._source.compress and look_different(self._program.model, data):
            return Refusal("hardly any two of its rows are equal")
        compression = self.rows
        if isinstance(compression, Refusal):
            return compression
        compressed = compression.apply(data)
        if isinstance(compressed, Refusal):
            return compressed
        short = [jnp.asarray(array) for array in [compressed.weights, *compressed.arrays]]
        key = len(compressed.weights), shortened(self._source.skeleton, short[1:])
        if key not in self._few:
            self._few[key] = self._for_few(short, compression)
        derived = self._few[key]
        return derived if isinstance(derived, Refusal) else FewRows(*derived, short, compressed)

    def some_rows(self, data: Sequence[jax.Array], number: int) -> FewRows | Refusal:
        """The algorithm for a random part of the rows, each of which counts once."""
        compression = find_compression(self._program.model)
        if isinstance(compression, Refusal):
            return compression
        part = compression.some(data, number)
        short = [jnp.asarray(array) for array in [part.weights, *part.arrays]]
        derived = self._for_few(short, compression)
        return derived if isinstance(derived, Refusal) else FewRows(*derived, short, part)

    def _for_few(self, short: Sequence[jax.Array], compression: Compression) -> tuple[Source, Program] | Refusal:
        """The algorithm for weights and so many rows, if the model is the same for them."""
        function, model = self._source.function, self._program.model
        skeleton = shortened(self._source.skeleton, short[1:])
        if skeleton is None:
            return Refusal("the model reads a column of a data frame in Python")
        number = len(short[0])
        try:
            trace = trace_model(function, list(short[1:]), skeleton, model.trace.atom_axes)
            if not is_same_model(model.trace, trace, (compression.rows, number)):
                return Refusal("the model depends on how many rows there are")
            weighted = WeightedRows(function, compression.plate)
            source = Source(weighted, with_array_in_front(skeleton), self._source.options, compress=False)
            program = source.derive(short)
        except EMError:
            return Refusal("the model does not take its number of rows from the data")
        if program.model.axes.sizes.get(compression.plate) != number or program.model.free != model.free:
            return Refusal("the model does not take its number of rows from the data")
        return source, program

    @functools.cached_property
    def steps(self) -> Condensation | Refusal:
        """Which steps of a chain the M-step may condense."""
        return self._not_wanted("of them") or find_condensation(self._program.model)

    @functools.cached_property
    def on_few_steps(self) -> Callable | None:
        """An E-step, with program and data of an M-step on few steps; None if that is done on all of them."""
        condensation, model = self.steps, self._program.model
        if isinstance(condensation, Refusal):
            return None
        if known_among(self._source.skeleton).keys() & set(condensation.arrays):
            return None
        length = condensation.order + condensation.pieces
        short = [
            jax.ShapeDtypeStruct((length, *leaf.shape[1:]), leaf.dtype) if number in condensation.arrays else leaf
            for number, leaf in enumerate(model.shapes)
        ]
        try:
            program = self._source.derive(short)
        except EMError:
            return None
        if program.model.free != model.free or len(program.model.integrals) != 1:
            return None
        lengths = model.shapes[condensation.arrays[0]].shape[0], length
        if not condensation.is_whole(program.model) or not is_same_model(model.trace, program.model.trace, lengths):
            return None
        return lambda params, data: (program, *condensation.apply(model, program.model, params, data))

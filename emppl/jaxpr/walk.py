"""One reader of traced computations: nested calls are written out once, and one fold follows whatever a domain carries.

A :class:`Domain` says what the result of an operation carries, given what its operands do. Labels, axes, selections,
directions, jumps and group numbers are domains.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from jax.extend.core import Literal, Var

from emppl.jaxpr.equations import Atom, Equation, Kind, shape_of
from emppl.jaxpr.primitives import ROWS, UNKNOWN, call_row

T = TypeVar("T")
Label: TypeAlias = tuple[str, str]
Labels: TypeAlias = frozenset[Label]

_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
"""Calls of an inner jaxpr that is run once, as if it were written out."""


class Computation:
    """A traced computation with its calls written out.

    Args:
        closed: a jaxpr, with its constants or without.

    Attributes:
        inputs: variables.
        outputs: variables or numbers.
        equations: operations, and calls of functions of JAX that are known by their names.
        constants: values of the constants, by variable.
        producers: the equation of every variable that one computes.
    """

    def __init__(self, closed: Any):
        jaxpr = getattr(closed, "jaxpr", closed)
        self.inputs: list[Var] = list(jaxpr.invars)
        self.constants: dict[Var, Any] = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=False))
        self.equations: list[Equation] = []
        self._atoms: dict[Var, Atom] = {}
        self._write_out(jaxpr, self._atoms)
        self.outputs: list[Atom] = [self.atom(atom) for atom in jaxpr.outvars]
        self.producers = {result: equation for equation in self.equations for result in equation.results}

    def atom(self, atom: Atom) -> Atom:
        """What a variable of the outermost jaxpr is called here."""
        return atom if isinstance(atom, Literal) else self._atoms.get(atom, atom)

    def _write_out(self, jaxpr: Any, atoms: dict[Var, Atom], nested: bool = False) -> None:
        """Add the equations of a jaxpr, whose variables go by other names if it is nested: it may be called again."""
        for equation in jaxpr.eqns:
            operands = tuple(a if isinstance(a, Literal) else atoms.get(a, a) for a in equation.invars)
            name, closed = equation.primitive.name, _called(equation)
            row = ROWS.get(name, UNKNOWN)
            if closed is not None:
                inner = getattr(closed, "jaxpr", closed)
                known = call_row(equation.params.get("name"), inner)
                if known is None:
                    constants = {variable: Var(variable.aval) for variable in inner.constvars}
                    self.constants |= zip(constants.values(), getattr(closed, "consts", ()), strict=True)
                    within = {**dict(zip(inner.invars, operands, strict=True)), **constants}
                    self._write_out(inner, within, nested=True)
                    outputs = (a if isinstance(a, Literal) else within[a] for a in inner.outvars)
                    atoms.update(zip(equation.outvars, outputs, strict=True))
                    continue
                name, row = equation.params["name"], known
            results = tuple(Var(v.aval) if nested else v for v in equation.outvars)
            atoms.update(zip(equation.outvars, results, strict=True))
            self.equations.append(Equation(name, operands, results, equation.params, equation.primitive, row))

    def producer(self, atom: Atom) -> Equation | None:
        """The equation that computes a variable."""
        return None if isinstance(atom, Literal) else self.producers.get(atom)

    def scalar(self, atom: Atom) -> float | None:
        """The value of a constant that is one number everywhere, or None."""
        if isinstance(atom, Literal):
            return float(atom.val) if not np.shape(atom.val) else None
        producer = self.producer(atom)
        if producer is None or not (producer.is_identity or producer.name == "broadcast_in_dim"):
            return None
        return self.scalar(producer.operands[0])

    def varying_axes(self, atom: Atom) -> frozenset[int]:
        """Axes along which an array may vary: not those along which it was broadcast, before other operations too."""
        return _known_axes(self._varying, atom)

    @functools.cached_property
    def _varying(self) -> dict[Var, frozenset[int]]:
        """The same of everything that is computed."""
        varying: dict[Var, frozenset[int]] = {}
        for equation in self.equations:
            along = list(map(_long_axes, equation.results))
            if equation.row.kind is Kind.ELEMENTWISE or equation.name == "broadcast_in_dim":
                # An operand that is searched has axes without a place: every entry of the result sees all of it.
                places = {
                    own.whole[axis]
                    for operand, own in zip(equation.operands, equation.axes.operands, strict=True)
                    for axis in _known_axes(varying, operand)
                    if axis in own.whole
                }
                along = [axes & places for axes in along]
            varying.update(zip(equation.results, along, strict=True))
        return varying


def _long_axes(atom: Atom) -> frozenset[int]:
    return frozenset(axis for axis, size in enumerate(shape_of(atom)) if size > 1)


def _known_axes(varying: Mapping[Var, frozenset[int]], atom: Atom) -> frozenset[int]:
    known = entry_of(varying, atom)
    return _long_axes(atom) if known is None else known


def _called(equation: Any) -> Any:
    """The inner jaxpr of a call; None for any other equation of a jaxpr."""
    params = equation.params
    return params.get("jaxpr", params.get("call_jaxpr")) if equation.primitive.name in _CALLS else None


class Domain(Generic[T]):
    """What is followed through a computation; None stands for what does not depend on it.

    Args:
        computation: where.
    """

    def __init__(self, computation: Computation):
        self.computation = computation

    def apply(self, equation: Equation, entries: list[T | None]) -> T | None | list[T | None]:
        """What the results carry, given what the operands do; a list if results differ."""
        raise NotImplementedError

    def untouched(self, equation: Equation) -> None:
        """Take note of an operation none of whose operands carries anything."""

    @staticmethod
    def tracked(entries: Sequence[T | None]) -> Iterator[tuple[int, T]]:
        """The operands that carry something, with their positions."""
        return ((position, entry) for position, entry in enumerate(entries) if entry is not None)


def interpret(computation: Computation, start: Mapping[Var, T], domain: Domain[T]) -> dict[Var, T]:
    """Follow a domain through a computation.

    Args:
        computation: the computation.
        start: what inputs carry.
        domain: the rules.

    Returns:
        What every variable carries that carries anything.
    """
    environment = dict(start)
    for equation in computation.equations:
        entries = [entry_of(environment, atom) for atom in equation.operands]
        if all(entry is None for entry in entries):
            domain.untouched(equation)
            continue
        result = domain.apply(equation, entries)
        results = result if isinstance(result, list) else [result] * len(equation.results)
        environment.update((v, entry) for v, entry in zip(equation.results, results, strict=True) if entry is not None)
    return environment


def entry_of(environment: Mapping[Var, T], atom: Atom) -> T | None:
    """What an atom carries; numbers carry nothing."""
    return None if isinstance(atom, Literal) else environment.get(atom)


class LabelSets(Domain[Labels]):
    """Which inputs everything depends on."""

    def apply(self, equation: Equation, entries: list[Labels | None]) -> Labels:
        """Every result depends on all that the operands depend on."""
        return frozenset().union(*(entry for entry in entries if entry))


def picking_labels(computation: Computation, labels: Mapping[Var, Labels], equation: Equation) -> dict[int, Labels]:
    """By axis of the first operand from which an index picks, what the index depends on.

    Columns of an index that were put side by side are told apart.
    """
    whole = equation.axes.operands[0].whole if equation.operands else {}
    picked = {}
    for axis, (position, column) in equation.row.picks(equation).items():
        index = equation.operands[position]
        if axis not in whole:
            picked[axis] = (
                entry_of(labels, index if column is None else column_of(computation, index, column)) or frozenset()
            )
    return picked


def column_of(computation: Computation, index: Atom, column: int) -> Atom:
    """The array that was put into a column of an index (its last axis), or the index."""
    producer = computation.producer(index)
    if producer is None or producer.name != "concatenate" or producer.params["dimension"] != len(producer.shape) - 1:
        return index
    columns = [operand for operand in producer.operands for _ in range(shape_of(operand)[-1])]
    return columns[column]


class Values(Domain[T]):
    """Values of what carries nothing, beside what the rest carries.

    Args:
        computation: where.
        inputs: values of inputs that carry nothing.
    """

    def __init__(self, computation: Computation, inputs: Mapping[Var, Any] | None = None):
        super().__init__(computation)
        self.values: dict[Var, Any] = {**computation.constants, **(inputs or {})}

    def value(self, atom: Atom) -> Any:
        """The value of an atom."""
        return atom.val if isinstance(atom, Literal) else self.values[atom]

    def untouched(self, equation: Equation) -> None:
        """Evaluate it."""
        self.values.update(zip(equation.results, equation.bind(*map(self.value, equation.operands)), strict=True))

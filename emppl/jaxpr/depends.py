"""What each traced quantity depends on, read off the jaxpr.

All questions are structural: no arithmetic is done and no data are needed, so they can be answered under ``jit`` too.
"""

from __future__ import annotations

import functools
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal, Var

from emppl.errors import Refusal
from emppl.jaxpr.axes import AxisDomain, AxisPositions
from emppl.jaxpr.equations import Equation, shape_of
from emppl.jaxpr.selection import Entry, Selection, SelectionDomain
from emppl.jaxpr.walk import Computation, Label, Labels, LabelSets, entry_of, interpret
from emppl.memo import once
from emppl.names import model_name


class Dependence:
    """For every variable of a traced computation, the set of inputs it depends on.

    Args:
        jaxpr: the traced computation.
        inputs: one label per input, such as ``("parameter", "mu")``.
    """

    def __init__(self, jaxpr: ClosedJaxpr, inputs: tuple[Label, ...]):
        self.jaxpr = jaxpr.jaxpr
        self.inputs = inputs
        self.computation = Computation(jaxpr)
        start = {variable: frozenset([label]) for variable, label in zip(self.computation.inputs, inputs, strict=True)}
        self.labels = interpret(self.computation, start, LabelSets(self.computation))

    def of_atom(self, atom: Any) -> Labels:
        """Labels of one variable or literal of the jaxpr."""
        return entry_of(self.labels, self.computation.atom(atom)) or frozenset()

    def of_output(self, position: int) -> Labels:
        """Labels of one output."""
        return entry_of(self.labels, self.computation.outputs[position]) or frozenset()

    def indexing_latents(self, parameter: str) -> frozenset[str]:
        """Latents whose values index into a parameter anywhere in the model."""
        label, indices = ("parameter", parameter), []
        for equation in self.computation.equations:
            if equation.row.picks(equation) and label in (entry_of(self.labels, equation.operands[0]) or ()):
                indices += [entry_of(self.labels, atom) or frozenset() for atom in equation.operands[1:]]
        return _latents(frozenset().union(*indices))

    def indexed(self, parameter: str) -> tuple[frozenset[str], ...]:
        """For every axis of a parameter, the latents that index it anywhere in the model.

        Unlike :meth:`selection` this looks through elementwise operations, and through sums and matrix products
        along other axes: the first axis of ``beta`` is indexed by ``z`` in ``X @ jnp.exp(beta)[z]``.

        Args:
            parameter: name of the parameter.

        Returns:
            One set of latents per axis.
        """
        domain, _ = self._positions(parameter)
        return tuple(map(_latents, domain.indexed))

    def axis_positions(self, parameter: str, position: int) -> AxisPositions:
        """For every axis of a parameter, the axes of an output that run along it (looking through as `indexed`)."""
        domain, environment = self._positions(parameter)
        found = entry_of(environment, self.computation.outputs[position])
        return (frozenset(),) * len(domain.indexed) if found is None else found

    def selection(self, parameter: str, position: int) -> Selection | Refusal:
        """How an output selects a parameter's entries (``mu[z]``, broadcast, reshape), or why it is no selection.

        An elementwise invertible map of the entries commutes with the selection and is recorded beside it.

        Args:
            parameter: name of the parameter.
            position: which output.
        """
        found = entry_of(self._selections(parameter), self.computation.outputs[position])
        return Refusal("it does not depend on the parameter") if found is None else found

    def is_same(self, position: int, other: int) -> bool:
        """Whether two outputs are computed in the same way, so that they are equal whatever the inputs."""
        outputs = self.computation.outputs
        return self._expression(outputs[position]) == self._expression(outputs[other])

    def _expression(self, atom: Any) -> Any:
        """How a variable is computed, as nested tuples."""
        if isinstance(atom, Literal):
            return str(atom.val), str(atom.aval)
        equation = self._makers.get(atom)
        if equation is None:
            return atom
        params = id(equation) if "jaxpr" in equation.params else str(equation.params)
        place = equation.results.index(atom)
        return equation.name, params, place, tuple(map(self._expression, equation.operands))

    @functools.cached_property
    def _makers(self) -> dict[Any, Equation]:
        """By variable, the operation that it is the result of."""
        return {result: equation for equation in self.computation.equations for result in equation.results}

    def source(self, label: Label) -> Var:
        """The variable of an input."""
        return self.computation.inputs[self.inputs.index(label)]

    @once
    def _positions(self, parameter: str) -> tuple[AxisDomain, dict[Var, AxisPositions]]:
        source = self.source(("parameter", parameter))
        rank = len(shape_of(source))
        domain = AxisDomain(self.computation, self.labels, rank)
        start: dict[Var, AxisPositions] = {source: tuple(frozenset([axis]) for axis in range(rank))}
        return domain, interpret(self.computation, start, domain)

    @once
    def _selections(self, parameter: str) -> dict[Var, Entry]:
        source = self.source(("parameter", parameter))
        rank = len(shape_of(source))
        start: dict[Var, Entry] = {source: Selection(tuple(range(rank)), (frozenset(),) * rank)}
        return interpret(self.computation, start, SelectionDomain(self.computation, self.labels))


def _latents(labels: Labels) -> frozenset[str]:
    """The latents among labels; all steps of a scan are one latent."""
    return frozenset(model_name(name) for kind, name in labels if kind == "latent")

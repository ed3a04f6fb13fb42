"""Where the axes of a parameter run in everything computed from it, and which latents index them.

``beta[z]`` runs over the states of ``z`` along the first axis of ``beta``, and so does ``X @ jnp.exp(beta)[z]``:
an elementwise operation keeps every axis where it is, a sum or a matrix product drops the axis it mixes and
keeps the others. An unknown operation drops every axis, so that nothing is claimed of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from jax.extend.core import Var

from emppl.jaxpr.equations import Equation
from emppl.jaxpr.walk import Computation, Domain, Labels, picking_labels

AxisPositions: TypeAlias = tuple[frozenset[int], ...]
"""For every axis of the parameter, the axes of an array along which it runs (entry i beside entry i)."""


class AxisDomain(Domain[AxisPositions]):
    """Follows the axes of one parameter through a computation.

    Args:
        computation: where.
        labels: what its variables depend on.
        rank: number of axes of the parameter.

    Attributes:
        indexed: for every axis of the parameter, the labels of everything that indexes it.
    """

    def __init__(self, computation: Computation, labels: Mapping[Var, Labels], rank: int):
        super().__init__(computation)
        self.labels = labels
        self.indexed: list[Labels] = [frozenset()] * rank

    def apply(self, equation: Equation, entries: list[AxisPositions | None]) -> AxisPositions:
        """Axes of the results: those that any of the operands has there."""
        if entries[0] is not None:
            picked = picking_labels(self.computation, self.labels, equation)
            for number, axes in enumerate(entries[0]):
                self.indexed[number] = self.indexed[number].union(*(picked.get(axis, frozenset()) for axis in axes))
        operands = equation.axes.operands
        moved = [
            [{operands[position].whole[axis] for axis in axes & operands[position].whole.keys()} for axes in entry]
            for position, entry in self.tracked(entries)
        ]
        return tuple(frozenset().union(*places) for places in zip(*moved, strict=True))

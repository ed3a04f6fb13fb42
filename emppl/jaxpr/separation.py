"""Which entries of a block of parameters never meet in one cell: the computation is run on *group numbers*.

Give every entry of ``beta`` the number of its row. Then ``(beta[z] * x).sum(-1)`` carries, for every cell of the table,
the number of the only row it depends on, and two rows never share a cell: the Hessian of Q is block-diagonal. Numbers
go through the operations of the jaxpr as values would; where two different ones meet, the answer is "they meet". The
atoms of latents are known, so an index made of them is a number too. Nothing of the data is looked at: an index made of
data picks some group, of which only is known that the same index picks the same group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from emppl.jaxpr.folding import FOLD
from emppl.jaxpr.group_rules import RULES, broadcast, unknown
from emppl.jaxpr.groups import MOST_CELLS, SHARED, Grouped, Meeting, compact
from emppl.jaxpr.selection import INLINE, searched_for


class Separation:
    """A function of a block, ready to be run on group numbers.

    Args:
        function: ``(block, *arguments) -> arrays``; atoms of latents are constants in it.
        shapes: by parameter of the block; with a dtype where it is not floating.
        *arguments: shapes of everything else.
    """

    def __init__(self, function: Callable, shapes: Mapping[str, Any], *arguments):
        self.names = sorted(shapes)
        block = {name: _struct(one) for name, one in shapes.items()}
        self.closed = jax.make_jaxpr(function)(block, *arguments)

    def groups(self, numbers: Mapping[str, np.ndarray]) -> list[Grouped | Meeting | None]:
        """Which group every cell of every output depends on.

        Args:
            numbers: by parameter of the block, the group of every entry, in the parameter's full shape.

        Returns:
            For every output: its groups, or that they meet, or None if it does not depend on the block.
        """
        run = GroupRun()
        for variable, name in zip(self.closed.jaxpr.invars, self.names, strict=False):
            own_numbers = compact(numbers[name])
            # Along an axis of group numbers the function is one and the same: entry k of group k is itself.
            own = tuple(size > 1 and own_numbers.shape[axis] == 1 for axis, size in enumerate(numbers[name].shape))
            run.state[variable] = Grouped(own_numbers, own)
        run.jaxpr(self.closed)
        return [run.of(atom) for atom in self.closed.jaxpr.outvars]


def _struct(one) -> jax.ShapeDtypeStruct:
    if isinstance(one, jax.ShapeDtypeStruct):
        return one
    return jax.ShapeDtypeStruct(one, jax.numpy.result_type(float))


class GroupRun:
    """One run of a jaxpr on group numbers."""

    def __init__(self):
        self.state: dict[Any, Grouped | Meeting] = {}
        self.constants: dict[Any, np.ndarray] = {}
        self.keys: dict[Any, Any] = {}
        self.picked: dict[Any, int] = {}
        self.outside: dict[Any, tuple[bool, ...]] = {}  # of arrays that the block does not touch: `varies`

    def key(self, atom) -> Any:
        """Equal for two arrays that are computed in the same way from the same inputs."""
        return ("literal", str(atom.val)) if isinstance(atom, Literal) else self.keys.get(atom, atom)

    def number_of(self, indices, columns: tuple[int, ...]) -> int:
        """The number of the group that some columns of an index made of data pick."""
        key = self.key(indices)
        match key:
            case (0, ("concatenate", _, *parts)) if len(parts) == indices.aval.shape[-1]:
                key = tuple(parts[column] for column in columns)
            case _:
                key = (key,) if indices.aval.shape[-1] == 1 else (key, columns)
        return self.picked.setdefault(key, SHARED - 1 - len(self.picked))

    def of(self, atom) -> Grouped | Meeting | None:
        """What is known of an array; None if the block does not touch it."""
        return None if isinstance(atom, Literal) else self.state.get(atom)

    def known(self, atom) -> bool:
        """Is the value of an array known?"""
        return isinstance(atom, Literal) or atom in self.constants

    def value(self, atom) -> np.ndarray:
        """That value."""
        return np.asarray(atom.val) if isinstance(atom, Literal) else self.constants[atom]

    def jaxpr(self, closed: ClosedJaxpr) -> None:
        """Run it all."""
        for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            self._remember(variable, value)
        self.equations(closed.jaxpr)

    def _remember(self, variable, value) -> None:
        if not isinstance(value, jax.core.Tracer) and np.size(value) <= MOST_CELLS:
            try:
                self.constants[variable] = np.asarray(value)
            except TypeError:  # a random key is no array of numbers
                return

    def equations(self, jaxpr) -> None:
        """Run equation after equation."""
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            touched = [self.of(atom) for atom in equation.invars]
            if name in INLINE and (self._looked_up(equation) or self._inline(equation)):
                continue
            if all(entry is None for entry in touched):
                self._fold(equation)
                params = id(equation) if "jaxpr" in equation.params else str(equation.params)
                key = (name, params, *map(self.key, equation.invars))
                self.keys.update({variable: (n, key) for n, variable in enumerate(equation.outvars)})
                if name == "broadcast_in_dim":
                    self.outside[equation.outvars[0]] = broadcast(self, equation).varies
                continue
            meeting = next((entry for entry in touched if isinstance(entry, Meeting)), None)
            rule = RULES.get(name, unknown)
            result: Grouped | Meeting = meeting if meeting is not None else rule(self, equation)
            for variable in equation.outvars:
                self.state[variable] = result

    def _looked_up(self, equation) -> bool:
        """Digitized entry by entry, in edges that do not depend on the block?"""
        query = searched_for(equation)
        touched = [atom for atom in equation.invars if self.of(atom) is not None]
        if query is None or len(touched) != 1 or touched[0] is not query:
            return False
        self.state[equation.outvars[0]] = self.operand(query)
        return True

    def _inline(self, equation) -> bool:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is None:
            return False
        consts = getattr(inner, "consts", ())
        inner = getattr(inner, "jaxpr", inner)
        # One jaxpr object may be called several times with other arguments: what it left behind goes first.
        for variable in (*inner.invars, *(v for one in inner.eqns for v in one.outvars)):
            self.state.pop(variable, None)
            self.constants.pop(variable, None)
            self.outside.pop(variable, None)
            self.keys.pop(variable, None)
        for variable, value in zip(inner.constvars, consts, strict=True):
            self._remember(variable, value)
        for variable, atom in zip(inner.invars, equation.invars, strict=True):
            self._copy(atom, variable)
        self.equations(inner)
        for variable, atom in zip(equation.outvars, inner.outvars, strict=True):
            self._copy(atom, variable)
        return True

    def _copy(self, atom, variable) -> None:
        entry = self.of(atom)
        if entry is not None:
            self.state[variable] = entry
            return
        self.keys[variable] = self.key(atom)
        if not isinstance(atom, Literal) and atom in self.outside:
            self.outside[variable] = self.outside[atom]
        if self.known(atom):
            self.constants[variable] = self.value(atom)

    def _fold(self, equation) -> None:
        """Evaluate the few operations of which indices are made, where everything is known."""
        rule = FOLD.get(equation.primitive.name)
        size = max((np.prod(v.aval.shape, dtype=int) for v in equation.outvars), default=0)
        if rule is None or size > MOST_CELLS or not all(self.known(atom) for atom in equation.invars):
            return
        values = [self.value(atom) for atom in equation.invars]
        self.constants[equation.outvars[0]] = np.asarray(rule(equation.params, *values))

    # ---------------------------------------------------------------------------------------------- operands

    def operands(self, equation) -> list[Grouped]:
        """Every operand of full rank: groups and variation, those outside the block as shared by all groups."""
        rank = len(equation.outvars[0].aval.shape)
        found = []
        for atom in equation.invars:
            if len(atom.aval.shape) == rank and rank:
                found.append(self.operand(atom))
            elif isinstance(entry := self.of(atom), Grouped):  # a scalar beside arrays
                found.append(Grouped(entry.numbers.reshape((1,) * rank), (False,) * rank))
        return found

    def operand(self, atom) -> Grouped:
        """Groups and variation of an array, also of one that the block does not touch."""
        entry = self.of(atom)
        if isinstance(entry, Grouped):
            return entry
        shape = atom.aval.shape
        varies = self.outside.get(atom) if not isinstance(atom, Literal) else None
        varies = varies if varies is not None else tuple(size > 1 for size in shape)
        if self.known(atom):
            value = self.value(atom)
            varies = tuple(
                size > 1 and bool(np.any(value != np.take(value, [0], axis))) for axis, size in enumerate(shape)
            )
        return Grouped(np.full((1,) * len(shape), SHARED), varies)

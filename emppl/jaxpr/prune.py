"""Parts of a traced computation: the equations that some outputs need, conditions, names of the outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, Var


def prune(closed: ClosedJaxpr, positions: Sequence[int]) -> ClosedJaxpr:
    """Keep the equations that some of the outputs need."""
    return computation_of(closed, [closed.jaxpr.outvars[position] for position in positions])


def computation_of(closed: ClosedJaxpr, atoms: Sequence[Any]) -> ClosedJaxpr:
    """The computation of some variables alone: the equations that they need."""
    jaxpr = closed.jaxpr
    needed = {id(atom) for atom in atoms}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            kept.append(equation)
            needed.update(id(atom) for atom in equation.invars)
    names = jaxpr.debug_info._replace(result_paths=None)
    return closed.replace(jaxpr=jaxpr.replace(eqns=kept[::-1], outvars=list(atoms), debug_info=names))


def inputs_read(closed: ClosedJaxpr) -> list[int]:
    """The inputs that some equation or output reads."""
    jaxpr = closed.jaxpr
    read = {id(atom) for equation in jaxpr.eqns for atom in equation.invars} | set(map(id, jaxpr.outvars))
    return [number for number, variable in enumerate(jaxpr.invars) if id(variable) in read]


def conditions(closed: ClosedJaxpr) -> list[Var]:
    """Scalar conditions of every ``where``."""
    found: list[Var] = []
    for equation in closed.jaxpr.eqns:
        is_where = equation.primitive.name == "select_n" or equation.params.get("name") == "_where"
        condition: Any = equation.invars[0] if is_where else None
        if condition is not None and not isinstance(condition, Literal) and condition.aval.shape == ():
            if condition.aval.dtype == bool and not any(condition is known for known in found):
                found.append(condition)
    return found


def with_conditions(closed: ClosedJaxpr, values: Mapping[Var, bool]) -> ClosedJaxpr:
    """A computation with the values of some conditions put in: what they decide no longer depends on them."""

    def settled(atom: Any) -> Any:
        is_settled = not isinstance(atom, Literal) and atom in values
        return Literal(np.bool_(values[atom]), atom.aval) if is_settled else atom

    if not values:
        return closed
    equations = [equation.replace(invars=list(map(settled, equation.invars))) for equation in closed.jaxpr.eqns]
    return closed.replace(jaxpr=closed.jaxpr.replace(eqns=equations))


def with_inputs_for_constants(closed: ClosedJaxpr, inputs: Mapping[int, np.ndarray]) -> ClosedJaxpr:
    """A computation that reads an input where it holds the same array as a constant.

    Args:
        inputs: what some inputs are, by number.
    """
    jaxpr, instead = closed.jaxpr, {}
    for number, array in inputs.items():
        variable = jaxpr.invars[number]
        for constant, value in zip(jaxpr.constvars, closed.consts, strict=True):
            is_alike = value.shape == variable.aval.shape and value.dtype == variable.aval.dtype and array.size > 1
            if is_alike and np.array_equal(np.asarray(value), array, equal_nan=array.dtype.kind in "fc"):
                instead[constant] = variable
    if not instead:
        return closed

    def replaced(atoms: Sequence[Any]) -> list[Any]:
        return [atom if isinstance(atom, Literal) else instead.get(atom, atom) for atom in atoms]

    equations = [equation.replace(invars=replaced(equation.invars)) for equation in jaxpr.eqns]
    kept = [number for number, constant in enumerate(jaxpr.constvars) if constant not in instead]
    again = jaxpr.replace(
        eqns=equations, outvars=replaced(jaxpr.outvars), constvars=[jaxpr.constvars[number] for number in kept]
    )
    return closed.replace(jaxpr=again, consts=[closed.consts[number] for number in kept])


def with_own_constants(closed: ClosedJaxpr) -> ClosedJaxpr:
    """A computation whose constants are copies, nested computations included: arrays of NumPy may be written into."""

    def own(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return with_own_constants(value)
        return tuple(map(own, value)) if type(value) is tuple else value

    equations = []
    for equation in closed.jaxpr.eqns:
        params = {name: own(value) for name, value in equation.params.items()}
        is_same = all(params[name] is value for name, value in equation.params.items() if type(value) is not tuple)
        has_branches = any(isinstance(v, tuple) and any(isinstance(e, ClosedJaxpr) for e in v) for v in params.values())
        equations.append(equation if is_same and not has_branches else equation.replace(params=params))
    constants = [constant if isinstance(constant, jax.Array) else np.array(constant) for constant in closed.consts]
    return closed.replace(jaxpr=closed.jaxpr.replace(eqns=equations), consts=constants)


def path_names(path: Sequence[Any]) -> tuple[str, ...]:
    """A pytree path as strings."""
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)

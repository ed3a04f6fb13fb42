"""Parts of a traced computation: only the equations that some outputs need; names of the outputs."""

from __future__ import annotations

from jax.extend.core import ClosedJaxpr


def prune(closed: ClosedJaxpr, positions: list[int]) -> ClosedJaxpr:
    """Keep the equations that some of the outputs need."""
    jaxpr = closed.jaxpr
    outputs = [jaxpr.outvars[position] for position in positions]
    needed = {id(variable) for variable in outputs}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            kept.append(equation)
            needed.update(id(atom) for atom in equation.invars)
    names = jaxpr.debug_info._replace(result_paths=None)
    return closed.replace(jaxpr=jaxpr.replace(eqns=kept[::-1], outvars=outputs, debug_info=names))


def path_names(path) -> tuple[str, ...]:
    """A pytree path as strings."""
    names = []
    for key in path:
        names.append(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))))
    return tuple(names)

"""Does every cell of an array depend on one cell of a parameter, and do two parameters share their cells?

``exp(log_scale)[z]`` and ``mu[z]`` give every row the entries of one component: an objective that sums over rows
then falls apart into one small problem per component. The answer is read off the jaxpr: operations that act
element by element keep the *map of cells*, indexing and broadcasting change it, everything else mixes cells. Two
arrays have the same map if the same operations with the same operands made it. Sound, not complete.
"""

from __future__ import annotations

from typing import Any

from jax.extend.core import Literal

from emppl.dependence import Dependence

MIXED = -1
"""Stands for an array some cell of which depends on several cells of the parameter."""

_INLINE = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
_MOVES = (
    "broadcast_in_dim reshape transpose squeeze slice dynamic_slice rev concatenate gather split expand_dims pad"
).split()
_ELEMENTWISE = frozenset(
    (
        "add sub mul div rem neg exp exp2 log log1p expm1 sqrt rsqrt cbrt pow integer_pow square abs sign max min "
        "logistic tanh sinh cosh asinh acosh atanh sin cos tan asin acos atan atan2 lgamma digamma polygamma erf erfc "
        "erf_inv select_n clamp eq ne lt le gt ge and or not is_finite floor ceil round nextafter "
        "convert_element_type copy copy_p reduce_precision optimization_barrier stop_gradient bessel_i0e bessel_i1e"
    ).split()
)


class Separation:
    """Maps of cells from parameters to traced arrays.

    Args:
        dependence: the traced computation.
    """

    def __init__(self, dependence: Dependence):
        self._jaxpr = dependence.jaxpr
        self._inputs = dependence.inputs
        self._ids: dict[Any, int] = {}
        self._found: dict[str, dict[Any, tuple[bool, int]]] = {}

    def map_of(self, parameter: str, position: int) -> int:
        """Identity of the map from a parameter's cells to those of one output, or :data:`MIXED`.

        Args:
            parameter: name of the parameter.
            position: which output of the traced computation.

        Returns:
            A number; equal numbers mean equal maps, also between parameters of the same shape.
        """
        if parameter not in self._found:
            environment: dict[Any, tuple[bool, int]] = {}
            for variable, label in zip(self._jaxpr.invars, self._inputs, strict=True):
                if label == ("parameter", parameter):
                    environment[variable] = (True, self._id("cells", variable.aval.shape))
                else:
                    environment[variable] = (False, self._id("input", label))
            for number, variable in enumerate(self._jaxpr.constvars):
                environment[variable] = (False, self._id("constant", number))
            self._run(self._jaxpr, environment)
            self._found[parameter] = environment
        tracked, number = self._look(self._found[parameter], self._jaxpr.outvars[position])
        return number if tracked else MIXED

    def _id(self, *key) -> int:
        return self._ids.setdefault(key, len(self._ids))

    def _look(self, environment, atom) -> tuple[bool, int]:
        if isinstance(atom, Literal):
            return False, self._id("literal", str(atom.val), str(atom.aval))
        return environment[atom]

    def _run(self, jaxpr, environment) -> None:
        for equation in jaxpr.eqns:
            operands = [self._look(environment, atom) for atom in equation.invars]
            name = equation.primitive.name
            if name in _INLINE and self._inline(equation, operands, environment):
                continue
            tracked = [number for is_tracked, number in operands if is_tracked]
            shape = equation.outvars[0].aval.shape
            settings = str(sorted((key, str(value)) for key, value in equation.params.items()))
            for number, variable in enumerate(equation.outvars):
                if not tracked or (name in _MOVES and MIXED not in tracked):
                    made = self._id(name, settings, tuple(operands), number)
                elif name in _ELEMENTWISE and len(set(tracked)) == 1:
                    whole = any(
                        is_tracked and atom.aval.shape == shape
                        for (is_tracked, _), atom in zip(operands, equation.invars, strict=True)
                    )
                    made = tracked[0] if whole else self._id("broadcast", tracked[0], shape)
                else:
                    made = MIXED
                environment[variable] = (bool(tracked), made)

    def _inline(self, equation, operands, environment) -> bool:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is None:
            return False
        constants = getattr(inner, "consts", ())
        inner = getattr(inner, "jaxpr", inner)
        nested = dict(zip(inner.invars, operands, strict=True))
        nested |= {v: (False, self._id("value", id(c))) for v, c in zip(inner.constvars, constants, strict=True)}
        self._run(inner, nested)
        for variable, result in zip(equation.outvars, inner.outvars, strict=True):
            environment[variable] = self._look(nested, result)
        return True

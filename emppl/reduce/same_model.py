"""Whether a model for fewer rows is the same model. A prior scale of ``1 / len(x)`` makes it another one.

Two traces of one function, for data of two lengths, have the same equations. Sizes may differ, as far as they are one
and the same linear function of the length; numbers in the computation may not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from emppl.jaxpr.prune import prune
from emppl.trace.record import Trace


def is_same_model(full: Trace, short: Trace, lengths: tuple[int, int]) -> bool:
    """Whether two traces compute the same, apart from how many rows there are.

    Args:
        full: a trace.
        short: of the same function, for data of another length.
        lengths: the two numbers of rows.
    """
    if full.inputs != short.inputs or set(full.outputs) != set(short.outputs) or set(full.sites) != set(short.sites):
        return False
    if not all(_same_site(full, short, name) for name in full.sites):
        return False
    paths = sorted(full.outputs)
    left, right = (prune(trace.jaxpr, [trace.outputs[path] for path in paths]) for trace in (full, short))
    return _Comparison(lengths).closed(left, right)


def _same_site(full: Trace, short: Trace, name: str) -> bool:
    left, right = full.sites[name], short.sites[name]
    facts = ("kind", "distribution", "event_shape", "reinterpreted", "states", "labels", "transforms")
    if any(getattr(left, fact) != getattr(right, fact) for fact in facts):
        return False
    return full.distributions.get(name) is short.distributions.get(name) and _same_object(
        left.constraint, right.constraint
    )


def _same_object(left: Any, right: Any) -> bool:
    """Whether two objects are of one type, with the same numbers in them."""
    if type(left) is not type(right):
        return False
    inside = [vars(value) if hasattr(value, "__dict__") else {} for value in (left, right)]
    return _Comparison((0, 0)).values(*inside)


class _Comparison:
    def __init__(self, lengths: tuple[int, int]):
        self.lengths = lengths
        self.partner: dict[Any, Any] = {}

    def closed(self, left: ClosedJaxpr, right: ClosedJaxpr) -> bool:
        """Whether two computations are the same, constants included."""
        used = {v for equation in left.jaxpr.eqns for v in equation.invars if not isinstance(v, Literal)}
        used |= {v for v in left.jaxpr.outvars if not isinstance(v, Literal)}
        position = {variable: n for n, variable in enumerate(right.jaxpr.constvars)}
        if not self.jaxprs(left.jaxpr, right.jaxpr):
            return False
        for variable, value in zip(left.jaxpr.constvars, left.consts, strict=True):
            if variable in used:
                where = position.get(self.partner.get(variable))
                if where is None or not self.values(value, right.consts[where]):
                    return False
        return True

    def jaxprs(self, left: Jaxpr, right: Jaxpr) -> bool:
        """Whether two computations are the same equation by equation, constants left out."""
        if len(left.eqns) != len(right.eqns) or len(left.invars) != len(right.invars):
            return False
        self.partner.update(zip(left.invars, right.invars, strict=True))
        constants = set(left.constvars)
        for first, second in zip(left.eqns, right.eqns, strict=True):
            if first.primitive is not second.primitive or len(first.invars) != len(second.invars):
                return False
            if not all(self.atoms(a, b, constants) for a, b in zip(first.invars, second.invars, strict=True)):
                return False
            if not self.values(dict(first.params), dict(second.params)):
                return False
            self.partner.update(zip(first.outvars, second.outvars, strict=True))
        return all(self.atoms(a, b, constants) for a, b in zip(left.outvars, right.outvars, strict=True))

    def atoms(self, left: Any, right: Any, constants: Any) -> bool:
        """Whether two operands are the same variable, or the same number."""
        if isinstance(left, Literal) or isinstance(right, Literal):
            return isinstance(left, Literal) and isinstance(right, Literal) and _same_array(left.val, right.val)
        if left in constants:  # constants are numbered in the order of their use: they meet where they are used first
            return self.partner.setdefault(left, right) is right
        return self.partner.get(left) is right

    def values(self, left: Any, right: Any) -> bool:
        """Whether two parameters of equations are the same; numbers that are sizes may differ with the length."""
        if isinstance(left, ClosedJaxpr):
            return isinstance(right, ClosedJaxpr) and self.closed(left, right)
        if isinstance(left, Jaxpr):
            return isinstance(right, Jaxpr) and self.jaxprs(left, right)
        if isinstance(left, Mapping):
            keys = isinstance(right, Mapping) and left.keys() == right.keys()
            return keys and all(self.values(left[key], right[key]) for key in left)
        if isinstance(left, (tuple, list)):
            sizes = isinstance(right, (tuple, list)) and len(left) == len(right)
            return sizes and all(self.values(a, b) for a, b in zip(left, right, strict=True))
        if isinstance(left, (bool, float, str, type(None))) or isinstance(right, (bool, float)):
            return bool(left == right)
        if isinstance(left, (int, np.integer)):
            return isinstance(right, (int, np.integer)) and self._is_size(int(left), int(right))
        if isinstance(left, (np.ndarray, np.generic, jax.Array)):
            return isinstance(right, (np.ndarray, np.generic, jax.Array)) and _same_array(left, right)
        if dataclasses.is_dataclass(left) and not isinstance(left, type):
            return type(left) is type(right) and self.values(vars(left), vars(right))
        # Functions (rules of derivatives) and dtypes.
        return callable(left) or type(left) is type(right)

    def _is_size(self, left: int, right: int) -> bool:
        """Whether two sizes are equal, or one linear function of the lengths."""
        difference = self.lengths[0] - self.lengths[1]
        return left == right or (difference != 0 and (left - right) % difference == 0)


def _same_array(left: Any, right: Any) -> bool:
    """Whether two arrays hold equal numbers; of different shapes, one and the same number everywhere."""
    left, right = (np.asarray(array) for array in (left, right))
    if left.dtype != right.dtype:
        return False
    if left.shape != right.shape:
        if not left.size or not right.size:
            return False
        left, right = np.unique(left), np.unique(right)
        return left.size == right.size == 1 and bool(np.all(left == right))
    return np.array_equal(left, right, equal_nan=left.dtype.kind in "fc")

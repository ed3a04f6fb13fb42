"""The one boundary between constrained values, which users see, and unconstrained vectors, which optimisers need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from emppl.errors import ParameterError
from emppl.trace import as_numpyro_expects

_ZERO = 1e-12
_FLAT_ELEMENTWISE = ("real", "real_vector", "real_matrix", "positive", "nonnegative", "softplus_positive", "interval")


def innermost(constraint: Any) -> Any:
    """A constraint without its ``independent`` wrappers."""
    while isinstance(constraint, constraints.independent(constraints.real, 0).__class__):
        constraint = constraint.base_constraint
    return constraint


def constraint_name(constraint: Any) -> str:
    """Name of a numpyro constraint (``"positive"``, ``"simplex"``...), for messages and for matching."""
    constraint = innermost(constraint)
    for name in dir(constraints):
        if getattr(constraints, name, None) is constraint:
            return name
    kind = type(constraint).__name__.strip("_")
    words = "".join("_" + letter.lower() if letter.isupper() else letter for letter in kind).strip("_")
    lower, upper = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if "interval" in words and _equals(lower, 0) and _equals(upper, 1):
        return "unit_interval"
    if words == "greater_than" and _equals(lower, 0):
        return "positive"
    return words


def _equals(bound, number) -> bool:
    return isinstance(bound, (int, float)) and float(bound) == number


def unconstrain(constraint: Any, value: jax.Array) -> jax.Array:
    """Constrained value to unconstrained."""
    with as_numpyro_expects():
        return biject_to(constraint).inv(value)


def constrain(constraint: Any, value: jax.Array) -> jax.Array:
    """Unconstrained value to constrained."""
    with as_numpyro_expects():
        return biject_to(constraint)(value)


def check(name: str, value: Any, shape: tuple[int, ...], constraint: Any, origin: str) -> np.ndarray:
    """Check a parameter value that a user gave.

    Args:
        name: the parameter.
        value: what was given.
        shape: what the model needs.
        constraint: where it must lie.
        origin: the option it came by (``init_params``, ``fixed``), for the message.

    Returns:
        The value as an array.

    Raises:
        ParameterError: wrong shape, not finite, or outside the constraint.
    """
    array = np.asarray(value, dtype=jnp.result_type(float))
    if array.shape != tuple(shape):
        raise ParameterError(f"{origin}[{name!r}] has shape {array.shape}; the model needs {tuple(shape)}.")
    if not np.all(np.isfinite(array)):
        raise ParameterError(f"{origin}[{name!r}] contains NaN or infinity: {array}.")
    try:
        with as_numpyro_expects():
            inside = np.asarray(constraint(array))
    except NotImplementedError:
        return array
    if not np.all(inside):
        raise ParameterError(f"{origin}[{name!r}] = {array} is outside its constraint {constraint_name(constraint)!r}.")
    return array


def free_dimensions(constraint: Any, shape: tuple[int, ...]) -> int:
    """Number of free dimensions of a parameter of this shape under its constraint."""
    if constraint_name(constraint).startswith("real"):
        return int(np.prod(shape, dtype=int))
    return int(np.prod(biject_to(constraint).inverse_shape(tuple(shape)), dtype=int))


@dataclasses.dataclass(frozen=True)
class Chart:
    """Local coordinates of a parameter around an estimate: ``map(zeros) == estimate``.

    Attributes:
        size: number of coordinates.
        map: coordinates to constrained value.
        boundary: boolean array like the estimate: entries that lie on the edge of the parameter space and are
            held there.
    """

    size: int
    map: Callable[[jax.Array], jax.Array]
    boundary: np.ndarray


def chart(constraint: Any, estimate: np.ndarray, edge: float) -> Chart:
    """Coordinates in which a standard error can be computed.

    Flat sets (real and positive numbers, probabilities, simplices, symmetric and triangular matrices) move along
    straight lines in their own units; curved ones through numpyro's bijection.

    Args:
        constraint: where the parameter lives.
        estimate: the point.
        edge: how close to its bound a probability counts as being on it (positive numbers: 1e-12, whatever the units).

    Returns:
        The chart.
    """
    name = constraint_name(constraint)
    estimate = np.asarray(estimate)
    if name in ("simplex", "unit_interval", "open_interval"):
        # Entries on the edge are held there, but their second derivatives must not overflow.
        smallest = float(np.sqrt(np.finfo(estimate.dtype).tiny))
        estimate = np.clip(estimate, smallest, 1 - np.finfo(estimate.dtype).epsneg)
    if name == "simplex":
        return _simplex_chart(estimate, edge)
    if name in ("positive_definite", "lower_cholesky"):
        return _matrix_chart(estimate, symmetric=name == "positive_definite")
    if name in ("unit_interval", "open_interval"):
        return _linear_chart(estimate, (estimate < edge) | (estimate > 1 - edge))
    if name in ("positive", "nonnegative", "softplus_positive"):
        return _linear_chart(estimate, estimate < _ZERO)
    if name in _FLAT_ELEMENTWISE:
        return _linear_chart(estimate, np.zeros(estimate.shape, bool))
    start = np.asarray(unconstrain(constraint, jnp.asarray(estimate)))
    mapping = lambda step: constrain(constraint, start + step.reshape(start.shape))  # noqa: E731
    return Chart(start.size, mapping, np.zeros(estimate.shape, bool))


def _linear_chart(estimate, boundary) -> Chart:
    free = np.flatnonzero(~boundary.ravel())

    def move(step):
        flat = jnp.asarray(estimate).ravel().at[free].add(step)
        return flat.reshape(estimate.shape)

    return Chart(len(free), move, boundary)


def _basis_chart(estimate, basis, boundary) -> Chart:
    matrix = np.asarray(basis, dtype=estimate.dtype).reshape(len(basis), estimate.size).T

    def move(step):
        return jnp.asarray(estimate) + (jnp.asarray(matrix) @ step).reshape(estimate.shape)

    return Chart(matrix.shape[1], move, boundary)


def _simplex_chart(estimate, edge) -> Chart:
    boundary = estimate < edge
    basis = []
    for cell in np.ndindex(estimate.shape[:-1]):
        inside = np.flatnonzero(~boundary[cell])
        last = max(inside, key=lambda entry: estimate[cell][entry], default=None)
        for entry in inside:
            if entry == last:
                continue
            direction = np.zeros(estimate.shape)
            direction[(*cell, entry)], direction[(*cell, last)] = 1.0, -1.0
            basis.append(direction)
        if len(inside) == 1 and estimate.shape[-1] > 1:
            boundary[(*cell, last)] = True
    return _basis_chart(estimate, basis, boundary)


def _matrix_chart(estimate, symmetric) -> Chart:
    dimension = estimate.shape[-1]
    basis = []
    for cell in np.ndindex(estimate.shape[:-2]):
        for row, column in zip(*np.tril_indices(dimension), strict=True):
            direction = np.zeros(estimate.shape)
            direction[(*cell, row, column)] = 1.0
            if symmetric:
                direction[(*cell, column, row)] = 1.0
            basis.append(direction)
    return _basis_chart(estimate, basis, np.zeros(estimate.shape, bool))

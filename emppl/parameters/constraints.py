"""The one boundary between constrained values, which users see, and unconstrained vectors, which optimisers need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from emppl.errors import ParameterError, unknown_name
from emppl.trace import Site, as_numpyro_expects


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


def _equals(bound: Any, number: float) -> bool:
    return isinstance(bound, (int, float)) and float(bound) == number


def bounds(constraint: Any) -> tuple[float, float] | None:
    """The interval in which every entry of a parameter may lie by itself, or None if entries constrain each other."""
    ends = limits(constraint)
    if ends is None or any(end.size != 1 for end in ends):
        return None
    low, high = (float(np.ravel(end)[0]) for end in ends)
    return low, high


def limits(constraint: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """As :func:`bounds`, also where every entry has bounds of its own."""
    name, inner = constraint_name(constraint), innermost(constraint)
    low, high = getattr(inner, "lower_bound", None), getattr(inner, "upper_bound", None)
    if name in ("real", "real_vector", "real_matrix"):
        low, high = -math.inf, math.inf
    elif name in ("positive", "nonnegative", "softplus_positive"):
        low, high = 0.0, math.inf
    if (low is None and high is None) or isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
        return None
    return np.asarray(-math.inf if low is None else low), np.asarray(math.inf if high is None else high)


def reachable(constraint: Any, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bounds that every entry of a value may reach: one step inside of its limits, which may themselves be excluded."""
    low, high = (jnp.asarray(end, value.dtype) for end in limits(constraint) or (-jnp.inf, jnp.inf))
    if low.ndim:
        low, high = (jnp.broadcast_to(end, value.shape) for end in jnp.broadcast_arrays(low, high))
    inside = jnp.nextafter(low, high), jnp.nextafter(high, low)
    return jnp.where(jnp.isfinite(low), inside[0], low), jnp.where(jnp.isfinite(high), inside[1], high)


def unconstrain(constraint: Any, value: jax.Array) -> jax.Array:
    """Constrained value to unconstrained."""
    with as_numpyro_expects():
        return biject_to(constraint).inv(value)


def constrain(constraint: Any, value: jax.Array) -> jax.Array:
    """Unconstrained value to constrained."""
    with as_numpyro_expects():
        return biject_to(constraint)(value)


def to_coordinates(constraint: Any, value: jax.Array) -> jax.Array:
    """Constrained value to the coordinates that iterative rules work in; finite even on the edge of the set.

    A simplex gets log-probabilities, of which only differences matter, instead of numpyro's stick-breaking coordinates:
    their rounding error is relative to the whole stick, which loses entries that go to zero.
    """
    if constraint_name(constraint) == "simplex":
        return jnp.log(jnp.maximum(value, jnp.finfo(value.dtype).tiny))
    furthest = -jnp.log(jnp.finfo(value.dtype).tiny)
    return jnp.nan_to_num(unconstrain(constraint, value), nan=jnp.nan, posinf=furthest, neginf=-furthest)


def from_coordinates(constraint: Any, coordinates: jax.Array) -> jax.Array:
    """Inverse of :func:`to_coordinates`."""
    if constraint_name(constraint) == "simplex":
        return jax.nn.softmax(coordinates, -1)
    return constrain(constraint, coordinates)


def random_inside(constraint: Any, shape: tuple[int, ...], rng: np.random.Generator) -> jax.Array:
    """Random values inside a constraint."""
    free = biject_to(constraint).inverse_shape(tuple(shape))
    return constrain(constraint, jnp.asarray(rng.normal(size=free), jnp.result_type(float)))


def is_relative(constraint: Any) -> bool:
    """Whether all coordinates are logarithms or log-odds, so that a unit is a large step whatever the data."""
    name = constraint_name(constraint)
    if name == "simplex":
        return True
    interval = bounds(constraint)
    return name != "softplus_positive" and interval is not None and interval != (-math.inf, math.inf)


def log_jacobian(constraint: Any, value: jax.Array) -> jax.Array:
    """Log-derivative of every entry of a constrained value in its own unconstrained one (elementwise constraints)."""
    transform = biject_to(innermost(constraint))
    with as_numpyro_expects():
        return jnp.broadcast_to(transform.log_abs_det_jacobian(value, transform(value)), value.shape)


def check(name: str, value: Any, shape: tuple[int, ...], constraint: Any, origin: str) -> np.ndarray:
    """Check a parameter value that a user gave.

    Args:
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
    _check_shape(name, array.shape, shape, origin)
    if not np.all(np.isfinite(array)):
        raise ParameterError(f"{origin}[{name!r}] contains NaN or infinity: {array}.")
    if not is_inside(constraint, array):
        raise _outside(name, array, constraint, origin)
    return array


def check_point(
    params: Mapping[str, Any], sites: Mapping[str, Site], free: Sequence[str], fixed: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Check values of all parameters that a user gave; under a transformation of JAX only what can be seen.

    Values on the edge of a constraint, where estimates may end, are allowed.

    Args:
        params: what was given, by name.
        sites: of the model.
        free: the parameters that are estimated.
        fixed: values of the others.

    Returns:
        The free parameters.

    Raises:
        ParameterError: a name that is missing or unknown, a wrong shape, or a value outside its constraint.
    """
    for name in params:
        if name not in free and name not in fixed:
            raise unknown_name("params", name, [*free, *fixed])
    missing = [name for name in free if name not in params]
    if missing:
        raise ParameterError(f"params lacks {missing}; the model needs {list(free)}.")
    for name, given in params.items():
        site = sites[name]
        if any(isinstance(entry, jax.core.Tracer) for entry in jax.tree.leaves(given)):
            _check_shape(name, jnp.asarray(given).shape, site.shape, "params")
            continue
        array = np.asarray(given, dtype=jnp.result_type(float))
        _check_shape(name, array.shape, site.shape, "params")
        with jax.ensure_compile_time_eval():
            if name in fixed and not np.allclose(array, np.asarray(fixed[name]), rtol=1e-6):
                raise ParameterError(
                    f"params[{name!r}] = {array}, but EM(fixed=...) holds it at {fixed[name]}. Leave it out, or change "
                    "fixed."
                )
            if not np.all(np.isfinite(array)):
                raise ParameterError(f"params[{name!r}] contains NaN or infinity: {array}.")
            if not is_inside(site.constraint, array) and not _is_on_edge(site.constraint, array):
                raise _outside(name, array, site.constraint, "params")
    return {name: jnp.asarray(params[name], jnp.result_type(float)) for name in free}


def _check_shape(name: str, shape: tuple[int, ...], needed: tuple[int, ...], origin: str) -> None:
    if tuple(shape) != tuple(needed):
        raise ParameterError(f"{origin}[{name!r}] has shape {tuple(shape)}; the model needs {tuple(needed)}.")


def _outside(name: str, array: np.ndarray, constraint: Any, origin: str) -> ParameterError:
    return ParameterError(f"{origin}[{name!r}] = {array} is outside its constraint {constraint_name(constraint)!r}.")


def is_inside(constraint: Any, array: np.ndarray) -> bool:
    """Whether a value lies inside; yes where NumPyro does not say."""
    try:
        with as_numpyro_expects():
            return bool(np.all(np.asarray(constraint(array))))
    except NotImplementedError:
        return True


def _is_on_edge(constraint: Any, array: np.ndarray) -> bool:
    """Whether the nearest value inside, by way of the coordinates, is the same but for rounding."""
    try:
        value = jnp.asarray(array)
        nearest = np.asarray(from_coordinates(constraint, to_coordinates(constraint, value)))
    except NotImplementedError:
        return False
    return bool(np.allclose(nearest, array, rtol=1e-6, atol=1e-12))


def free_dimensions(constraint: Any, shape: tuple[int, ...]) -> int:
    """Number of free dimensions of a parameter of this shape under its constraint."""
    return math.prod(unconstrained_shape(constraint, shape))


def unconstrained_shape(constraint: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of an unconstrained value."""
    if constraint_name(constraint).startswith("real"):
        return tuple(shape)
    return tuple(biject_to(constraint).inverse_shape(tuple(shape)))


def is_linear(constraint: Any) -> bool:
    """Whether values are all real numbers, or a rotation takes these to them (those that add up to zero)."""
    name = constraint_name(constraint)
    return name.startswith("real") or name == "zero_sum"

"""The registry of families, by NumPyro distribution class."""

from __future__ import annotations

from typing import Any

from emppl.families.check import check_family
from emppl.families.family import Family

_REGISTRY: dict[type, Family] = {}


def register(family: Family | type, *, check: bool = True, **description: Any) -> Family:
    """Register a family, so that every model that uses its distributions gets its updates.

    ``log_prob(value) = statistics(value) . natural(arguments) + offset(arguments) + base_measure(value)``

    Args:
        family: the description; or a distribution class, of which names and ranks are then read off NumPyro's
            ``arg_constraints`` and ``support``, and the rest is in ``description``.
        check: check numerically, on random values, that the natural form equals ``log_prob``, that the quantities of
            split data add up and that the gradient of Q is zero at every ``solve``.
        **description: fields of :class:`Family`, for a distribution class.

    Returns:
        The family.

    Raises:
        ValueError: one of its distributions is registered already, or a check failed; the message says which.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist, emppl
        >>> class Rayleigh(dist.Weibull):
        ...     arg_constraints = {"scale": dist.constraints.positive}
        ...     def __init__(self, scale, *, validate_args=None):
        ...         super().__init__(scale * 2**0.5, 2.0, validate_args=validate_args)
        ...         self.scale = scale
        ...     def log_prob(self, x):
        ...         return jnp.log(x) - 2 * jnp.log(self.scale) - 0.5 * (x / self.scale) ** 2
        >>> emppl.register(
        ...     Rayleigh,
        ...     statistics=lambda value, fixed, reference: (value**2)[..., None],
        ...     natural=lambda a, reference: (-0.5 / a["scale"][..., None] ** 2, -2 * jnp.log(a["scale"])),
        ...     base_measure=lambda value, fixed: jnp.log(value),
        ... ).name
        'Rayleigh'
    """
    if isinstance(family, type):
        ranks = {name: getattr(constraint, "event_dim", 0) for name, constraint in family.arg_constraints.items()}  # type: ignore[attr-defined]
        rank = family.support.event_dim  # type: ignore[attr-defined]
        family = Family(family.__name__, (family,), rank, **{"argument_ranks": ranks, **description})
    elif description:
        raise ValueError(f"{family.name} is described already; {sorted(description)} belong inside Family(...).")
    for distribution in family.distributions:
        if distribution in _REGISTRY:
            raise ValueError(f"{distribution.__name__} is already registered, as {_REGISTRY[distribution].name}.")
    if check:
        check_family(family)
    _REGISTRY.update(dict.fromkeys(family.distributions, family))
    return family


def add(family: Family) -> Family:
    """Register a family of emppl's own, which the tests check: importing emppl computes nothing."""
    return register(family, check=False)


def family_of(distribution: type) -> Family | None:
    """The registered family of a NumPyro distribution class, or None."""
    return _REGISTRY.get(distribution)


def registered_families() -> list[Family]:
    """Every registered family once, in order of registration."""
    return list({family.name: family for family in _REGISTRY.values()}.values())

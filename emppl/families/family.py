"""What a family of distributions says about itself.

A family is described once, by its sufficient statistics, natural parameters and log normaliser::

    log_prob(value) = statistics(value) . natural(arguments) + offset(arguments) + base_measure(value)

and that serves E-step and M-step alike: the E-step is a product of statistics with natural parameters, and
its transpose gives the expected statistics. An :class:`Update` then maximises the expected log-likelihood in
one argument, the others held at their current values, from *additive* quantities. Freezing, tying, several
sites sharing a parameter, weights and chunks are the framework's business: for all of them quantities add up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Arrays: TypeAlias = Mapping[str, jax.Array]
"""Arguments of a distribution, moments, or a reference, by name."""

Quantities: TypeAlias = dict[str, jax.Array]
"""Additive quantities by name."""

Mean: TypeAlias = Callable[[jax.Array], jax.Array]
"""Average over rows, whose axes are kept."""


@dataclasses.dataclass(frozen=True)
class Update:
    """Closed-form maximiser of the expected log-likelihood in one argument of a family.

    Attributes:
        title: how the plan names it.
        event_rank: number of trailing axes of the argument that belong to one cell (1 for a vector).
        support: names of numpyro constraints that the solution satisfies by itself.
        contributions: ``(moments, arguments, current) -> quantities``, one list entry per stage. Every quantity is
            additive and has the argument's shape (extra leading axes are allowed); ``current`` is the argument
            at the previous stage's solution.
        solve: ``(pooled quantities, previous value, stage) -> value``.
        priors: by prior distribution class, ``(pooled quantities, prior) -> pooled quantities``.
        order: updates with a lower number come first in one M-step (locations before scales).
        by_entry: for vectors and matrices, whether the log-likelihood is a sum over single entries, each with
            quantities of its own, so that only the parameter's constraint ties them together. Then the argument may be
            put together from entries of the parameter in any way (padded, reversed, transposed).
        degrees: where the argument is ``s`` times the parameter, ``s`` data, every quantity is that of the argument
            times this power of ``s`` (a rate times an exposure: ``{"events": 0, "exposure": 1}``). None where the
            update does not scale so; what is not named has degree 0.
        within: ``(solution, low, high) -> value``, for single numbers: the maximiser between two bounds, given the one
            without them. ``jnp.clip`` where the expected log-likelihood rises up to the solution and falls after it;
            None where that is not known, and Newton steps take over.
    """

    title: str
    event_rank: int
    support: tuple[str, ...]
    contributions: tuple[Callable[[Arrays, Arrays, jax.Array], Arrays], ...]
    solve: Callable[[Arrays, jax.Array, int], jax.Array]
    priors: Mapping[type, Callable[[Quantities, Any], Quantities]] = dataclasses.field(default_factory=dict)
    order: int = 0
    by_entry: bool = False
    degrees: Mapping[str, int] | None = None
    within: Callable[[jax.Array, Any, Any], jax.Array] | None = None


def _no_base_measure(value: jax.Array, fixed: Arrays) -> jax.Array:
    """Base measure of a family whose log-probability has no term in the value alone."""
    return jnp.zeros_like(value, jnp.result_type(float))


def _nothing(*arguments: Any) -> Quantities:
    """Reference of statistics that need no centring; moments of a family without updates."""
    return {}


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of distributions, in every parameterisation that NumPyro offers.

    With ``statistics`` and ``natural`` it is an exponential family, whose E-step is a matrix product and whose M-step
    needs sums of statistics only; without them it is known by NumPyro's ``log_prob``. All functions are written for
    arrays whose leading axes broadcast; only trailing axes are the family's own. A function gets the arguments listed
    here, whether it needs them or not.

    Attributes:
        name: for the plan.
        distributions: the NumPyro classes.
        value_rank: number of event axes of a value.
        argument_ranks: number of event axes by argument.
        statistics: ``(value, fixed arguments, reference) -> (..., F)``, or None.
        natural: ``(arguments, reference) -> ((..., F), offset (...))``, or None.
        base_measure: ``(value, fixed arguments) -> (...)``, what depends on the value alone.
        reference: ``(value, mean) -> reference``: centre and unit for the statistics, from a function that
            averages over rows; anything that makes the statistics well conditioned.
        moments: ``(sums (..., F), count (...), reference) -> quantities`` for the updates.
        moments_of_value: ``(value, arguments) -> quantities`` for the updates of a family without statistics: of one
            value, because they depend on other arguments (``|value - loc|``). The framework sums them over rows.
        updates: by argument; the others are maximised by Newton steps.
        diagonals: by matrix argument, the update of single entries where the argument is a diagonal matrix.
        joint: arguments that depend on each other so strongly that they are maximised together, by Newton steps,
            whenever the model lets them (each has a parameter of its own with the same cells).
        kinks: arguments in which ``log_prob`` is not smooth, so that Newton steps do not apply.
        edges: arguments at which the support begins (-1) or ends (1), and towards which the density rises: Q has its
            maximum where it has no slope.
        fixed: arguments that belong to the statistics and may not depend on a parameter (``total_count``).
        indicator: the statistics are one-hot vectors of the value, so that with many categories the matrix product
            can be a look-up.
        local_reference: ``arguments -> reference`` centred at every component's own location, or None.
        scale_floor: ``(arguments, reference) -> (...)`` a positive measure of spread in units of the data; zero
            means that the component has collapsed. None for families that cannot collapse.
        start: ``(argument, seed value, mean, spread) -> array``: a data-driven starting value, or None.
    """

    name: str
    distributions: tuple[type, ...]
    value_rank: int
    argument_ranks: Mapping[str, int]
    statistics: Callable[[jax.Array, Arrays, Arrays], jax.Array] | None = None
    natural: Callable[[Arrays, Arrays], tuple[jax.Array, jax.Array]] | None = None
    base_measure: Callable[[jax.Array, Arrays], jax.Array] = _no_base_measure
    reference: Callable[[jax.Array, Mean], Arrays] = _nothing
    moments: Callable[[jax.Array, jax.Array, Arrays], Arrays] = _nothing
    moments_of_value: Callable[[jax.Array, Arrays], Arrays] | None = None
    updates: Mapping[str, Update] = dataclasses.field(default_factory=dict)
    diagonals: Mapping[str, Update] = dataclasses.field(default_factory=dict)
    joint: tuple[str, ...] = ()
    kinks: tuple[str, ...] = ()
    edges: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    local_reference: Callable[[Arrays], Arrays] | None = None
    indicator: bool = False
    scale_floor: Callable[[Arrays, Arrays], jax.Array] | None = None
    start: Callable[[str, jax.Array, jax.Array, jax.Array], jax.Array | None] | None = None

    @property
    def is_exponential(self) -> bool:
        """Whether sums of statistics are all that an M-step needs."""
        return self.statistics is not None and self.natural is not None

    @property
    def has_base_measure(self) -> bool:
        """Whether the log-probability may have a term in the value alone."""
        return self.base_measure is not _no_base_measure

"""The numerical self-check of a family: does the description obey its laws on random values?

Laws, each compared with NumPyro's own ``log_prob``, in float64: the natural form equals it; quantities of split data
add up; at the outcome of an update the gradient of the log-likelihood (plus log prior) is zero, also where some rows
have a multiple of the argument, if the update says how its quantities scale.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to

from emppl.families.family import Arrays, Family, Quantities
from emppl.parameters.constraints import constrain, innermost, unconstrain
from emppl.trace import as_numpyro_expects

_NUM_CELLS, _NUM_ROWS, _VECTOR_LENGTH, _NUM_TRIALS = 3, 40, 3, 7
_NUM_FIRST_ROWS = _NUM_ROWS // 3
_PARTS = (slice(None), slice(None, _NUM_FIRST_ROWS), slice(_NUM_FIRST_ROWS, None))
_FACTOR = 2.5
"""Where an update says how it scales, the argument of all but the first rows is this multiple of the parameter."""
_MAX_RELATIVE_ERROR = 1e-7


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Values ``(rows, cells, ...)`` drawn from one parameterisation, whose arguments are ``(1, cells, ...)``."""

    family: Family
    distribution: Any
    given: dict[str, jax.Array]
    fixed: dict[str, jax.Array]
    value: jax.Array

    def log_prob(self, **changed: jax.Array) -> jax.Array:
        """NumPyro's log-probability of every value, ``(rows, cells)``."""
        return self.distribution(**{**self.given, **self.fixed, **changed}).log_prob(self.value)


def check_family(family: Family) -> None:
    """Check a family on random arguments and values drawn from the distribution.

    Args:
        family: the description.

    Raises:
        ValueError: a law does not hold; the message names it, the argument and the sizes.
    """
    with jax.enable_x64(True), as_numpyro_expects():
        for distribution in family.distributions:
            for arguments in _examples(family, distribution):
                _check_parameterisation(family, distribution, arguments)


def _examples(family: Family, distribution: Any) -> Iterator[dict[str, jax.Array]]:
    """Random arguments of several cells, per parameterisation: arguments whose default is None are alternatives."""
    taken, constraints = inspect.signature(distribution.__init__).parameters, distribution.arg_constraints
    names = [name for name in family.argument_ranks if name in taken and name in constraints]
    alternatives = [name for name in names if taken[name].default is None]
    needed = [name for name in names if name not in alternatives]
    for chosen in [[alternative] for alternative in alternatives] or [[]]:
        rng = np.random.default_rng(0)
        ranks = {name: family.argument_ranks[name] for name in needed + chosen}
        yield {name: _random(rng, constraints[name], rank, _NUM_CELLS) for name, rank in ranks.items()}


def _random(rng: np.random.Generator, constraint: Any, rank: int, cells: int) -> jax.Array:
    """Random values inside a constraint, one per cell, that are neither tiny nor huge."""
    if getattr(constraint, "is_discrete", False):
        return jnp.full((cells,), _NUM_TRIALS)
    inside = innermost(constraint)
    shape = (cells,) + (_VECTOR_LENGTH,) * rank
    try:
        free = biject_to(inside).inverse_shape(shape)
    except NotImplementedError:  # a support that depends on other arguments
        return jnp.asarray(rng.uniform(4, 6, shape))
    return constrain(inside, jnp.asarray(rng.uniform(-0.8, 0.8, free) + 0.3))


def _check_parameterisation(family: Family, distribution: Any, arguments: dict[str, jax.Array]) -> None:
    value = distribution(**arguments).sample(jax.random.key(0), (_NUM_ROWS,))
    rows = {name: argument[None] for name, argument in arguments.items()}
    fixed = {name: rows.pop(name) for name in family.fixed}
    sample = _Sample(family, distribution, rows, fixed, value)
    if family.is_exponential:
        parts = _moments_by_statistics(sample, arguments)
    elif family.moments_of_value is not None:
        quantities = family.moments_of_value(value, rows | fixed)
        parts = [{n: jnp.sum(q[part], 0, keepdims=True) for n, q in quantities.items()} for part in _PARTS]
    elif family.updates:
        raise ValueError(
            f"{family.name}: updates need quantities of the data. Give statistics and natural, or, where the "
            "quantities depend on other arguments, moments_of_value=lambda value, arguments: {...}."
        )
    for argument in family.updates:
        if argument in rows:
            _check_update(sample, argument, parts)


def _moments_by_statistics(sample: _Sample, arguments: dict[str, jax.Array]) -> list[Arrays]:
    """Moments of all values and of two parts of them, after a comparison of the natural form with ``log_prob``."""
    family, value, log_prob = sample.family, sample.value, sample.log_prob()
    assert family.statistics is not None and family.natural is not None
    fixed: dict[str, Any] = sample.fixed | {"categories": _VECTOR_LENGTH}
    reference = family.reference(value, lambda quantity: jnp.mean(quantity, 0, keepdims=True))
    statistics = family.statistics(value, fixed, reference)
    eta, offset = family.natural(sample.given, reference)
    table = jnp.sum(statistics * eta, -1) + offset + family.base_measure(value, fixed)
    error = float(jnp.max(jnp.abs(table - log_prob)))
    if not error <= _MAX_RELATIVE_ERROR * float(1 + jnp.max(jnp.abs(log_prob))):
        shown = ", ".join(f"{name}={np.asarray(argument)[0].tolist()}" for name, argument in arguments.items())
        raise ValueError(
            f"{family.name}: statistics . natural + offset + base_measure differs from "
            f"{sample.distribution.__name__}.log_prob by up to {error:.3g} for arguments {shown}. Look for a term of "
            "log_prob that is missing, or belongs to base_measure (the value alone) or to the offset (the arguments "
            "alone)."
        )
    sums = [jnp.sum(statistics[part], 0, keepdims=True) for part in _PARTS]
    counts = [jnp.full(sums[0].shape[:-1], float(statistics[part].shape[0])) for part in _PARTS]
    return [family.moments(*totals, reference) for totals in zip(sums, counts, strict=True)]


def _check_update(sample: _Sample, argument: str, parts: list[Arrays]) -> None:
    family, given = sample.family, sample.given
    update, rank = family.updates[argument], family.argument_ranks[argument]
    degrees = update.degrees or {}

    def of_all(contributions: Callable, current: jax.Array) -> Quantities:
        whole, *halves = (contributions(moments, given, current) for moments in parts)
        for name in whole:
            if not np.allclose(whole[name], halves[0][name] + halves[1][name], rtol=1e-9, atol=1e-9):
                raise ValueError(
                    f"{family.name}.{argument}: quantity {name!r} of the update {update.title!r} is not additive: "
                    "the sum over two parts of the data differs from the whole. Move what is not linear in the "
                    "moments (ratios, roots) from contributions to solve."
                )
        return dict(whole)

    def of_multiples(contributions: Callable, current: jax.Array) -> Quantities:
        plain = contributions(parts[1], given, current)
        multiple = contributions(parts[2], {**given, argument: _FACTOR * given[argument]}, _FACTOR * current)
        return {name: plain[name] + multiple[name] * _FACTOR ** degrees.get(name, 0) for name in plain}

    rng = np.random.default_rng(1)
    for prior_class, add_prior in ((None, None), *update.priors.items()):
        prior = None if prior_class is None else _random_prior(prior_class, rng, rank)
        for quantities in (of_all,) if update.degrees is None else (of_all, of_multiples):
            solution = given[argument]
            for stage, contributions in enumerate(update.contributions):
                pooled = quantities(contributions, solution)
                solution = update.solve(pooled if add_prior is None else add_prior(pooled, prior), solution, stage)
            _check_gradient(sample, argument, solution, prior, multiples=quantities is of_multiples)


def _random_prior(prior_class: Any, rng: np.random.Generator, rank: int) -> Any:
    """A conjugate prior with random arguments that broadcast against one cell each."""
    taken = inspect.signature(prior_class.__init__).parameters
    arguments: dict[str, jax.Array] = {}
    alternatives = 0
    for name, constraint in prior_class.arg_constraints.items():
        is_alternative = taken[name].default is None
        if is_alternative and alternatives:
            continue
        alternatives += is_alternative
        own = getattr(constraint, "event_dim", 0)
        array = _random(rng, constraint, own, 1)
        # As the framework shapes them: leading axes of size one, up to the rank of the parameter.
        arguments[name] = jnp.reshape(array, (1,) * (2 + rank - prior_class.support.event_dim) + array.shape[1:])
        if name == "concentration" and own == 0:
            arguments[name] = arguments[name] + _VECTOR_LENGTH + 1
    return prior_class(**arguments)


def _check_gradient(sample: _Sample, argument: str, solution: jax.Array, prior: Any, multiples: bool) -> None:
    family = sample.family
    update, support = family.updates[argument], innermost(sample.distribution.arg_constraints[argument])
    factors = jnp.where(jnp.arange(_NUM_ROWS) < _NUM_FIRST_ROWS, 1.0, _FACTOR)

    def by_row(free: jax.Array) -> jax.Array:
        inside = constrain(support, free)
        if multiples:
            inside = inside * jnp.reshape(factors, (-1,) + (1,) * (inside.ndim - 1))
        return jnp.sum(sample.log_prob(**{argument: inside}), -1)

    free = unconstrain(support, solution)
    slopes = jax.jacrev(by_row)(free)
    slope, size = jnp.sum(slopes, 0), float(jnp.max(jnp.sum(jnp.abs(slopes), 0)))
    if prior is not None:
        slope = slope + jax.grad(lambda free: jnp.sum(prior.log_prob(constrain(support, free))))(free)
    error = float(jnp.max(jnp.abs(slope)))
    if not error <= _MAX_RELATIVE_ERROR * (1 + size):
        with_prior = "" if prior is None else f" with a {type(prior).__name__} prior"
        with_prior += f", degrees {update.degrees}," if multiples else ""
        raise ValueError(
            f"{family.name}.{argument}: the update {update.title!r}{with_prior} does not maximise the log-likelihood: "
            f"at its outcome the gradient is {error:.3g}, where single rows add up to {size:.3g}. Derive solve again "
            "from d/d(argument) of natural . sums + offset * count = 0, or leave the update out: Newton steps "
            "take over."
        )

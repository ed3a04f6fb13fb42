"""The numerical self-check of a family: does the description obey its laws on random values?

Laws, each compared with NumPyro's own ``log_prob``, in float64: the natural form equals it; quantities of split data
add up; at the outcome of an update the gradient of the log-likelihood (plus log prior) is zero, also where some rows
have a multiple of the argument, if the update says how its quantities scale.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to

from emppl.families.registry import Family, Update
from emppl.parameters.constraints import constrain, innermost, unconstrain
from emppl.trace import as_numpyro_expects

_CELLS, _ROWS, _LENGTH, _TRIALS = 3, 40, 3, 7
_FIRST = _ROWS // 3
_FACTOR = 2.5
_TOLERANCE = 1e-7


def check_family(family: Family) -> None:
    """Check a family on random arguments and values drawn from the distribution.

    Args:
        family: the description.

    Raises:
        ValueError: a law does not hold; the message names it, the argument and the sizes.
    """
    with jax.enable_x64(True), as_numpyro_expects():
        for kind in family.distributions:
            for arguments in _examples(family, kind):
                _check_one(family, kind, arguments)


def _examples(family: Family, kind: Any) -> Iterator[dict[str, jax.Array]]:
    """Random arguments of several cells, per parameterisation: arguments whose default is None are alternatives."""
    taken = inspect.signature(kind.__init__).parameters
    names = [n for n in family.argument_ranks if n in taken and n in kind.arg_constraints]
    alternatives = [n for n in names if taken[n].default is None]
    needed = [n for n in names if n not in alternatives]
    for chosen in [[one] for one in alternatives] or [[]]:
        rng = np.random.default_rng(0)
        yield {n: _random(rng, kind.arg_constraints[n], family.argument_ranks[n], _CELLS) for n in needed + chosen}


def _random(rng: np.random.Generator, constraint: Any, rank: int, cells: int) -> jax.Array:
    """Random values inside a constraint, one per cell, that are neither tiny nor huge."""
    if getattr(constraint, "is_discrete", False):
        return jnp.full((cells,), _TRIALS)
    inside = innermost(constraint)
    shape = (cells,) + (_LENGTH,) * rank
    try:
        free = biject_to(inside).inverse_shape(shape)
    except NotImplementedError:  # a support that depends on other arguments
        return jnp.asarray(rng.uniform(4, 6, shape))
    return constrain(inside, jnp.asarray(rng.uniform(-0.8, 0.8, free) + 0.3))


def _check_one(family: Family, kind: Any, arguments: dict[str, jax.Array]) -> None:
    distribution = kind(**arguments)
    value = distribution.sample(jax.random.key(0), (_ROWS,))  # (rows, cells, ...)
    log_prob = distribution.log_prob(value)
    if family.statistics is None or family.natural is None:
        _check_without_statistics(family, kind, arguments, value)
        return
    fixed: dict[str, Any] = {n: arguments[n][None] for n in family.fixed} | {"categories": _LENGTH}
    given = {n: a[None] for n, a in arguments.items() if n not in family.fixed}
    reference = family.reference(value, lambda quantity: jnp.mean(quantity, 0, keepdims=True))
    statistics = family.statistics(value, fixed, reference)
    eta, offset = family.natural(given, reference)
    table = jnp.sum(statistics * eta, -1) + offset + family.base_measure(value, fixed)
    error = float(jnp.max(jnp.abs(table - log_prob)))
    if not error <= _TOLERANCE * float(1 + jnp.max(jnp.abs(log_prob))):
        raise ValueError(
            f"{family.name}: statistics . natural + offset + base_measure differs from {kind.__name__}.log_prob by up "
            f"to {error:.3g} for arguments {_shown(arguments)}. Look for a term of log_prob that is missing, or "
            "belongs to base_measure (the value alone) or to the offset (the arguments alone)."
        )

    def moments(rows: slice):
        sums = jnp.sum(statistics[rows], 0, keepdims=True)
        count = jnp.full(sums.shape[:-1], float(statistics[rows].shape[0]))
        return family.moments(sums, count, reference)

    for argument, update in family.updates.items():
        if argument in given:
            _check_update(family, kind, update, argument, given, fixed, value, moments)


def _check_without_statistics(family: Family, kind: Any, arguments: dict[str, jax.Array], value: jax.Array) -> None:
    of_value = family.moments_of_value
    if of_value is None:
        if family.updates:
            raise ValueError(
                f"{family.name}: updates need quantities of the data. Give statistics and natural, or, where the "
                "quantities depend on other arguments, moments_of_value=lambda value, arguments: {...}."
            )
        return
    given = {n: a[None] for n, a in arguments.items()}

    def moments(rows: slice):
        return {n: jnp.sum(quantity, 0, keepdims=True) for n, quantity in of_value(value[rows], given).items()}

    for argument, update in family.updates.items():
        if argument in given:
            _check_update(family, kind, update, argument, given, {}, value, moments)


def _check_update(family, kind, update: Update, argument: str, given, fixed, value, moments) -> None:
    everything = given | {n: fixed[n] for n in family.fixed}
    whole = (moments(slice(None)), moments(slice(None, _FIRST)), moments(slice(_FIRST, None)))
    rank = family.argument_ranks[argument]
    rng = np.random.default_rng(1)
    for prior_kind, pseudo in ((None, None), *update.priors.items()):
        current = given[argument]
        prior = None if prior_kind is None else _prior(prior_kind, rng, rank)
        for stage, contributions in enumerate(update.contributions):
            total, *parts = (contributions(one, given, current) for one in whole)
            for name in total:
                if not np.allclose(total[name], parts[0][name] + parts[1][name], rtol=1e-9, atol=1e-9):
                    raise ValueError(
                        f"{family.name}.{argument}: quantity {name!r} of the update {update.title!r} is not additive: "
                        "the sum over two parts of the data differs from the whole. Move what is not linear in the "
                        "moments (ratios, roots) from contributions to solve."
                    )
            pooled = dict(total) if pseudo is None else pseudo(dict(total), prior)
            current = update.solve(pooled, current, stage)
        _check_gradient(family, kind, update, argument, everything, value, current, prior)
        if update.degrees is None:
            continue
        current = given[argument]
        for stage, contributions in enumerate(update.contributions):
            plain = contributions(whole[1], given, current)
            multiple = contributions(whole[2], {**given, argument: _FACTOR * given[argument]}, _FACTOR * current)
            pooled = {n: plain[n] + multiple[n] * _FACTOR ** update.degrees.get(n, 0) for n in plain}
            current = update.solve(pooled if pseudo is None else pseudo(pooled, prior), current, stage)
        factors = jnp.where(jnp.arange(_ROWS) < _FIRST, 1.0, _FACTOR)
        _check_gradient(family, kind, update, argument, everything, value, current, prior, factors)


def _prior(kind: Any, rng, rank: int) -> Any:
    """A conjugate prior with random arguments that broadcast against one cell each."""
    names = inspect.signature(kind.__init__).parameters
    chosen, alternatives = {}, 0
    for name, constraint in kind.arg_constraints.items():
        alternative = names[name].default is None
        if alternative and alternatives:
            continue
        alternatives += alternative
        own = getattr(constraint, "event_dim", 0)
        array = _random(rng, constraint, own, 1)
        # As the framework shapes them: leading axes of size one, up to the rank of the parameter.
        chosen[name] = jnp.reshape(array, (1,) * (2 + rank - kind.support.event_dim) + array.shape[1:])
        if name == "concentration" and own == 0:
            chosen[name] = chosen[name] + _LENGTH + 1
    return kind(**chosen)


def _check_gradient(family, kind, update: Update, argument: str, given, value, found, prior, factors=None) -> None:
    support = innermost(kind.arg_constraints[argument])

    def terms(free):
        there = constrain(support, free)
        by_row = there if factors is None else there * jnp.reshape(factors, (-1,) + (1,) * (there.ndim - 1))
        log_prob = kind(**{**given, argument: by_row}).log_prob(value)
        return log_prob, 0.0 if prior is None else jnp.sum(prior.log_prob(there))

    free = unconstrain(support, found)
    by_row = jax.jacrev(lambda free: jnp.sum(terms(free)[0], -1))(free)
    slope = jnp.sum(by_row, 0) + (0 if prior is None else jax.grad(lambda free: terms(free)[1])(free))
    error, size = float(jnp.max(jnp.abs(slope))), float(jnp.max(jnp.sum(jnp.abs(by_row), 0)))
    if not error <= _TOLERANCE * (1 + size):
        with_prior = "" if prior is None else f" with a {type(prior).__name__} prior"
        with_prior += "" if factors is None else f", degrees {update.degrees},"
        raise ValueError(
            f"{family.name}.{argument}: the update {update.title!r}{with_prior} does not maximise the log-likelihood: "
            f"at its outcome the gradient is {error:.3g}, where single rows add up to {size:.3g}. Derive solve again "
            "from d/d(argument) of natural . sums + offset * count = 0, or leave the update out: Newton steps "
            "take over."
        )


def _shown(arguments) -> str:
    return ", ".join(f"{n}={np.asarray(a)[0].tolist()}" for n, a in arguments.items())

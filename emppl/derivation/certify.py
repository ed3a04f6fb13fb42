"""Whether an M-step does what its rules claim: no block lowers Q, and an exact rule leaves no way up.

Q is evaluated by log-probability tables here, whatever statistics the rules themselves went by, so that what a rule and
its statistics have in common cannot hide from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from emppl.estep import Posterior, QFunction, from_posterior
from emppl.estep.expectations import Expectations
from emppl.estep.q import touched
from emppl.model.log_prob_table import log_prob_table
from emppl.model.model import Model
from emppl.mstep.analysis import coordinates, from_block
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.rule import Rule
from emppl.numerics.guarded import weighted
from emppl.numerics.rounding import changes, noise_of
from emppl.parameters.constraints import is_relative
from emppl.types import Data, Params

_EDGE, _INSIDE = 30.0, 12.0
"""Logarithms or log-odds of entries on a bound, and of entries a little inside."""

_SIGNS = 4
"""Random signs of the cells under which slopes are added up: what is left of them tells how large single terms are."""

_SCALES = 0.25 ** np.arange(8)
"""Parts of the step that are tried."""


class Check(NamedTuple):
    """What became of Q plus the log prior by the update of one block, in nats.

    Attributes:
        gain: the rise by the update.
        left: the rise by a further step along the slope, or off a bound; NaN where the rule does not claim a maximum.
        noise: what rounding explains of either.
    """

    gain: jax.Array
    left: jax.Array
    noise: jax.Array


def checks(model: Model, rules: Iterable[Rule], params: Params, posterior: Posterior, data: Data) -> dict[str, Check]:
    """Carry out an M-step block by block, and look at Q around each outcome: pure, to be jitted.

    Args:
        rules: every rule once, in any order (``program.blocks``).
        params: constrained values at which the posterior was computed; those of a random point tell most.
        posterior: the outcome of the E-step, with the weights of all sites.

    Returns:
        By name of the rule, for rules that estimate something.
    """
    expectations, prepared = from_posterior(model, params, posterior, data)
    step = Maximisation(QFunction(model, expectations, data, {**prepared, **expectations.prepared}), params, {})
    plain = QFunction(model, Expectations.of(posterior), data)
    found = {}
    for rule in sorted(rules, key=lambda rule: rule.order):
        before = dict(step.params)
        step.params.update({name: model.pin(name, value) for name, value in rule.update(step).items()})
        if rule.free:
            found[rule.name] = _check(plain, rule, before, step.params)
    return found


def faults(found: Mapping[str, Check]) -> dict[str, Check]:
    """The blocks whose rule lowers Q, or leaves a way up although it claims the maximum; on the host."""
    return {
        name: check
        for name, check in found.items()
        if not float(check.gain) >= -float(check.noise) or float(check.left) > float(check.noise)
    }


def _check(plain: QFunction, rule: Rule, before: Params, after: Params) -> Check:
    model, names, eps = plain.model, rule.parameters, jnp.finfo(jnp.result_type(float)).eps
    point, pull = jax.flatten_util.ravel_pytree(coordinates(model, after, names))
    free = {n: np.isnan(model.held[n]) if n in model.held else np.ones(model.trace.sites[n].shape) for n in names}

    def cells(vector: jax.Array) -> list[jax.Array]:
        block = {name: model.pin(name, value) for name, value in from_block(model, pull(vector)).items()}
        return _cells(plain, names, {**after, **block})

    old, new = _cells(plain, names, before), cells(point)
    relative = {n: is_relative(model.trace.sites[n].constraint) for n in names}
    shapes = pull(point)
    movable = jnp.concatenate([jnp.ravel(_like(free[n], shapes[n])) for n in sorted(names)])
    bounded = jnp.concatenate([jnp.full(shapes[n].size, relative[n]) for n in sorted(names)])
    edge = bounded & (jnp.abs(point) > _EDGE)
    inside = jnp.where(edge, jnp.sign(point) * _INSIDE, point)
    # Every function of the model is traced once for all points at which it is needed.
    step, step_inside = jax.lax.map(lambda vector: _step(cells, vector), jnp.stack([point, inside]))
    off = edge & (step_inside * point < 0)
    neighbours = point[None] * changes(point.shape, point.dtype, 0)
    steps = point[None] + jnp.asarray(_SCALES)[:, None] * (step * movable * ~edge)[None]
    points = jnp.concatenate([point[None], neighbours, steps, jnp.where(off, inside, point)[None]])
    totals, rises = jax.lax.map(lambda vector: _compared(new, cells(vector)), points)
    number = 1 + len(neighbours)
    size = sum((jnp.sum(jnp.nan_to_num(jnp.abs(cell), nan=0, posinf=0)) for cell in [*old, *new]), jnp.zeros(()))
    # Beside a jump the neighbours have no value: then sizes alone tell.
    rounding = jnp.nan_to_num(noise_of(totals[:number]), nan=0.0, posinf=0.0)
    left = jnp.max(jnp.where(jnp.isfinite(rises[number:]), rises[number:], -jnp.inf))
    noise = jnp.sqrt(eps) + 1024 * eps * size + rounding
    return Check(_compared(old, new)[1], left if rule.exact else jnp.full_like(left, jnp.nan), noise)


def _like(free: np.ndarray, value: jax.Array) -> jax.Array:
    """Which coordinates may move; where a constraint ties entries together, all of them."""
    return jnp.asarray(free, float) if free.shape == value.shape else jnp.ones(value.shape)


def _cells(plain: QFunction, names: Iterable[str], params: Params) -> list[jax.Array]:
    """The terms of Q that a block enters, one by one, and the log prior."""
    arrays, weights = plain.evaluate(params), plain.expectations.weights
    tables = [weighted(weights[s], log_prob_table(plain.model.factors[s], arrays)) for s in touched(plain.model, names)]
    return [*tables, plain.model.log_prior_from(arrays)]


def _compared(old: list[jax.Array], new: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The sum of the new terms, and that of differences, which keeps digits that two sums would lose."""
    total = sum((jnp.sum(after) for after in new), jnp.zeros(()))
    return total, sum((jnp.sum(after - before) for before, after in zip(old, new, strict=True)), jnp.zeros(()))


def _step(cells: Callable[[jax.Array], list[jax.Array]], point: jax.Array) -> jax.Array:
    """The slope over the sum of squared slopes of single terms, which is about the information: a step of scoring."""
    values, transpose = jax.vjp(cells, point)
    (slope,) = transpose([jnp.ones_like(value) for value in values])

    def under_signs(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, len(values))
        signs = [jax.random.rademacher(k, v.shape, v.dtype) for k, v in zip(keys, values, strict=True)]
        return transpose(signs)[0]

    terms = jnp.mean(jax.lax.map(under_signs, jax.random.split(jax.random.key(0), _SIGNS)) ** 2, 0)
    usable = jnp.isfinite(slope) & jnp.isfinite(terms) & (terms > 0)
    return jnp.where(usable, slope / jnp.where(usable, terms, 1), 0)

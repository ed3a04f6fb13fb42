"""What an observed Delta says about a latent: the interval, or the point, where its value is the observed one.

``Delta(jnp.maximum(w, 0))`` observed at 0 says that ``w`` is not positive, observed at 2.5 that it is 2.5. The value is
a monotone function of the latent, so that its set is found by halving the line of all floating-point numbers, to the
last bit, whatever the function is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from emppl.errors import Refusal
from emppl.integrals.joint import Joint
from emppl.jaxpr.monotone import Turns, direction
from emppl.model.integral import Integral
from emppl.model.log_prob_table import log_prob_table
from emppl.model.model import Model
from emppl.trace import SiteArrays, as_numpyro_expects
from emppl.types import Data, Tables


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Limits:
    """Where the latent of every group may lie.

    Attributes:
        lower: lower end of the interval, ``(groups,)``; minus infinity for none.
        upper: upper end.
        is_point: whether the latent is known, so that its density counts and not the mass of an interval.
        place: the latent where it is known.
        measure: log-density of the observed values themselves: ``-log`` of the slope of the function at a point.
        is_impossible: whether no value of the latent has the observed values.
    """

    lower: jax.Array
    upper: jax.Array
    is_point: jax.Array
    place: jax.Array
    measure: jax.Array
    is_impossible: jax.Array


def limiting_sites(model: Model, integral: Integral) -> tuple[str, ...]:
    """Observed Delta sites whose value depends on the latents."""
    factors = {name: model.factors[name] for name in integral.factors}
    deltas = {name: f for name, f in factors.items() if (f.site.kind, f.site.distribution) == ("observed", "Delta")}
    return tuple(name for name, factor in deltas.items() if not factor.value_has_atoms)


def why_not_limits(model: Model, integral: Integral, limits: tuple[str, ...]) -> Refusal | None:
    """The reason why an observed Delta is not a known interval or point of the latent, or None."""
    for name in limits:
        factor = model.factors[name]
        moving = factor.all_parameters
        if moving:
            return Refusal(
                f"the value of {name!r} depends on {', '.join(map(repr, sorted(moving)))}, which is estimated, so that "
                "the interval moves with it"
            )
        moving = factor.latents.get("mask", frozenset()) | factor.latents.get("log_density", frozenset())
        if moving:
            return Refusal(f"the mask or the log_density of {name!r} depends on {', '.join(map(repr, sorted(moving)))}")
        position = model.trace.outputs[name, "arguments", "v"]
        way = direction(model.dependence, ("latent", integral.axis), position)
        if isinstance(way, Turns):
            return Refusal(
                f"the value of {name!r} is not known to be a monotone function of {integral.latents[0]!r} "
                f"(`{way.operation}`)"
            )
    return None


def find_limits(model: Model, integral: Integral, data: Data) -> Limits:
    """Intervals and points of every group, from the data alone.

    Args:
        integral: one latent per group, and the Delta sites as its only factors.
    """
    joint = Joint(model, integral, model.placeholders(), data)
    largest = jnp.finfo(jnp.result_type(float)).max
    edge = jnp.full((integral.groups, 1), largest)
    bottom, top = (_values(joint, values) for values in (-edge, edge))
    rises = {name: top[name] >= bottom[name] for name in integral.factors}

    def sides(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whether the latent is too low, and whether it is too high, for some observed value."""
        values = _values(joint, vectors)
        short = {name: (values[name] < y) == rises[name] for name, y in _observed(joint, values).items()}
        other = {name: values[name] != y for name, y in _observed(joint, values).items()}
        low = {name: short[name] & other[name] for name in short}
        high = {name: ~short[name] & other[name] for name in short}
        return _count(joint, low) > 0, _count(joint, high) > 0

    def halve(_: Any, ends: Any) -> Any:
        (low, above), (below, high) = ends
        middle, other = _between(low, above), _between(below, high)
        short, _ = sides(_from_order(middle)[:, None])
        _, far = sides(_from_order(other)[:, None])
        first = jnp.where(short, middle, low), jnp.where(short, above, middle)
        last = jnp.where(far, below, other), jnp.where(far, other, high)
        return first, last

    start = _to_order(-edge[:, 0]), _to_order(edge[:, 0])
    steps = jnp.finfo(largest.dtype).bits
    (_, first), (last, _) = jax.lax.fori_loop(0, steps, halve, (start, start))
    open_below = ~sides(-edge)[0]
    open_above = ~sides(edge)[1]
    first, last = jnp.where(open_below, start[0], first), jnp.where(open_above, start[1], last)
    lower = jnp.where(open_below, -jnp.inf, _from_order(first))
    upper = jnp.where(open_above, jnp.inf, _from_order(last))
    inner = _inside(lower, upper)
    return jax.lax.stop_gradient(_classified(joint, inner, lower, upper, first - 2 > last, first > last))


def _classified(
    joint: Joint, inner: jax.Array, lower: jax.Array, upper: jax.Array, is_far: jax.Array, is_empty: jax.Array
) -> Limits:
    """Intervals and points told apart by the slope of the function inside."""
    values, slopes = _slopes(joint, inner[:, None], jnp.ones_like(inner)[:, None])
    _, moved = _slopes(joint, inner[:, None], inner[:, None])  # slope times place
    eps = jnp.finfo(inner.dtype).eps
    seen = _observed(joint, values)
    known = {name: slope != 0 for name, slope in slopes.items()}
    # A jump over the observed value is no solution; rounding is.
    misses = {
        name: known[name] & (jnp.abs(1.0 * values[name] - y) > 64 * eps * (jnp.abs(y) + jnp.abs(moved[name])))
        for name, y in seen.items()
    }
    steepness = {name: -jnp.log(jnp.where(known[name], jnp.abs(slope), 1.0)) for name, slope in slopes.items()}
    given = {name: delta.log_density for name, delta in _deltas(joint, inner[:, None]).items()}
    points = _count(joint, known)
    measure = _count(joint, steepness) + _count(joint, given, whole=True)
    is_point = points > 0
    wrong = jnp.where(is_point, (_count(joint, misses) > 0) | (points > 1) | is_far, is_empty)
    free = is_point | wrong
    lower, upper = jnp.where(free, -jnp.inf, lower), jnp.where(free, jnp.inf, upper)
    return Limits(lower, upper, is_point, inner, measure, wrong)


def _inside(lower: jax.Array, upper: jax.Array) -> jax.Array:
    """Some number inside an interval."""
    starts, ends = jnp.isfinite(lower), jnp.isfinite(upper)
    low, high = jnp.where(starts, lower, 0.0), jnp.where(ends, upper, 0.0)
    above, below = low + 1 + jnp.abs(low), high - 1 - jnp.abs(high)
    return jnp.where(starts & ends, low / 2 + high / 2, jnp.where(starts, above, jnp.where(ends, below, 0.0)))


# ------------------------------------------------------------------------------------------- what Delta sites say


def _arrays(joint: Joint, vectors: jax.Array) -> dict[str, SiteArrays]:
    """Arrays of the Delta sites at one value of the latent of every group."""
    atoms = {name: value[None] for name, value in joint.unpack(vectors).items()}
    arrays = joint.model.evaluate(joint.params, joint.data, joint.wanted, atoms)
    return {name: joint.model.factors[name].at_one_atom(arrays[name]) for name in joint.integral.factors}


def _deltas(joint: Joint, vectors: jax.Array) -> dict[str, Any]:
    return {name: arrays.distribution for name, arrays in _arrays(joint, vectors).items()}


def _values(joint: Joint, vectors: jax.Array) -> dict[str, jax.Array]:
    """Values that the sites would have."""
    return {name: _number(delta.v) for name, delta in _deltas(joint, vectors).items()}


def _slopes(joint: Joint, vectors: jax.Array, along: jax.Array) -> tuple[Tables, Tables]:
    """Values that the sites would have, and how fast they change along a direction."""
    values = _values(joint, vectors)
    smooth = [name for name, value in values.items() if jnp.issubdtype(value.dtype, jnp.inexact)]

    def moving(vectors: jax.Array) -> Tables:
        values = _values(joint, vectors)
        return {name: values[name] for name in smooth}

    _, slopes = jax.jvp(moving, (vectors,), (along,))
    return values, {name: slopes.get(name, jnp.zeros(value.shape)) for name, value in values.items()}


def _observed(joint: Joint, values: Tables) -> dict[str, jax.Array]:
    """Observed values, in the shape of the others."""
    observed = {}
    zero = jnp.zeros((joint.integral.groups, 1))
    for name, arrays in _arrays(joint, zero).items():
        seen = _number(arrays.value)
        shape = jnp.broadcast_shapes(seen.shape, values[name].shape)
        observed[name] = jnp.broadcast_to(jnp.reshape(seen, (1,) * (len(shape) - seen.ndim) + seen.shape), shape)
    return observed


def _number(array: Any) -> jax.Array:
    array = jnp.asarray(array)
    return array.astype(jnp.int32) if array.dtype == bool else array


def _count(joint: Joint, readings: dict[str, jax.Array], whole: bool = False) -> jax.Array:
    """Readings of all cells of the Delta sites, masked ones left out, added up in every group.

    A weight (``handlers.scale``) does not restrict a latent twice: cells that have one are counted once.

    Args:
        joint: the Delta sites.
        readings: by site, a number for every entry of its value.
        whole: one number for every value of a site instead, a log-density, which its weight multiplies.
    """
    tables = {}
    for name, arrays in _arrays(joint, jnp.zeros((joint.integral.groups, 1))).items():
        factor = dataclasses.replace(joint.model.factors[name], over_atoms=None)
        rank = 0 if whole else len(arrays.distribution.event_shape)
        reading = jnp.asarray(readings[name]) * jnp.ones(())
        total = jnp.sum(reading, tuple(range(reading.ndim - rank, reading.ndim)))
        own = dataclasses.replace(arrays, distribution=_Reading(total, arrays.distribution.event_shape))
        with as_numpyro_expects():
            tables[name] = log_prob_table(factor, {name: own})
    return joint.to_groups(joint.by_cell(tables, once=not whole))


class _Reading:
    """In the place of a distribution: numbers of every cell in the place of log-probabilities."""

    support = dist.constraints.real

    def __init__(self, numbers: jax.Array, event_shape: tuple[int, ...]):
        self.numbers = numbers
        self.event_shape = event_shape
        self.batch_shape = numbers.shape

    def log_prob(self, value: Any) -> jax.Array:
        """The numbers, whatever the value."""
        del value
        return self.numbers


# --------------------------------------------------------------------------------- floating-point numbers in order


def _to_order(values: jax.Array) -> jax.Array:
    """Integers in the order of floating-point numbers, neighbours one apart."""
    whole = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(values, whole)
    return bits ^ ((bits >> (jnp.iinfo(whole).bits - 1)) & jnp.iinfo(whole).max)


def _from_order(order: jax.Array) -> jax.Array:
    bits = order ^ ((order >> (jnp.iinfo(order.dtype).bits - 1)) & jnp.iinfo(order.dtype).max)
    kind = jnp.dtype(jnp.float64 if order.dtype == jnp.int64 else jnp.float32)
    return jax.lax.bitcast_convert_type(bits, kind)


def _between(low: jax.Array, high: jax.Array) -> jax.Array:
    """The middle, without overflow."""
    return (low & high) + ((low ^ high) >> 1)

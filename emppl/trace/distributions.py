"""NumPyro distributions taken apart: wrappers, masks, the arguments as the user gave them, finite supports."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.custom_derivatives import SymbolicZero
from jax.scipy.special import gammaln
from numpyro.distributions import transforms
from numpyro.distributions.distribution import validation_enabled

from emppl.errors import ModelError, NeedsValues
from emppl.numerics.guarded import finite_log, finite_log_complement, impossible_to_infinite


@contextlib.contextmanager
def as_numpyro_expects() -> Iterator[None]:
    """Settings under which NumPyro's own code may run: no argument checks in the graph, rank promotion allowed."""
    with validation_enabled(False), jax.numpy_rank_promotion("allow"):
        yield


def is_discrete(fn: dist.Distribution) -> bool:
    """Whether a distribution puts its mass on discrete values."""
    return bool(getattr(fn.support, "is_discrete", False))


_ELEMENTWISE = (
    transforms.AffineTransform,
    transforms.ExpTransform,
    transforms.IdentityTransform,
    transforms.PowerTransform,
    transforms.SigmoidTransform,
    transforms.SoftplusTransform,
)
"""Transforms that are one-to-one, entry by entry."""


def unwrap(fn: Any, undone: list[Any] | None = None) -> tuple[Any, int, list[tuple[Any, int]]]:
    """Peel NumPyro's wrappers off a distribution.

    Args:
        fn: a distribution, possibly ``Independent``, ``ExpandedDistribution``, ``MaskedDistribution`` or nested ones.
        undone: if given, a ``TransformedDistribution`` by elementwise transforms is peeled too, and this list is filled
            with the transforms, the outermost first.

    Returns:
        ``(base, reinterpreted, masks)``: the innermost distribution, how many of its trailing batch axes are
        event axes of the site, and the masks, innermost first, each with the number of those axes it lacks.
    """
    reinterpreted, masks = 0, []
    while True:
        if isinstance(fn, dist.Independent):
            reinterpreted += fn.reinterpreted_batch_ndims
        elif isinstance(fn, dist.MaskedDistribution):
            if fn._mask is not True:
                masks.append((fn._mask, reinterpreted))  # event axes peeled so far lie outside this mask
        elif undone is not None and _is_elementwise(fn):
            undone.extend(reversed(fn.transforms))
        elif not isinstance(fn, dist.ExpandedDistribution):
            break
        fn = fn.base_dist
    return fn, reinterpreted, [(mask, reinterpreted - outside) for mask, outside in reversed(masks)]


def _is_elementwise(fn: Any) -> bool:
    """Whether it is a plain ``TransformedDistribution`` (without a name of its own) that is undone entry by entry."""
    return type(fn) is dist.TransformedDistribution and all(map(_undoes, fn.transforms)) and not unwrap(fn.base_dist)[2]


def _undoes(transform: Any) -> bool:
    if isinstance(transform, transforms.ComposeTransform):
        return all(map(_undoes, transform.parts))
    inner = getattr(transform, "_inv", None) if type(transform).__name__ == "_InverseTransform" else transform
    return isinstance(inner, _ELEMENTWISE) and transform.domain.event_dim == 0 and transform.codomain.event_dim == 0


def undo(value: jax.Array, undone: Sequence[Any], event_rank: int) -> tuple[jax.Array, jax.Array]:
    """The value under the base distribution, and what the change of variables adds to its log-density.

    Args:
        value: under the transformed distribution.
        undone: the transforms, the outermost first.
        event_rank: number of event axes of the innermost distribution.
    """
    measure = jnp.zeros(())
    with as_numpyro_expects():
        for transform in undone:
            before = transform.inv(value)
            measure = measure - transform.log_abs_det_jacobian(before, value)
            value = before
        measure = jnp.broadcast_to(measure, jnp.shape(value))
    return value, jnp.sum(measure, tuple(range(measure.ndim - event_rank, measure.ndim)))


def element_mask(masks: Sequence[tuple[Any, int]]) -> jax.Array | None:
    """One mask over the innermost batch shape, or None.

    A mask outside ``to_event`` misses the event axes, over which it is broadcast.
    """
    combined = None
    for mask, inside in masks:
        mask = jnp.asarray(mask)
        mask = jnp.reshape(mask, mask.shape + (1,) * inside)
        combined = mask if combined is None else _and(combined, mask)
    return combined


def _and(left: jax.Array, right: jax.Array) -> jax.Array:
    rank = max(left.ndim, right.ndim)
    left, right = (jnp.reshape(mask, (1,) * (rank - mask.ndim) + mask.shape) for mask in (left, right))
    return jnp.logical_and(left, right)


def given_arguments(base: Any) -> dict[str, Any]:
    """The arguments a distribution was built with, in the parameterisation that the user chose."""
    present = {name: base.__dict__[name] for name in type(base).arg_constraints if name in base.__dict__}
    for preferred in ("covariance_matrix", "precision_matrix"):
        if preferred in present:
            present.pop("scale_tril", None)
    return {name: value for name, value in present.items() if value is not None}


def with_arrays_as_leaves(distribution: Any) -> Any:
    """The same distribution as a pytree that holds all its arrays as leaves.

    NumPyro keeps numbers of trials of multinomials in the static part, where arrays of a trace would outlive it, and
    leaves out what a class of the user's does not list among its fields.
    """
    kind: Any = type(distribution)
    if kind.tree_flatten is not dist.Distribution.tree_flatten:  # a class with a flattening of its own
        return distribution
    held = distribution.__dict__
    inside = {name: _with_parts(value) for name, value in held.items() if name not in _OWN_FIELDS}
    fields, static = kind.gather_pytree_data_fields(), kind.gather_pytree_aux_fields()
    is_library = kind.__module__.split(".")[0] == "numpyro"
    unlisted = {} if is_library else {n: v for n, v in inside.items() if n not in fields and n not in static}
    arrays = {name: value for name, value in {**held, **unlisted}.items() if name in static or name in unlisted}
    names = tuple(sorted(name for name, value in arrays.items() if _has_arrays(value)))
    more = tuple(sorted(unlisted.keys() - set(names)))
    changed = {name: value for name, value in inside.items() if value is not held[name]}
    if not names and not more and not changed:
        return distribution
    same = copy.copy(distribution)
    same.__dict__.update(changed)
    if names or more:
        same.__class__ = _with_leaves(kind, names, more)
    return same


_OWN_FIELDS = ("_batch_shape", "_event_shape", "_validate_args")
"""What NumPyro keeps of every distribution, always in the static part."""


def _with_parts(value: Any) -> Any:
    """An attribute, with the distributions in it taken apart too."""
    if isinstance(value, dist.Distribution):
        return with_arrays_as_leaves(value)
    if type(value) in (list, tuple) and any(isinstance(part, dist.Distribution) for part in value):
        parts = [_with_parts(part) for part in value]
        is_same = all(part is before for part, before in zip(parts, value, strict=True))
        return value if is_same else type(value)(parts)
    return value


def _has_arrays(value: Any) -> bool:
    """Whether an attribute is made of arrays and numbers that may be arrays in another run."""
    leaves = jax.tree.leaves(value)
    return bool(leaves) and any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves)


@functools.cache
def _with_leaves(kind: Any, names: tuple[str, ...], more: tuple[str, ...]) -> type:
    static = (*(name for name in kind.gather_pytree_aux_fields() if name not in names), *more)
    leaves = (*(name for name in kind.gather_pytree_data_fields() if name not in names), *names)
    return type(
        kind.__name__,
        (kind,),
        {
            "gather_pytree_aux_fields": classmethod(lambda cls: static),
            "gather_pytree_data_fields": classmethod(lambda cls: leaves),
            "original": kind,
        },
    )


def kind_of(distribution: Any) -> type:
    """The class that the user chose."""
    return getattr(type(distribution), "original", type(distribution))


_REWRITTEN = (
    dist.BernoulliProbs,
    dist.BernoulliLogits,
    dist.BinomialProbs,
    dist.BinomialLogits,
    dist.GeometricProbs,
    dist.Poisson,
    dist.MultinomialProbs,
    dist.Beta,
    dist.Dirichlet,
    dist.Gamma,
)


def log_density(distribution: Any, value: jax.Array) -> jax.Array:
    """A distribution's ``log_prob``, differentiable where NumPyro's is not.

    NumPyro's Bernoulli and Binomial clip their logits at zero, so that exactly there, where every logistic regression
    starts, the automatic gradient is wrong (1 instead of 1/2). Where a state makes an outcome impossible, as in
    ``Binomial(n, present * p)`` and ``Poisson(alive * rate)``, derivatives of its log-probability are 0 / 0, which
    would turn every other derivative into NaN. At the edge of a Dirichlet, Beta or Gamma with concentration 1 NumPyro
    computes 0 log 0, or drops the slope. Otherwise values and derivatives are NumPyro's; each derivative takes one pass
    over the cells. A subclass with a ``log_prob`` of its own keeps it.
    """
    rewritten = next((kind for kind in _REWRITTEN if isinstance(distribution, kind)), None)
    if rewritten is None or type(distribution).log_prob is not rewritten.log_prob:
        return distribution.log_prob(value)
    if isinstance(distribution, (dist.Beta, dist.Dirichlet, dist.Gamma)):
        return _of_powers(distribution, value)
    trials, ways = 1, jnp.zeros(())
    if isinstance(distribution, (dist.BinomialProbs, dist.BinomialLogits)):
        trials = distribution.total_count
        ways = gammaln(trials + 1.0) - gammaln(value + 1.0) - gammaln(trials - value + 1.0)
    if isinstance(distribution, (dist.BernoulliLogits, dist.BinomialLogits)):
        logits = distribution.logits
        counts = jnp.asarray(value, logits.dtype), jnp.asarray(trials, logits.dtype)
        return ways + _successes(*jnp.broadcast_arrays(logits, *counts))
    if isinstance(distribution, (dist.BernoulliProbs, dist.BinomialProbs)):
        probs = _as_float(distribution.probs)
        return impossible_to_infinite(
            ways + value * finite_log(probs) + (trials - value) * finite_log_complement(probs)
        )
    if isinstance(distribution, dist.GeometricProbs):
        probs = _as_float(distribution.probs)
        return impossible_to_infinite(value * finite_log_complement(probs) + finite_log(probs))
    if isinstance(distribution, dist.Poisson):
        rate = _as_float(distribution.rate)
        return _times_log(value, rate) - gammaln(value + 1.0) - rate
    ways = gammaln(distribution.total_count + 1.0) - jnp.sum(gammaln(value + 1.0), -1)  # of a multinomial
    return ways + jnp.sum(_times_log(value, _as_float(distribution.probs)), -1)


def _of_powers(distribution: Any, value: jax.Array) -> jax.Array:
    """Log density of a distribution that is a product of powers, right where a factor is zero or ``0 ** 0``."""
    if isinstance(distribution, dist.Gamma):
        shape, rate = _as_float(distribution.concentration), _as_float(distribution.rate)
        return shape * jnp.log(rate) - gammaln(shape) + _times_log(shape - 1, value) - rate * value
    if isinstance(distribution, dist.Beta):
        a, b = _as_float(distribution.concentration1), _as_float(distribution.concentration0)
        powers = _times_log(a - 1, value) + _times_log(b - 1, -value, jnp.log1p, value == 1)
        return powers + gammaln(a + b) - gammaln(a) - gammaln(b)
    shape = _as_float(distribution.concentration)
    powers = jnp.sum(_times_log(shape - 1, value), -1)
    return powers + gammaln(jnp.sum(shape, -1)) - jnp.sum(gammaln(shape), -1)


def _as_float(argument: Any) -> jax.Array:
    return jnp.asarray(argument, jnp.result_type(float))


def _times_log(
    count: jax.Array, quantity: jax.Array, log: Callable = jnp.log, is_zero: jax.Array | None = None
) -> jax.Array:
    """``count * log(quantity)``, with ``0 * log 0 = 0``, and no derivative where the logarithm is that of zero."""
    is_zero = quantity == 0 if is_zero is None else is_zero
    one = jnp.where(is_zero, 1 if log is jnp.log else 0, quantity)
    return jnp.where(is_zero, jnp.where(count == 0, 0.0, -jnp.inf * jnp.sign(count)), count * log(one))


@jax.custom_jvp
def _successes(logits: jax.Array, value: jax.Array, trials: jax.Array) -> jax.Array:
    """Log-probability of ``value`` given successes in a row of trials: no cancellation, however large the logits."""
    tail = jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return -value * jnp.maximum(-logits, 0) - (trials - value) * jnp.maximum(logits, 0) - trials * tail


def _successes_jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
    logits, value, trials = primals
    slopes = (value - trials * jax.nn.sigmoid(logits), logits, -jax.nn.softplus(logits))
    pairs = zip(slopes, tangents, strict=True)
    terms = [slope * tangent for slope, tangent in pairs if type(tangent) is not SymbolicZero]
    return _successes(*primals), sum(terms, jnp.zeros_like(logits))


_successes.defjvp(_successes_jvp, symbolic_zeros=True)


def support_values(name: str, fn: dist.Distribution) -> np.ndarray:
    """The values a discrete latent can take, as a concrete vector.

    Raises:
        ModelError: the support is not finite, its size depends on data, or the latent is a vector.
    """
    base, reinterpreted, _ = unwrap(fn)
    kind = type(base).__name__
    if reinterpreted or base.event_shape:
        raise ModelError(
            f"Latent site {name!r} is a vector of discrete values (event shape {tuple(fn.event_shape)}), "
            "whose joint support is too large to enumerate as one site. Put its elements in a plate: "
            f"`with numpyro.plate({name + '_elements'!r}, n): numpyro.sample({name!r}, ...)` without to_event."
        )
    if not getattr(base, "has_enumerate_support", False):
        raise ModelError(
            f"Latent site {name!r} is {kind}, whose support is not finite, so it cannot be enumerated. "
            f"Observe it, or truncate it: dist.Categorical(probs) over 0..max with "
            f"probs from dist.{kind}(...).log_prob(jnp.arange(max + 1))."
        )
    if isinstance(base, (dist.CategoricalProbs, dist.CategoricalLogits)):
        return np.arange(jnp.shape(base.probs if isinstance(base, dist.CategoricalProbs) else base.logits)[-1])
    if isinstance(base, (dist.BernoulliProbs, dist.BernoulliLogits)):
        return np.arange(2)
    try:
        with jax.ensure_compile_time_eval():
            return np.asarray(base.enumerate_support(expand=False)).reshape(-1)
    except jax.errors.JAXTypeError:
        raise NeedsValues(
            f"The number of states of latent site {name!r} ({kind}) depends on data. "
            "Pass the bound as a Python integer (a static argument) instead."
        ) from None

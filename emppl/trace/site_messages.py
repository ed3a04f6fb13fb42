"""What one recorded message says: the arrays of a site, and the static facts about it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.distribution import Unit

from emppl.errors import DataError, ModelError
from emppl.inputs.arguments import raised
from emppl.trace.distributions import (
    as_numpyro_expects,
    element_mask,
    given_arguments,
    undo,
    unwrap,
    with_arrays_as_leaves,
)
from emppl.trace.handlers import Frame, Message
from emppl.trace.record import Plate, Site, SiteArrays


def site_arrays(name: str, frame: Frame) -> SiteArrays:
    """Arrays of one recorded sample site."""
    msg = frame.messages[name]
    fn, mask_position = msg["fn"], _label_mask(name, frame)
    undone: list[Any] | None = [] if msg.get("is_observed") else None
    base, _, masks = unwrap(fn, undone)
    label_mask = None if mask_position is None else masks.pop(mask_position)[0]
    mask = element_mask(masks)
    scale = msg.get("scale")
    if isinstance(base, Unit):
        return SiteArrays(base, {"log_factor": raised(base.log_factor)}, jnp.zeros(()), mask, None, scale)
    kind = getattr(msg["value"], "dtype", np.dtype(float))
    if isinstance(kind, np.dtype) and kind.kind in "USO":
        raise DataError(
            f"Site {name!r} observes an array of {kind}, which holds no numbers. Code it first, for example "
            "codes = numpy.unique(labels, return_inverse=True)[1]."
        )
    value, log_measure = raised(msg["value"]), None
    if value.dtype == bool:
        value = jnp.asarray(value, jnp.result_type(int))
    if undone:
        if mask is not None:  # a masked cell may hold anything
            seen = jnp.reshape(mask, mask.shape + (1,) * len(base.event_shape))
            with as_numpyro_expects():
                value = jnp.where(seen, value, fn.support.feasible_like(value))
        value, log_measure = undo(value, undone, len(base.event_shape))
    weight = None if scale is None else raised(scale)
    numbers = (jax.Array, np.ndarray, np.generic, int, float)
    given = given_arguments(base).items()
    arguments = {key: raised(argument) for key, argument in given if isinstance(argument, numbers)}
    distribution = jax.tree.map(raised, with_arrays_as_leaves(base))
    return SiteArrays(distribution, arguments, value, mask, label_mask, weight, log_measure)


def _label_mask(name: str, frame: Frame) -> int | None:
    """Which mask of a partly observed site says where labels are known: the first that differs between its halves."""
    stem = _label_stem(name, frame)
    if stem is None:
        return None
    halves = [unwrap(frame.messages[f"{stem}_{end}"]["fn"])[2] for end in ("observed", "unobserved")]
    for position, (known, unknown) in enumerate(zip(*halves, strict=True)):
        if known[0] is not unknown[0]:
            return position
    raise ModelError(
        f"Sites {stem}_observed and {stem}_unobserved look like the halves of a partly observed site {stem!r}, but "
        "carry no obs_mask. Rename them, or write numpyro.sample(..., obs=labels, obs_mask=known)."
    )


def _label_stem(name: str, frame: Frame) -> str | None:
    for ending in ("_observed", "_unobserved"):
        stem = name.removesuffix(ending)
        if stem != name and f"{stem}_unobserved" in frame.latents and f"{stem}_observed" in frame.messages:
            return stem
    return None


def plates_of(msg: Message) -> list[Plate]:
    """The plates around a site, in NumPyro's order."""
    return [Plate(cells.name, cells.dim, cells.size) for cells in msg.get("cond_indep_stack", ())]


def static_site(name: str, frame: Frame, states: int, shape: tuple[int, ...] | None) -> Site:
    """Static facts of one recorded site.

    Args:
        frame: what it was recorded in.
        states: number of atoms of a discrete latent.
        shape: shape of an unobserved site's value, or None.
    """
    msg = frame.messages[name]
    plates = tuple(sorted(plates_of(msg), key=lambda plate: plate.dim))
    value = msg["value"]
    if msg["type"] == "param":
        constraint = _own(msg["kwargs"].get("constraint", constraints.real))
        return Site(name, "param", "param", plates, jnp.shape(value), jnp.result_type(value), constraint=constraint)
    undone: list[Any] | None = [] if msg.get("is_observed") else None
    base, reinterpreted, _ = unwrap(msg["fn"], undone)
    if isinstance(base, Unit):
        kind = "factor"
    elif msg.get("is_observed"):
        kind = "observed"
    else:
        kind = "discrete" if name in frame.latents else "continuous"
    is_partly_observed = kind == "discrete" and _label_stem(name, frame) is not None
    return Site(
        name,
        kind,
        type(base).__name__,
        plates,
        jnp.shape(value) if shape is None else shape,
        jnp.result_type(value),
        event_shape=_event_shape(msg, kind, reinterpreted),
        batch_shape=_batch_shape(msg, base, kind),
        reinterpreted=reinterpreted,
        constraint=_own(msg["fn"].support) if kind in ("continuous", "discrete") else None,
        states=states if kind == "discrete" else 0,
        labels=f"{name.removesuffix('_unobserved')}_observed" if is_partly_observed else None,
        transforms=tuple(type(transform).__name__ for transform in undone or ()),
    )


def _own(constraint: Any) -> Any:
    """A constraint with copies of its bounds, if these are arrays that may be written into."""
    if not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(constraint)):
        return constraint
    return jax.tree.map(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, constraint)


def _event_shape(msg: Message, kind: str, reinterpreted: int) -> tuple[int, ...]:
    """Shape of one event; along axes of ``to_event`` a distribution is spread over data that it has one copy for."""
    declared = tuple(msg["fn"].event_shape)
    seen = jnp.shape(msg["value"])[jnp.ndim(msg["value"]) - len(declared) :]
    if kind != "observed" or len(seen) < len(declared):
        return declared
    try:
        if seen[reinterpreted:] != declared[reinterpreted:]:
            raise ValueError
        return jnp.broadcast_shapes(declared, seen)
    except ValueError:
        raise DataError(
            f"Site {msg['name']!r}: the value has event shape {seen} but the distribution {declared}. Check the "
            "shape of the data."
        ) from None


def _batch_shape(msg: Message, base: dist.Distribution, kind: str) -> tuple[int, ...]:
    if kind == "factor":
        return jnp.shape(base.log_factor)
    value_batch = jnp.shape(msg["value"])[: jnp.ndim(msg["value"]) - len(msg["fn"].event_shape)]
    try:
        return jnp.broadcast_shapes(tuple(msg["fn"].batch_shape), value_batch)
    except ValueError:
        raise DataError(
            f"Site {msg['name']!r}: the value has batch shape {value_batch} but the distribution "
            f"{tuple(msg['fn'].batch_shape)} (plates and enumerated latents included). Check the shape of the data, "
            "and use .to_event(1) where a row is a vector."
        ) from None

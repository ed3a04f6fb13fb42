"""All later steps of a ``scan`` at once: one ``vmap``, in which what does not vary over time keeps no time axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.prune import computation_of, conditions, path_names, prune, with_conditions
from emppl.trace.record import SiteArrays
from emppl.trace.scan import ScanCarry

_TOO_LONG_AGO = ("latent", "of steps too long ago")


class LaterSteps(NamedTuple):
    """What all later steps give.

    Attributes:
        arrays: by site; fields that vary over time have a leading time axis.
        timed: by site, the paths of these fields.
        carry: leaves of the carry after the last step.
        outputs: of all steps, stacked.
        reads_latents: for every leaf of the outputs, whether it depends on latents.
        conditions: of every ``where`` in the step, its value at all later steps, or None if it depends on latents or
            not on time.
    """

    arrays: dict[str, SiteArrays]
    timed: dict[str, frozenset[tuple[str, ...]]]
    carry: list[jax.Array]
    outputs: Any
    reads_latents: list[bool]
    conditions: list[jax.Array | None]


def over_time(
    carry: ScanCarry,
    later: Callable[..., tuple[dict[str, SiteArrays], list[jax.Array], Any]],
    window: Any,
    moving: Mapping[str, jax.Array],
    used: Mapping[str, jax.Array],
    init: list[jax.Array],
) -> LaterSteps:
    """``vmap`` of ``later`` over time.

    Args:
        carry: what discovery found.
        later: ``later(window, moving, used, init) -> (arrays, carry, outputs)``, one step.
        window: of every step, the data and the latent-free carry, and those of the previous steps.
        moving: atoms of latents that have some of their own in every step.
        used: atoms of the others.
        init: leaves of a carry before the window, on which no site depends.
    """
    slices = jax.tree.map(lambda leaf: leaf[0], (window, moving))
    closed, shape = jax.make_jaxpr(later, return_shape=True)(*slices, used, init)
    every = conditions(closed)
    closed = with_conditions(closed, {every[number]: value for number, value in carry.settled.items()})
    flat = jax.tree.leaves((window, moving))
    labels = [("time", "")] * len(jax.tree.leaves(window)) + [("moving", name) for name in sorted(moving)]
    labels += [("latent", name) for name in sorted(used)] + [_TOO_LONG_AGO] * len(init)
    dependence = Dependence(closed, tuple(labels))
    origins = [dependence.of_output(number) for number in range(len(closed.jaxpr.outvars))]
    varies = [any(kind in ("time", "moving") for kind, _ in labels) for labels in origins]
    known = [_all_steps(closed, dependence, condition, flat) for condition in every]
    results: list[Any] = [None] * len(origins)
    atoms = [*jax.tree.leaves(used), *init]
    for is_varying in (False, True):
        positions = [number for number, value in enumerate(varies) if value is is_varying]
        if not positions:
            continue
        function = jaxpr_as_fun(prune(closed, positions))
        if is_varying:
            values = jax.vmap(lambda *slices, f=function: f(*slices, *atoms))(*flat)
        else:
            values = function(*jax.tree.leaves(slices), *atoms)
        for position, value in zip(positions, values, strict=True):
            results[position] = jnp.asarray(value)
    arrays, _, _ = jax.tree.unflatten(jax.tree.structure(shape), results)
    timed: dict[str, set[tuple[str, ...]]] = {name: set() for name in arrays}
    last, outputs, reads_latents = [], [], []
    for (path, _), origin, is_varying, value in zip(
        jax.tree_util.tree_flatten_with_path(shape)[0], origins, varies, results, strict=True
    ):
        part, *names = path_names(path)
        if part == "0":
            assert _TOO_LONG_AGO not in origin, names
            if is_varying:
                timed[names[0]].add(tuple(names[1:]))
        elif part == "1":
            last.append(value[-1] if is_varying else value)
        else:
            outputs.append(value if is_varying else jnp.broadcast_to(value, (carry.scan.length, *value.shape)))
            reads_latents.append(any(kind in ("latent", "moving") for kind, _ in origin))
    return LaterSteps(
        arrays,
        {name: frozenset(paths) for name, paths in timed.items()},
        last,
        jax.tree.unflatten(jax.tree.structure(shape[2]), outputs),
        reads_latents,
        known,
    )


def _all_steps(
    closed: ClosedJaxpr, dependence: Dependence, condition: Any, flat: Sequence[jax.Array]
) -> jax.Array | None:
    """A condition at all later steps, or None if it depends on latents or not on time."""
    if dependence.of_atom(condition) != {("time", "")}:
        return None
    function = jaxpr_as_fun(computation_of(closed, [condition]))
    atoms = [jnp.zeros(aval.shape, aval.dtype) for aval in closed.in_avals[len(flat) :]]
    return jax.vmap(lambda *slices: function(*slices, *atoms)[0])(*flat)

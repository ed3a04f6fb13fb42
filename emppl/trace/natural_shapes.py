"""Another reading of discrete latents: the model is evaluated at one state at a time, in the shapes it is written for.

Where the axis of states in front of the plates breaks the model's own code (``jnp.stack([1 - p[z], p[z]])`` of one
state, ``jnp.where(z > 0, a, b)`` of vectors, a product of matrices), every cell of a latent gets the same state, and
``vmap`` over the states puts their axes where every other reading has them. It is the model as it is written if cell n
of a site depends on cell n of a latent only, which :mod:`emppl.trace.as_written` proves of every model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from emppl.errors import ModelError
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.prune import path_names, prune
from emppl.trace.record import Site, SiteArrays


def over_states(
    closed: ClosedJaxpr, labels: tuple[tuple[str, str], ...], dims: Mapping[str, int], inputs: Sequence[jax.Array]
) -> tuple[list[jax.Array], list[list[str]]]:
    """Outputs of a computation at all states of the latents that each depends on.

    Args:
        closed: the computation at one state of every latent.
        labels: of its inputs.
        dims: by latent, the batch dimension of its axis.
        inputs: all states of every latent, and everything else as it is.

    Returns:
        The outputs, the axes of latents in front, and the names of these.
    """
    dependence = Dependence(closed, labels)
    states = [jnp.ravel(value) if name in dims else value for (_, name), value in zip(labels, inputs, strict=True)]
    groups: dict[tuple[str, ...], list[int]] = {}
    for position in range(len(closed.out_avals)):
        found = {name for kind, name in dependence.of_output(position) if kind == "latent" and name in dims}
        groups.setdefault(tuple(sorted(found, key=lambda name: dims[name])), []).append(position)
    outputs: list[Any] = [None] * len(closed.out_avals)
    order: list[list[str]] = [[]] * len(closed.out_avals)
    for names, positions in groups.items():
        function: Any = jaxpr_as_fun(prune(closed, positions))
        for latent in reversed(names):
            function = jax.vmap(function, [0 if name == latent else None for _, name in labels])
        given = [
            value[0] if name in dims and name not in names else value
            for (_, name), value in zip(labels, states, strict=True)
        ]
        for position, value in zip(positions, function(*given), strict=True):
            outputs[position], order[position] = jnp.asarray(value), list(names)
    return outputs, order


def in_front(
    site: Site,
    arrays: SiteArrays,
    order: SiteArrays,
    dims: Mapping[str, int],
    timed: frozenset[tuple[str, ...]],
) -> SiteArrays:
    """Arrays of a site with the axes of latents where the other reading has them.

    Args:
        site: the site.
        arrays: with the axes of latents in front of everything.
        order: in the place of every array, the latents whose axes it has.
        dims: by latent, the batch dimension of its axis.
        timed: paths of arrays that have an axis of time, behind those of latents.
    """
    base, events = type(arrays.distribution), site.reinterpreted
    ranks = {"value": events + len(arrays.distribution.event_shape), "cell_weight": 0}
    flat, treedef = jax.tree_util.tree_flatten_with_path(arrays)
    placed, is_moved = [], False
    for (path, leaf), names in zip(flat, jax.tree.leaves(order, is_leaf=lambda x: isinstance(x, list)), strict=True):
        field, *rest = path_names(path)
        is_moved = is_moved or (field == "distribution" and bool(names))
        trailing = site.event_rank(rest[0], base) if field == "arguments" else ranks.get(field, events)
        if trailing is None:
            raise ModelError(
                f"Site {site.name!r}: {base.__name__}.arg_constraints must say how many axes of {rest[0]!r} belong to "
                "one event: constraints.dependent(is_discrete=False, event_dim=1), or a constraint of its own."
            )
        is_timed = (field, *rest) in timed
        placed.append(leaf if field == "distribution" else _placed(leaf, names, dims, trailing, is_timed))
    moved = jax.tree.unflatten(treedef, placed)
    if not is_moved or site.kind == "factor":
        return moved
    own_times = [path_names(path) in timed for path, _ in flat if path_names(path)[0] == "distribution"]
    times = {argument: 0 if ("arguments", argument) in timed else None for argument in moved.arguments}
    try:  # its own shapes are part of a distribution
        distribution = _made(base, moved.arguments, times, own_times)
    except TypeError as error:
        raise ModelError(f"Site {site.name!r}: {base.__name__} cannot be made of its arguments: {error}") from error
    return dataclasses.replace(moved, distribution=distribution)


def _placed(array: jax.Array, names: list[str], dims: Mapping[str, int], trailing: int, is_timed: bool) -> jax.Array:
    if not names:
        return array
    count = len(names)
    states, time = array.shape[:count], array.shape[count : count + is_timed]
    rest = array.shape[count + is_timed :]
    rest = (1,) * max(0, trailing - len(rest)) + rest
    split = len(rest) - trailing
    batch = [1] * max(-dims[name] for name in names)
    for name, size in zip(names, states, strict=True):
        batch[len(batch) + dims[name]] = size
    batch[len(batch) - split :] = rest[:split]
    return jnp.reshape(jnp.moveaxis(array, count, 0) if is_timed else array, (*time, *batch, *rest[split:]))


def _made(kind: type, arguments: Mapping[str, jax.Array], times: dict[str, int | None], own: list[bool]) -> Any:
    """A distribution of arguments some of which have an axis of time in front, as some of its own arrays do then."""
    trees = []

    def arrays(arguments: Mapping[str, jax.Array]) -> list[jax.Array]:
        leaves, tree = jax.tree.flatten(kind(**arguments, validate_args=False))
        trees.append(tree)
        return leaves

    if 0 not in times.values():
        return kind(**arguments, validate_args=False)
    leaves = jax.vmap(arrays, (times,), [0 if is_one else None for is_one in own])(dict(arguments))
    return jax.tree.unflatten(trees[0], leaves)

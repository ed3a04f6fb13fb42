"""All later steps of a ``scan`` at once: one ``vmap``, in which what does not vary over time keeps no time axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.prune import computation_of, conditions, path_names, prune, with_conditions
from emppl.trace.scan import ScanCarry


def over_time(recorder, scan: ScanCarry, later, window, moving, used, init):
    """``vmap`` of ``later`` over time; outputs that do not vary over time keep no time axis."""
    one = jax.tree.map(lambda leaf: leaf[0], (window, moving))
    closed, shape = jax.make_jaxpr(later, return_shape=True)(*one, used, init)
    length = scan.chain.length
    every = conditions(closed)
    closed = with_conditions(closed, {every[number]: value for number, value in scan.settled.items()})
    flat = jax.tree.leaves((window, moving))
    labels = (("time", ""),) * len(jax.tree.leaves(window)) + tuple(("moving", name) for name in sorted(moving))
    labels += tuple(("latent", name) for name in sorted(used))
    labels += (("latent", "of steps too long ago"),) * len(init)
    dependence = Dependence(closed, labels)
    found = [dependence.of_output(number) for number in range(len(closed.jaxpr.outvars))]
    varies = [any(kind in ("time", "moving") for kind, _ in labels) for labels in found]
    recorder.conditions.append([_all_steps(closed, dependence, variable, flat) for variable in every])
    atoms = [*jax.tree.leaves(used), *init]
    results: list = [None] * len(found)
    for moving in (False, True):
        positions = [number for number, value in enumerate(varies) if value is moving]
        if not positions:
            continue
        function = jaxpr_as_fun(prune(closed, positions))
        if moving:
            values = jax.vmap(lambda *slices, f=function: f(*slices, *atoms))(*flat)
        else:
            values = function(*jax.tree.leaves(one), *atoms)
        for position, value in zip(positions, values, strict=True):
            results[position] = jnp.asarray(value)
    arrays, last, outputs = jax.tree.unflatten(jax.tree.structure(shape), results)
    paths = [path_names(path) for path, _ in jax.tree_util.tree_flatten_with_path(shape)[0]]
    timed: dict[str, set] = {name: set() for name in arrays}
    mixed: dict[str, list[bool]] = {"carry": [], "outputs": []}
    sites = len(jax.tree.leaves(arrays))
    carried = len(last)
    for number, path in enumerate(paths):
        if number < sites:
            assert ("latent", "of steps too long ago") not in found[number], path
            if varies[number]:
                timed[path[1]].add(path[2:])
        else:
            depends = any(kind in ("latent", "moving") for kind, _ in found[number])
            mixed["carry" if number < sites + carried else "outputs"].append(depends)
            if number < sites + carried and varies[number] and not depends:
                last[number - sites] = last[number - sites][-1]
    outputs = _with_time(outputs, varies[sites + carried :], length)
    return arrays, last, outputs, {name: frozenset(paths) for name, paths in timed.items()}, mixed


def _all_steps(closed: ClosedJaxpr, dependence: Dependence, condition, flat):
    """A condition at all later steps, or None if it depends on latents or not on time."""
    if dependence.of_atom(condition) != {("time", "")}:
        return None
    function = jaxpr_as_fun(computation_of(closed, [condition]))
    atoms = [jnp.zeros(aval.shape, aval.dtype) for aval in closed.in_avals[len(flat) :]]
    return jax.vmap(lambda *slices: function(*slices, *atoms)[0])(*flat)


def _with_time(outputs, varies, length):
    flat, treedef = jax.tree.flatten(outputs)
    spread = [
        leaf if moving else jnp.broadcast_to(leaf, (length, *leaf.shape))
        for leaf, moving in zip(flat, varies, strict=True)
    ]
    return jax.tree.unflatten(treedef, spread)

"""NumPyro's ``scan``, answered by the recorder: the first steps one by one, all later steps at once.

A step is a function of the carry and of one slice of the data. Reading its jaxpr tells which part of the carry depends
on latents, and how many steps back. That part is rebuilt, at every later step, from latents of the previous steps,
which have axes of their own; the rest (counters, previous observations) is computed for all steps beforehand.
The later steps are then one ``vmap`` over time, in which whatever does not vary over time keeps no time axis.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from emppl.errors import ModelError
from emppl.naming import first, lagged, latent_of, time_axis
from emppl.structure.dependence import Dependence
from emppl.trace.messages import site_arrays, static_site
from emppl.trace.pruning import path_names, prune
from emppl.trace.record import Chain, Plate


@dataclasses.dataclass(frozen=True)
class Scan:
    """What discovery finds out about one ``scan``.

    Attributes:
        chain: its latents.
        free: for every leaf of the carry, whether it depends on no latent of the scan.
        parents: for every leaf of the carry, the leaves from which it is computed.
        settled: conditions of a ``where`` that have one value in all later steps (``t == 0``), by number.
    """

    chain: Chain
    free: tuple[bool, ...]
    parents: tuple[frozenset[int], ...]
    settled: Mapping[int, bool] = dataclasses.field(default_factory=dict)


def discover_scan(recorder, msg) -> None:
    """Run the first step, and find out what the carry depends on."""
    step, init, xs, length = _arguments(recorder, msg)
    leaves, treedef = jax.tree.flatten(init)
    with recorder.frame(recorder.answer) as frame:
        carry, outputs = _run(step, init, _slice(xs, 0))
    if str(jax.tree.structure(carry)) != str(treedef):
        raise ModelError(
            f"The scan's step takes a carry of structure {treedef} and returns {jax.tree.structure(carry)}. Return the "
            "carry in the form in which it comes in: (new_carry, outputs)."
        )
    for name in frame.messages:
        if "@" in name:
            raise ModelError(f"Rename site {name!r}: emppl marks the steps of a scan with '@'.")
    hidden = [
        name
        for name, one in frame.messages.items()
        if one["type"] == "sample" and not one.get("is_observed") and name not in frame.latents
    ]
    values = {name: jnp.asarray(frame.messages[name]["value"]) for name in [*frame.latents, *hidden]}

    def graph(leaves, data, values):
        with recorder.frame(lambda one: values.get(one["name"], frame.messages[one["name"]]["value"])) as again:
            out = jax.tree.leaves(_run(step, jax.tree.unflatten(treedef, leaves), data)[0])
        return out, [site_arrays(name, one, again) for name, one in _samples(again)]

    closed = jax.make_jaxpr(graph)(leaves, _slice(xs, 0), values)
    labels = [("carry", str(number)) for number in range(len(leaves))]
    labels += [("data", "")] * len(jax.tree.leaves(xs)) + [("latent", name) for name in sorted(values)]
    dependence = Dependence(closed, tuple(labels))
    found = [dependence.of_output(number) for number in range(len(leaves))]
    sites = [dependence.of_output(number) for number in range(len(leaves), len(closed.jaxpr.outvars))]
    read = {int(label) for labels in sites for kind, label in labels if kind == "carry"}
    depths, free = _depths(found, list(values), read)
    order = max(depths.values(), default=0)
    if length <= order:
        raise ModelError(
            f"The scan with sites {_names(frame)} has {length} steps, but its carry reaches {order} steps back: it "
            f"needs at least {order + 1}. Write so short a chain as a Python loop."
        )
    parents = tuple(frozenset(int(label) for kind, label in labels if kind == "carry") for labels in found)
    time = time_axis(next(iter(frame.messages), "scan"))
    discrete = {name: depth for name, depth in depths.items() if name in frame.latents}
    continuous = {name: depths[name] for name in hidden}
    recorder.scans.append(Scan(Chain(time, length - order, order, discrete, continuous), free, parents))
    for name, one in frame.messages.items():
        if one["type"] == "param":
            recorder.add(name, one)
            continue
        for step_name in [first(name, number) for number in range(order)] + [name]:
            recorder.add(step_name, one)
            if name in frame.latents:
                recorder.latents[step_name] = name
    stacked = jax.tree.map(lambda leaf: jnp.zeros((length, *jnp.shape(leaf)), jnp.result_type(leaf)), outputs)
    _reply(msg, length, carry, stacked)


def _arguments(recorder, msg):
    step, init, xs, length, reverse = msg["args"]
    if reverse:
        raise ModelError(
            "The model scans in reverse. Scan forward over reversed data instead: scan(step, init, xs[::-1])."
        )
    if msg["kwargs"].get("substitute_stack"):
        raise ModelError(
            "A substitute or condition handler reaches into the model's scan. Observe data inside the step, with obs=, "
            "and fix parameters with EM(model, fixed=...)."
        )
    init, xs = jax.tree.map(jnp.asarray, (init, xs))
    leaves = jax.tree.leaves(xs)
    length = leaves[0].shape[0] if length is None else length
    if any(leaf.shape[0] != length for leaf in leaves):
        raise ModelError(f"The scan has {length} steps, but its data have {[leaf.shape[0] for leaf in leaves]}.")
    return step, init, xs, length


def _run(step, carry, data):
    # A seed of its own: the outer one would keep a key that belongs to an inner trace.
    with numpyro.handlers.seed(rng_seed=jax.random.key(0)):
        carry, outputs = step(carry, data)
    return jax.tree.map(jnp.asarray, carry), outputs  # a carry may hold Python numbers


def _slice(xs, number):
    return jax.tree.map(lambda leaf: leaf[number], xs)


def _names(frame) -> str:
    return ", ".join(map(repr, frame.messages)) or "none"


def _reply(msg, length, carry, outputs) -> None:
    """The value that numpyro's ``scan`` unpacks: no messages are left for it to send."""
    msg["value"] = (length, None, carry), (types.SimpleNamespace(trace={}), outputs)


def _depths(found, latents, read: set[int]) -> tuple[dict[str, int], tuple[bool, ...]]:
    """How many steps back every latent is read through the carry, and which leaves hold none.

    Args:
        found: for every leaf of the carry, what it depends on.
        latents: the latents of the step.
        read: leaves that a site depends on; what no site reads may hold anything.
    """
    parents = [[int(label) for kind, label in labels if kind == "carry"] for labels in found]
    own = [sorted(label for kind, label in labels if kind == "latent") for labels in found]
    depends = {number for number, names in enumerate(own) if names}
    while True:
        more = {n for n in range(len(found)) if n not in depends and depends.intersection(parents[n])}
        if not more:
            break
        depends |= more
    depths = dict.fromkeys(latents, 0)

    def descend(leaf, lag, path):
        if leaf in path:
            raise ModelError(
                f"The carry of the scan accumulates latents: its leaf number {leaf + 1} is computed from itself and "
                f"from {_held(own, path)}: it depends on the states of all earlier steps. The carry may hold "
                "the states of a fixed number of previous steps: carry those, and expand the state where more memory "
                "is needed (a duration, say: one state per value of the counter)."
            )
        for name in own[leaf]:
            depths[name] = max(depths[name], lag)
        for parent in parents[leaf]:
            if parent in depends:
                descend(parent, lag + 1, path | {leaf})

    for leaf in depends & read:
        descend(leaf, 1, frozenset())
    return depths, tuple(number not in depends for number in range(len(found)))


def _held(own, path) -> str:
    names = sorted({name for leaf in path for name in own[leaf]})
    return ", ".join(map(repr, names)) if names else "latents"


# --------------------------------------------------------------------------------------------------- evaluation


def evaluate_scan(recorder, msg, scan: Scan, plate: Plate, shapes: Mapping[str, Any], atoms: Mapping[str, Any], poison):
    """Run the first steps one by one and all later steps at once; record their sites.

    Args:
        recorder: the recorder; sites are added to it.
        msg: the message of the ``scan``.
        scan: what discovery found.
        plate: the time axis.
        shapes: shape of every unobserved site's value.
        atoms: values of every latent axis.
        poison: a zero that marks outputs of the scan which depend on its latents.
    """
    step, init, xs, length = _arguments(recorder, msg)
    chain, treedef = scan.chain, jax.tree.structure(init)
    outer = recorder.answer
    depths = {**chain.depths, **chain.hidden}

    def run(leaves, data, answer):
        """One step: carry out, outputs, and the arrays of its sites."""
        with recorder.frame(answer) as frame:
            carry, outputs = _run(step, jax.tree.unflatten(treedef, leaves), data)
        return jax.tree.leaves(carry), outputs, frame

    def at_lag(lag, atoms):
        # A latent that the carry does not hold so far back is answered with its present axis: nothing reads it.
        def answer(one):
            name = one["name"]
            if name not in depths:
                return outer(one)
            return atoms[lagged(name, lag if lag <= depths[name] else 0)]

        return answer

    # Of a continuous latent every step has atoms of its own: they move with time, as data do.
    moving = {name: value for name, value in atoms.items() if latent_of(name) in chain.hidden}
    some_step = {**atoms, **{name: value[0] for name, value in moving.items()}}
    carried = _free_carry(run, scan, jax.tree.leaves(init), xs, length, at_lag(0, some_step))
    leaves, early = jax.tree.leaves(init), []
    for number in range(chain.order):
        leaves = [leaf if known is None else known[number] for leaf, known in zip(leaves, carried, strict=True)]

        def answer_first(one, number=number):
            return atoms[first(one["name"], number)] if one["name"] in depths else outer(one)

        leaves, outputs, frame = run(leaves, _slice(xs, number), answer_first)
        early.append(outputs)
        _record(recorder, frame, chain, lambda name, number=number: first(name, number), shapes, ())
    used = {name: value for name, value in atoms.items() if latent_of(name) in chain.depths}

    def later(window, moving, used, leaves):
        """One later step, and before it the previous ones, which rebuild the carry from anything."""
        for lag in range(chain.order, -1, -1):
            known, data = window[lag]
            leaves = [leaf if k is None else k for leaf, k in zip(leaves, known, strict=True)]
            leaves, outputs, frame = run(leaves, data, at_lag(lag, {**used, **moving}))
        later.frame = frame  # type: ignore[attr-defined]
        arrays = {name: site_arrays(name, one, frame) for name, one in _samples(frame)}
        return arrays, leaves, outputs

    def cut(lag, leaf):
        return None if leaf is None else leaf[chain.order - lag : length - lag]

    window = [
        ([cut(lag, leaf) for leaf in carried], jax.tree.map(lambda leaf, lag=lag: cut(lag, leaf), xs))
        for lag in range(chain.order + 1)
    ]
    arrays, last, outputs, timed, mixed = _over_time(recorder, scan, later, window, moving, used, jax.tree.leaves(init))
    name_of = lambda name: name  # noqa: E731
    _record(recorder, later.frame, chain, name_of, shapes, (plate,), arrays, timed)  # type: ignore[attr-defined]
    marked = lambda leaf, is_mixed: _mark(leaf, poison) if is_mixed else leaf  # noqa: E731
    stacked = _stack_outputs(early, outputs, mixed["outputs"], length, marked)
    end = [marked(leaf, True) if known is None else known[length] for leaf, known in zip(last, carried, strict=True)]
    _reply(msg, length, jax.tree.unflatten(treedef, end), stacked)


def _samples(frame):
    return [(name, one) for name, one in frame.messages.items() if one["type"] == "sample"]


def _record(recorder, frame, chain, rename, shapes, plates, arrays=None, timed=None) -> None:
    """Add the sites of one run of the step under their own names."""
    for name, one in frame.messages.items():
        if one["type"] == "param":
            if name not in recorder.messages:
                recorder.add(name, one)
            continue
        states = jnp.size(one["value"]) if name in frame.latents else 0
        shape = shapes[rename(name)].shape if name in frame.latents else None
        site = static_site(name, one, frame, states, shape)
        labels = None if site.labels is None else rename(site.labels)
        site = dataclasses.replace(site, name=rename(name), plates=plates + site.plates, labels=labels, is_scanned=True)
        if name in chain.hidden:
            site = dataclasses.replace(site, kind="integrated", shape=shapes[rename(name)].shape)
        mine = site_arrays(name, one, frame) if arrays is None else arrays[name]
        recorder.add(site.name, one)
        recorder.scanned[site.name] = mine, site
        if timed is not None:
            recorder.timed[site.name] = timed[name]


def _free_carry(run, scan: Scan, leaves, xs, length, answer) -> list:
    """The latent-free leaves of the carry before every step, and after the last: ``(length + 1, ...)``, others None."""
    numbers = [number for number, free in enumerate(scan.free) if free]
    if not numbers:
        return [None] * len(leaves)

    def advance(free, data):
        filled = list(leaves)
        for number, leaf in zip(numbers, free, strict=True):
            filled[number] = leaf
        out, _, _ = run(filled, data, answer)
        return [out[number] for number in numbers]

    start = [leaves[number] for number in numbers]
    for _ in range(3):  # an outer latent may give a leaf an axis that its initial value lacks
        out = jax.eval_shape(advance, start, _slice(xs, 0))
        start = [
            jnp.broadcast_to(leaf, jnp.broadcast_shapes(leaf.shape, new.shape)).astype(new.dtype)
            for leaf, new in zip(start, out, strict=True)
        ]
    closed = jax.make_jaxpr(advance)(start, _slice(xs, 0))
    filled: list = [None] * len(leaves)
    for group in _connected(numbers, scan.parents):
        positions = [numbers.index(number) for number in group]
        recursive = any(scan.parents[number] for number in group)
        found = _recursion(closed, [start[p] for p in positions], positions, len(start), xs, length, recursive)
        for number, values in zip(group, found, strict=True):
            filled[number] = values
    return filled


def _connected(numbers: list[int], parents) -> list[list[int]]:
    """Leaves of the carry that are computed from each other, in groups."""
    groups = [{number} for number in numbers]
    for number in numbers:
        joined = [group for group in groups if number in group or group & parents[number]]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    return [sorted(group) for group in groups]


def _recursion(closed: ClosedJaxpr, start, positions, carried: int, xs, length: int, recursive: bool) -> list:
    """Values of some leaves of the carry before every step and after the last one.

    Only the data that they read enter, so that what they depend on can be seen.
    """
    pruned = prune(closed, positions)
    used = {id(atom) for equation in pruned.jaxpr.eqns for atom in equation.invars} | set(map(id, pruned.jaxpr.outvars))
    flat = jax.tree.leaves(xs)
    reads = [number for number in range(len(flat)) if id(pruned.jaxpr.invars[carried + number]) in used]
    function = jaxpr_as_fun(pruned)
    blank = [jnp.zeros(aval.shape, aval.dtype) for aval in closed.in_avals]

    def advance(carry, data):
        filled = list(blank)
        for position, leaf in zip(positions, carry, strict=True):
            filled[position] = leaf
        for number, leaf in zip(reads, data, strict=True):
            filled[carried + number] = leaf
        return [jnp.asarray(out) for out in function(*filled)]  # constants come out as Python numbers

    data = [flat[number] for number in reads]
    if recursive:
        end, before = jax.lax.scan(lambda carry, one: (advance(carry, one), carry), start, data, length=length)
        return [jnp.concatenate([b, e[None]]) for b, e in zip(before, end, strict=True)]
    if data:
        after = jax.vmap(lambda *one: advance(start, one))(*data)
    else:
        after = [jnp.broadcast_to(out, (length, *out.shape)) for out in advance(start, ())]
    return [jnp.concatenate([leaf[None], new]) for leaf, new in zip(start, after, strict=True)]


def _over_time(recorder, scan: Scan, later, window, moving, used, init):
    """``vmap`` of ``later`` over time; outputs that do not vary over time keep no time axis."""
    one = jax.tree.map(lambda leaf: leaf[0], (window, moving))
    closed, shape = jax.make_jaxpr(later, return_shape=True)(*one, used, init)
    length = scan.chain.length
    conditions = _conditions(closed.jaxpr)
    closed = _settle(closed, conditions, scan.settled)
    flat = jax.tree.leaves((window, moving))
    labels = (("time", ""),) * len(jax.tree.leaves(window)) + tuple(("moving", name) for name in sorted(moving))
    labels += tuple(("latent", name) for name in sorted(used))
    labels += (("latent", "of steps too long ago"),) * len(init)
    dependence = Dependence(closed, labels)
    found = [dependence.of_output(number) for number in range(len(closed.jaxpr.outvars))]
    varies = [any(kind in ("time", "moving") for kind, _ in labels) for labels in found]
    recorder.conditions.append([_all_steps(closed, dependence, variable, flat) for variable in conditions])
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


def _conditions(jaxpr) -> list:
    """Scalar conditions of every ``where``."""
    found: list = []
    for equation in jaxpr.eqns:
        is_where = equation.primitive.name == "select_n" or equation.params.get("name") == "_where"
        condition = equation.invars[0] if is_where else None
        if condition is not None and not isinstance(condition, Literal) and condition.aval.shape == ():
            if condition.aval.dtype == bool and not any(condition is known for known in found):
                found.append(condition)
    return found


def _settle(closed: ClosedJaxpr, conditions, settled: Mapping[int, bool]) -> ClosedJaxpr:
    """Put in the value of conditions that are the same in all steps, so that what they decide need not vary."""
    if not settled:
        return closed
    values = {id(conditions[number]): value for number, value in settled.items()}

    def settle(equation):
        atoms = [
            Literal(np.bool_(values[id(atom)]), atom.aval) if id(atom) in values else atom for atom in equation.invars
        ]
        return equation.replace(invars=atoms)

    jaxpr = closed.jaxpr
    return closed.replace(jaxpr=jaxpr.replace(eqns=[settle(equation) for equation in jaxpr.eqns]))


def _all_steps(closed: ClosedJaxpr, dependence: Dependence, condition, flat):
    """A condition at all later steps, or None if it depends on latents or not on time."""
    if dependence.of_atom(condition) != {("time", "")}:
        return None
    names = closed.jaxpr.debug_info._replace(result_paths=None)
    alone = closed.replace(jaxpr=closed.jaxpr.replace(outvars=[condition], debug_info=names))
    function = jaxpr_as_fun(prune(alone, [0]))
    atoms = [jnp.zeros(aval.shape, aval.dtype) for aval in closed.in_avals[len(flat) :]]
    return jax.vmap(lambda *slices: function(*slices, *atoms)[0])(*flat)


def _with_time(outputs, varies, length):
    flat, treedef = jax.tree.flatten(outputs)
    spread = [
        leaf if moving else jnp.broadcast_to(leaf, (length, *leaf.shape))
        for leaf, moving in zip(flat, varies, strict=True)
    ]
    return jax.tree.unflatten(treedef, spread)


def _mark(leaf, poison):
    """Zeros that depend on the poison: whoever reads them is found out and refused."""
    zeros = jnp.zeros(leaf.shape, leaf.dtype)
    return zeros | (poison > 0) if leaf.dtype == bool else zeros + poison.astype(leaf.dtype)


def _stack_outputs(early, outputs, mixed, length, marked):
    flat, treedef = jax.tree.flatten(outputs)
    firsts = [jax.tree.leaves(one) for one in early]
    stacked = []
    for number, (leaf, is_mixed) in enumerate(zip(flat, mixed, strict=True)):
        if is_mixed:
            slice_shape = jnp.shape(firsts[0][number]) if firsts else leaf.shape[1:]
            stacked.append(marked(jnp.zeros((length, *slice_shape), leaf.dtype), True))
        else:
            stacked.append(jnp.concatenate([*(one[number][None] for one in firsts), leaf]))
    return jax.tree.unflatten(treedef, stacked)

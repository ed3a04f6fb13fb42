"""The evaluation of a ``scan``: its first steps one by one, all later steps at once.

What of the carry depends on latents is rebuilt, at every later step, from latents of the previous steps, which have
axes of their own; the rest (counters, previous observations) is computed for all steps beforehand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from emppl.jaxpr.prune import inputs_read, prune
from emppl.names import first, lagged, latent_of
from emppl.trace.record import Plate
from emppl.trace.scan import ScanCarry, reply, run_step, samples_of, scan_arguments, slice_at
from emppl.trace.scan_later import over_time
from emppl.trace.site_messages import site_arrays, static_site


def evaluate_scan(
    recorder, msg, scan: ScanCarry, plate: Plate, shapes: Mapping[str, Any], atoms: Mapping[str, Any], poison
):
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
    step, init, xs, length = scan_arguments(recorder, msg)
    chain, treedef = scan.chain, jax.tree.structure(init)
    outer = recorder.answer
    depths = {**chain.depths, **chain.hidden}

    def run(leaves, data, answer):
        """One step: carry out, outputs, and the arrays of its sites."""
        with recorder.frame(answer) as frame:
            carry, outputs = run_step(step, jax.tree.unflatten(treedef, leaves), data)
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

        leaves, outputs, frame = run(leaves, slice_at(xs, number), answer_first)
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
        arrays = {name: site_arrays(name, one, frame) for name, one in samples_of(frame)}
        return arrays, leaves, outputs

    def cut(lag, leaf):
        return None if leaf is None else leaf[chain.order - lag : length - lag]

    window = [
        ([cut(lag, leaf) for leaf in carried], jax.tree.map(lambda leaf, lag=lag: cut(lag, leaf), xs))
        for lag in range(chain.order + 1)
    ]
    arrays, last, outputs, timed, mixed = over_time(recorder, scan, later, window, moving, used, jax.tree.leaves(init))
    name_of = lambda name: name  # noqa: E731
    _record(recorder, later.frame, chain, name_of, shapes, (plate,), arrays, timed)  # type: ignore[attr-defined]
    marked = lambda leaf, is_mixed: _mark(leaf, poison) if is_mixed else leaf  # noqa: E731
    stacked = _stack_outputs(early, outputs, mixed["outputs"], length, marked)
    end = [marked(leaf, True) if known is None else known[length] for leaf, known in zip(last, carried, strict=True)]
    reply(msg, length, jax.tree.unflatten(treedef, end), stacked)


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


def _free_carry(run, scan: ScanCarry, leaves, xs, length, answer) -> list:
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
        out = jax.eval_shape(advance, start, slice_at(xs, 0))
        start = [
            jnp.broadcast_to(leaf, jnp.broadcast_shapes(leaf.shape, new.shape)).astype(new.dtype)
            for leaf, new in zip(start, out, strict=True)
        ]
    closed = jax.make_jaxpr(advance)(start, slice_at(xs, 0))
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
    flat = jax.tree.leaves(xs)
    reads = [number - carried for number in inputs_read(pruned) if number >= carried]
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

"""The evaluation of a ``scan``: its first steps one by one, all later steps at once.

What of the carry depends on latents is rebuilt, at every later step, from latents of the previous steps, which have
axes of their own; the rest (counters, previous observations) is computed for all steps beforehand.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from emppl.jaxpr.prune import inputs_read, prune
from emppl.names import first, lagged, latent_of
from emppl.trace.handlers import Answer, Frame, Message, Recorder
from emppl.trace.record import Plate, Scan, Site, SiteArrays
from emppl.trace.scan import ScanCall, ScanCarry
from emppl.trace.scan_later import LaterSteps, over_time
from emppl.trace.site_messages import site_arrays, static_site


def evaluate_scan(
    recorder: Recorder,
    msg: Message,
    carry: ScanCarry,
    plate: Plate,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    atoms: Mapping[str, jax.Array],
    poison: jax.Array,
) -> tuple[dict[str, tuple[Site, SiteArrays]], LaterSteps]:
    """Answer a ``scan``: its sites, each with its arrays, and all later steps.

    Args:
        recorder: the recorder; the sites' messages are added to it.
        msg: the message of the ``scan``.
        carry: what discovery found.
        plate: the time axis.
        shapes: shape of every unobserved site's value.
        atoms: values of every latent axis.
        poison: a zero that marks outputs of the scan which depend on its latents.
    """
    call, scan, outside = ScanCall(recorder, msg), carry.scan, recorder.frame.answer
    depths = {**scan.depths, **scan.hidden}
    sites: dict[str, tuple[Site, SiteArrays]] = {}

    def answer_with(atoms: Mapping[str, jax.Array], axis_of: Callable[[str], str]) -> Answer:
        return lambda msg: atoms[axis_of(msg["name"])] if msg["name"] in depths else outside(msg)

    def back(lag: int) -> Callable[[str], str]:
        # A latent that the carry does not hold so far back is answered with its present axis: nothing reads it.
        return lambda name: lagged(name, lag if lag <= depths[name] else 0)

    def record(frame: Frame, rename: Callable[[str], str], plates: tuple[Plate, ...], arrays: Mapping) -> None:
        """Add the sites of one run of the step under their own names."""
        for name, message in frame.messages.items():
            if message["type"] == "param":
                if name not in recorder.frame.messages:
                    recorder.frame.add(name, message)
                continue
            site = _scanned_site(name, frame, scan, rename, shapes)
            recorder.frame.add(site.name, message)
            sites[site.name] = dataclasses.replace(site, plates=plates + site.plates), arrays[name]

    # Of a continuous latent every step has atoms of its own: they move with time, as data do.
    moving = {name: value for name, value in atoms.items() if latent_of(name) in scan.hidden}
    some_step = {**atoms, **{name: value[0] for name, value in moving.items()}}
    carried = _free_carry(call, carry, answer_with(some_step, back(0)))
    leaves, early = call.init, []
    for step in range(scan.order):
        name_of = functools.partial(first, step=step)
        leaves = _overlay(leaves, [known if known is None else known[step] for known in carried])
        leaves, outputs, frame = call.run(leaves, call.data_at(step), answer_with(atoms, name_of))
        early.append(outputs)
        record(frame, name_of, (), {name: site_arrays(name, frame) for name in frame.samples})
    used = {name: value for name, value in atoms.items() if latent_of(name) in scan.depths}
    frames = []

    def later(
        window: list[Any], moving: dict[str, jax.Array], used: dict[str, jax.Array], leaves: list[jax.Array]
    ) -> tuple[dict[str, SiteArrays], list[jax.Array], Any]:
        """One later step, and before it the previous ones, which rebuild the carry from anything."""
        for lag in range(scan.order, -1, -1):
            known, data = window[lag]
            answer = answer_with({**used, **moving}, back(lag))
            leaves, outputs, frame = call.run(_overlay(leaves, known), data, answer)
        frames.append(frame)
        return {name: site_arrays(name, frame) for name in frame.samples}, leaves, outputs

    window = [
        jax.tree.map(lambda leaf, lag=lag: leaf[scan.order - lag : call.length - lag], (carried, call.xs))
        for lag in range(scan.order + 1)
    ]
    steps = over_time(carry, later, window, moving, used, call.init)
    record(frames[-1], str, (plate,), steps.arrays)
    end = [
        _mark(leaf, poison) if known is None else known[call.length]
        for leaf, known in zip(steps.carry, carried, strict=True)
    ]
    call.reply(end, _stack_outputs(early, steps.outputs, steps.reads_latents, poison))
    return sites, steps


def _scanned_site(
    name: str, frame: Frame, scan: Scan, rename: Callable[[str], str], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> Site:
    """Static facts of a site in one run of the step."""
    is_latent = name in frame.latents
    shape = shapes[rename(name)].shape if is_latent or name in scan.hidden else None
    site = static_site(name, frame, jnp.size(frame.messages[name]["value"]) if is_latent else 0, shape)
    kind = "integrated" if name in scan.hidden else site.kind
    labels = None if site.labels is None else rename(site.labels)
    return dataclasses.replace(site, name=rename(name), kind=kind, labels=labels, is_scanned=True)


def _overlay(leaves: list[jax.Array], known: list[jax.Array | None]) -> list[jax.Array]:
    """The leaves, with those in the place of some that are known."""
    return [leaf if value is None else value for leaf, value in zip(leaves, known, strict=True)]


def _free_carry(call: ScanCall, carry: ScanCarry, answer: Answer) -> list[jax.Array | None]:
    """The latent-free leaves of the carry before every step, and after the last: ``(length + 1, ...)``, others None."""
    numbers = [number for number, free in enumerate(carry.free) if free]
    filled: list[Any] = [None] * len(call.init)
    if not numbers:
        return filled

    def advance(free: list[jax.Array], data: Any) -> list[jax.Array]:
        known = dict(zip(numbers, free, strict=True))
        leaves, _, _ = call.run([known.get(number, leaf) for number, leaf in enumerate(call.init)], data, answer)
        return [leaves[number] for number in numbers]

    start = [call.init[number] for number in numbers]
    for _ in range(3):  # an outer latent may give a leaf an axis that its initial value lacks
        out = jax.eval_shape(advance, start, call.data_at(0))
        start = [
            jnp.broadcast_to(leaf, jnp.broadcast_shapes(leaf.shape, new.shape)).astype(new.dtype)
            for leaf, new in zip(start, out, strict=True)
        ]
    closed = jax.make_jaxpr(advance)(start, call.data_at(0))
    for group in _connected(numbers, carry.parents):
        positions = [numbers.index(number) for number in group]
        is_recursive = any(carry.parents[number] for number in group)
        values = _recursion(closed, start, positions, call, is_recursive)
        for number, value in zip(group, values, strict=True):
            filled[number] = value
    return filled


def _connected(numbers: list[int], parents: tuple[frozenset[int], ...]) -> list[list[int]]:
    """Leaves of the carry that are computed from each other, in groups."""
    groups = [{number} for number in numbers]
    for number in numbers:
        joined = [group for group in groups if number in group or group & parents[number]]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    return [sorted(group) for group in groups]


def _recursion(
    closed: ClosedJaxpr, start: list[jax.Array], positions: list[int], call: ScanCall, is_recursive: bool
) -> list[jax.Array]:
    """Values of some leaves of the carry before every step and after the last one.

    Only the data that they read enter, so that what they depend on can be seen.

    Args:
        closed: one step of all latent-free leaves.
        start: these leaves before the first step.
        positions: of the leaves among them.
        call: the call of ``scan``.
        is_recursive: whether a step reads the leaves of the step before.
    """
    pruned = prune(closed, positions)
    flat = jax.tree.leaves(call.xs)
    reads = [number - len(start) for number in inputs_read(pruned) if number >= len(start)]
    function = jaxpr_as_fun(pruned)
    blank = [jnp.zeros(aval.shape, aval.dtype) for aval in closed.in_avals]

    def advance(leaves: Any, data: Any) -> list[jax.Array]:
        filled = list(blank)
        for position, leaf in zip(positions, leaves, strict=True):
            filled[position] = leaf
        for number, leaf in zip(reads, data, strict=True):
            filled[len(start) + number] = leaf
        return [jnp.asarray(out) for out in function(*filled)]  # constants come out as Python numbers

    begin, data = [start[position] for position in positions], [flat[number] for number in reads]
    if is_recursive:
        end, before = jax.lax.scan(
            lambda leaves, data: (advance(leaves, data), leaves), begin, data, length=call.length
        )
        return [jnp.concatenate([b, e[None]]) for b, e in zip(before, end, strict=True)]
    if data:
        after = jax.vmap(lambda *data: advance(begin, data))(*data)
    else:
        after = [jnp.broadcast_to(out, (call.length, *out.shape)) for out in advance(begin, ())]
    return [jnp.concatenate([leaf[None], new]) for leaf, new in zip(begin, after, strict=True)]


def _mark(leaf: jax.Array | jax.ShapeDtypeStruct, poison: jax.Array) -> jax.Array:
    """Zeros that depend on the poison, so that a site which reads them can be told and refused."""
    zeros = jnp.zeros(leaf.shape, leaf.dtype)
    return zeros | (poison > 0) if leaf.dtype == bool else zeros + poison.astype(leaf.dtype)


def _stack_outputs(early: list[Any], outputs: Any, reads_latents: list[bool], poison: jax.Array) -> Any:
    """Outputs of the first steps before those of the later ones; zeros for those that depend on latents."""
    leaves, treedef = jax.tree.flatten(outputs)
    firsts = [jax.tree.leaves(step) for step in early]
    stacked = []
    for number, (leaf, is_marked) in enumerate(zip(leaves, reads_latents, strict=True)):
        if is_marked:
            slice_shape = jnp.shape(firsts[0][number]) if firsts else leaf.shape[1:]
            shape = (len(firsts) + len(leaf), *slice_shape)
            stacked.append(_mark(jax.ShapeDtypeStruct(shape, leaf.dtype), poison))
        else:
            stacked.append(jnp.concatenate([*(step[number][None] for step in firsts), leaf]))
    return jax.tree.unflatten(treedef, stacked)

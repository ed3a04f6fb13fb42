"""NumPyro's ``scan``, answered by the recorder: what one step is, and what its carry depends on.

A step is a function of the carry and of one slice of the data. Reading its jaxpr tells which part of the carry depends
on latents, and how many steps back.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpyro

from emppl.errors import ModelError
from emppl.jaxpr.depends import Dependence
from emppl.names import first, time_axis
from emppl.trace.record import Scan
from emppl.trace.site_messages import site_arrays


@dataclasses.dataclass(frozen=True)
class ScanCarry:
    """What discovery finds out about one ``scan``.

    Attributes:
        chain: its latents.
        free: for every leaf of the carry, whether it depends on no latent of the scan.
        parents: for every leaf of the carry, the leaves from which it is computed.
        settled: conditions of a ``where`` that have one value in all later steps (``t == 0``), by number.
    """

    chain: Scan
    free: tuple[bool, ...]
    parents: tuple[frozenset[int], ...]
    settled: Mapping[int, bool] = dataclasses.field(default_factory=dict)


def discover_scan(recorder, msg) -> None:
    """Run the first step, and find out what the carry depends on."""
    step, init, xs, length = scan_arguments(recorder, msg)
    leaves, treedef = jax.tree.flatten(init)
    with recorder.frame(recorder.answer) as frame:
        carry, outputs = run_step(step, init, slice_at(xs, 0))
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
            out = jax.tree.leaves(run_step(step, jax.tree.unflatten(treedef, leaves), data)[0])
        return out, [site_arrays(name, one, again) for name, one in samples_of(again)]

    closed = jax.make_jaxpr(graph)(leaves, slice_at(xs, 0), values)
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
    recorder.scans.append(ScanCarry(Scan(time, length - order, order, discrete, continuous), free, parents))
    for name, one in frame.messages.items():
        if one["type"] == "param":
            recorder.add(name, one)
            continue
        for step_name in [first(name, number) for number in range(order)] + [name]:
            recorder.add(step_name, one)
            if name in frame.latents:
                recorder.latents[step_name] = name
    stacked = jax.tree.map(lambda leaf: jnp.zeros((length, *jnp.shape(leaf)), jnp.result_type(leaf)), outputs)
    reply(msg, length, carry, stacked)


def scan_arguments(recorder, msg):
    """Step, initial carry, data and length of a ``scan``, or why they cannot be used."""
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


def run_step(step, carry, data):
    """Carry and outputs of one step."""
    # A seed of its own: the outer one would keep a key that belongs to an inner trace.
    with numpyro.handlers.seed(rng_seed=jax.random.key(0)):
        carry, outputs = step(carry, data)
    return jax.tree.map(jnp.asarray, carry), outputs  # a carry may hold Python numbers


def slice_at(xs, number):
    """The data of one step."""
    return jax.tree.map(lambda leaf: leaf[number], xs)


def _names(frame) -> str:
    return ", ".join(map(repr, frame.messages)) or "none"


def reply(msg, length, carry, outputs) -> None:
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


def samples_of(frame):
    """Sample sites of one run of the step."""
    return [(name, one) for name, one in frame.messages.items() if one["type"] == "sample"]

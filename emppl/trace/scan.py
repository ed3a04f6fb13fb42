"""NumPyro's ``scan``, answered by the recorder: what one step is, and what its carry depends on.

A step is a function of the carry and of one slice of the data. Reading its jaxpr tells which part of the carry depends
on latents, and how many steps back.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpyro

from emppl.errors import ModelError
from emppl.jaxpr.depends import Dependence
from emppl.names import first, time_axis
from emppl.trace.handlers import Answer, Frame, Message, Recorder
from emppl.trace.record import Scan
from emppl.trace.site_messages import site_arrays


@dataclasses.dataclass(frozen=True)
class ScanCarry:
    """What discovery finds out about one ``scan``.

    Attributes:
        scan: its latents.
        free: for every leaf of the carry, whether it depends on no latent of the scan.
        parents: for every leaf of the carry, the leaves from which it is computed.
        settled: conditions of a ``where`` that have one value in all later steps (``t == 0``), by number.
    """

    scan: Scan
    free: tuple[bool, ...]
    parents: tuple[frozenset[int], ...]
    settled: Mapping[int, bool] = dataclasses.field(default_factory=dict)


class GivenSites:
    """Values of sites inside a scan from handlers around it (``condition``, ``substitute``, ``replay``).

    Args:
        handlers: what these left with the message of the scan, the innermost one first.
        length: number of steps.

    Attributes:
        series: by site, values with one entry for every step.
    """

    def __init__(self, handlers: Iterable[tuple[str, Any]], length: int):
        self._length = length
        self._values: dict[str, jax.Array] = {}
        self._replayed: set[str] = set()
        for kind, values in handlers:
            if not isinstance(values, Mapping):
                raise ModelError(
                    f"A {kind} handler with a function reaches into the model's scan. Give it the values: "
                    f"numpyro.handlers.{kind}(data={{'y': y}}), or observe them inside the step, with obs=."
                )
            if kind == "replay":  # of a trace, for sites that nothing else gives a value
                sites = (site for site in values.values() if site["type"] == "sample" and not site["is_observed"])
                values = {site["name"]: site["value"] for site in sites if site["name"] not in self._values}
                self._replayed |= values.keys()
            else:
                self._replayed -= values.keys()
            self._values |= {name: jnp.asarray(value) for name, value in values.items()}
        self.series = {name: v for name, v in self._values.items() if v.ndim and v.shape[0] == length}

    def around(self, step: Callable) -> Callable:
        """A step that takes the entries of :attr:`series` beside its own data."""

        def given(carry: Any, data: Any) -> Any:
            own, series = data
            with _Giving({**self._values, **series}, self._replayed):
                return step(carry, own)

        return given

    def check(self, frame: Frame) -> None:
        """Refuse values that NumPyro would not read as one for every step, or one for all.

        Args:
            frame: one step of the model as it is written.
        """
        for name, msg in frame.samples.items():
            if name not in self._values:
                continue
            value, rank = self._values[name], len(msg["fn"].shape()) + len(msg["kwargs"].get("sample_shape") or ())
            if value.ndim != rank + (name in self.series):
                raise ModelError(
                    f"Site {name!r} inside the scan is given an array of shape {value.shape} by a handler around it, "
                    f"which is no value for each of {self._length} steps. Fit the steps that have data, scan(step, "
                    "init, xs, length=len(y)), and forecast after the fit (numpyro.infer.Predictive with "
                    "result.params)."
                )


class _Giving(numpyro.primitives.Messenger):
    """Gives sites their values; handlers around the scan, which hold those of all steps, then leave them alone.

    Args:
        values: by site.
        replayed: those of them that do not replace data.
    """

    def __init__(self, values: Mapping[str, jax.Array], replayed: Set[str]):
        super().__init__()
        self.values = values
        self.replayed = replayed

    def process_message(self, msg: Message) -> None:
        """Give one site its value."""
        if msg["type"] == "sample":
            msg["_control_flow_done"] = True
            if msg["name"] in self.values and not (msg.get("is_observed") and msg["name"] in self.replayed):
                msg["value"], msg["is_observed"] = self.values[msg["name"]], True


class ScanCall:
    """A model's call of ``scan``, read from its message: the step, leaves of the first carry, and data of all steps.

    Raises:
        ModelError: a call that cannot be used, and why.
    """

    def __init__(self, recorder: Recorder, msg: Message):
        self.recorder, self.msg = recorder, msg
        self.step, init, xs, length, reverse = msg["args"]
        if reverse:
            raise ModelError(
                "The model scans in reverse. Scan forward over reversed data instead: scan(step, init, xs[::-1])."
            )
        init, self.xs = jax.tree.map(jnp.asarray, (init, xs))
        self.init, self.treedef = jax.tree.flatten(init)
        lengths = [leaf.shape[0] for leaf in jax.tree.leaves(self.xs)]
        self.length: int = lengths[0] if length is None else length
        if any(steps != self.length for steps in lengths):
            raise ModelError(f"The scan has {self.length} steps, but its data have {lengths}.")
        self.given = GivenSites(msg["kwargs"].get("substitute_stack", ()), self.length)
        if msg["kwargs"].get("substitute_stack"):
            self.step, self.xs = self.given.around(self.step), (self.xs, self.given.series)

    def data_at(self, step: int) -> Any:
        """The data of one step."""
        return jax.tree.map(lambda leaf: leaf[step], self.xs)

    def run(self, leaves: list[Any], data: Any, answer: Answer) -> tuple[list[jax.Array], Any, Frame]:
        """Run one step from the leaves of its carry: leaves of the next one, outputs, and what the step recorded."""
        # A seed of its own: the outer one would keep a key that belongs to an inner trace.
        with self.recorder.step(answer) as frame, numpyro.handlers.seed(rng_seed=jax.random.key(0)):
            carry, outputs = self.step(jax.tree.unflatten(self.treedef, leaves), data)
        carried, treedef = jax.tree.flatten(carry)
        if str(treedef) != str(self.treedef):
            raise ModelError(
                f"The scan's step takes a carry of structure {self.treedef} and returns {treedef}. Return the carry in "
                "the form in which it comes in: (new_carry, outputs)."
            )
        return list(map(jnp.asarray, carried)), outputs, frame  # a carry may hold Python numbers

    def reply(self, leaves: list[Any], outputs: Any) -> None:
        """Answer with the value that numpyro's ``scan`` unpacks: no messages are left for it to send."""
        carry = jax.tree.unflatten(self.treedef, leaves)
        self.msg["value"] = (self.length, None, carry), (types.SimpleNamespace(trace={}), outputs)


def discover_scan(recorder: Recorder, msg: Message) -> ScanCarry:
    """Run the first step in the place of all, and find out what the carry depends on."""
    call = ScanCall(recorder, msg)
    leaves, outputs, frame = call.run(call.init, call.data_at(0), recorder.frame.answer)
    call.given.check(frame)
    for name in frame.messages:
        if "@" in name:
            raise ModelError(f"Rename site {name!r}: emppl marks the steps of a scan with '@'.")
    unobserved = [name for name, message in frame.samples.items() if not message.get("is_observed")]
    latents = [*frame.latents, *(name for name in unobserved if name not in frame.latents)]
    carried, read = _step_dependence(call, frame, latents)
    parents = tuple(frozenset(int(label) for kind, label in labels if kind == "carry") for labels in carried)
    own = [sorted(label for kind, label in labels if kind == "latent") for labels in carried]
    depths, free = _depths(own, parents, latents, read)
    order = max(depths.values(), default=0)
    if call.length <= order:
        raise ModelError(
            f"The scan with sites {_listed(frame.messages)} has {call.length} steps, but its carry reaches {order} "
            f"steps back: it needs at least {order + 1}. Write so short a chain as a Python loop."
        )
    for name, message in frame.messages.items():
        if message["type"] == "param":
            recorder.frame.add(name, message)
            continue
        names = [*(first(name, step) for step in range(order)), name]
        for step_name in names:
            recorder.frame.add(step_name, message)
        if name in frame.latents:
            recorder.frame.latents.extend(names)
    stacked = jax.tree.map(lambda leaf: jnp.zeros((call.length, *jnp.shape(leaf)), jnp.result_type(leaf)), outputs)
    call.reply(leaves, stacked)
    time = time_axis(next(iter(frame.messages), "scan"))
    discrete = {name: depth for name, depth in depths.items() if name in frame.latents}
    continuous = {name: depth for name, depth in depths.items() if name not in frame.latents}
    return ScanCarry(Scan(time, call.length - order, order, discrete, continuous), free, parents)


def steps_one_by_one(recorder: Recorder, msg: Message, order: int) -> list[Frame]:
    """What the first steps of a scan record, up to one whose carry holds latents of all earlier steps it reaches."""
    call, frames = ScanCall(recorder, msg), []
    leaves = call.init
    for step in range(order + 1):
        leaves, _, frame = call.run(leaves, call.data_at(step), recorder.frame.answer)
        frames.append(frame)
    return frames


def _step_dependence(call: ScanCall, frame: Frame, latents: list[str]) -> tuple[list[frozenset[Any]], set[int]]:
    """What every leaf of the carry depends on, and which leaves the sites of a step depend on."""
    values = {name: jnp.asarray(frame.messages[name]["value"]) for name in latents}

    def graph(leaves: list[Any], data: Any, values: dict[str, Any]) -> Any:
        same = {name: message["value"] for name, message in frame.messages.items()} | values
        carried, _, again = call.run(leaves, data, lambda msg: same[msg["name"]])
        return carried, [site_arrays(name, again) for name in again.samples]

    closed = jax.make_jaxpr(graph)(call.init, call.data_at(0), values)
    inputs = [("carry", str(number)) for number in range(len(call.init))]
    inputs += [("data", "")] * len(jax.tree.leaves(call.xs)) + [("latent", name) for name in sorted(values)]
    dependence = Dependence(closed, tuple(inputs))
    outputs = [dependence.of_output(number) for number in range(len(closed.jaxpr.outvars))]
    carried, sites = outputs[: len(call.init)], outputs[len(call.init) :]
    return carried, {int(label) for labels in sites for kind, label in labels if kind == "carry"}


def _depths(
    own: list[list[str]], parents: tuple[frozenset[int], ...], latents: list[str], read: set[int]
) -> tuple[dict[str, int], tuple[bool, ...]]:
    """How many steps back every latent is read through the carry, and which leaves hold none.

    Args:
        own: for every leaf of the carry, the latents of the same step from which it is computed.
        parents: for every leaf, the leaves of the carry before from which it is computed.
        latents: the latents of the step.
        read: leaves that a site depends on; what no site reads may hold anything.
    """
    depends = {number for number, names in enumerate(own) if names}
    while more := {n for n in range(len(own)) if n not in depends and depends & parents[n]}:
        depends |= more
    depths = dict.fromkeys(latents, 0)

    def descend(leaf: int, lag: int, path: frozenset[int]) -> None:
        if leaf in path:
            held = _listed(sorted({name for leaf in path for name in own[leaf]}), "latents")
            raise ModelError(
                f"The carry of the scan accumulates latents: its leaf number {leaf + 1} is computed from itself and "
                f"from {held}, so that it depends on the states of all earlier steps. The carry may hold "
                "the states of a fixed number of previous steps: carry those, and expand the state where more memory "
                "is needed (a duration, say: one state per value of the counter)."
            )
        for name in own[leaf]:
            depths[name] = max(depths[name], lag)
        for parent in depends & parents[leaf]:
            descend(parent, lag + 1, path | {leaf})

    for leaf in depends & read:
        descend(leaf, 1, frozenset())
    return depths, tuple(number not in depends for number in range(len(own)))


def _listed(names: Iterable[str], nothing: str = "none") -> str:
    return ", ".join(map(repr, names)) or nothing

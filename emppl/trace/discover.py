"""What a model holds: one abstract run finds its sites, plates, scans and parameters; each then gets its axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions.distribution import Unit

from emppl.errors import ModelError, NeedsValues
from emppl.inputs.arguments import Skeleton
from emppl.inputs.trees import ParamTree
from emppl.names import first, lagged, latent_of
from emppl.trace.as_written import Written, read_cells, site_values
from emppl.trace.distributions import is_discrete, support_values, unwrap
from emppl.trace.handlers import Frame, Message, Recorder, run_model
from emppl.trace.record import AtomAxis, Plate
from emppl.trace.scan import ScanCarry, discover_scan, steps_one_by_one
from emppl.trace.site_messages import plates_of


@dataclasses.dataclass(frozen=True)
class Discovery:
    """What one abstract run of a model finds.

    Attributes:
        messages: by site, in model order.
        supports: by discrete latent, the values it can take.
        plates: every plate by name.
        scans: in the order of the model.
        values: shape of the value of every param and unobserved site.
        written: arrays of sites that depend on discrete latents, as the model is written.
        trees: params that are trees of arrays.
        homes: by site, plates of its latents that it lies in though it does not say so.
    """

    messages: dict[str, Message]
    supports: dict[str, np.ndarray]
    plates: dict[str, Plate]
    scans: list[ScanCarry]
    values: dict[str, jax.ShapeDtypeStruct]
    written: Written
    trees: dict[str, ParamTree]
    homes: dict[str, tuple[Plate, ...]]


def discover(model: Callable, shapes: Sequence[jax.ShapeDtypeStruct], skeleton: Skeleton) -> Discovery:
    """Run a model for data of given shapes, without computing anything.

    Raises:
        ModelError: a model that cannot be run, or that reads a discrete latent across the cells of its plate.
    """
    facts: dict[str, Any] = {}
    runs: list[tuple[Frame, dict[str, str]]] = []

    def run(data: list[jax.Array], zero: jax.Array) -> tuple[dict[str, jax.Array], list[Any]]:
        recorder, facts["scans"] = run_once(model, data, skeleton, jax.random.key(0), zero, runs)
        facts["trees"] = {name: _what_is_left(name, trees) for name, trees in recorder.frame.trees.items()}
        facts["messages"] = messages = _without_replaced(recorder.frame.messages, recorder.frame.trees, facts["trees"])
        facts["supports"] = {name: support_values(name, messages[name]["fn"]) for name in recorder.frame.latents}
        facts["plates"] = _plates(recorder)
        values = {name: jnp.asarray(msg["value"]) for name, msg in messages.items() if not msg.get("is_observed")}
        scanned = {name for _, names in runs for name in names.values()}
        runs.append((recorder.frame, {name: name for name in recorder.frame.samples if name not in scanned}))
        several = {name for name, support in facts["supports"].items() if len(support) > 1}
        return values, [site_values(frame, names, several) for frame, names in runs] if several else []

    closed, (values, arrays) = jax.make_jaxpr(run, return_shape=True)(shapes, jnp.zeros((), jnp.result_type(int)))
    written, homes = read_cells(closed, (values, arrays), runs)
    plates = {name: tuple(facts["plates"][plate] for plate in home.values()) for name, home in homes.items()}
    for name, around in plates.items():
        _check_homes(name, facts["messages"], around)
    return Discovery(values=values, written=written, homes=plates, **facts)


def _check_homes(name: str, messages: Mapping[str, Message], plates: Sequence[Plate]) -> None:
    """Refuse a site outside a plate where being inside it is another model, or is not seen through."""
    for plate in plates:
        if name not in messages or plate.size != plate.full_size:
            raise ModelError(
                f"Site {name!r} depends, cell by cell, on latents in plate {plate.name!r}, but lies outside it. Put it "
                f"inside the plate: with numpyro.plate({plate.name!r}, ...)."
            )


def _what_is_left(name: str, trees: Sequence[Any]) -> ParamTree:
    """The tree of a param at the end of a run: a module with priors takes arrays out of what it declared, or got."""
    found = [tree for tree in (ParamTree.of(name, value) for value in trees) if tree is not None]
    return min(found, key=lambda tree: len(tree.names))


def _without_replaced(
    messages: dict[str, Message], declared: Mapping[str, Any], trees: Mapping[str, ParamTree]
) -> dict[str, Message]:
    """Messages without those of arrays in trees that a module with priors has since replaced by sample sites."""
    left = {name for tree in trees.values() for name in tree.names}
    parts = tuple(f"{site}." for site in declared)
    return {
        name: msg
        for name, msg in messages.items()
        if name in left or msg["type"] != "param" or not name.startswith(parts)
    }


def try_run(model: Callable, shapes: Sequence[Any], skeleton: Skeleton, bounded: str | None = None) -> None:
    """Run a model for data of given shapes, for its failures alone.

    Args:
        bounded: a site whose bounds have to be known.

    Raises:
        ModelError: a model that cannot be run.
        NeedsValues: bounds, or numbers of states, that are computed inside the model.
    """

    def run(data: list[jax.Array]) -> None:
        frame = run_once(model, data, skeleton, jax.random.key(0))[0].frame
        for name in frame.latents:
            support_values(name, frame.messages[name]["fn"])
        msg = frame.messages.get(bounded or "")
        bounds = (
            None if msg is None else msg["kwargs"].get("constraint") if msg["type"] == "param" else msg["fn"].support
        )
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(bounds)):
            raise NeedsValues(f"bounds of {bounded!r}")

    jax.eval_shape(run, shapes)


def initial_values(
    model: Callable, skeleton: Skeleton, shapes: Mapping[str, jax.ShapeDtypeStruct], rng_key: jax.Array, data: Sequence
) -> dict[str, jax.Array]:
    """Declared values of params, prior draws of sampled parameters."""
    messages = run_once(model, data, skeleton, rng_key)[0].frame.messages
    return {name: jnp.asarray(messages[name]["value"], dtype=shape.dtype) for name, shape in shapes.items()}


def run_once(
    model: Callable,
    data: Sequence,
    skeleton: Skeleton,
    rng_key: jax.Array,
    zero: jax.Array | int = 0,
    runs: list[tuple[Frame, dict[str, str]]] | None = None,
) -> tuple[Recorder, list[ScanCarry]]:
    """Run a model with one value of every unobserved site.

    Args:
        zero: value of discrete latents.
        runs: gets the first steps of scans, up to one that stands for all later ones, and what their sites are called.
    """
    scans: list[ScanCarry] = []

    def answer(msg: Message) -> jax.Array:
        return _start_value(msg, zero)

    def answer_scan(recorder: Recorder, msg: Message) -> None:
        scans.append(discover_scan(recorder, msg))
        order = scans[-1].scan.order
        if runs is not None and recorder.frame.latents:
            for step, frame in enumerate(steps_one_by_one(recorder, msg, order)):
                runs.append((frame, {name: first(name, step) if step < order else name for name in frame.samples}))

    return run_model(model, answer, answer_scan, data, skeleton, rng_key), scans


def _start_value(msg: Message, zero: jax.Array | int) -> jax.Array:
    """Declared value of a param, zeros of a discrete site, one prior draw of any other (zeros in an abstract run)."""
    if msg["type"] == "param":
        value = msg["fn"](*msg["args"], **{k: v for k, v in msg["kwargs"].items() if k == "rng_key"})
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=jnp.result_type(float)), value)
    fn, key = msg["fn"], msg["kwargs"].get("rng_key")
    if key is None:
        key = numpyro.prng_key()
    if is_discrete(fn):
        return jnp.zeros(fn.shape(), jnp.result_type(int)) + zero
    if isinstance(unwrap(fn)[0], dist.ImproperUniform):
        return fn.support.feasible_like(jnp.zeros(fn.shape()))
    if isinstance(zero, jax.core.Tracer):  # a draw would depend on the latents that its distribution depends on
        drawn = jax.eval_shape(fn.sample, key)
        return jnp.zeros(drawn.shape, drawn.dtype) + zero.astype(drawn.dtype)
    return fn.sample(key)


def _plates(recorder: Recorder) -> dict[str, Plate]:
    plates: dict[str, Plate] = {}
    for name, msg in recorder.frame.messages.items():
        for plate in plates_of(msg):
            known = plates.setdefault(plate.name, plate)
            if known != plate:
                raise ModelError(
                    f"Plate {plate.name!r} has size {known.size} (dim {known.dim}) at one site and size {plate.size} "
                    f"(dim {plate.dim}) at {name!r}. Give different plates different names."
                )
    sizes = recorder.plate_sizes
    return {name: dataclasses.replace(plate, full_size=sizes.get(name, plate.size)) for name, plate in plates.items()}


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where everything in a model has its axes.

    Attributes:
        plates: every plate by name, with the time axes of scans.
        latent_dims: the (negative) batch dimension of the axis of every discrete latent.
        atoms: by axis of a discrete latent, its values, shaped ``(states, 1, ..., 1)``.
        atom_axes: the axis of atoms of every latent that is integrated out.
        one_atom: shape of one atom of these: states of discrete latents, plates, event.
        parameters: shape of every param and of every unobserved continuous site that is no latent.
    """

    plates: dict[str, Plate]
    latent_dims: dict[str, int]
    atoms: dict[str, np.ndarray]
    atom_axes: dict[str, AtomAxis]
    one_atom: dict[str, jax.ShapeDtypeStruct]
    parameters: dict[str, jax.ShapeDtypeStruct]


def place_axes(discovery: Discovery, atom_axes: Mapping[str, AtomAxis]) -> Placement:
    """Give every discrete latent an axis left of the plates, and every scan a time axis left of these.

    Args:
        discovery: what the model holds.
        atom_axes: continuous sites that are latents; those inside a scan are, whether they are named here or not.
    """
    scans = [carry.scan for carry in discovery.scans]
    depths = {name: depth for scan in scans for name, depth in scan.depths.items()}
    axes = [lagged(name, lag) for name in discovery.supports for lag in range(depths.get(name, 0) + 1)]
    nesting = _nesting(discovery.messages)
    latent_dims = {axis: -(nesting + 1 + position) for position, axis in enumerate(axes)}
    atoms = {
        axis: discovery.supports[latent_of(axis)].reshape((-1,) + (1,) * (-dim - 1))
        for axis, dim in latent_dims.items()
    }
    times = {
        scan.time: Plate(scan.time, -(nesting + len(axes) + 1 + number), scan.length, scan.length, True)
        for number, scan in enumerate(scans)
    }
    atom_axes = dict(atom_axes)
    for scan in scans:
        for name in scan.hidden:
            axis = atom_axes.setdefault(name, AtomAxis(f"{next(iter(scan.hidden))}@atoms"))
            atom_axes.update({first(name, step): axis for step in range(scan.order)})
    one_atom = {}
    for name, axis in atom_axes.items():
        value, event_rank = discovery.values[name], len(discovery.messages[name]["fn"].event_shape)
        states = {latent_dims[latent]: atoms[latent].size for latent in axis.given}
        one_atom[name] = _with_states(value, event_rank, states)
    for scan in scans:
        for name, depth in scan.hidden.items():
            every = jax.ShapeDtypeStruct((scan.length, *one_atom[name].shape), one_atom[name].dtype)
            one_atom.update({lagged(name, lag): every for lag in range(depth + 1)})
    return Placement(
        plates=discovery.plates | times,
        latent_dims=latent_dims,
        atoms=atoms,
        atom_axes=atom_axes,
        one_atom=one_atom,
        parameters={
            name: discovery.values[name]
            for name in discovery.messages
            if name in discovery.values and name not in discovery.supports and name not in atom_axes
        },
    )


def _nesting(messages: Mapping[str, Message]) -> int:
    """Number of batch dimensions that plates, or undeclared batch axes, occupy."""
    used = [0]
    for msg in messages.values():
        if msg["type"] == "sample":
            used.append(len(msg["fn"].batch_shape))
            if not isinstance(msg["fn"], Unit):
                used.append(jnp.ndim(msg["value"]) - len(msg["fn"].event_shape))
        used += [-plate.dim for plate in plates_of(msg)]
    return max(used)


def _with_states(value: jax.ShapeDtypeStruct, event_rank: int, states: Mapping[int, int]) -> jax.ShapeDtypeStruct:
    """Shape of one atom of an integrated latent: in front of its plates, the states of some discrete latents."""
    split = len(value.shape) - event_rank
    rank = max([split, *(-dim for dim in states)])
    batch = [1] * (rank - split) + list(value.shape[:split])
    for dim, size in states.items():
        batch[rank + dim] = size
    return jax.ShapeDtypeStruct((*batch, *value.shape[split:]), value.dtype)

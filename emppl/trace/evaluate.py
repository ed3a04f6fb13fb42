"""A model as a pure function of (parameters, atoms, data), and the trace that keeps it."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from emppl.errors import ModelError
from emppl.inputs.arguments import Skeleton, known_among
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.prune import path_names, prune, with_inputs_for_constants, with_own_constants
from emppl.memo import forget, once
from emppl.names import latent_of
from emppl.numerics.compiling import fast_options
from emppl.trace.as_written import check_layout
from emppl.trace.discover import Discovery, Placement, discover, initial_values, place_axes
from emppl.trace.distributions import kind_of
from emppl.trace.handlers import Message, Recorder, run_model
from emppl.trace.natural_shapes import in_front, over_states
from emppl.trace.record import AtomAxis, Site, SiteArrays, Trace
from emppl.trace.scan_first import evaluate_scan
from emppl.trace.site_messages import site_arrays, static_site
from emppl.types import Data, Params

_SCAN_OUTPUTS = ("outputs of a scan", "")


def trace_model(
    model: Callable,
    data: Data,
    skeleton: Skeleton,
    atom_axes: Mapping[str, AtomAxis] | None = None,
    by_state: bool = False,
) -> Trace:
    """Trace a model for data of given shapes.

    Args:
        model: a NumPyro model.
        data: its array arguments (only shapes and dtypes matter).
        skeleton: its static arguments, from :func:`split_arguments`.
        atom_axes: continuous sites that are latents; without them all are parameters.
        by_state: whether the model is run at one state of its discrete latents at a time.

    Returns:
        The :class:`Trace`.

    Raises:
        ModelError: a site that cannot be handled, with its name and the remedy.
    """
    shapes = [_abstract(array) for array in data]
    discovery = discover(model, shapes, skeleton)
    placement = place_axes(discovery, atom_axes or {})
    evaluation = _evaluation(model, shapes, skeleton, discovery, placement, by_state)
    return Trace(
        sites=evaluation.sites,
        atoms=placement.atoms,
        latent_dims=placement.latent_dims,
        plates=placement.plates,
        jaxpr=evaluation.jaxpr,
        inputs=evaluation.inputs,
        outputs={path: position for position, path in enumerate(evaluation.paths)},
        distributions=evaluation.distributions,
        evaluate=evaluation,
        initial=functools.partial(initial_values, model, skeleton, placement.parameters),
        scans=tuple(carry.scan for carry in discovery.scans),
        timed=evaluation.timed,
        atom_axes=placement.atom_axes,
        over_atoms=evaluation.over_atoms(),
        reparametrised=evaluation.reparametrised,
        value_shapes={name: tuple(atom.shape) for name, atom in placement.one_atom.items()},
        trees=discovery.trees,
        starts=evaluation.starts,
    )


def _evaluation(
    model: Callable,
    shapes: list[jax.ShapeDtypeStruct],
    skeleton: Skeleton,
    discovery: Discovery,
    placement: Placement,
    by_state: bool,
) -> Evaluation:
    if by_state and any(axis.given for axis in placement.atom_axes.values()):
        raise ModelError("Continuous latents that are given discrete ones need the axes of states.")
    evaluation = Evaluation(model, shapes, skeleton, discovery, placement, by_state)
    if any(settled := evaluation.settled()):
        scans = [
            dataclasses.replace(carry, settled=values) for carry, values in zip(discovery.scans, settled, strict=True)
        ]
        discovery = dataclasses.replace(discovery, scans=scans)
        evaluation = Evaluation(model, shapes, skeleton, discovery, placement, by_state)
    evaluation.check_scans()
    if not by_state:
        check_layout(discovery.written, evaluation.shapes(), evaluation.ranks(placement))
    return evaluation


def _abstract(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))


class Evaluation:
    """The arrays of all sites as a pure function of (parameters, atoms, data), traced once.

    Attributes:
        sites, distributions, timed, jaxpr, inputs, reparametrised, starts: see :class:`Trace`.
        paths: the site and the field of every output of the jaxpr.
    """

    def __init__(
        self,
        model: Callable,
        shapes: list[jax.ShapeDtypeStruct],
        skeleton: Skeleton,
        discovery: Discovery,
        placement: Placement,
        by_state: bool = False,
    ):
        self.sites: dict[str, Site] = {}
        self.distributions: dict[str, type] = {}
        self.timed: dict[str, frozenset[tuple[str, ...]]] = {}
        atoms = {name: _abstract(values) for name, values in placement.atoms.items()} | placement.one_atom
        axes = {name: placement.atom_axes[latent_of(name)].axis for name in placement.one_atom}
        self._parameters, self._atoms = sorted(placement.parameters), sorted(atoms)
        self.inputs = (
            *(("parameter", name) for name in self._parameters),
            *(("latent", axes.get(name, name)) for name in self._atoms),
            _SCAN_OUTPUTS,
            *(("data", str(position)) for position in range(len(shapes))),
        )
        arguments = (placement.parameters, atoms, jax.ShapeDtypeStruct((), jnp.result_type(float)), shapes)
        run = functools.partial(self._run, model, skeleton, discovery, placement)
        if by_state:
            run = functools.partial(self._by_state, run, discovery, placement)
        traced, (arrays, self._conditions, values, starts) = jax.make_jaxpr(run, return_shape=True)(*arguments)
        first = len(self.inputs) - len(shapes)
        known = {first + n: leaf.array for n, leaf in known_among(skeleton).items() if leaf.array is not None}
        self._traced = with_inputs_for_constants(with_own_constants(traced), known)
        self._dependence = Dependence(self._traced, self.inputs)
        end = len(self._traced.jaxpr.outvars) - len(jax.tree.leaves(starts))
        begun = jax.tree.unflatten(jax.tree.structure(starts), range(end, len(self._traced.jaxpr.outvars)))
        self.starts = tuple(
            frozenset(
                label for leaf in leaves for kind, label in self._dependence.of_output(leaf) if kind == "parameter"
            )
            for leaves in begun
        )
        start = end - len(values)
        priors = {name: self._dependence.of_output(start + number) for number, name in enumerate(sorted(values))}
        self.reparametrised = {
            name: (self._written[name], frozenset(label for kind, label in labels if kind == "parameter") - {name})
            for name, labels in priors.items()
        }
        leaves, self._treedef = jax.tree_util.tree_flatten_with_path(arrays)
        self.paths = [path_names(path) for path, _ in leaves]
        self.jaxpr = prune(self._traced, list(range(len(leaves))))
        # The axis of atoms along which every input, and every output, varies.
        labels = {("latent", axis): axis for axis in axes.values()}
        self._axis_of_input = [labels.get(label) for label in self.inputs]
        self._axis_of_output = [
            min((labels[label] for label in self._dependence.of_output(position) if label in labels), default=None)
            for position in range(len(leaves))
        ]

    def _run(
        self, model: Callable, skeleton: Skeleton, discovery: Discovery, placement: Placement, *inputs: Any
    ) -> tuple[dict[str, SiteArrays], list[list[jax.Array | None]], dict[str, jax.Array], list[list[jax.Array]]]:
        """Run the model with every latent on its axis.

        Returns:
            Arrays of the sites, conditions in the steps of scans, the values of sites that were reparametrised, and of
            every scan what is carried into its first step in the place of latents.
        """
        params, atoms, poison, data = inputs
        remaining = iter(discovery.scans)
        scanned: dict[str, tuple[Site, SiteArrays]] = {}
        conditions: list[list[jax.Array | None]] = []
        starts: list[list[jax.Array]] = []

        def answer(msg: Message) -> jax.Array:
            if msg["name"] in discovery.trees:
                return discovery.trees[msg["name"]].built(params)
            return atoms[msg["name"]] if msg["name"] in atoms else params[msg["name"]]

        def answer_scan(recorder: Recorder, msg: Message) -> None:
            carry = next(remaining)
            time = placement.plates[carry.scan.time]
            leaves = jax.tree.leaves(msg["args"][1])
            starts.append([jnp.asarray(leaf) for leaf, free in zip(leaves, carry.free, strict=True) if not free])
            sites, steps = evaluate_scan(recorder, msg, carry, time, discovery.values, atoms, poison)
            scanned.update(sites)
            self.timed.update(steps.timed)
            conditions.append(steps.conditions)

        frame = run_model(model, answer, answer_scan, data, skeleton, jax.random.key(0)).frame
        arrays: dict[str, SiteArrays] = {}
        for name, msg in frame.messages.items():
            if name in scanned:
                self.sites[name], arrays[name] = scanned[name]
                if self.sites[name].kind == "discrete":
                    self.sites[name] = dataclasses.replace(self.sites[name], states=len(discovery.supports[name]))
                continue
            shape = discovery.values[name].shape if name in discovery.values else None
            site = static_site(name, frame, len(discovery.supports.get(name, ())), shape)
            if name in discovery.homes:
                plates = sorted((*site.plates, *discovery.homes[name]), key=lambda plate: plate.dim)
                site = dataclasses.replace(site, plates=tuple(plates))
            if msg["type"] == "sample":
                arrays[name] = site_arrays(name, frame)
                if name in placement.atom_axes:
                    site = dataclasses.replace(site, kind="integrated")
            self.sites[name] = site
        self.distributions = {name: kind_of(array.distribution) for name, array in arrays.items()}
        self._written = {auxiliary: name for auxiliary, (name, _) in frame.reparametrised.items()}
        return arrays, conditions, {name: value for name, (_, value) in frame.reparametrised.items()}, starts

    def _by_state(
        self, run: Callable, discovery: Discovery, placement: Placement, params: Any, atoms: Any, *rest: Any
    ) -> tuple[dict[str, SiteArrays], list[list[jax.Array | None]], dict[str, jax.Array], list[list[jax.Array]]]:
        """The same, the model run at one state of every discrete latent, in its own shapes."""
        dims = placement.latent_dims

        def at_one_state(params: Any, atoms: Any, *rest: Any) -> Any:
            shapes = {axis: discovery.values[latent_of(axis)].shape for axis in dims}
            return run(params, {n: jnp.broadcast_to(a, shapes[n]) if n in dims else a for n, a in atoms.items()}, *rest)

        one = {name: value.ravel()[0] if name in dims else value for name, value in atoms.items()}
        closed, shape = jax.make_jaxpr(at_one_state, return_shape=True)(params, one, *rest)
        outputs, order = over_states(closed, self.inputs, dims, jax.tree.leaves((params, atoms, *rest)))
        treedef = jax.tree.structure(shape)
        (arrays, conditions, values, starts), (names, *_) = (
            jax.tree.unflatten(treedef, found) for found in (outputs, order)
        )
        return (
            {
                name: in_front(self.sites[name], found, names[name], dims, self.timed.get(name, frozenset()))
                for name, found in arrays.items()
            },
            conditions,
            values,
            starts,
        )

    def __call__(
        self, params: Params, atoms: Params, data: Data, wanted: frozenset[tuple[str, str]] | None = None
    ) -> dict[str, SiteArrays]:
        """Arrays of every site; see :class:`Trace`."""
        given = [*(params[name] for name in self._parameters), *(atoms[name] for name in self._atoms), 0.0, *data]
        inputs = [jnp.asarray(value, aval.dtype) for value, aval in zip(given, self.jaxpr.in_avals, strict=True)]
        outputs: list[Any] = [None] * len(self.paths)
        for axis, positions, function in self._restricted(wanted):
            # The atoms of other latents do not matter here: any one of them will do.
            values = [
                value if own in (None, axis) else value[0]
                for value, own in zip(inputs, self._axis_of_input, strict=True)
            ]
            if axis is not None:
                function = jax.vmap(function, [0 if own == axis else None for own in self._axis_of_input])
            for position, value in zip(positions, function(*values), strict=True):
                outputs[position] = jnp.asarray(value)
        return jax.tree.unflatten(self._treedef, outputs)

    def rewritten(self, rewrite: Callable[[ClosedJaxpr], ClosedJaxpr]) -> Evaluation:
        """The same by another computation with the same inputs and outputs."""
        same = copy.copy(self)
        same.jaxpr = rewrite(self.jaxpr)
        forget(same)
        return same

    @once
    def _restricted(self, wanted: frozenset[tuple[str, str]] | None) -> list[tuple[str | None, list[int], Callable]]:
        """The outputs that are wanted, by the axis of atoms along which they vary, and what computes them."""
        groups: dict[str | None, list[int]] = {axis: [] for axis in self._axis_of_output}
        for position, (path, axis) in enumerate(zip(self.paths, self._axis_of_output, strict=True)):
            if wanted is None or path[:2] in wanted:
                groups[axis].append(position)
        return [(axis, group, jaxpr_as_fun(prune(self.jaxpr, group))) for axis, group in groups.items() if group]

    def over_atoms(self) -> dict[str, tuple[str, frozenset[tuple[str, ...]]]]:
        """By site, the axis of atoms along which its fields vary, and the paths of these fields."""
        fields: dict[str, tuple[str, frozenset[tuple[str, ...]]]] = {}
        for axis, (site, *path) in zip(self._axis_of_output, self.paths, strict=True):
            if axis is not None:
                axis, paths = fields.get(site, (axis, frozenset()))
                fields[site] = axis, paths | {tuple(path)}
        return fields

    def shapes(self) -> dict[tuple[str, ...], tuple[int, ...]]:
        """By path, the shape of every array, without an axis of time."""
        shapes = zip(self.paths, (aval.shape for aval in self.jaxpr.out_avals), strict=True)
        return {path: s[1:] if path[1:] in self.timed.get(path[0], ()) else s for path, s in shapes}

    def ranks(self, placement: Placement) -> dict[tuple[str, ...], int]:
        """By path, how many axes an argument has at most: states in front of all plates, and axes of events."""
        depth = max((atom.ndim for atom in placement.atoms.values()), default=0)
        ranks = {
            path: self.sites[path[0]].event_rank(path[2], self.distributions[path[0]])
            for path in self.paths
            if path[1] == "arguments"
        }
        return {path: depth + rank for path, rank in ranks.items() if rank is not None}

    def settled(self) -> list[dict[int, bool]]:
        """For every scan, the conditions that no input of the model touches and that all later steps share."""
        places = [
            (scan, number)
            for scan, conditions in enumerate(self._conditions)
            for number, condition in enumerate(conditions)
            if condition is not None
        ]
        untouched = {
            position: place
            for position, place in enumerate(places, len(self.paths))
            if not self._dependence.of_output(position)
        }
        settled: list[dict[int, bool]] = [{} for _ in self._conditions]
        if untouched:
            with jax.ensure_compile_time_eval():
                nothing = [jnp.zeros(aval.shape, aval.dtype) for aval in self._traced.in_avals]
                lowered = jax.jit(jaxpr_as_fun(prune(self._traced, list(untouched)))).lower(*nothing)
                values = jax.device_get(lowered.compile(fast_options())(*nothing))
            for (scan, number), value in zip(untouched.values(), values, strict=True):
                if value.all() == value.any():
                    settled[scan][number] = bool(value.all())
        return settled

    def check_scans(self) -> None:
        """Refuse sites that read the states out of what a scan returns."""
        for position, (site, *_) in enumerate(self.paths):
            if _SCAN_OUTPUTS in self._dependence.of_output(position):
                raise ModelError(
                    f"Site {site!r} depends on latents through what the scan returns. Put {site!r} inside the step, "
                    "with its data among the arrays that are scanned over: scan(step, init, x)."
                )

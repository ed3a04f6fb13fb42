"""Run a model once, abstractly, and keep a pure function of (parameters, atoms, data)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.extend.core import jaxpr_as_fun
from numpyro.distributions.distribution import Unit

from emppl.errors import ModelError
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.prune import path_names, prune
from emppl.names import first, lagged, latent_of
from emppl.trace.distributions import is_discrete, kind_of, support_values, unwrap
from emppl.trace.handlers import run_model
from emppl.trace.record import AtomAxis, Plate, Site, Trace
from emppl.trace.scan import ScanCarry, discover_scan
from emppl.trace.scan_first import evaluate_scan
from emppl.trace.site_messages import site_arrays, static_site


def _start_value(msg):
    """Declared value of a param, one prior draw of a sample site."""
    if msg["type"] == "param":
        value = msg["fn"](*msg["args"], **{k: v for k, v in msg["kwargs"].items() if k == "rng_key"})
        return jnp.asarray(value, dtype=jnp.result_type(float))
    fn, key = msg["fn"], msg["kwargs"].get("rng_key")
    if key is None:
        key = numpyro.prng_key()
    base, _, _ = unwrap(fn)
    if is_discrete(fn):
        return jnp.zeros(fn.shape(), jnp.result_type(int))
    if isinstance(base, dist.ImproperUniform):
        return fn.support.feasible_like(jnp.zeros(fn.shape()))
    return fn.sample(key)


def trace_model(model: Callable, data: list, skeleton: Any, atom_axes: Mapping[str, AtomAxis] | None = None) -> Trace:
    """Trace a model for data of given shapes.

    Args:
        model: a NumPyro model.
        data: its array arguments (only shapes and dtypes matter).
        skeleton: its static arguments, from :func:`split_arguments`.
        atom_axes: continuous sites that are latents; without them all are parameters.

    Returns:
        The :class:`Trace`.

    Raises:
        ModelError: a site that cannot be handled, with its name and the remedy.
    """
    shapes = [jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in data]
    atom_axes = dict(atom_axes or {})
    discovered: dict[str, Any] = {}

    def discover(data):
        recorder = run_model(model, _start_value, data, skeleton, jax.random.key(0), discover_scan)
        discovered.update(messages=recorder.messages, latents=list(recorder.latents), plate_sizes=recorder.plate_sizes)
        discovered.update(scans=recorder.scans)
        names = [n for n, m in recorder.messages.items() if m["type"] == "param" or not m.get("is_observed")]
        values = {n: jnp.asarray(recorder.messages[n]["value"]) for n in names}
        atoms = {n: support_values(n, _enumerable(n, m)) for n, m in recorder.messages.items() if n in recorder.latents}
        discovered.update(atoms=atoms)
        return values

    value_shapes = jax.eval_shape(discover, shapes)
    messages = discovered["messages"]
    latents = discovered["latents"]
    plates = {
        name: dataclasses.replace(plate, full_size=discovered["plate_sizes"].get(name, plate.size))
        for name, plate in _plates(messages).items()
    }
    nesting = _nesting(messages)
    scans: list[ScanCarry] = discovered["scans"]
    depths = {name: depth for one in scans for name, depth in one.chain.depths.items()}
    enumerated = [lagged(name, lag) for name in latents for lag in range(depths.get(name, 0) + 1)]
    latent_dims = {name: -(nesting + 1 + position) for position, name in enumerate(enumerated)}
    atoms = {
        name: discovered["atoms"][latent_of(name)].reshape((-1,) + (1,) * (-latent_dims[name] - 1))
        for name in enumerated
    }
    times = [
        Plate(one.chain.time, -(nesting + len(enumerated) + 1 + number), one.chain.length, one.chain.length, True)
        for number, one in enumerate(scans)
    ]
    plates.update({plate.name: plate for plate in times})
    chains = [one.chain for one in scans]
    for chain in chains:  # a continuous site inside a scan is a latent, whatever else it is
        for name in chain.hidden:
            mine = atom_axes.setdefault(name, AtomAxis(f"{next(iter(chain.hidden))}@atoms"))
            atom_axes.update({first(name, step): mine for step in range(chain.order)})
    parameter_shapes = {
        name: value_shapes[name]
        for name, msg in messages.items()
        if name not in latents and name not in atom_axes and (msg["type"] == "param" or not msg.get("is_observed"))
    }
    one_atom = {
        name: _with_states(value_shapes[name], len(messages[name]["fn"].event_shape), one.given, latent_dims, atoms)
        for name, one in atom_axes.items()
    }
    for chain in chains:
        for name, depth in chain.hidden.items():
            every = jax.ShapeDtypeStruct((chain.length, *one_atom[name].shape), one_atom[name].dtype)
            one_atom.update({lagged(name, lag): every for lag in range(depth + 1)})
    sites: dict[str, Site] = {}
    classes: dict[str, type] = {}

    timed: dict[str, frozenset[tuple[str, ...]]] = {}

    def evaluate(params, atoms, poison, data):
        remaining = iter(zip(scans, times, strict=True))

        def answer_scan(recorder, msg):
            evaluate_scan(recorder, msg, *next(remaining), value_shapes, atoms, poison)

        answer = functools.partial(_answer, params, atoms)
        recorder = run_model(model, answer, data, skeleton, jax.random.key(0), answer_scan)
        timed.update(recorder.timed)
        arrays = {}
        for name, msg in recorder.messages.items():
            if name in recorder.scanned:
                arrays[name], sites[name] = recorder.scanned[name]
            else:
                shape = value_shapes[name].shape if name in value_shapes else None
                states = len(discovered["atoms"].get(name, ()))
                sites[name] = static_site(name, msg, recorder, states, shape)
                if name in atom_axes and msg["type"] == "sample":
                    sites[name] = dataclasses.replace(sites[name], kind="integrated")
                if msg["type"] == "sample":
                    arrays[name] = site_arrays(name, msg, recorder)
            if name in arrays:
                classes[name] = kind_of(arrays[name].distribution)
        return arrays, recorder.conditions

    atom_shapes = {
        name: jax.ShapeDtypeStruct(a.shape, jax.dtypes.canonicalize_dtype(a.dtype)) for name, a in atoms.items()
    }
    atom_shapes |= one_atom
    axis_of = {name: atom_axes[latent_of(name)].axis if latent_of(name) in atom_axes else name for name in atom_shapes}
    inputs = (
        tuple(("parameter", name) for name in sorted(parameter_shapes))
        + tuple(("latent", axis_of[name]) for name in sorted(atom_shapes))
        + (("outputs of a scan", ""),)
        + tuple(("data", str(position)) for position in range(len(shapes)))
    )
    arguments = (parameter_shapes, atom_shapes, jax.ShapeDtypeStruct((), jnp.result_type(float)), shapes)
    jaxpr, (out_shape, conditions) = jax.make_jaxpr(evaluate, return_shape=True)(*arguments)
    settled = _settled(jaxpr, inputs, conditions)
    if any(settled):
        scans[:] = [dataclasses.replace(one, settled=values) for one, values in zip(scans, settled, strict=True)]
        again = functools.partial(evaluate)  # a function that JAX has not traced yet
        jaxpr, (out_shape, _) = jax.make_jaxpr(again, return_shape=True)(*arguments)
    jaxpr = prune(jaxpr, list(range(len(jax.tree.leaves(out_shape)))))
    output_paths = [path_names(path) for path, _ in jax.tree_util.tree_flatten_with_path(out_shape)[0]]
    out_tree = jax.tree.structure(out_shape)

    moving = _axis_of_outputs(jaxpr, inputs, {one.axis for one in atom_axes.values()}, output_paths)

    @functools.cache
    def restricted(wanted):
        """The outputs that are wanted, by the axis of atoms along which they vary, and what computes them."""
        positions = [n for n, path in enumerate(output_paths) if wanted is None or (path[0], path[1]) in wanted]
        groups = {axis: [n for n in positions if moving[n] == axis] for axis in dict.fromkeys(moving)}
        return [(axis, group, jaxpr_as_fun(prune(jaxpr, group))) for axis, group in groups.items() if group]

    def pure(params, atoms, data, wanted=None):
        flat_over_atoms = [latent_of(name) in atom_axes for name in sorted(atom_shapes)]
        given = {name: atoms[name] for name in atom_shapes}
        flat = jax.tree.leaves(({n: params[n] for n in parameter_shapes}, given, 0.0, list(data)))
        flat = [jnp.asarray(value, dtype=aval.dtype) for value, aval in zip(flat, jaxpr.in_avals, strict=True)]
        start = len(parameter_shapes)
        outputs: list[Any] = [None] * len(output_paths)
        for axis, positions, function in restricted(wanted):
            mine = [drawn and label[1] == axis for drawn, label in zip(flat_over_atoms, inputs[start:], strict=False)]
            over = [0 if 0 <= n - start < len(mine) and mine[n - start] else None for n in range(len(flat))]
            # The atoms of other latents do not matter here: any one of them will do.
            here = [
                value[0] if 0 <= n - start < len(mine) and flat_over_atoms[n - start] and not mine[n - start] else value
                for n, value in enumerate(flat)
            ]
            run = jax.vmap(function, in_axes=over) if axis is not None else function
            for position, value in zip(positions, run(*here), strict=True):
                outputs[position] = jnp.asarray(value)
        return jax.tree.unflatten(out_tree, outputs)

    def initial(rng_key, data):
        recorder = run_model(model, _start_value, data, skeleton, rng_key, discover_scan)
        return {
            name: jnp.asarray(recorder.messages[name]["value"], dtype=shape.dtype)
            for name, shape in parameter_shapes.items()
        }

    trace = Trace(
        sites=sites,
        atoms=atoms,
        latent_dims=latent_dims,
        plates=plates,
        jaxpr=jaxpr,
        inputs=inputs,
        outputs={path: position for position, path in enumerate(output_paths)},
        distributions=classes,
        evaluate=pure,
        initial=initial,
        chains=tuple(one.chain for one in scans),
        timed=timed,
        atom_axes=atom_axes,
        over_atoms=_fields_over_atoms(moving, output_paths),
        value_shapes={name: tuple(one.shape) for name, one in one_atom.items()},
    )
    _check_outputs(trace)
    return trace


def _with_states(value, event_rank: int, given, latent_dims, atoms) -> jax.ShapeDtypeStruct:
    """Shape of one atom of an integrated latent: in front of its plates, the states of some discrete latents."""
    split = len(value.shape) - event_rank
    batch = value.shape[:split]
    rank = max([split, *(-latent_dims[name] for name in given)])
    shape = [1] * (rank - split) + list(batch)
    for name in given:
        shape[rank + latent_dims[name]] = atoms[name].size
    return jax.ShapeDtypeStruct(tuple(shape) + value.shape[split:], value.dtype)


def _axis_of_outputs(jaxpr, inputs, axes: set[str], paths) -> list[str | None]:
    """For every output, the axis of atoms of the integrated latents on which it depends."""
    if not axes:
        return [None] * len(paths)
    dependence = Dependence(jaxpr, inputs)
    found: list[str | None] = []
    for position in range(len(paths)):
        here = sorted(name for kind, name in dependence.of_output(position) if kind == "latent" and name in axes)
        found.append(here[0] if here else None)
    return found


def _fields_over_atoms(moving, paths) -> dict[str, tuple[str, frozenset[tuple[str, ...]]]]:
    """By site, the axis of atoms along which its fields vary, and the paths of these fields."""
    fields: dict[str, tuple[str, set]] = {}
    for axis, path in zip(moving, paths, strict=True):
        if axis is not None:
            fields.setdefault(path[0], (axis, set()))[1].add(path[1:])
    return {site: (axis, frozenset(found)) for site, (axis, found) in fields.items()}


def _settled(jaxpr, inputs, conditions) -> list[dict[int, bool]]:
    """For every scan, the conditions that no input of the model touches and that are the same in all later steps."""
    dependence = Dependence(jaxpr, inputs)
    position = len(jaxpr.jaxpr.outvars) - len(jax.tree.leaves(conditions))
    settled: list[dict[int, bool]] = []
    for one in conditions:
        found: dict[int, bool] = {}
        for number, shape in enumerate(one):
            if shape is None:
                continue
            if not dependence.of_output(position):
                with jax.ensure_compile_time_eval():
                    nothing = [jnp.zeros(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
                    value = np.asarray(jax.jit(jaxpr_as_fun(prune(jaxpr, [position])))(*nothing)[0])
                if value.all() == value.any():
                    found[number] = bool(value.all())
            position += 1
        settled.append(found)
    return settled


def _check_outputs(trace: Trace) -> None:
    """Refuse sites that read the states out of what a scan returns."""
    dependence = Dependence(trace.jaxpr, trace.inputs)
    for path, position in trace.outputs.items():
        if ("outputs of a scan", "") in dependence.of_output(position):
            raise ModelError(
                f"Site {path[0]!r} depends on latents through what the scan returns. Put {path[0]!r} inside the step, "
                "with its data among the arrays that are scanned over: scan(step, init, x)."
            )


def _answer(params, atoms, msg):
    name = msg["name"]
    return atoms[name] if name in atoms else params[name]


def _enumerable(name, msg):
    base, reinterpreted, _ = unwrap(msg["fn"])
    if reinterpreted or base.event_shape:
        raise ModelError(
            f"Latent site {name!r} is a vector of discrete values (event shape {tuple(msg['fn'].event_shape)}), "
            "whose joint support is too large to enumerate as one site. Put its elements in a plate: "
            f"`with numpyro.plate({name + '_elements'!r}, n): numpyro.sample({name!r}, ...)` without to_event."
        )
    return base


def _plates(messages) -> dict[str, Plate]:
    plates: dict[str, Plate] = {}
    for name, msg in messages.items():
        for frame in msg.get("cond_indep_stack", ()):
            plate = Plate(frame.name, frame.dim, frame.size)
            known = plates.setdefault(frame.name, plate)
            if known != plate:
                raise ModelError(
                    f"Plate {frame.name!r} has size {known.size} (dim {known.dim}) at one site and size {plate.size} "
                    f"(dim {plate.dim}) at {name!r}. Give different plates different names."
                )
    return plates


def _nesting(messages) -> int:
    """Number of batch dimensions that plates, or undeclared batch axes, occupy."""
    used = [0]
    for msg in messages.values():
        if msg["type"] == "sample":
            used.append(len(msg["fn"].batch_shape))
            value = msg["value"]
            used.append(jnp.ndim(value) - len(msg["fn"].event_shape) if not isinstance(msg["fn"], Unit) else 0)
        used += [-frame.dim for frame in msg.get("cond_indep_stack", ())]
    return max(used)

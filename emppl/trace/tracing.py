"""Run a model once, abstractly, and keep a pure function of (parameters, atoms, data)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from numpyro.distributions import constraints
from numpyro.distributions.distribution import Unit

from emppl.errors import DataError, ModelError
from emppl.trace.distributions import element_mask, given_arguments, is_discrete, support_values, unwrap
from emppl.trace.handlers import run_model
from emppl.trace.record import Plate, Site, SiteArrays, Trace


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


def trace_model(model: Callable, leaves: list, skeleton: Any) -> Trace:
    """Trace a model for data of given shapes.

    Args:
        model: a NumPyro model.
        leaves: its array arguments (only shapes and dtypes matter).
        skeleton: its static arguments, from :func:`split_arguments`.

    Returns:
        The :class:`Trace`.

    Raises:
        ModelError: a site that cannot be handled, with its name and the remedy.
    """
    shapes = [jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves]
    discovered: dict[str, Any] = {}

    def discover(leaves):
        recorder = run_model(model, _start_value, leaves, skeleton, jax.random.key(0))
        discovered.update(messages=recorder.messages, latents=list(recorder.latents), plate_sizes=recorder.plate_sizes)
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
    latent_dims = {name: -(nesting + 1 + position) for position, name in enumerate(latents)}
    atoms = {name: discovered["atoms"][name].reshape((-1,) + (1,) * (-latent_dims[name] - 1)) for name in latents}
    parameter_shapes = {
        name: value_shapes[name]
        for name, msg in messages.items()
        if name not in latents and (msg["type"] == "param" or not msg.get("is_observed"))
    }
    sites: dict[str, Site] = {}
    classes: dict[str, type] = {}

    def evaluate(params, atoms, leaves):
        recorder = run_model(model, functools.partial(_answer, params, atoms), leaves, skeleton, jax.random.key(0))
        arrays = {}
        for name, msg in recorder.messages.items():
            if msg["type"] != "sample":
                continue
            arrays[name] = _site_arrays(name, msg, recorder)
            classes[name] = type(arrays[name].distribution)
        for name, msg in recorder.messages.items():
            sites[name] = _site(name, msg, recorder, discovered["atoms"], value_shapes, nesting)
        return arrays

    atom_shapes = {
        name: jax.ShapeDtypeStruct(a.shape, jax.dtypes.canonicalize_dtype(a.dtype)) for name, a in atoms.items()
    }
    jaxpr, out_shape = jax.make_jaxpr(evaluate, return_shape=True)(parameter_shapes, atom_shapes, shapes)
    output_paths = [_path_names(path) for path, _ in jax.tree_util.tree_flatten_with_path(out_shape)[0]]
    out_tree = jax.tree.structure(out_shape)

    @functools.cache
    def restricted(wanted):
        """The outputs that are wanted, and the smallest computation that gives them."""
        positions = [n for n, path in enumerate(output_paths) if wanted is None or (path[0], path[1]) in wanted]
        return positions, jaxpr_as_fun(_prune(jaxpr, positions))

    def pure(params, atoms, leaves, wanted=None):
        flat = jax.tree.leaves(({n: params[n] for n in parameter_shapes}, dict(atoms), list(leaves)))
        flat = [jnp.asarray(value, dtype=aval.dtype) for value, aval in zip(flat, jaxpr.in_avals, strict=True)]
        positions, function = restricted(wanted)
        outputs: list[Any] = [None] * len(output_paths)
        for position, value in zip(positions, function(*flat), strict=True):
            outputs[position] = jnp.asarray(value)
        return jax.tree.unflatten(out_tree, outputs)

    def initial(rng_key, leaves):
        recorder = run_model(model, _start_value, leaves, skeleton, rng_key)
        return {
            name: jnp.asarray(recorder.messages[name]["value"], dtype=shape.dtype)
            for name, shape in parameter_shapes.items()
        }

    inputs = (
        tuple(("parameter", name) for name in sorted(parameter_shapes))
        + tuple(("latent", name) for name in sorted(latents))
        + tuple(("data", str(position)) for position in range(len(shapes)))
    )
    return Trace(
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
    )


def _prune(closed: ClosedJaxpr, positions: list[int]) -> ClosedJaxpr:
    """Keep the equations that some of the outputs need."""
    jaxpr = closed.jaxpr
    outputs = [jaxpr.outvars[position] for position in positions]
    needed = {id(variable) for variable in outputs}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            kept.append(equation)
            needed.update(id(atom) for atom in equation.invars)
    names = jaxpr.debug_info._replace(result_paths=None)
    return closed.replace(jaxpr=jaxpr.replace(eqns=kept[::-1], outvars=outputs, debug_info=names))


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


def _site_arrays(name, msg, recorder) -> SiteArrays:
    fn, value = msg["fn"], msg["value"]
    base, reinterpreted, masks = unwrap(fn)
    label_mask = None
    stem = _label_stem(name, recorder)
    if stem is not None:
        position = _label_layer(stem, recorder)
        label_mask = masks[position][0]
        masks = masks[:position] + masks[position + 1 :]
    mask = element_mask(masks)
    scale = msg.get("scale")
    if isinstance(base, Unit):
        return SiteArrays(base, {"log_factor": jnp.asarray(base.log_factor)}, jnp.zeros(()), mask, None, scale)
    arguments = {key: jnp.asarray(argument) for key, argument in given_arguments(base).items() if _is_array(argument)}
    return SiteArrays(
        base, arguments, jnp.asarray(value), mask, label_mask, None if scale is None else jnp.asarray(scale)
    )


def _label_layer(stem, recorder) -> int:
    """Which mask of a partly observed site says where labels are known: the first that differs between its halves."""
    halves = [unwrap(recorder.messages[f"{stem}_{end}"]["fn"])[2] for end in ("observed", "unobserved")]
    for position, (known, unknown) in enumerate(zip(*halves, strict=True)):
        if known[0] is not unknown[0]:
            return position
    raise ModelError(
        f"Sites {stem}_observed and {stem}_unobserved look like the halves of a partly observed site {stem!r}, but "
        "carry no obs_mask. Rename them, or write numpyro.sample(..., obs=labels, obs_mask=known)."
    )


def _is_array(value) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic, int, float))


def _label_stem(name, recorder) -> str | None:
    for ending in ("_observed", "_unobserved"):
        stem = name.removesuffix(ending)
        if stem != name and f"{stem}_unobserved" in recorder.latents and f"{stem}_observed" in recorder.messages:
            return stem
    return None


def _site(name, msg, recorder, atoms, value_shapes, nesting) -> Site:
    frames = tuple(Plate(f.name, f.dim, f.size) for f in msg.get("cond_indep_stack", ()))
    plates = tuple(sorted(frames, key=lambda plate: plate.dim))
    value = msg["value"]
    if msg["type"] == "param":
        constraint = msg["kwargs"].get("constraint", constraints.real)
        return Site(name, "param", "param", plates, jnp.shape(value), jnp.result_type(value), constraint=constraint)
    base, reinterpreted, _ = unwrap(msg["fn"])
    kind = "factor" if isinstance(base, Unit) else "observed" if msg.get("is_observed") else None
    if kind is None:
        kind = "discrete" if name in recorder.latents else "continuous"
    shape = value_shapes[name].shape if name in value_shapes else jnp.shape(value)
    labels = None
    if kind == "discrete" and _label_stem(name, recorder) is not None:
        labels = f"{name.removesuffix('_unobserved')}_observed"
    return Site(
        name,
        kind,
        type(base).__name__,
        plates,
        tuple(shape),
        jnp.result_type(value),
        event_shape=tuple(msg["fn"].event_shape),
        batch_shape=_batch_shape(msg, base, kind),
        reinterpreted=reinterpreted,
        constraint=msg["fn"].support if kind in ("continuous", "discrete") else None,
        states=len(atoms[name]) if kind == "discrete" else 0,
        labels=labels,
    )


def _batch_shape(msg, base, kind) -> tuple[int, ...]:
    if kind == "factor":
        return jnp.shape(base.log_factor)
    value_batch = jnp.shape(msg["value"])[: jnp.ndim(msg["value"]) - len(msg["fn"].event_shape)]
    try:
        return jnp.broadcast_shapes(tuple(msg["fn"].batch_shape), value_batch)
    except ValueError:
        raise DataError(
            f"Site {msg['name']!r}: the value has batch shape {value_batch} but the distribution "
            f"{tuple(msg['fn'].batch_shape)} (plates and enumerated latents included). Check the shape of the data, "
            "and use .to_event(1) where a row is a vector."
        ) from None


def _path_names(path) -> tuple[str, ...]:
    names = []
    for key in path:
        names.append(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))))
    return tuple(names)

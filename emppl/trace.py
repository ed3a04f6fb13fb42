"""Run a NumPyro model once, abstractly, and keep a pure function of (parameters, atoms, data).

This is the only module that touches NumPyro's handlers and messages. Everything downstream sees
:class:`Trace`: static facts about every site, and ``evaluate``, a pure JAX function that returns each
site's distribution arguments, value, mask and scale. Discrete latents are enumerated: each gets an axis of
its own, left of the plates, holding its *atoms*.
"""

from __future__ import annotations

import contextlib
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
from numpyro.distributions.distribution import Unit, validation_enabled
from numpyro.primitives import Messenger

from emppl.errors import DataError, EMError, ModelError


@dataclasses.dataclass(frozen=True)
class Plate:
    """One plate: its name, its (negative) batch dimension, its number of cells, and how many before subsampling."""

    name: str
    dim: int
    size: int
    full_size: int = 0


@dataclasses.dataclass(frozen=True)
class Site:
    """Static facts about one site.

    Attributes:
        name: the site's name.
        kind: ``"param"``, ``"continuous"`` (unobserved), ``"discrete"`` (unobserved), ``"observed"`` or ``"factor"``.
        distribution: class name of the innermost distribution, for messages.
        plates: the plates it sits in.
        shape: shape of its value (for a discrete latent: one cell per plate cell).
        event_shape: event shape of its distribution, ``to_event`` axes first.
        batch_shape: batch shape of its log-probability, latent axes included.
        reinterpreted: number of batch axes of the innermost distribution that ``to_event`` summed.
        constraint: support (unobserved sites and params), else None.
        states: number of atoms of a discrete latent, else 0.
        labels: for a partly observed latent, the name of the site that carries its labels.
    """

    name: str
    kind: str
    distribution: str
    plates: tuple[Plate, ...]
    shape: tuple[int, ...]
    dtype: Any
    event_shape: tuple[int, ...] = ()
    batch_shape: tuple[int, ...] = ()
    reinterpreted: int = 0
    constraint: Any = None
    states: int = 0
    labels: str | None = None


@dataclasses.dataclass(frozen=True)
class Trace:
    """A model seen once for data of given shapes.

    Attributes:
        sites: static facts by site name, in model order.
        atoms: for every discrete latent its atoms, shaped ``(states, 1, ..., 1)``.
        latent_dims: the (negative) batch dimension of every latent's axis.
        plates: every plate by name.
        distributions: class of every sample site's innermost distribution.
        jaxpr: the traced computation; its inputs and outputs are named by ``inputs`` and ``outputs``.
        evaluate: ``evaluate(params, atoms, leaves, wanted=None) -> {site: SiteArrays}``, pure; ``wanted`` restricts it
            to some ``(site, field)`` pairs, the other fields are None.
        initial: ``initial(rng_key, leaves) -> params``: declared values of params, prior draws of sampled parameters.
    """

    sites: dict[str, Site]
    atoms: dict[str, np.ndarray]
    latent_dims: dict[str, int]
    plates: dict[str, Plate]
    jaxpr: ClosedJaxpr
    inputs: tuple[tuple[str, str], ...]
    outputs: dict[tuple[str, ...], int]
    distributions: dict[str, type]
    evaluate: Callable[..., dict[str, Any]]
    initial: Callable[[jax.Array, list], dict[str, jax.Array]]

    @property
    def parameters(self) -> list[str]:
        """Names of params and unobserved continuous sites, in model order."""
        return [name for name, site in self.sites.items() if site.kind in ("param", "continuous")]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SiteArrays:
    """What ``Trace.evaluate`` returns for one sample site.

    Attributes:
        distribution: the innermost distribution, with its arguments un-broadcast.
        arguments: the arguments the user gave it, by name (as the user parameterised it).
        value: observed value, atoms or parameter value.
        mask: None, or a boolean array over the innermost distribution's batch shape.
        label_mask: for label sites, which cells are known.
        cell_weight: None, or the weight (``handlers.scale``) of every plate cell.
    """

    distribution: Any
    arguments: dict[str, jax.Array]
    value: jax.Array
    mask: Any = None
    label_mask: Any = None
    cell_weight: Any = None


# ---------------------------------------------------------------------------------------------- arguments


def split_arguments(args: tuple, kwargs: dict) -> tuple[list, Any]:
    """Split a model's arguments into arrays (traced) and everything else (static).

    Arrays, wherever they sit in lists, tuples and dicts, are data: new values do not recompile. Python
    scalars, strings, None and other objects are static, as ``K=2`` must be.

    Args:
        args: positional model arguments.
        kwargs: keyword model arguments.

    Returns:
        ``(leaves, skeleton)``: the array leaves and a hashable description that rebuilds the arguments.

    Raises:
        DataError: a static argument is not hashable (a data frame, say).
    """
    flat, treedef = jax.tree.flatten((args, kwargs), is_leaf=lambda node: node is None)
    leaves, static = [], []
    for leaf in flat:
        if isinstance(leaf, (np.ndarray, jax.Array)):
            static.append(_ARRAY)
            leaves.append(leaf)
        else:
            try:
                hash(leaf)
            except TypeError:
                kind = type(leaf).__name__
                raise DataError(
                    f"A model argument is a {kind}, which JAX cannot trace. Pass arrays instead, "
                    f"for example frame[['a', 'b']].to_numpy()."
                ) from None
            static.append(leaf)
    return leaves, (treedef, tuple(static))


def join_arguments(leaves: list, skeleton: Any) -> tuple[tuple, dict]:
    """Inverse of :func:`split_arguments`."""
    treedef, static = skeleton
    remaining = iter(leaves)
    flat = [next(remaining) if leaf is _ARRAY else leaf for leaf in static]
    return jax.tree.unflatten(treedef, flat)


class _Array:
    def __repr__(self):
        return "array"


_ARRAY = _Array()


# ------------------------------------------------------------------------------------------------ handlers


class _Recorder(Messenger):
    """Answers every unobserved site and records every message; the outermost handler but ``seed``."""

    def __init__(self, model: Callable, answer: Callable[[dict], Any]):
        super().__init__(model)
        self.answer = answer
        self.messages: dict[str, dict] = {}
        self.latents: dict[str, str] = {}
        self.plate_sizes: dict[str, int] = {}

    def process_message(self, msg) -> None:
        kind = msg["type"]
        if kind == "control_flow":
            raise ModelError(
                "The model uses numpyro's scan or cond. This version of emppl derives EM for models without "
                "control flow; write a short chain as a Python loop, or marginalise it in numpyro.factor."
            )
        if kind == "deterministic" and f"{msg['name']}_unobserved" in self.latents:
            msg["value"] = self.messages[f"{msg['name']}_unobserved"]["value"]
        if kind == "plate":
            self.plate_sizes[msg["name"]] = msg["args"][0]
        if kind not in ("sample", "param"):
            return
        name = msg["name"]
        if name in self.messages:
            raise ModelError(
                f"The site name {name!r} is used twice. Give every sample and param site a name of its own."
            )
        if kind == "sample" and isinstance(msg["fn"], Unit):
            msg["is_observed"] = True
        if not msg.get("is_observed"):
            if msg["value"] is not None:
                raise ModelError(
                    f"Site {name!r} is given a value by a handler (substitute or condition). Fix a parameter with "
                    f"EM(model, fixed={{{name!r}: value}}), and observe data with obs=."
                )
            msg["value"] = self.answer(msg)
            if kind == "sample" and _is_discrete(msg["fn"]):
                self.latents[name] = name
        self.messages[name] = msg


def _is_discrete(fn) -> bool:
    support = fn.support
    return bool(getattr(support, "is_discrete", False))


def unwrap(fn) -> tuple[Any, int, list]:
    """Peel NumPyro's wrappers off a distribution.

    Args:
        fn: a distribution, possibly ``Independent``, ``ExpandedDistribution``, ``MaskedDistribution`` or nested ones.

    Returns:
        ``(base, reinterpreted, masks)``: the innermost distribution, how many of its trailing batch axes are
        event axes of the site, and the masks, innermost first, each with the number of those axes it lacks.
    """
    reinterpreted, masks = 0, []
    while True:
        if isinstance(fn, dist.Independent):
            reinterpreted += fn.reinterpreted_batch_ndims
        elif isinstance(fn, dist.MaskedDistribution):
            if fn._mask is not True:
                masks.append((fn._mask, reinterpreted))  # event axes peeled so far lie outside this mask
        elif not isinstance(fn, dist.ExpandedDistribution):
            break
        fn = fn.base_dist
    return fn, reinterpreted, [(mask, reinterpreted - outside) for mask, outside in reversed(masks)]


def _element_mask(masks):
    """One mask over the innermost batch shape, or None.

    A mask outside ``to_event`` misses the event axes, over which it is broadcast.
    """
    combined = None
    for mask, inside in masks:
        mask = jnp.asarray(mask)
        mask = jnp.reshape(mask, mask.shape + (1,) * inside)
        combined = mask if combined is None else _and(combined, mask)
    return combined


def _and(left, right):
    rank = max(left.ndim, right.ndim)
    left, right = (jnp.reshape(mask, (1,) * (rank - mask.ndim) + mask.shape) for mask in (left, right))
    return jnp.logical_and(left, right)


def given_arguments(base) -> dict[str, Any]:
    """The arguments a distribution was built with, in the parameterisation that the user chose."""
    present = {name: base.__dict__[name] for name in type(base).arg_constraints if name in base.__dict__}
    for preferred in ("covariance_matrix", "precision_matrix"):
        if preferred in present:
            present.pop("scale_tril", None)
    return {name: value for name, value in present.items() if value is not None}


def support_values(name: str, base) -> np.ndarray:
    """The values a discrete latent can take, as a concrete vector.

    Raises:
        ModelError: the support is not finite, or its size depends on data.
    """
    if not getattr(base, "has_enumerate_support", False):
        kind = type(base).__name__
        raise ModelError(
            f"Latent site {name!r} is {kind}, whose support is not finite, so it cannot be enumerated. "
            f"Observe it, or truncate it: dist.Categorical(probs) over 0..max with "
            f"probs from dist.{kind}(...).log_prob(jnp.arange(max + 1))."
        )
    if isinstance(base, (dist.CategoricalProbs, dist.CategoricalLogits)):
        logits_or_probs = base.probs if isinstance(base, dist.CategoricalProbs) else base.logits
        return np.arange(jnp.shape(logits_or_probs)[-1])
    if isinstance(base, (dist.BernoulliProbs, dist.BernoulliLogits)):
        return np.arange(2)
    try:
        with jax.ensure_compile_time_eval():
            return np.asarray(base.enumerate_support(expand=False)).reshape(-1)
    except jax.errors.JAXTypeError:
        raise ModelError(
            f"The number of states of latent site {name!r} ({type(base).__name__}) depends on data. "
            "Pass the bound as a Python integer (a static argument) instead."
        ) from None


# ------------------------------------------------------------------------------------------------- tracing


@contextlib.contextmanager
def as_numpyro_expects():
    """Settings under which NumPyro's own code may run: no argument checks in the graph, rank promotion allowed."""
    with validation_enabled(False), jax.numpy_rank_promotion("allow"):
        yield


def _run(model, answer, leaves, skeleton, rng_key) -> _Recorder:
    args, kwargs = join_arguments(leaves, skeleton)
    recorder = _Recorder(model, answer)
    try:
        with as_numpyro_expects(), numpyro.handlers.seed(rng_seed=rng_key), recorder:
            model(*args, **kwargs)
    except EMError:
        raise
    except jax.errors.ConcretizationTypeError as error:
        raise ModelError(
            "The model reads the value of an array in Python (an `if`, `int(...)` or a shape taken from data). "
            "Pass that quantity as a Python number in an argument of its own, e.g. model(x, K=int(x.max()) + 1).\n"
            + str(error).split("\n")[0]
        ) from error
    except Exception as error:
        raise ModelError(_failure(recorder, leaves, error)) from error
    return recorder


def _failure(recorder: _Recorder, leaves, error: Exception) -> str:
    """What the model was doing when its own code failed."""
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves) or "none"
    reached = f"after site {list(recorder.messages)[-1]!r}" if recorder.messages else "before its first site"
    latents = "".join(
        f"\nLatent {name!r} was enumerated with shape {jnp.shape(recorder.messages[name]['value'])} "
        "(its states, then plates)."
        for name in recorder.latents
    )
    return (
        f"The model failed {reached}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
        f"Shapes of its array arguments: {shapes}.{latents}"
    )


def _start_value(msg):
    """Declared value of a param, one prior draw of a sample site."""
    if msg["type"] == "param":
        value = msg["fn"](*msg["args"], **{k: v for k, v in msg["kwargs"].items() if k == "rng_key"})
        return jnp.asarray(value, dtype=jnp.result_type(float))
    fn, key = msg["fn"], msg["kwargs"].get("rng_key")
    if key is None:
        key = numpyro.prng_key()
    base, _, _ = unwrap(fn)
    if _is_discrete(fn):
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
        recorder = _run(model, _start_value, leaves, skeleton, jax.random.key(0))
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
        recorder = _run(model, functools.partial(_answer, params, atoms), leaves, skeleton, jax.random.key(0))
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
        recorder = _run(model, _start_value, leaves, skeleton, rng_key)
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
    mask = _element_mask(masks)
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

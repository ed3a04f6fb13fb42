"""A compiled program bound to the data of a call, and the cache of what was derived for such calls."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl import mstep
from emppl.checkpoint.reads import first_change, lasting, read_by
from emppl.compiled.functions import MOST_CELLS_OF_A_CHECK, ROWS_OF_A_CHECK, Compiled
from emppl.derivation.plan import Plan, build_plan
from emppl.errors import DataError, ModelError, NeedsValues, ParameterError, Refusal, unknown_name
from emppl.families import registered_families
from emppl.fit import checks
from emppl.fit.indices import check_indices
from emppl.fit.loop import Inputs
from emppl.inputs.arguments import (
    Skeleton,
    join_arguments,
    known_among,
    objects_among,
    own_forms,
    raised,
    readable,
    split_arguments,
    with_known,
)
from emppl.inputs.trees import as_arrays
from emppl.model.model import Model
from emppl.model.options import Options
from emppl.parameters.constraints import check, check_point
from emppl.program import Program
from emppl.reduce.reduction import Source
from emppl.reduce.rows import Compressed
from emppl.trace import MissingCells, cells_left_out
from emppl.trace.known import known_in_words, with_values_read
from emppl.verify.verification import verification_in_words


class Cache(dict):
    """What was derived before. It is left behind when it is pickled, though what shared it goes on to do so.

    Attributes:
        reads: what the model and the functions in the options read when these were derived.
        reasons: where the model reads arguments in Python, by call and position among the data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[str, Any] = {}
        self.reasons: dict[Any, dict[int, str]] = {}

    def __reduce__(self) -> tuple:
        return Cache, ()


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """What a fit is made of: a compiled model, and the data.

    Attributes:
        recipe: the arguments of :func:`fit_of` that make it again, in another process or another precision.
        cache: what was derived before, for fits of one ``EM``.
        resolved: by precision, the functions of the derived algorithm and the arrays of the model's arguments.
        compressed: how the data were made few rows of many; None if they are those that were given.
        reads: what the model and the functions among options and arguments read beside their arguments.
    """

    recipe: tuple
    cache: Cache
    resolved: dict[Any, tuple[Compiled, list[jax.Array]]] = dataclasses.field(default_factory=dict)
    compressed: Compressed | None = None
    reads: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __reduce__(self) -> tuple:
        return Fit, (self.recipe, self.cache, {}, None, lasting(self.reads))

    @property
    def _now(self) -> tuple[Compiled, list[jax.Array]]:
        precision = jnp.result_type(float)
        if precision not in self.resolved:
            model, options, compress, args, kwargs = self.recipe
            now = _read_by_model(model, options) | _read_by_arguments(split_arguments(args, kwargs)[1])
            changed = first_change(self.reads, now)
            if changed is not None:
                raise ModelError(
                    "In another precision or process than that of the fit, a result asks the model anew. The model of "
                    f"this one has changed since: {changed}. Put back what was there, or fit again."
                )
            self.resolved.update(fit_of(model, options, compress, args, kwargs, self.cache).resolved)
        return self.resolved[precision]

    @property
    def compiled(self) -> Compiled:
        """The functions of the derived algorithm, in the precision of the moment."""
        return self._now[0]

    @property
    def data(self) -> list[jax.Array]:
        """Arrays of the model's arguments."""
        return self._now[1]

    @property
    def model(self) -> Model:
        """The static facts of the model."""
        return self.compiled.model

    @property
    def program(self) -> Program:
        """The derived algorithm."""
        return self.compiled.program

    def free(self, params: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The estimated parameters among some values."""
        return {name: jnp.asarray(params[name]) for name in self.model.free}

    def objective(self, params: Mapping[str, Any]) -> float:
        """Log-likelihood plus log prior (nats)."""
        free = self.free(params)
        return float(self.compiled.log_likelihood(free, self.data) + self.compiled.log_prior(free, self.data))

    def reduced(self) -> Fit | Refusal:
        """The fit on few weighted rows, or the reason why all are needed."""
        if any(isinstance(leaf, jax.core.Tracer) or len(leaf.devices()) > 1 for leaf in self.data):
            return Refusal("it is traced, or lies on several devices")
        few = self.compiled.reducer.few_rows(self.data)
        if isinstance(few, Refusal):
            return few
        resolved = {jnp.result_type(float): (self.compiled.for_few(few), few.data)}
        return Fit(self.recipe, self.cache, resolved, few.compressed, self.reads)

    def settled(self) -> Fit:
        """The same after the user's functions ran: what these write themselves is no change that someone made."""
        model, options, _, args, kwargs = self.recipe
        self.cache.reads = _read_by_model(model, options)
        return dataclasses.replace(self, reads=self.cache.reads | _read_by_arguments(split_arguments(args, kwargs)[1]))

    def inputs(self) -> Inputs:
        """The data and their statistics.

        Raises:
            DataError: the data cannot be used.
        """
        prepared, report = self.compiled.prepared_and_report(self.data)
        self._check_report(report)
        return Inputs(self.data, prepared)

    def check(self) -> None:
        """Refuse data that cannot be fitted.

        Raises:
            DataError: the data cannot be used.
        """
        self._check_report(self.compiled.report(self.data))

    def at(self, params: Mapping[str, Any]) -> tuple[dict[str, jax.Array], list[jax.Array]]:
        """The free parameters of a user's dictionary, and the data, both checked where their values can be seen.

        Raises:
            ParameterError: a name, a shape or a value that cannot be used.
            DataError: the data cannot be used.
        """
        self.check_data()
        params = as_arrays(params, self.model.trace.trees)
        return check_point(params, self.model.trace.sites, self.model.free, self.model.fixed), self.data

    def check_data(self) -> None:
        """Refuse data under which no density is what it seems; under a transformation of JAX they cannot be seen.

        Raises:
            DataError: the data cannot be used.
        """
        if any(isinstance(leaf, jax.core.Tracer) for leaf in self.data):
            return
        # Where the caller is traced, so is what he calls, unless it is said otherwise.
        is_traced = isinstance(jnp.zeros(()), jax.core.Tracer)
        with jax.ensure_compile_time_eval() if is_traced else contextlib.nullcontext():
            report = self.compiled.report(self.data)
            if not any(isinstance(found, jax.core.Tracer) for found in jax.tree.leaves(report)):
                self._check_report(report, fitted=False)

    def _check_report(self, report: tuple[Any, Any], fitted: bool = True) -> None:
        values, ranges = jax.device_get(report)
        check_indices(self.model, self.data, ranges)
        checks.check_values(self.model, values)
        if fitted:
            checks.check_fit(self.program, values)

    def plan(self, verify: bool = True) -> Plan:
        """What is derived, with what a fit does with the rows of the data.

        Args:
            verify: whether the first fit is compared with NumPyro's own density.
        """
        is_part = self.model.cost > MOST_CELLS_OF_A_CHECK
        verification = verification_in_words(ROWS_OF_A_CHECK if is_part else None) if verify else ""
        words = known_in_words(self.compiled.source.function, self.compiled.source.skeleton)
        missing = getattr(self.compiled.source.function, "left_out", ())
        words += tuple(f"site {name}: its missing cells (NaN) are left out" for name in sorted(missing))
        return build_plan(self.program, self._reduction_in_words(), verification, words)

    def _reduction_in_words(self) -> str:
        few, steps = self.reduced(), self.compiled.reducer.steps
        if isinstance(few, Fit):
            assert few.compressed is not None
            return few.compressed.words
        if self.compiled.reducer.on_few_steps is not None and not isinstance(steps, Refusal):
            return f"the M-step runs on {steps.pieces} weighted steps with the moments of all steps: EM is the same"
        return f"data not compressed: {few.reason}" if self.model.integrals else ""


def fit_of(model: Callable, options: Options, compress: bool, args: tuple, kwargs: dict, cache: Cache) -> Fit:
    """Derive what is needed to fit a model to data, or take it from the cache.

    Args:
        model: the NumPyro model.
        options: the user's options.
        compress: whether fits may run on few weighted rows of data in place of many.
        args: positional model arguments.
        kwargs: keyword model arguments.
        cache: what was derived before, by the shapes of the data and the static arguments; added to, and forgotten
            where something changed that the model reads.
    """
    leaves, skeleton = split_arguments(args, kwargs)
    for number, leaf in enumerate(leaves):
        if leaf.size == 0:
            raise DataError(f"Array argument number {number + 1} of the model is empty (shape {leaf.shape}).")
        _check_range(number, leaf)
    # The caller may write into arrays of NumPy, of which JAX does not always make copies.
    leaves = [np.array(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    with jax.ensure_compile_time_eval():  # what is no tracer stays in sight, though the caller be traced
        data = [leaf if isinstance(leaf, jax.core.Tracer) else raised(leaf) for leaf in leaves]
    data = [raised(leaf) if isinstance(leaf, jax.core.Tracer) else leaf for leaf in data]
    holders = tuple(position for position, leaf in enumerate(data) if _has_nan(leaf))
    by_model, by_arguments = _read_by_model(model, options), _read_by_arguments(skeleton)
    if cache.reads != by_model:
        cache.clear()
        cache.reads = by_model
    precision = jnp.result_type(float)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in data)
    given = own_forms(args, kwargs)
    call = (skeleton, holders, shapes, precision, compress)
    known = {}
    for number, reason in cache.reasons.get(call, {}).items():
        if isinstance(data[number], jax.core.Tracer):
            raise ModelError(
                f"The model reads array argument number {number + 1} in Python ({reason}), but here it is traced (in "
                "jax.jit, jax.vmap or jax.grad) and has no values. Close over it: jax.jit(lambda params: "
                "em.log_likelihood(params, x)); or pass what is read as a Python number in an argument of its own."
            )
        known[number] = readable(given[number], data[number], reason)
    key = (with_known(skeleton, known), *call[1:])
    if key not in cache or cache[key][1] != by_arguments:
        _check_updates(options)
        try:
            source = _source(model, data, key[0], holders, options, compress)
            program = source.derive(data)
        except NeedsValues as error:
            function = MissingCells(model) if holders else model
            read = with_values_read(function, data, given, key[0], error)
            source = _source(model, data, read, holders, options, compress)
            program = source.derive(data)
            cache.reasons[call] = {number: leaf.reason for number, leaf in known_among(source.skeleton).items()}
            key = (source.skeleton, *call[1:])
        compiled = Compiled(source, program)
        _check_names(options, compiled.model)
        # What functions write themselves while they are traced is no change that someone made.
        cache.reads, by_arguments = _read_by_model(model, options), _read_by_arguments(skeleton)
        cache[key] = compiled, by_arguments
    widest = [
        now if now.dtype.itemsize >= leaf.dtype.itemsize else leaf for leaf, now in zip(leaves, data, strict=True)
    ]
    arrays = (np.ndarray, jax.Array)
    own = [leaf if isinstance(form, arrays) else form for leaf, form in zip(widest, given, strict=True)]
    own_args, own_kwargs = join_arguments(own, skeleton)
    recipe = (model, options, compress, own_args, own_kwargs)
    return Fit(recipe, cache, {precision: (cache[key][0], data)}, None, cache.reads | by_arguments)


def _source(
    model: Callable,
    data: list[jax.Array],
    skeleton: Skeleton,
    holders: tuple[int, ...],
    options: Options,
    compress: bool,
) -> Source:
    """What an algorithm is derived from; where data hold NaN, the model with missing cells integrated out.

    Args:
        holders: positions of the arrays that hold NaN.
    """
    if holders:
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in data]
        model = MissingCells(model, cells_left_out(model, shapes, skeleton, holders))
    return Source(model, skeleton, options, compress)


def _read_by_model(model: Callable, options: Options) -> dict[str, Any]:
    """What the model and the user's other functions read beside their arguments, and how many families there are."""
    functions = {"m_step": options.m_step, "optimizer": options.optimizer, "latents": options.latents}
    return read_by({"model": model, **functions}) | {"families": len(registered_families())}


def _read_by_arguments(skeleton: Skeleton) -> dict[str, Any]:
    """What functions and objects among the model's arguments read."""
    objects = objects_among(skeleton)
    return read_by({f"static argument {number}": value for number, value in enumerate(objects)})


def _check_range(number: int, leaf: Any) -> None:
    """Refuse whole numbers that JAX would wrap round, because its own have fewer bits in a session of float32."""
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "iu":
        return
    kind = jax.dtypes.canonicalize_dtype(leaf.dtype)
    bounds = np.iinfo(kind)
    if kind != leaf.dtype and (leaf.min() < bounds.min or leaf.max() > bounds.max):
        raise DataError(
            f"Array argument number {number + 1} of the model runs from {leaf.min()} to {leaf.max()}, which are no "
            f"numbers of {kind}. Call jax.config.update('jax_enable_x64', True) before anything else, or pass "
            "array.astype(float)."
        )


def _has_nan(leaf: jax.Array) -> bool:
    """Whether an array of data holds NaN; no under a transformation of JAX, where its values cannot be seen."""
    if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return False
    return bool(np.isnan(np.min(np.asarray(leaf))))  # the minimum of NaN is NaN, and takes no memory


def _check_updates(options: Options) -> None:
    for name, given in options.m_step.items():
        if not callable(given) and not mstep.is_optimizer(given) and not mstep.is_rule(given):
            raise ParameterError(
                f"m_step[{name!r}] must be a function (params, posterior) -> value, an emppl.mstep.Rule, or an "
                "optax.GradientTransformation such as optax.adam(1e-2)."
            )
    if options.optimizer is not None and not mstep.is_optimizer(options.optimizer):
        raise ParameterError(
            f"optimizer must be an optax.GradientTransformation such as optax.adam(1e-2); it is {options.optimizer!r}."
        )


def _check_names(options: Options, model: Model) -> None:
    for name in options.m_step:
        if name not in model.trace.parameters:
            raise unknown_name("m_step", name, model.trace.parameters)
    for name, value in options.fixed.items():
        site = model.trace.sites[name]
        check(name, value, site.shape, site.constraint, "fixed")

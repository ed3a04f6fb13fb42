"""A derived program with its compiled functions: one per public piece, and the blocks of the loop."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep, mstep
from emppl.checkpoint.cache import Cache, Reads, read_by_arguments
from emppl.derivation.plan import Plan, build_plan
from emppl.errors import DataError, ModelError, ParameterError, Refusal, unknown_name
from emppl.estep.cell_weights import cell_weights
from emppl.fit import checks, loop
from emppl.fit.indices import check_indices, index_ranges
from emppl.fit.loop import Inputs
from emppl.fit.start import starting_values
from emppl.integrals.settle import finer_model
from emppl.model.model import Model
from emppl.model.options import Options
from emppl.montecarlo.simulator import Simulator
from emppl.parameters.constraints import check, check_point
from emppl.program import Program
from emppl.reduce.reduction import FewRows, Reducer, Source
from emppl.reduce.rows import Compressed
from emppl.trace import MissingCells
from emppl.trace.arguments import join_arguments, raised, split_arguments
from emppl.types import Data, Params
from emppl.uncertainty.identification import shift_effects
from emppl.uncertainty.information import hessian_columns, score
from emppl.verify.verification import Verification, verification_in_words

_MOST_CELLS_OF_SMALL_FITS = 4096
"""Table cells an iteration up to which a fit takes less time than compiling it well."""

_MOST_CELLS_OF_A_CHECK = 2**22
"""Table cells up to which all rows of data are compared with NumPyro's density."""

_ROWS_OF_A_CHECK = 2**12
"""Rows of the random part that is compared where there are more."""

_CELLS_OF_DRAWS = 2**24
"""Cells of all tables of the draws that are made at once."""

_WITHOUT_EMITTERS = {"xla_cpu_use_fusion_emitters": False}
"""XLA's older code generator. On a chain its code is as fast (measured for 3 to 32 states), and compiling takes two
thirds of the time and 230 MB less. Mixtures and many chains side by side are up to 1.5 times slower with it."""


class Compiled:
    """A program with its compiled functions, each compiled when it is first called.

    Args:
        source: what the program is derived from.
    """

    def __init__(self, source: Source, program: Program):
        self.source = source
        self.program = program
        self.model = program.model
        self.reducer = Reducer(source, program)
        self.e_step = self._plain(estep.e_step)
        self.log_likelihood = self._plain(estep.log_likelihood)
        self.log_prior = jax.jit(self.model.log_prior)
        self.marginals = self._plain(estep.marginals)
        self.moments = self._plain(estep.moments)
        self.filtered = self._plain(estep.filtered)
        self.decode = self._plain(estep.decode)
        self.sample = self._plain(_draws)
        # Estimates are arguments of these, so that no result compiles them anew.
        self.hessian_columns = jax.jit(functools.partial(hessian_columns, self.model))
        self.shift_effects = jax.jit(functools.partial(shift_effects, self.model))
        self.cell_weights = jax.jit(functools.partial(cell_weights, self.model))
        self._blocks: dict[tuple[int, bool], Any] = {}
        self._is_checked = False
        self._for_few: dict[int, Compiled] = {}

    @functools.cached_property
    def simulator(self) -> Simulator | None:
        """The steps of a Monte Carlo fit; None where no latent is simulated."""
        is_random = estep.simulated(self.model) or self.model.drawn
        return Simulator(self.program) if is_random else None

    @functools.cached_property
    def random_log_likelihood(self) -> Callable:
        """The log-likelihood by importance sampling, with random numbers of its own."""
        if not estep.simulated(self.model):
            return lambda params, data, key: self.summed_log_likelihood(params, data)
        return jax.jit(functools.partial(estep.log_likelihood, self.model))

    @functools.cached_property
    def summed_log_likelihood(self) -> Callable:
        """The log-likelihood of the data with every latent summed out, in chunks of rows."""
        model = self.model.softened
        fused = estep.plan_fused(model, self.program.weighted)

        def value(params: Params, data: Data) -> jax.Array:
            return estep.expectations(model, fused, params, data, estep.prepare(model, fused, data)).log_likelihood

        return jax.jit(value)

    def _plain(self, function: Callable) -> Callable:
        """Compile a function of the plain path, which holds tables of all rows: refused where they would not fit."""
        compiled = jax.jit(functools.partial(function, self.model))

        def checked(*args: Any) -> Callable:
            estep.check_memory(self.model, None)
            return compiled(*args)

        return checked

    def verification(self, data: Data) -> Verification | None:
        """The comparison with NumPyro's own density, of a random part of the rows if they are many; None after that."""
        if self._is_checked:
            return None
        self._is_checked = True
        if self.model.cost <= _MOST_CELLS_OF_A_CHECK:
            return Verification(self.source, self.model, data)
        few = self.reducer.some_rows(data, _ROWS_OF_A_CHECK)
        if isinstance(few, Refusal):
            reason = f"it has {self.model.cost:,} table cells, and a part of its rows is no such model: {few.reason}"
            return Verification(self.source, self.model, data, why_not=reason)
        return Verification(few.source, few.program.model, few.data, is_part=True)

    def for_few(self, few: FewRows) -> Compiled:
        """The functions of the algorithm for few rows."""
        number = len(few.compressed.weights)
        if number not in self._for_few:
            self._for_few[number] = Compiled(few.source, few.program)
        return self._for_few[number]

    @functools.cached_property
    def report(self) -> Callable:
        """What is wrong with the data: with observed values, and the ranges of indices."""
        return jax.jit(self._report)

    def _report(self, data: Data) -> tuple[Any, Any]:
        return checks.data_report(self.model, data), index_ranges(self.model, data)

    @functools.cached_property
    def q(self) -> Callable:
        """Expected complete-data log-likelihood."""
        return jax.jit(functools.partial(estep.q, self.model))

    @functools.cached_property
    def m_step(self) -> Callable:
        """The M-step on a posterior."""

        def m_step(params: Params, posterior: Any, data: Data) -> dict[str, jax.Array]:
            expectations, prepared = estep.from_posterior(self.model, params, posterior, data)
            return self.program.m_step(params, expectations, data, prepared)

        return jax.jit(m_step)

    @functools.cached_property
    def finer(self) -> Model | None:
        """The model with a more accurate rule for every approximate integral, if there is one that fits."""
        model = finer_model(self.model)
        try:
            if model is not None:
                estep.check_memory(model, None)
        except ModelError:
            return None
        return model

    @functools.cached_property
    def finer_score(self) -> Callable:
        """Log-likelihood and score by the finer model, for each of several random keys."""
        assert self.finer is not None
        return jax.jit(jax.vmap(functools.partial(score, self.finer), in_axes=(None, None, 0)))

    @functools.cached_property
    def prepared_and_report(self) -> Callable:
        """Statistics of the data, and what is wrong with them."""

        def prepared_and_report(data: Data) -> tuple[Any, Any]:
            return estep.prepare(self.model, self.program.fused, data), self._report(data)

        return jax.jit(prepared_and_report, compiler_options=self._compiler_options)

    @functools.cached_property
    def _compiler_options(self) -> dict[str, Any] | None:
        """How XLA is to compile what takes a fit's time; only for functions that no other jit calls."""
        if jax.default_backend() != "cpu":
            return None
        steps = [step for part in self.model.parts for step in part.plan.steps if step.chain is not None]
        lanes = [step.chain_sizes(self.model.axes.sizes)[2] for step in steps]
        return _WITHOUT_EMITTERS if lanes and max(lanes) < 8 and _knows(tuple(_WITHOUT_EMITTERS)) else None

    @functools.cached_property
    def start(self) -> Callable:
        """Starting values of a number of restarts."""
        return jax.jit(lambda key, data, number: starting_values(self.program, key, data, number), static_argnums=2)

    @functools.cached_property
    def evidence_by_row(self) -> Callable:
        """Log-probability of every row under every state."""
        return jax.jit(functools.partial(checks.row_tables, self.model))

    @functools.cached_property
    def begin(self) -> Callable:
        """State of M-step rules before the first M-step of every restart."""
        return jax.jit(jax.vmap(self.program.begin))

    @functools.cached_property
    def remembers(self) -> bool:
        """Whether any M-step rule keeps state between iterations."""
        return bool(jax.eval_shape(self.program.begin, self.model.trace.parameter_shapes))

    def block(self, lanes: int, accurate: bool) -> Callable:
        """The compiled block of iterations for a number of restarts."""
        key = (lanes, accurate)
        if key not in self._blocks:
            condense = None if accurate else self.reducer.on_few_steps
            self._blocks[key] = loop.make_block(loop.make_iteration(self.program, accurate, condense))
        block = self._blocks[key]
        return block.result() if isinstance(block, concurrent.futures.Future) else block

    def compile_in_background(self, lanes: int, data: Data, accelerate: bool = False) -> None:
        """Let XLA compile the loop while the statistics and the starting values are compiled and computed.

        Tracing happens here, so that thread-local settings of JAX hold; only XLA works in the other thread.
        """
        elsewhere = any(leaf.devices() != {jax.devices()[0]} for leaf in data)
        if (lanes, False) in self._blocks or elsewhere:
            return  # compiled already, or data on other devices, whose layout only the call itself shows
        sites = self.model.trace.sites
        params = {n: np.zeros((lanes, *sites[n].shape), sites[n].dtype) for n in self.model.free}
        memory = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(self.begin, params))
        states = loop.initial_states(self.model, params, memory, lanes, jnp.result_type(float), accelerate)
        prepared, _ = jax.eval_shape(self.prepared_and_report, data)
        block: Any = loop.make_block(loop.make_iteration(self.program, False, self.reducer.on_few_steps))
        lowered = block.lower(states, data, prepared, *loop.limits(0.0, 0, 0))
        pool = concurrent.futures.ThreadPoolExecutor(1)
        # On few cells compiling takes longer than the whole fit: let XLA do less of it.
        options = dict(self._compiler_options or {})
        if lanes * self.model.cost < _MOST_CELLS_OF_SMALL_FITS and jax.default_backend() == "cpu":
            options |= {"xla_backend_optimization_level": 0}
        self._blocks[lanes, False] = pool.submit(lowered.compile, options)
        pool.shutdown(wait=False)


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
    reads: Reads
    resolved: dict[Any, tuple[Compiled, list[jax.Array]]] = dataclasses.field(default_factory=dict)
    compressed: Compressed | None = None

    def __reduce__(self) -> tuple:
        return Fit, (self.recipe, self.cache, self.reads)

    @property
    def _now(self) -> tuple[Compiled, list[jax.Array]]:
        precision = jnp.result_type(float)
        if precision not in self.resolved:
            model, options, compress, args, kwargs = self.recipe
            self.reads.check(Reads.of(model, options, split_arguments(args, kwargs)[1]))
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

    def reduced(self) -> Fit | Refusal:
        """The fit on few weighted rows, or the reason why all are needed."""
        if any(isinstance(leaf, jax.core.Tracer) or len(leaf.devices()) > 1 for leaf in self.data):
            return Refusal("it is traced, or lies on several devices")
        few = self.compiled.reducer.few_rows(self.data)
        if isinstance(few, Refusal):
            return few
        resolved = {jnp.result_type(float): (self.compiled.for_few(few), few.data)}
        return Fit(self.recipe, self.cache, self.reads, resolved, few.compressed)

    def settled(self) -> Fit:
        """The same after the user's functions ran: what these write themselves is no change that someone made."""
        model, options, _, args, kwargs = self.recipe
        self.cache.settle(model, options)
        return dataclasses.replace(self, reads=Reads.of(model, options, split_arguments(args, kwargs)[1]))

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
        is_part = self.model.cost > _MOST_CELLS_OF_A_CHECK
        verification = verification_in_words(_ROWS_OF_A_CHECK if is_part else None) if verify else ""
        return build_plan(self.program, self._reduction_in_words(), verification)

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
    # The caller may write into arrays of NumPy, of which JAX does not always make copies.
    leaves = [np.array(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    with jax.ensure_compile_time_eval():  # what is no tracer stays in sight, though the caller be traced
        data = [leaf if isinstance(leaf, jax.core.Tracer) else raised(leaf) for leaf in leaves]
    data = [raised(leaf) if isinstance(leaf, jax.core.Tracer) else leaf for leaf in data]
    has_missing = any(map(_has_nan, data))
    cache.forget_if_changed(model, options)
    by_arguments = read_by_arguments(skeleton)
    precision = jnp.result_type(float)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in data)
    key = (skeleton, has_missing, shapes, precision, compress)
    if key not in cache or cache[key][1] != by_arguments:
        _check_updates(options)
        source = Source(MissingCells(model) if has_missing else model, skeleton, options, compress)
        compiled = Compiled(source, source.derive(data))
        _check_names(options, compiled.model)
        cache.settle(model, options)
        by_arguments = read_by_arguments(skeleton)
        cache[key] = compiled, by_arguments
    widest = [
        now if now.dtype.itemsize >= given.dtype.itemsize else given for given, now in zip(leaves, data, strict=True)
    ]
    own_args, own_kwargs = join_arguments(widest, skeleton)
    recipe = (model, options, compress, own_args, own_kwargs)
    return Fit(recipe, cache, Reads(cache.reads | by_arguments), {precision: (cache[key][0], data)})


def _has_nan(leaf: jax.Array) -> bool:
    """Whether an array of data holds NaN; no under a transformation of JAX, where its values cannot be seen."""
    if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return False
    return bool(np.isnan(np.min(np.asarray(leaf))))  # the minimum of NaN is NaN, and takes no memory


def _draws(model: Model, params: Params, data: Data, keys: jax.Array) -> dict[str, jax.Array]:
    """Joint draws of all latents, as many at once as memory allows."""
    sample = functools.partial(estep.sample, model, params, data)
    at_once = max(_CELLS_OF_DRAWS // estep.largest_table(model, None)[0], 1)
    return jax.vmap(sample)(keys) if len(keys) <= at_once else jax.lax.map(sample, keys, batch_size=at_once)


@functools.cache
def _knows(options: tuple[str, ...]) -> bool:
    """Whether this version of XLA has these options, which are internal and may vanish."""
    try:
        jax.jit(lambda: np.int32(0)).lower().compile(dict.fromkeys(options, False))
    except jax.errors.JaxRuntimeError:
        return False
    return True


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

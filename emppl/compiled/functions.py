"""A derived program with its compiled functions: one per public piece, and the blocks of the loop."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep
from emppl.derivation import certify
from emppl.errors import ModelError, Refusal
from emppl.estep.cell_weights import cell_weights
from emppl.fit import checks, loop
from emppl.fit.indices import index_ranges
from emppl.fit.start import starting_values
from emppl.integrals.settle import finer_model
from emppl.model.model import Model
from emppl.montecarlo.simulator import Simulator
from emppl.numerics.compiling import FEWER_PASSES, fast_options, jit_for_few_runs, known
from emppl.program import Program
from emppl.reduce.reduction import FewRows, Reducer, Source
from emppl.types import Data, Params
from emppl.uncertainty.identification import shift_effects
from emppl.uncertainty.information import hessian_columns, score
from emppl.verify.verification import Verification

_MOST_CELLS_OF_SMALL_FITS = 2**13
"""Table cells an iteration up to which a fit takes less time than compiling it well."""

_MOST_CELLS_OF_FEW_RUNS = 2**16
"""Table cells up to which a function that runs a few times takes less time than compiling it well."""

MOST_CELLS_OF_A_CHECK = 2**22
"""Table cells up to which all rows of data are compared with NumPyro's density."""

ROWS_OF_A_CHECK = 2**12
"""Rows of the random part that is compared where there are more."""

_CELLS_OF_DRAWS = 2**24
"""Cells of all tables of the draws that are made at once."""


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
        self.log_prior = self._jit(self.model.log_prior)
        self.marginals = self._plain(estep.marginals)
        self.moments = self._plain(estep.moments)
        self.filtered = self._plain(estep.filtered)
        self.decode = self._plain(estep.decode)
        self.sample = self._plain(_draws)
        self.m_step_checks = self._plain(functools.partial(_m_step_checks, program))
        # Estimates are arguments of these, so that no result compiles them anew.
        self.hessian_columns = self._jit(functools.partial(hessian_columns, self.model))
        self.shift_effects = self._jit(functools.partial(shift_effects, self.model))
        self.cell_weights = self._jit(functools.partial(cell_weights, self.model))
        self._blocks: dict[tuple[int, bool], Any] = {}
        self.is_verified = False
        self._for_few: dict[Any, Compiled] = {}

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
        return self._jit(functools.partial(estep.log_likelihood, self.model))

    @functools.cached_property
    def summed_log_likelihood(self) -> Callable:
        """The log-likelihood of the data with every latent summed out, in chunks of rows."""
        model = self.model.softened
        fused = estep.plan_fused(model, self.program.weighted)

        def value(params: Params, data: Data) -> jax.Array:
            return estep.expectations(model, fused, params, data, estep.prepare(model, fused, data)).log_likelihood

        return self._jit(value)

    @property
    def _is_small(self) -> bool:
        return self.model.cost <= _MOST_CELLS_OF_FEW_RUNS

    def _jit(self, function: Callable, **options: Any) -> Callable:
        """Compile what runs a few times."""
        return jit_for_few_runs(function, self._is_small, **options)

    def _plain(self, function: Callable) -> Callable:
        """Compile a function of the plain path, which holds tables of all rows: refused where they would not fit."""
        compiled = self._jit(functools.partial(function, self.model))

        def checked(*args: Any) -> Callable:
            estep.check_memory(self.model, None)
            return compiled(*args)

        return checked

    def verification(self, data: Data) -> Verification | None:
        """The comparison with NumPyro's own density, of a random part of the rows if they are many; None after that."""
        if self.is_verified:
            return None
        if self.model.cost <= MOST_CELLS_OF_A_CHECK:
            return Verification(self.source, self.model, data)
        few = self.reducer.some_rows(data, ROWS_OF_A_CHECK)
        if isinstance(few, Refusal):
            reason = f"it has {self.model.cost:,} table cells, and a part of its rows is no such model: {few.reason}"
            return Verification(self.source, self.model, data, why_not=reason)
        return Verification(few.source, few.program.model, few.data, is_part=True)

    def for_few(self, few: FewRows) -> Compiled:
        """The functions of the algorithm for few rows."""
        key = len(few.compressed.weights), few.source.skeleton
        if key not in self._for_few:
            self._for_few[key] = Compiled(few.source, few.program)
        return self._for_few[key]

    @functools.cached_property
    def report(self) -> Callable:
        """What is wrong with the data: with observed values, and the ranges of indices."""
        return self._jit(self._report)

    def _report(self, data: Data) -> tuple[Any, Any]:
        return checks.data_report(self.model, data), index_ranges(self.model, data)

    @functools.cached_property
    def q(self) -> Callable:
        """Expected complete-data log-likelihood."""
        return self._jit(functools.partial(estep.q, self.model))

    @functools.cached_property
    def m_step(self) -> Callable:
        """The M-step on a posterior."""

        def m_step(params: Params, posterior: Any, data: Data) -> dict[str, jax.Array]:
            expectations, prepared = estep.from_posterior(self.model, params, posterior, data)
            return self.program.m_step(params, expectations, data, prepared)

        return self._jit(m_step)

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
        return self._jit(jax.vmap(functools.partial(score, self.finer), in_axes=(None, None, 0)))

    @functools.cached_property
    def prepared_and_report(self) -> Callable:
        """Statistics of the data, and what is wrong with them."""

        def prepared_and_report(data: Data) -> tuple[Any, Any]:
            return estep.prepare(self.model, self.program.fused, data), self._report(data)

        return jax.jit(
            prepared_and_report, compiler_options=fast_options() if self._is_small else self._compiler_options
        )

    @functools.cached_property
    def _compiler_options(self) -> dict[str, Any] | None:
        """How XLA is to compile what takes a fit's time; only for functions that no other jit calls."""
        steps = [step for part in self.model.parts for step in part.plan.steps if step.chain is not None]
        lanes = [step.chain_sizes(self.model.axes.sizes)[2] for step in steps]
        return known(FEWER_PASSES) if lanes and max(lanes) < 8 else None

    @functools.cached_property
    def start(self) -> Callable:
        """Starting values of a number of restarts."""
        return self._jit(lambda key, data, number: starting_values(self.program, key, data, number), static_argnums=2)

    @functools.cached_property
    def evidence_by_row(self) -> Callable:
        """Log-probability of every row under every state."""
        return self._jit(functools.partial(checks.row_tables, self.model))

    @functools.cached_property
    def begin(self) -> Callable:
        """State of M-step rules before the first M-step of every restart."""
        return self._jit(jax.vmap(self.program.begin))

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
        is_small = lanes * self.model.cost < _MOST_CELLS_OF_SMALL_FITS
        self._blocks[lanes, False] = pool.submit(
            lowered.compile, fast_options() if is_small else self._compiler_options
        )
        pool.shutdown(wait=False)


def _draws(model: Model, params: Params, data: Data, keys: jax.Array) -> dict[str, jax.Array]:
    """Joint draws of all latents, as many at once as memory allows."""
    sample = functools.partial(estep.sample, model, params, data)
    at_once = max(_CELLS_OF_DRAWS // estep.largest_table(model, None)[0], 1)
    return jax.vmap(sample)(keys) if len(keys) <= at_once else jax.lax.map(sample, keys, batch_size=at_once)


def _m_step_checks(program: Program, model: Model, params: Params, data: Data) -> dict[str, Any]:
    """What the update of every block does to Q."""
    return certify.checks(model, program.blocks, params, estep.e_step(model, params, data), data)

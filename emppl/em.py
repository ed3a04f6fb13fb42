"""``EM``: the public face. Holds options, caches what was derived per shape of data, runs the loop."""

from __future__ import annotations

import concurrent.futures
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import emppl.closed_forms  # noqa: F401  registers the families
from emppl import checks, estep, loop, mstep
from emppl.arguments import split_arguments
from emppl.criteria import cell_weights
from emppl.derive import derive
from emppl.errors import DataError, ParameterError, unknown_name
from emppl.held import split_fixed
from emppl.identification import shift_effects
from emppl.numerics import weighted
from emppl.parameters import check
from emppl.plan import Plan, build_plan
from emppl.program import Options, Program
from emppl.progress import Progress
from emppl.result import EMResult
from emppl.start import starting_values
from emppl.uncertainty import hessian_columns

_TOLERANCE = 1e-9


class EM:
    """Expectation-maximisation for a NumPyro model.

    Each iteration computes the posterior weights of the latents at the current parameters (E-step), then
    maximises the expected complete-data log-likelihood plus the log prior (M-step)::

        Q(params; weights) = sum over sites and cells of weight * log_prob(cell; params)

    Args:
        model: a NumPyro model; discrete unobserved sites are latents, ``numpyro.param`` and unplated
            continuous sample sites are parameters.
        estimate: names of sample sites to maximise over when their role is ambiguous.
        latents: ``{site: strategy}``; ``Enumerate()`` is the only strategy so far, and the default.
        fixed: ``{parameter: value}``, held at that value; everything else keeps its closed form. In an array, entries
            that are NaN stay free: ``fixed={"mu": [0.0, nan]}``.
        m_step: ``{parameter: function}``, the user's own updates, called as ``function(params, posterior)``
            and returning the new value; ``posterior.weights`` holds the weights of the sites it enters. An
            ``optax.GradientTransformation`` in place of the function updates that parameter numerically.
        optimizer: an ``optax.GradientTransformation`` for whatever has no exact update. The default is Newton's method
            for smooth blocks of moderate size, and L-BFGS with a line search for the rest. No step that lowers Q is
            ever kept.
        prior: False drops the priors of sampled parameters: maximum likelihood from a Bayesian model.
        restarts: number of starts, run together; the best is kept.
        max_iterations: most M-steps of one run.
        tolerance: in nats: stop when the estimated gain still to come is below it. Default 1e-9, or the
            rounding noise of the objective if that is larger. 0 goes on until ``max_iterations`` or rounding level.
        progress_bar: show one when a run takes longer than a second.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, emppl
        >>> def coins(heads):
        ...     bias = numpyro.param("bias", jnp.array([0.6, 0.5]), constraint=dist.constraints.unit_interval)
        ...     with numpyro.plate("sets", len(heads)):
        ...         coin = numpyro.sample("coin", dist.Categorical(jnp.array([0.5, 0.5])))
        ...         numpyro.sample("heads", dist.Binomial(10, bias[coin]), obs=heads)
        >>> result = emppl.EM(coins).run(jax.random.key(0), jnp.array([5, 9, 8, 4, 7]))
        >>> result.params["bias"].round(2)
        array([0.8 , 0.52]...)

    Reference:
        Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.
    """

    def __init__(
        self,
        model: Callable,
        *,
        estimate: Sequence[str] | None = None,
        latents: Mapping[str, Any] | None = None,
        fixed: Mapping[str, Any] | None = None,
        m_step: Mapping[str, Any] | None = None,
        optimizer: Any = None,
        prior: bool = True,
        restarts: int = 1,
        max_iterations: int = 1000,
        tolerance: float | None = None,
        progress_bar: bool = True,
    ):
        if restarts < 1:
            raise ParameterError(f"restarts must be at least 1, not {restarts}.")
        if max_iterations < 0:
            raise ParameterError(f"max_iterations must not be negative; it is {max_iterations}.")
        if tolerance is not None and tolerance < 0:
            raise ParameterError(f"tolerance must not be negative; it is {tolerance}.")
        if isinstance(estimate, str):
            raise ParameterError(f"estimate must be a list of names: estimate=[{estimate!r}].")
        self.model = model
        whole, partly = split_fixed(fixed or {})
        self.options = Options(
            tuple(estimate or ()), dict(latents or {}), whole, dict(m_step or {}), optimizer, prior, partly
        )
        self.restarts = restarts
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.progress_bar = progress_bar
        self._derived: dict[Any, _Derived] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_derived": {}}

    # ------------------------------------------------------------------------------------------ the pieces

    def plan(self, *args, **kwargs) -> Plan:
        """What EM will do for this model and data: ``print(em.plan(x))``.

        Args:
            *args: model arguments.
            **kwargs: model keyword arguments.

        Returns:
            The plan: roles, strategies, rules, costs and reasons.

        Raises:
            ModelError: the model cannot be handled; the message says why and what to write.
        """
        derived, _ = self._derive(args, kwargs)
        return build_plan(derived.program, derived.fused)

    def e_step(self, params: Mapping[str, Any], *args, **kwargs) -> estep.Posterior:
        """Posterior weights of all latents at given parameters.

        Args:
            params: constrained parameter values by name.
            *args: model arguments.
            **kwargs: model keyword arguments.

        Returns:
            The posterior: ``.log_likelihood`` (natural log) and ``.weights`` by site. Pure; may be jitted,
            differentiated and vmapped.
        """
        derived, leaves = self._derive(args, kwargs)
        return derived.e_step(derived.parameters(params), leaves)

    def q(self, params: Mapping[str, Any], posterior: estep.Posterior, *args, **kwargs) -> jax.Array:
        """Expected complete-data log-likelihood: ``sum(stop_gradient(weight) * log_prob(params))``.

        Args:
            params: parameters at which Q is evaluated.
            posterior: outcome of :meth:`e_step`, at any other parameters.
            *args: model arguments.
            **kwargs: model keyword arguments.

        Returns:
            A scalar (natural log, without priors).
        """
        derived, leaves = self._derive(args, kwargs)
        return derived.q(derived.parameters(params), posterior, leaves)

    def m_step(self, params: Mapping[str, Any], posterior: estep.Posterior, *args, **kwargs) -> dict[str, jax.Array]:
        """New parameters: every block's rule, on the posterior's weights.

        Args:
            params: parameters at which the posterior was computed.
            posterior: outcome of :meth:`e_step`.
            *args: model arguments.
            **kwargs: model keyword arguments.

        Returns:
            New constrained values of the free parameters; Q plus the log prior is no lower there.
        """
        derived, leaves = self._derive(args, kwargs)
        return derived.m_step(derived.parameters(params), posterior, leaves)

    def log_likelihood(self, params: Mapping[str, Any], *args, **kwargs) -> jax.Array:
        """Log-likelihood of the observed data, latents summed out (natural log, constants included, no prior)."""
        derived, leaves = self._derive(args, kwargs)
        return derived.log_likelihood(derived.parameters(params), leaves)

    def log_prior(self, params: Mapping[str, Any], *args, **kwargs) -> jax.Array:
        """Log prior density of the estimated parameters, in constrained space; zero with ``prior=False``."""
        derived, leaves = self._derive(args, kwargs)
        return derived.log_prior(derived.parameters(params), leaves)

    def start(self, rng_key: jax.Array, *args, **kwargs) -> dict[str, jax.Array]:
        """Starting values of one run, as :meth:`run` would choose them."""
        derived, leaves = self._derive(args, kwargs)
        stacked = derived.start(rng_key, leaves, 1)
        return {name: value[0] for name, value in stacked.items()}

    # --------------------------------------------------------------------------------------------- the fit

    def run(self, rng_key: jax.Array, *args, init_params: Mapping[str, Any] | None = None, **kwargs) -> EMResult:
        """Fit the model.

        Args:
            rng_key: random key, for starting values.
            *args: model arguments; arrays are data, everything else is static.
            init_params: starting values by parameter for the first restart; the others are drawn.
            **kwargs: model keyword arguments.

        Returns:
            The result. Look at ``result.converged`` and ``result.stop_reason``.

        Raises:
            ModelError: the model cannot be handled.
            DataError: the data cannot be used, or have probability zero at every start.
            ParameterError: a value or a name in the options cannot be used.
        """
        derived, leaves = self._derive(args, kwargs)
        program = derived.program
        given = self._initial_values(program, init_params)
        derived.compile_in_background(self.restarts, leaves)
        prepared, report = derived.prepare(leaves)
        checks.check_report(program, jax.device_get(report))
        _say_float32()
        params = {name: np.array(value) for name, value in derived.start(rng_key, leaves, self.restarts).items()}
        for name, value in given.items():
            params[name][0] = program.pin(name, value)
        memory = derived.begin(params) if derived.remembers else {}
        states = loop.initial_states(params, memory, self.restarts, jnp.result_type(float))
        tolerance = _TOLERANCE if self.tolerance is None else self.tolerance
        progress = Progress(self.progress_bar, self.max_iterations)
        states, history, interrupted, accurate = loop.run_blocks(
            functools.partial(derived.block, self.restarts),
            states,
            leaves,
            prepared,
            tolerance,
            self.max_iterations,
            progress,
        )
        progress.close()
        states = jax.device_get(states)
        if not np.any(np.isfinite(states.progress.objective)) and not interrupted:
            self._explain_impossible(derived, {n: v[0] for n, v in params.items()}, leaves)
        return EMResult.from_states(
            self, args, kwargs, program, states, history, interrupted=interrupted, accurate=accurate
        )

    def _initial_values(self, program: Program, init_params) -> dict[str, np.ndarray]:
        given = {}
        for name, value in (init_params or {}).items():
            if name not in program.free:
                raise unknown_name("init_params", name, program.free)
            site = program.trace.sites[name]
            given[name] = check(name, value, site.shape, site.constraint, "init_params")
        return given

    def _explain_impossible(self, derived: _Derived, params, leaves) -> None:
        tables = derived.evidence_by_row(params, leaves)
        row = checks.impossible_rows(derived.program, jax.device_get(tables))
        if row is None:
            raise DataError(
                "The log-likelihood is not finite at any start. Check for extreme values, or give init_params."
            )
        raise DataError(
            f"An observation has probability zero under every state at the start ({row}). Give init_params under which "
            "it is possible, or correct the data or the structural zeros of the model."
        )

    def _derive(self, args, kwargs) -> tuple[_Derived, list]:
        leaves, skeleton = split_arguments(args, kwargs)
        for number, leaf in enumerate(leaves):
            if leaf.size == 0:
                raise DataError(f"Array argument number {number + 1} of the model is empty (shape {leaf.shape}).")
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        key = (skeleton, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves), jnp.result_type(float))
        if key not in self._derived:
            self._derived[key] = _Derived(self.model, leaves, skeleton, self.options)
        return self._derived[key], leaves


class _Derived:
    """A program with its compiled functions."""

    def __init__(self, model, leaves, skeleton, options: Options):
        for name, given in options.m_step.items():
            if not callable(given) and not mstep.is_optimizer(given):
                raise ParameterError(
                    f"m_step[{name!r}] must be a function (params, posterior) -> value, or an "
                    "optax.GradientTransformation such as optax.adam(1e-2)."
                )
        if options.optimizer is not None and not mstep.is_optimizer(options.optimizer):
            raise ParameterError(
                f"optimizer must be an optax.GradientTransformation such as optax.adam(1e-2); it is "
                f"{options.optimizer!r}."
            )
        program = derive(model, leaves, skeleton, options)
        for name in options.m_step:
            if name not in program.trace.parameters:
                raise unknown_name("m_step", name, program.trace.parameters)
        for name, value in options.fixed.items():
            site = program.trace.sites[name]
            check(name, value, site.shape, site.constraint, "fixed")
        self.program = program
        self.fused = estep.plan_fused(program)
        self.e_step = jax.jit(functools.partial(estep.e_step, program))
        self.log_likelihood = jax.jit(functools.partial(estep.log_likelihood, program))
        self.log_prior = jax.jit(program.log_prior)
        self.marginals = jax.jit(functools.partial(estep.marginals, program))
        self.decode = jax.jit(functools.partial(estep.decode, program))
        self.sample = jax.jit(
            lambda params, leaves, keys: jax.vmap(lambda key: estep.sample(program, params, leaves, key))(keys)
        )
        # Estimates are arguments of these, so that no result compiles them anew.
        self.hessian_columns = jax.jit(functools.partial(hessian_columns, program))
        self.shift_effects = jax.jit(functools.partial(shift_effects, program))
        self.cell_weights = jax.jit(functools.partial(cell_weights, program))
        self._blocks: dict[tuple[int, bool], Any] = {}

    def parameters(self, params: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The free parameters of a user's dictionary."""
        missing = [name for name in self.program.free if name not in params]
        if missing:
            raise ParameterError(f"params lacks {missing}; the model needs {self.program.free}.")
        found = {name: jnp.asarray(params[name], jnp.result_type(float)) for name in self.program.free}
        for name, value in found.items():
            if value.shape != self.program.trace.sites[name].shape:
                raise ParameterError(
                    f"params[{name!r}] has shape {value.shape}; the model needs {self.program.trace.sites[name].shape}."
                )
        return found

    @functools.cached_property
    def q(self):
        def q(params, posterior, leaves):
            weights = jax.lax.stop_gradient(posterior.weights)
            tables = self.program.tables(self.program.evaluate(params, leaves))
            return sum(jnp.sum(weighted(weights[name], tables[name])) for name in tables)

        return jax.jit(q)

    @functools.cached_property
    def m_step(self):
        def m_step(params, posterior, leaves):
            found, prepared = estep.from_posterior(self.program, params, posterior, leaves)
            return mstep.m_step(self.program, params, found, leaves, prepared)

        return jax.jit(m_step)

    @functools.cached_property
    def prepare(self):
        return jax.jit(
            lambda leaves: (
                estep.prepare(self.program, self.fused, leaves),
                checks.data_report(self.program, leaves),
            )
        )

    @functools.cached_property
    def start(self):
        return jax.jit(lambda key, leaves, number: starting_values(self.program, key, leaves, number), static_argnums=2)

    @functools.cached_property
    def evidence_by_row(self):
        def by_row(params, leaves):
            return checks.row_tables(self.program, params, leaves)

        return jax.jit(by_row)

    @functools.cached_property
    def begin(self):
        """What M-step rules remember before the first M-step of every restart."""
        return jax.jit(jax.vmap(functools.partial(mstep.begin, self.program)))

    @functools.cached_property
    def remembers(self) -> bool:
        """Do any?"""
        return any(isinstance(rule, mstep.Numeric) for rule in self.program.blocks)

    def block(self, lanes: int, accurate: bool) -> Callable:
        """The compiled block of iterations for a number of restarts."""
        key = (lanes, accurate)
        if key not in self._blocks:
            self._blocks[key] = loop.make_block(loop.make_iteration(self.program, self.fused, accurate))
        found = self._blocks[key]
        return found.result() if isinstance(found, concurrent.futures.Future) else found

    def compile_in_background(self, lanes: int, leaves) -> None:
        """Let XLA compile the loop while the statistics and the starting values are compiled and computed.

        Tracing happens here, so that thread-local settings of JAX hold; only XLA works in the other thread.
        """
        elsewhere = any(leaf.devices() != {jax.devices()[0]} for leaf in leaves)
        if (lanes, False) in self._blocks or elsewhere:
            return  # compiled already, or data on other devices, whose layout only the call itself shows
        sites = self.program.trace.sites
        params = {n: np.zeros((lanes, *sites[n].shape), sites[n].dtype) for n in self.program.free}
        memory = jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), jax.eval_shape(self.begin, params))
        states = loop.initial_states(params, memory, lanes, jnp.result_type(float))
        prepared, _ = jax.eval_shape(self.prepare, leaves)
        block: Any = loop.make_block(loop.make_iteration(self.program, self.fused, False))
        lowered = block.lower(states, leaves, prepared, *loop.limits(0.0, 0, 0))
        pool = concurrent.futures.ThreadPoolExecutor(1)
        self._blocks[lanes, False] = pool.submit(lowered.compile)
        pool.shutdown(wait=False)


@functools.cache
def _say_float32() -> None:
    if jnp.result_type(float) == jnp.float32:
        warnings.warn(
            "This fit runs in float32, whose log-likelihoods carry a relative error of about 1e-6. For float64 call "
            "jax.config.update('jax_enable_x64', True) before anything else. (Said once.)",
            stacklevel=4,
        )

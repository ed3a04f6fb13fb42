"""``EM``: the public face. Holds options, caches what was derived per shape of data, runs the loop."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep
from emppl.checkpoint.file import Checkpoint
from emppl.checkpoint.identity import fit_identity
from emppl.compiled import Compiled
from emppl.derivation.plan import Plan, build_plan
from emppl.errors import DataError, ParameterError, check_number, check_whole, unknown_name
from emppl.fit import checks, loop
from emppl.fit.progress import Progress
from emppl.model.model import Model
from emppl.model.options import Options
from emppl.montecarlo import stochastic
from emppl.parameters.constraints import check
from emppl.parameters.held import split_fixed
from emppl.result import ending
from emppl.result.result import EMResult
from emppl.trace import MissingCells
from emppl.trace.arguments import split_arguments

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
        latents: ``{site: strategy}``. Discrete latents are summed over (``Enumerate()``); continuous ones are
            integrated by ``Gaussian()`` where that is exact, else by ``Quadrature(15)``, ``Laplace()``,
            ``MonteCarlo()`` or ``SAEM()``; ``Hard()`` gives discrete ones their best values (k-means, Viterbi
            training). The plan says what is chosen without a word, and why.
        fixed: ``{parameter: value}``, held at that value; everything else keeps its closed form. In an array, entries
            that are NaN stay free: ``fixed={"mu": [0.0, nan]}``.
        m_step: ``{parameter: function}``, the user's own updates, called as ``function(params, posterior)``
            and returning the new value; ``posterior.weights`` holds the weights of the sites it enters. An
            ``optax.GradientTransformation`` in place of the function updates that parameter numerically.
        optimizer: an ``optax.GradientTransformation`` for whatever has no exact update. The default is Newton's method
            for smooth blocks of moderate size, and L-BFGS with a line search for the rest. No step that lowers Q is
            ever kept.
        prior: False drops the priors of sampled parameters: maximum likelihood from a Bayesian model.
        accelerate: ``"squarem"`` leaps ahead every third iteration, where plain EM crawls; a leap that lowers the
            objective is taken back.
        compress: replace many rows of data by few weighted ones, where EM is the same on both: equal rows by one that
            counts several times, rows of normal latents and data by few with the same count, mean and covariance. The
            plan says so. Posteriors are always those of the real rows.
        restarts: number of starts, run together; the best is kept.
        max_iterations: most M-steps of one run.
        tolerance: in nats: stop when the estimated gain still to come is below it. Default 1e-9, or the
            rounding noise of the objective if that is larger; 1e-3 where latents are drawn (``MonteCarlo``, ``SAEM``):
            the estimate is then within about a twentieth of its standard error of the maximum. 0 goes on until
            ``max_iterations`` or rounding level.
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
        accelerate: str | None = None,
        compress: bool = True,
        restarts: int = 1,
        max_iterations: int = 1000,
        tolerance: float | None = None,
        progress_bar: bool = True,
    ):
        check_whole("restarts", restarts)
        check_whole("max_iterations", max_iterations)
        if tolerance is not None:
            check_number("tolerance", tolerance)
        if restarts < 1:
            raise ParameterError(f"restarts must be at least 1, not {restarts}.")
        if max_iterations < 0:
            raise ParameterError(f"max_iterations must not be negative; it is {max_iterations}.")
        if tolerance is not None and tolerance < 0:
            raise ParameterError(f"tolerance must not be negative; it is {tolerance}.")
        if accelerate not in (None, "squarem"):
            raise ParameterError(f"accelerate must be None or 'squarem'; it is {accelerate!r}.")
        if isinstance(estimate, str):
            raise ParameterError(f"estimate must be a list of names: estimate=[{estimate!r}].")
        self.model = model
        whole, partly = split_fixed(fixed or {})
        self.options = Options(
            tuple(estimate or ()), dict(latents or {}), whole, dict(m_step or {}), optimizer, prior, partly
        )
        self.accelerate = accelerate
        self.compress = compress
        self.restarts = restarts
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.progress_bar = progress_bar
        self._derived: dict[Any, Compiled] = {}

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
        derived, data = self._derive(args, kwargs)
        return build_plan(derived.program, self._compression(derived, data))

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
        derived, data = self._derive(args, kwargs)
        return derived.e_step(derived.parameters(params), data)

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
        derived, data = self._derive(args, kwargs)
        return derived.q(derived.parameters(params), posterior, data)

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
        derived, data = self._derive(args, kwargs)
        return derived.m_step(derived.parameters(params), posterior, data)

    def log_likelihood(self, params: Mapping[str, Any], *args, **kwargs) -> jax.Array:
        """Log-likelihood of the observed data, latents summed out (natural log, constants included, no prior)."""
        derived, data = self._derive(args, kwargs)
        return derived.log_likelihood(derived.parameters(params), data)

    def filter(self, params: Mapping[str, Any], *args, **kwargs) -> estep.Filtered:
        """Filtered states and one-step-ahead predictions of the chains in a model with ``scan``.

        Args:
            params: constrained parameter values by name, of this fit or any other.
            *args: model arguments: the data of the fit, or new sequences.
            **kwargs: model keyword arguments.

        Returns:
            ``.states``, ``.predicted`` and ``.log_likelihood`` by latent, time first.

        Raises:
            ModelError: the model has no chain that can be filtered.
        """
        derived, data = self._derive(args, kwargs)
        return derived.filtered(derived.parameters(params), data)

    def log_prior(self, params: Mapping[str, Any], *args, **kwargs) -> jax.Array:
        """Log prior density of the estimated parameters, in constrained space; zero with ``prior=False``."""
        derived, data = self._derive(args, kwargs)
        return derived.log_prior(derived.parameters(params), data)

    def start(self, rng_key: jax.Array, *args, **kwargs) -> dict[str, jax.Array]:
        """Starting values of one run, as :meth:`run` would choose them."""
        derived, data = self._derive(args, kwargs)
        stacked = derived.start(rng_key, data, 1)
        return {name: value[0] for name, value in stacked.items()}

    # --------------------------------------------------------------------------------------------- the fit

    def run(
        self,
        rng_key: jax.Array,
        *args,
        init_params: Mapping[str, Any] | None = None,
        checkpoint: str | os.PathLike | None = None,
        **kwargs,
    ) -> EMResult:
        """Fit the model.

        Args:
            rng_key: random key, for starting values.
            *args: model arguments; arrays are data, everything else is static.
            init_params: starting values by parameter for the first restart; the others are drawn.
            checkpoint: a file that holds the state of the fit after every block of iterations. The same call goes on
                from there after the process was killed, and gives the same result as if it had not been. A file
                of another fit is refused; globals that a function in ``m_step`` or ``optimizer`` reaches are not seen.
            **kwargs: model keyword arguments.

        Returns:
            The result. Look at ``result.converged`` and ``result.stop_reason``.

        Raises:
            ModelError: the model cannot be handled.
            DataError: the data cannot be used, or have probability zero at every start.
            ParameterError: a value or a name in the options cannot be used.
        """
        derived, data = self._derive(args, kwargs)
        program = derived.program
        given = self._initial_values(derived.model, init_params)
        if derived.model.hard and self.accelerate is not None:
            raise ParameterError(
                f"accelerate={self.accelerate!r} extrapolates steps that shrink, and under Hard() assignments jump: "
                "leave it out. Hard EM ends after few iterations anyway."
            )
        whole = derived, data
        compressed = self._compressed(derived, data)
        if not isinstance(compressed, str):
            checks.check_report(program, jax.device_get(derived.report(data)))
            derived, data, _ = compressed
        if derived.simulator is None:
            derived.compile_in_background(self.restarts, data, self.accelerate is not None)
        prepared, report = derived.prepare(data)
        checks.check_report(derived.program, jax.device_get(report))
        _say_float32()
        if self.restarts == 1 and given.keys() == set(derived.model.free):
            params = {name: derived.model.pin(name, value)[None] for name, value in given.items()}
        else:
            params = {name: np.array(value) for name, value in whole[0].start(rng_key, whole[1], self.restarts).items()}
            for name, value in given.items():
                params[name][0] = derived.model.pin(name, value)
        file = None if checkpoint is None else self._checkpoint(checkpoint, *whole, rng_key, params, args, kwargs)
        if derived.simulator is not None:
            return self._simulate(derived, rng_key, params, data, prepared, args, kwargs, file)
        memory = derived.begin(params) if derived.remembers else {}
        states = loop.initial_states(
            derived.model, params, memory, self.restarts, jnp.result_type(float), self.accelerate is not None
        )
        tolerance = _TOLERANCE if self.tolerance is None else self.tolerance
        progress = Progress(self.progress_bar, self.max_iterations)
        states, history, interrupted, accurate = loop.run_blocks(
            functools.partial(derived.block, self.restarts),
            states,
            data,
            prepared,
            tolerance,
            self.max_iterations,
            progress,
            file,
        )
        progress.close()
        states = jax.device_get(states)
        if not np.any(np.isfinite(states.gains.objective)) and not interrupted:
            self._explain_impossible(whole[0], {n: v[0] for n, v in params.items()}, whole[1])
        result = ending.from_states(
            self, args, kwargs, program, states, history, interrupted=interrupted, accurate=accurate
        )
        return ending.classified(result) if derived.model.hard else result

    def _simulate(self, derived: Compiled, rng_key, params, data, prepared, args, kwargs, file) -> EMResult:
        """The fit of a model with simulated latents."""
        assert derived.simulator is not None
        if self.accelerate is not None:
            raise ParameterError(
                f"accelerate={self.accelerate!r} extrapolates noise where latents are drawn: leave it out. The closing "
                "phase of MonteCarlo() and SAEM() takes Newton steps already."
            )
        progress = Progress(self.progress_bar, self.max_iterations)
        states, history, rows, simulation, interrupted, best = stochastic.run(
            derived.simulator,
            derived.random_log_likelihood,
            jax.random.fold_in(rng_key, 1),
            params,
            data,
            prepared,
            stochastic.TOLERANCE if self.tolerance is None else self.tolerance,
            self.max_iterations,
            progress,
            file,
        )
        progress.close()
        result = ending.from_states(
            self, args, kwargs, derived.program, states, history, interrupted=interrupted, accurate=False, best=best
        )
        return ending.with_simulation(result, simulation, rows)

    def _checkpoint(self, path, derived: Compiled, data, rng_key, params, args, kwargs) -> Checkpoint:
        """The file of a fit, with what the fit depends on."""
        options = {
            "version": _version(),
            "restarts": self.restarts,
            "max_iterations": self.max_iterations,
            "tolerance": self.tolerance,
            "accelerate": self.accelerate,
            "compress": self.compress,
        }
        skeleton = split_arguments(args, kwargs)[1]
        memory = jax.eval_shape(derived.begin, params)
        return Checkpoint(
            path,
            fit_identity(derived.model.trace, data, skeleton, rng_key, params, memory, self.options, options),
        )

    def _compression(self, derived: Compiled, data) -> str:
        """What a fit does with the rows of the data, for the plan."""
        found = self._compressed(derived, data)
        if isinstance(found, str):
            few = derived.condensation
            if derived.condense is not None and not isinstance(few, str):
                moments = f"with the moments of all {few.name}: EM is the same"
                return f"the M-step runs on {few.pieces} weighted {few.name} {moments}"
            return f"data not compressed: {found}" if derived.model.integrals else ""
        few = found[2]
        all_rows = f"the {few.all_rows:,} rows in {few.plate!r}"
        if not few.classes:
            different = f"the {few.rows:,} different ones among {all_rows}"
            return f"fits run on {different}, weighted by their number: EM is the same"
        within = f", in each of {few.classes:,} classes of rows that agree otherwise" if few.classes > 1 else ""
        return (
            f"fits run on {few.rows:,} weighted rows with the count, mean and covariance of {all_rows}{within}: "
            "EM is the same"
        )

    def _compressed(self, derived: Compiled, data):
        """From :meth:`Compiled.compress_data`; data whose values cannot be seen here are left as they are."""
        if any(isinstance(leaf, jax.core.Tracer) or len(leaf.devices()) > 1 for leaf in data):
            return "it is traced, or lies on several devices"
        return derived.compress_data(data)

    def _initial_values(self, model: Model, init_params) -> dict[str, np.ndarray]:
        given = {}
        for name, value in (init_params or {}).items():
            if name not in model.free:
                raise unknown_name("init_params", name, model.free)
            site = model.trace.sites[name]
            given[name] = check(name, value, site.shape, site.constraint, "init_params")
        return given

    def _explain_impossible(self, derived: Compiled, params, data) -> None:
        tables = derived.evidence_by_row(params, data)
        tables = jax.device_get(tables)
        holes = checks.arrays_with_holes(data)
        if holes is not None and any(np.any(np.isnan(table)) for table in tables.values()):
            raise DataError(
                f"The log-likelihood is NaN at the start, and so are cells of {holes}. A mask leaves out cells "
                "that are observed; those of a covariate have to be dropped or filled in before the fit."
            )
        row = checks.impossible_rows(derived.model, tables)
        if row is None:
            raise DataError(
                "The log-likelihood is not finite at any start. Check for extreme values, or give init_params."
            )
        raise DataError(
            f"An observation has probability zero under every state at the start ({row}). Give init_params under which "
            "it is possible, or correct the data or the structural zeros of the model."
            + (f" There is NaN in {holes}." if holes is not None else "")
        )

    def _derive(self, args, kwargs) -> tuple[Compiled, list]:
        data, skeleton = split_arguments(args, kwargs)
        for number, leaf in enumerate(data):
            if leaf.size == 0:
                raise DataError(f"Array argument number {number + 1} of the model is empty (shape {leaf.shape}).")
        data = [jnp.asarray(leaf) for leaf in data]
        has_missing = any(_has_nan(leaf) for leaf in data)
        key = (skeleton, has_missing, tuple((leaf.shape, str(leaf.dtype)) for leaf in data), jnp.result_type(float))
        if key not in self._derived:
            model = MissingCells(self.model) if has_missing else self.model
            self._derived[key] = Compiled(model, data, skeleton, self.options, self.compress)
        return self._derived[key], data


def _version() -> str:
    try:
        return importlib.metadata.version("emppl")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _has_nan(leaf: jax.Array) -> bool:
    """Does an array of data hold NaN? Under a transformation of JAX its values cannot be seen: no."""
    if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return False
    return bool(np.isnan(np.min(np.asarray(leaf))))  # NaN wins, and no array of answers is made


@functools.cache
def _say_float32() -> None:
    if jnp.result_type(float) == jnp.float32:
        warnings.warn(
            "This fit runs in float32, whose log-likelihoods carry a relative error of about 1e-6. For float64 call "
            "jax.config.update('jax_enable_x64', True) before anything else. (Said once.)",
            stacklevel=4,
        )

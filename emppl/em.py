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
from emppl.compiled import Cache, Fit, fit_of
from emppl.derivation.certify import faults
from emppl.derivation.plan import Plan
from emppl.errors import DataError, ModelError, ParameterError, check_number, check_whole, unknown_name
from emppl.fit import checks, loop
from emppl.fit.outcome import StopReason
from emppl.fit.progress import Progress
from emppl.inputs.trees import as_arrays
from emppl.model.model import Model
from emppl.model.options import Options
from emppl.montecarlo import simulation
from emppl.parameters.constraints import check
from emppl.parameters.held import split_fixed
from emppl.result.ending import result_of
from emppl.result.result import EMResult
from emppl.result.saddle import leave_saddle
from emppl.verify.verification import Verification

_TOLERANCE = 1e-9

_MOST_SADDLES = 5
"""Most times that a fit goes on from a point that is no maximum."""


class EM:
    """Expectation-maximisation for a NumPyro model.

    Each iteration computes the posterior weights of the latents at the current parameters (E-step), then
    maximises the expected complete-data log-likelihood plus the log prior (M-step)::

        Q(params; weights) = sum over sites and cells of weight * log_prob(cell; params)

    Args:
        model: a NumPyro model; discrete unobserved sites are latents, ``numpyro.param`` and unplated
            continuous sample sites are parameters. Arrays among its arguments may change from call to call at no cost.
            What it reads beside them (closures, globals, attributes) is compared at every call, and everything is
            derived and compiled anew where it changed. Files, random states, names that are computed
            (``getattr(settings, name)``), and what JAX itself has compiled or aliased are out of sight.
        estimate: names of sample sites to maximise over when their role is ambiguous.
        latents: ``[site, ...]``, latents whose strategy is chosen here, or ``{site: strategy}`` (None: the same as in
            a list). Discrete latents are summed over (``Enumerate()``); continuous ones are
            integrated by ``Gaussian()`` where that is exact, else by ``Quadrature(15)``, ``Laplace()``,
            ``MonteCarlo()`` or ``SAEM()``; ``Hard()`` gives discrete ones their best values (k-means, Viterbi
            training). The plan shows the defaults that were chosen, and why.
        fixed: ``{parameter: value}``, held at that value; everything else keeps its closed form. In an array, entries
            that are NaN stay free: ``fixed={"mu": [0.0, nan]}``.
        m_step: ``{parameter: function}``, the user's own updates, called as ``function(params, posterior)``
            and returning the new value; ``posterior.weights`` holds the weights of the sites it enters. An
            ``optax.GradientTransformation`` in place of the function updates that parameter numerically.
        optimizer: an ``optax.GradientTransformation`` for whatever has no exact update. The default is Newton's method
            for smooth blocks of moderate size, and L-BFGS with a line search for the rest. No step that lowers Q is
            ever kept.
        prior: False drops the priors of sampled parameters: maximum likelihood from a Bayesian model.
        accelerate: ``"squarem"`` extrapolates every third iteration, where plain EM is slow; a step that lowers the
            objective is taken back.
        verify: compare the first fit for data of some shape with NumPyro's own density of the model, nothing summed or
            integrated out, at random values of all latents. A model that emppl misreads is then a ``ModelError`` in
            place of a wrong result. Compiled while the fit goes on; later fits are not compared again.
        check_maximum: where exact iterations have come to rest, look at score and second derivatives of the
            log-likelihood (up to 500 free dimensions, and where that takes no longer than the fit). At a saddle the fit
            goes on along a direction in which the log-likelihood rises.
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
        latents: Mapping[str, Any] | Sequence[str] | None = None,
        fixed: Mapping[str, Any] | None = None,
        m_step: Mapping[str, Any] | None = None,
        optimizer: Any = None,
        prior: bool = True,
        accelerate: str | None = None,
        verify: bool = True,
        check_maximum: bool = True,
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
        if isinstance(latents, str):
            raise ParameterError(f"latents must be a list of names or a dict of strategies: latents=[{latents!r}].")
        if latents is not None and not isinstance(latents, Mapping):
            latents = dict.fromkeys(latents)
        self.model = model
        whole, partly = split_fixed(fixed or {})
        self.options = Options(
            tuple(estimate or ()), dict(latents or {}), whole, dict(m_step or {}), optimizer, prior, partly
        )
        self.accelerate = accelerate
        self.verify = verify
        self.check_maximum = check_maximum
        self.compress = compress
        self.restarts = restarts
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.progress_bar = progress_bar
        self._compiled = Cache()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_compiled": Cache()}

    # ------------------------------------------------------------------------------------------ the pieces

    def plan(self, *args: Any, **kwargs: Any) -> Plan:
        """What EM will do for this model and data: ``print(em.plan(x))``.

        Args:
            *args: model arguments.
            **kwargs: model keyword arguments.

        Returns:
            The plan: roles, strategies, rules, costs and reasons.

        Raises:
            ModelError: the model cannot be handled; the message says why and what to write.
        """
        return self._fit(args, kwargs).plan(self.verify)

    def e_step(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> estep.Posterior:
        """Posterior weights of all latents at given parameters.

        Args:
            params: constrained parameter values by name.
            *args: model arguments.
            **kwargs: model keyword arguments.

        Returns:
            The posterior: ``.log_likelihood`` (natural log) and ``.weights`` by site. Pure; may be jitted,
            differentiated and vmapped.
        """
        fit = self._fit(args, kwargs)
        return fit.compiled.e_step(*fit.at(params))

    def q(self, params: Mapping[str, Any], posterior: estep.Posterior, *args: Any, **kwargs: Any) -> jax.Array:
        """Expected complete-data log-likelihood: ``sum(stop_gradient(weight) * log_prob(params))``.

        Args:
            params: parameters at which Q is evaluated.
            posterior: outcome of :meth:`e_step`, at any other parameters.
            *args: model arguments.
            **kwargs: model keyword arguments.

        Returns:
            A scalar (natural log, without priors).
        """
        fit = self._fit(args, kwargs)
        point, data = fit.at(params)
        estep.check_posterior(fit.model, posterior)
        return fit.compiled.q(point, posterior, data)

    def m_step(
        self, params: Mapping[str, Any], posterior: estep.Posterior, *args: Any, **kwargs: Any
    ) -> dict[str, jax.Array]:
        """New parameters: every block's rule, on the posterior's weights.

        Args:
            params: parameters at which the posterior was computed.
            posterior: outcome of :meth:`e_step`.
            *args: model arguments.
            **kwargs: model keyword arguments.

        Returns:
            New constrained values of the free parameters; Q plus the log prior is no lower there.
        """
        fit = self._fit(args, kwargs)
        point, data = fit.at(params)
        estep.check_posterior(fit.model, posterior)
        moved = fit.compiled.m_step(point, posterior, data)
        fit.settled()
        return moved

    def log_likelihood(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> jax.Array:
        """Log-likelihood of the observed data, latents summed out (natural log, constants included, no prior)."""
        fit = self._fit(args, kwargs)
        return fit.compiled.log_likelihood(*fit.at(params))

    def filter(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> estep.Filtered:
        """Filtered states and one-step-ahead predictions of the chains in a model with ``scan``.

        Args:
            params: constrained parameter values by name, of this fit or any other.
            *args: model arguments: the data of the fit, or new sequences.
            **kwargs: model keyword arguments.

        Returns:
            ``.states``, ``.predicted`` and ``.log_likelihood`` by latent, time first: probabilities of the states of a
            discrete latent, a pair of mean and covariance for a continuous one. Steps whose observations are masked
            out at the end of the data are forecasts.

        Raises:
            ModelError: the model has no chain that can be filtered.
        """
        fit = self._fit(args, kwargs)
        return fit.compiled.filtered(*fit.at(params))

    def log_prior(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> jax.Array:
        """Log prior density of the estimated parameters, in constrained space; zero with ``prior=False``."""
        fit = self._fit(args, kwargs)
        return fit.compiled.log_prior(*fit.at(params))

    def start(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
        """Starting values of one run, as :meth:`run` would choose them."""
        fit = self._fit(args, kwargs)
        stacked = fit.compiled.start(rng_key, fit.data, 1)
        fit.settled()
        return {name: value[0] for name, value in stacked.items()}

    # --------------------------------------------------------------------------------------------- the fit

    def run(
        self,
        rng_key: jax.Array,
        *args: Any,
        init_params: Mapping[str, Any] | None = None,
        checkpoint: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> EMResult:
        """Fit the model.

        Args:
            rng_key: random key, for starting values.
            *args: model arguments; arrays are data, everything else is static.
            init_params: starting values by parameter for the first restart; the others are drawn.
            checkpoint: a file that holds the state of the fit after every block of iterations. The same call goes on
                from there after the process was killed, and gives the same result as if it had not been. A file
                of another fit is refused.
            **kwargs: model keyword arguments.

        Returns:
            The result. Look at ``result.converged`` and ``result.stop_reason``.

        Raises:
            ModelError: the model cannot be handled.
            DataError: the data cannot be used, or have probability zero at every start.
            ParameterError: a value or a name in the options cannot be used.
        """
        whole = self._fit(args, kwargs)
        if not whole.model.free:
            raise ParameterError(
                "Every parameter is fixed, so that there is nothing to estimate. Leave one out of fixed=, or ask for "
                "what the data say at these values: em.log_likelihood({}, ...), em.e_step({}, ...)."
            )
        given = self._initial_values(whole.model, init_params)
        self._check_acceleration(whole)
        few = whole.reduced()
        if isinstance(few, Fit):
            whole.check()
        fit = few if isinstance(few, Fit) else whole
        simulator = fit.compiled.simulator
        if simulator is None:
            fit.compiled.compile_in_background(self.restarts, fit.data, self.accelerate is not None)
        verification = whole.compiled.verification(whole.data) if self.verify else None
        if verification is not None:
            verification.prepare()
        inputs = fit.inputs()
        _say_float32()
        starts = self._starts(whole, rng_key, given)
        if verification is not None:
            verification.begin({name: value[0] for name, value in starts.items()})
        file = None if checkpoint is None else Checkpoint(checkpoint, self._identity(whole, rng_key, starts))
        progress = Progress(self.progress_bar, self.max_iterations)
        default = _TOLERANCE if simulator is None else simulation.TOLERANCE
        tolerance = default if self.tolerance is None else self.tolerance

        def report(states: Any) -> None:
            progress(states)
            if verification is not None:
                verification.look()

        settings = loop.Settings(tolerance, self.max_iterations, report, file)
        try:
            if simulator is None:
                outcome = self._by_blocks(fit, starts, inputs, settings)
            else:
                key, evidence = jax.random.fold_in(rng_key, 1), fit.compiled.random_log_likelihood
                outcome = simulation.simulate(simulator, evidence, key, starts, inputs, settings)
        finally:
            progress.close()
        is_possible = np.any(np.isfinite(outcome.states.gains.objective))
        if not is_possible and not outcome.interrupted and simulator is None:
            self._explain_impossible(whole, starts)
        result = result_of(whole.settled(), outcome)
        if self.check_maximum:
            result = self._to_a_maximum(fit, whole, inputs, settings, result)
        if verification is not None:
            self._verify(verification, whole, result)
        if self.verify and result.stop_reason is StopReason.DECREASED:
            result.notes.extend(_faults_of_m_step(whole, result.params))
        return result

    def _to_a_maximum(
        self, fit: Fit, whole: Fit, inputs: loop.Inputs, settings: loop.Settings, result: EMResult
    ) -> EMResult:
        """Go on from beside a point at which the iterations came to rest although it is no maximum."""
        settings = settings._replace(checkpoint=None)  # a fit that goes on from a checkpoint comes here again

        def run_from(params: dict[str, np.ndarray]) -> EMResult:
            starts = {name: np.repeat(value[None], self.restarts, 0) for name, value in params.items()}
            left = settings._replace(max_iterations=max(self.max_iterations - result.num_iterations, 1))
            return result_of(whole.settled(), self._by_blocks(fit, starts, inputs, left))

        for _ in range(_MOST_SADDLES):
            after = leave_saddle(whole, result, settings.tolerance, run_from)
            if after is None:
                break
            result = after
        return result

    def _verify(self, verification: Verification, fit: Fit, result: EMResult) -> None:
        """Finish the comparison of a fit with NumPyro's own density, unless the user has no time for it."""
        try:
            if result.stop_reason is StopReason.INTERRUPTED:
                raise KeyboardInterrupt
            verification.finish(fit.free(result.params), result.log_likelihood)
            fit.compiled.is_verified = True
            fit.settled()  # the comparison runs the model too
            why_not = verification.why_not
        except KeyboardInterrupt:
            why_not = "it was interrupted."
        if why_not is not None:
            result.notes.append(f"The fit was not compared with NumPyro's own density: {why_not}")

    def _by_blocks(
        self, fit: Fit, starts: dict[str, np.ndarray], inputs: loop.Inputs, settings: loop.Settings
    ) -> loop.Outcome:
        """Iterate all restarts in compiled blocks."""
        compiled = fit.compiled
        memory = compiled.begin(starts) if compiled.remembers else {}
        accelerate = self.accelerate is not None
        states = loop.initial_states(fit.model, starts, memory, self.restarts, jnp.result_type(float), accelerate)
        return loop.run_blocks(functools.partial(compiled.block, self.restarts), states, inputs, settings)

    def _check_acceleration(self, fit: Fit) -> None:
        if self.accelerate is None:
            return
        if fit.model.hard:
            raise ParameterError(
                f"accelerate={self.accelerate!r} extrapolates steps that shrink, and under Hard() assignments jump: "
                "leave it out. Hard EM ends after few iterations anyway."
            )
        if fit.compiled.simulator is not None:
            raise ParameterError(
                f"accelerate={self.accelerate!r} extrapolates noise where latents are drawn: leave it out. The closing "
                "phase of MonteCarlo() and SAEM() takes Newton steps already."
            )

    def _starts(self, fit: Fit, rng_key: jax.Array, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Starting values of all restarts, those that the user gave in the first."""
        pinned = {name: fit.model.pin(name, value) for name, value in given.items()}
        if self.restarts == 1 and given.keys() == set(fit.model.free):
            return {name: value[None] for name, value in pinned.items()}
        starts = {n: np.array(value) for n, value in fit.compiled.start(rng_key, fit.data, self.restarts).items()}
        for name, value in pinned.items():
            starts[name][0] = value
        return starts

    def _identity(self, fit: Fit, rng_key: jax.Array, starts: dict[str, np.ndarray]) -> dict[str, str]:
        """What the fit depends on, for its checkpoint."""
        names = ("restarts", "max_iterations", "tolerance", "accelerate", "compress")
        options = {"version": _version(), **{name: getattr(self, name) for name in names}}
        memory = jax.eval_shape(fit.compiled.begin, starts)
        skeleton = fit.compiled.source.skeleton
        return fit_identity(fit.model.trace, fit.data, skeleton, rng_key, starts, memory, self.options, options)

    def _initial_values(self, model: Model, init_params: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        given = {}
        for name, value in as_arrays(init_params or {}, model.trace.trees).items():
            if name not in model.free:
                raise unknown_name("init_params", name, model.free)
            site = model.trace.sites[name]
            given[name] = check(name, value, site.shape, site.constraint, "init_params")
        return given

    def _explain_impossible(self, fit: Fit, starts: dict[str, np.ndarray]) -> None:
        params = {name: value[0] for name, value in starts.items()}
        tables = jax.device_get(fit.compiled.evidence_by_row(params, fit.data))
        holes = checks.arrays_with_holes(fit.data)
        if holes is not None and any(np.any(np.isnan(table)) for table in tables.values()):
            raise DataError(
                f"The log-likelihood is NaN at the start, and so are cells of {holes}. A mask leaves out cells "
                "that are observed; those of a covariate have to be dropped or filled in before the fit."
            )
        row = checks.impossible_rows(fit.model, tables)
        if row is None:
            raise DataError(
                "The log-likelihood is not finite at any start. Check for extreme values, or give init_params."
            )
        raise DataError(
            f"An observation has probability zero under every state at the start ({row}). Give init_params under which "
            "it is possible, or correct the data or the structural zeros of the model."
            + (f" There is NaN in {holes}." if holes is not None else "")
        )

    def _fit(self, args: tuple, kwargs: dict) -> Fit:
        return fit_of(self.model, self.options, self.compress, args, kwargs, self._compiled)


def _faults_of_m_step(fit: Fit, params: Mapping[str, Any]) -> list[str]:
    """Which updates lower Q where the objective fell, or claim a maximum that is none."""
    try:
        found = faults(jax.device_get(fit.compiled.m_step_checks(fit.free(params), fit.data)))
    except ModelError:  # more rows than the plain path has memory for
        return []
    rules = {rule.name: rule for rule in fit.program.blocks}
    return [
        f"The M-step of {', '.join(rules[name].parameters)} ({rules[name].kind}) changes Q plus the log prior by "
        f"{float(check.gain):.3g} nats"
        + (f" and leaves {float(check.left):.3g} to gain." if check.left > check.noise else ".")
        for name, check in found.items()
    ]


def _version() -> str:
    try:
        return importlib.metadata.version("emppl")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def _say_float32() -> None:
    if jnp.result_type(float) == jnp.float32:
        warnings.warn(
            "This fit runs in float32, whose log-likelihoods carry a relative error of about 1e-6. For float64 call "
            "jax.config.update('jax_enable_x64', True) before anything else. (Said once.)",
            stacklevel=4,
        )

"""``EMResult``: what a user keeps. Everything beyond the estimates is computed when asked for."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import ParameterError, optional_import
from emppl.mstep import ClosedForm
from emppl.outcome import StopReason
from emppl.program import Program

if TYPE_CHECKING:
    from emppl.em import EM
    from emppl.loop import History, LaneState


@dataclasses.dataclass(frozen=True)
class Certificate:
    """How far to trust the answer.

    Attributes:
        objective: what was maximised.
        converged: did the best restart converge?
        monotone: did the objective rise at every iteration, up to rounding?
        largest_decrease: largest fall of the objective between iterations, in nats (0 if none).
        score_norm: largest standardised score: gradient over root information, in local coordinates; about zero at
            an interior maximum.
        restarts: number of starts.
        distinct_optima: how many different objectives the converged restarts ended at.
        restarts_at_best: how many ended at the best one.
        boundary: entries on the boundary of the parameter space.
        notes: anything else worth knowing.
    """

    objective: str
    converged: bool
    monotone: bool
    largest_decrease: float
    score_norm: float
    restarts: int
    distinct_optima: int
    restarts_at_best: int
    boundary: list[str]
    notes: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class EMResult:
    """A fitted model.

    Attributes:
        params: estimates by site name (constrained values), frozen ones included.
        log_likelihood: of the observed data, without priors, constants included (natural log).
        log_posterior: the same plus the log prior; equal without priors.
        stop_reason: why the iterations stopped; ``stop_reason.message`` says what to do.
        stop_message: the same with the names of what went wrong in this fit.
        num_iterations: M-steps of the best restart.
        history: arrays by name: ``"objective"`` and ``"log_likelihood"`` after every E-step of the best restart
            (entry 0 is the start), and for all restarts ``"final_objectives"`` and ``"final_status"``.
        notes: remarks about the fit, such as a switch to the plain path.
    """

    params: dict[str, np.ndarray]
    log_likelihood: float
    log_posterior: float
    stop_reason: StopReason
    stop_message: str
    num_iterations: int
    history: dict[str, np.ndarray]
    notes: list[str]
    em: EM = dataclasses.field(repr=False)
    args: tuple = dataclasses.field(repr=False)
    kwargs: dict = dataclasses.field(repr=False)

    @classmethod
    def from_states(
        cls,
        em: EM,
        args: tuple,
        kwargs: dict,
        program: Program,
        states: LaneState,
        history: History,
        *,
        interrupted: bool,
        accurate: bool,
    ) -> EMResult:
        """Pick the best restart and describe how it ended."""
        status = np.array([StopReason(int(code)) for code in np.asarray(states.status)], dtype=object)
        if interrupted:
            status[status == StopReason.RUNNING] = StopReason.INTERRUPTED
        objective = np.asarray(states.progress.objective, dtype=float)
        best = _best(objective, status)
        good = {name: np.asarray(value)[best] for name, value in states.good_params.items()}
        params = {n: np.asarray(program.fixed[n], float) if n in program.fixed else good[n] for n in program.rules}
        reason: StopReason = status[best]
        message = reason.message
        if reason is StopReason.COLLAPSED:
            message = f"{_collapsed_name(program, int(states.collapsed_at[best]))} {message}"
        symmetric = _symmetric_latent(program, params)
        if symmetric is not None and reason is StopReason.CONVERGED:
            reason = StopReason.SYMMETRIC
            message = f"The states of latent {symmetric!r} have equal parameters. {reason.message}"
        column = slice(None), best
        objectives = history.objective[column]
        used = ~np.isnan(objectives)
        notes = []
        if accurate:
            notes.append(
                "Components are far narrower than the data, so that the matrix-product path would lose digits: the "
                "plain path was taken."
            )
        return cls(
            params=params,
            log_likelihood=float(states.log_likelihood[best]),
            log_posterior=float(objective[best]),
            stop_reason=reason,
            stop_message=message,
            num_iterations=int(states.iteration[best]),
            history={
                "objective": objectives[used],
                "log_likelihood": history.log_likelihood[column][used],
                "final_objectives": objective,
                "final_status": np.array([one.name for one in status]),
            },
            notes=notes,
            em=em,
            args=args,
            kwargs=kwargs,
        )

    # ------------------------------------------------------------------------------------------- convergence

    @property
    def converged(self) -> bool:
        """Did the best restart converge?"""
        return self.stop_reason is StopReason.CONVERGED

    @functools.cached_property
    def certificate(self) -> Certificate:
        """How far to trust the answer: monotonicity, score at the end, agreement of restarts, boundary."""
        steps = np.diff(self.history["objective"])
        finite = steps[np.isfinite(steps)]
        fall = float(max(0.0, -finite.min())) if len(finite) else 0.0
        ended = self.history["final_objectives"][self.history["final_status"] == StopReason.CONVERGED.name]
        distinct, at_best = _distinct(ended, self.log_posterior)
        return Certificate(
            objective=self.em.plan(*self.args, **self.kwargs).objective,
            converged=self.converged,
            monotone=fall <= 1e-9 * (1 + abs(self.log_posterior)),
            largest_decrease=fall,
            score_norm=self._score_norm(),
            restarts=len(self.history["final_objectives"]),
            distinct_optima=distinct,
            restarts_at_best=at_best,
            boundary=self.boundary,
            notes=self.notes,
        )

    def _score_norm(self) -> float:
        from emppl.uncertainty import observed_information

        information, score = observed_information(self._program, self._free, self._leaves)
        scale = np.sqrt(np.maximum(np.diagonal(information), np.finfo(float).tiny))
        return float(np.max(np.abs(score / scale), initial=0.0))

    @property
    def boundary(self) -> list[str]:
        """Entries of parameters that lie on the boundary of the parameter space, such as ``"theta[1, 3]"``."""
        from emppl.uncertainty import boundary_labels

        return boundary_labels(self._program, self._free)

    # --------------------------------------------------------------------------------------------- posterior

    def posterior(self, site: str) -> np.ndarray:
        """Posterior probabilities of a discrete latent at the estimate (responsibilities).

        Args:
            site: name of the latent.

        Returns:
            Array ``(*plates, support)``, summing to one over the last axis.
        """
        name = self._latent(site)
        return np.asarray(self._derived.marginals(self._free, self._leaves)[name])

    def decode(self) -> dict[str, np.ndarray]:
        """Jointly most probable values of all discrete latents, by site, shaped like their plates."""
        found = self._derived.decode(self._free, self._leaves)
        return {_public(self._program, name): self._values(name, index) for name, index in found.items()}

    def sample_posterior(self, rng_key: jax.Array, num_samples: int) -> dict[str, np.ndarray]:
        """Exact joint draws of all discrete latents from their posterior at the estimate.

        Args:
            rng_key: random key.
            num_samples: number of draws.

        Returns:
            Arrays ``(num_samples, *plates)`` by site.
        """
        found = self._derived.sample(self._free, self._leaves, jax.random.split(rng_key, num_samples))
        return {_public(self._program, name): self._values(name, index) for name, index in found.items()}

    def _values(self, name: str, index) -> np.ndarray:
        return self._program.trace.atoms[name].reshape(-1)[np.asarray(index)]

    def _latent(self, site: str) -> str:
        for name in (site, f"{site}_unobserved"):
            if name in self._program.latents:
                return name
        known = [_public(self._program, name) for name in self._program.latents]
        raise ParameterError(f"{site!r} is no latent of the model; it has {known}.")

    # --------------------------------------------------------------------------------- information criteria

    @property
    def num_parameters(self) -> int:
        """Number of free dimensions of the estimated parameters (a K-simplex counts K - 1)."""
        from emppl.parameters import free_dimensions

        sites = self._program.trace.sites
        return sum(free_dimensions(sites[n].constraint, sites[n].shape) for n in self._program.free)

    @functools.cached_property
    def num_observations(self) -> float:
        """Cells of the outermost plates that hold latents, weights (``handlers.scale``) counted."""
        from emppl.checks import data_report

        report = jax.device_get(jax.jit(functools.partial(data_report, self._program))(self._leaves))
        outermost = min(
            self._program.latents,
            key=lambda n: (len(self._program.trace.sites[n].plates) == 0, len(self._program.trace.sites[n].plates)),
        )
        return float(report[outermost]["weight"])

    @property
    def aic(self) -> float:
        """Akaike's criterion, ``2 p - 2 log L``; smaller is better."""
        return 2 * self.num_parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's criterion, ``p log n - 2 log L``; smaller is better."""
        return self.num_parameters * float(np.log(self.num_observations)) - 2 * self.log_likelihood

    @property
    def icl(self) -> float:
        """Integrated completed likelihood: BIC plus twice the entropy of the latents' posterior marginals.

        Reference:
            Biernacki, Celeux and Govaert (2000), Assessing a mixture model for clustering.
        """
        entropy = 0.0
        for name in self._program.latents:
            probability = self.posterior(name)
            positive = probability[probability > 0]
            entropy -= float(np.sum(positive * np.log(positive)))
        return self.bic + 2 * entropy

    # ------------------------------------------------------------------------------------------- uncertainty

    def standard_errors(self, method: str = "observed") -> dict[str, np.ndarray]:
        """Standard errors of the estimates.

        Square roots of the diagonal of the inverse observed information of the marginal log-likelihood (plus log
        prior). Entries on the boundary have none: they are NaN, and a warning names them.

        Args:
            method: ``"observed"``, the only one so far.

        Returns:
            Arrays like ``params``, for the estimated parameters.

        Raises:
            ValueError: the estimate is no interior maximum, or an unknown method.
        """
        if method != "observed":
            raise ValueError(f"method must be 'observed', not {method!r}.")
        found = self.covariance()
        deviations = np.sqrt(np.diagonal(found.matrix))
        errors, position = {}, 0
        for name in self._program.free:
            size = self.params[name].size
            errors[name] = deviations[position : position + size].reshape(self.params[name].shape)
            position += size
        if self.boundary:
            warnings.warn(f"No standard error for entries on the boundary: {_shortened(self.boundary)}.", stacklevel=2)
        return errors

    def covariance(self):
        """Covariance matrix of the estimates with its labels, from the observed information."""
        return self._covariance

    @functools.cached_property
    def _covariance(self):
        from emppl.uncertainty import covariance

        return covariance(self._program, self._free, self._leaves)

    # ------------------------------------------------------------------------------------------------ tables

    def _rows(self, prob: float = 0.95) -> list[tuple[str, float, float, float, float]]:
        """Label, estimate, standard error and interval of every entry."""
        z = statistics.NormalDist().inv_cdf(0.5 + prob / 2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                errors = self.standard_errors()
        except ValueError:
            errors = {}
        rows = []
        for name, value in self.params.items():
            error = errors.get(name, np.full(value.shape, np.nan))
            for index in np.ndindex(value.shape):
                estimate, deviation = float(value[index]), float(error[index])
                label = f"{name}[{', '.join(map(str, index))}]" if index else name
                rows.append((label, estimate, deviation, estimate - z * deviation, estimate + z * deviation))
        return rows

    def summary(self, prob: float = 0.95):
        """Estimates, standard errors and Wald intervals as a pandas DataFrame (needs pandas).

        Args:
            prob: coverage of the intervals.

        Returns:
            A DataFrame indexed by parameter entry.
        """
        pandas = optional_import("pandas", "table")
        rows = self._rows(prob)
        columns = ["estimate", "std_error", "lower", "upper"]
        return pandas.DataFrame([row[1:] for row in rows], index=[row[0] for row in rows], columns=columns)

    def print_summary(self, prob: float = 0.95) -> None:
        """Print estimates, standard errors, intervals and how the fit ended.

        Args:
            prob: coverage of the intervals.
        """
        rows = self._rows(prob)
        width = max([len(row[0]) for row in rows], default=0)
        percent = f"{100 * prob:g}%"
        print(f"{'':{width}}  {'estimate':>12}  {'std_error':>10}  {'lower ' + percent:>12}  {'upper ' + percent:>12}")
        for label, *numbers in rows:
            cells = [f"{number:>{size}.5g}" for number, size in zip(numbers, (12, 10, 12, 12), strict=True)]
            print(f"{label:{width}}  {'  '.join(cells)}")
        print()
        print(
            f"log-likelihood {self.log_likelihood:.6f}, {self.num_parameters} free parameters, "
            f"AIC {self.aic:.2f}, BIC {self.bic:.2f}"
        )
        print(f"{self.stop_reason.name.lower()} after {self.num_iterations} iterations. {self.stop_message}")
        finals = self.history["final_objectives"]
        if len(finals) > 1:
            distinct, at_best = _distinct(
                finals[self.history["final_status"] == StopReason.CONVERGED.name], self.log_posterior
            )
            print(f"{len(finals)} restarts: {at_best} ended at the best optimum, {distinct} distinct optima.")
        if self.boundary:
            print(f"On the boundary (no standard error): {_shortened(self.boundary)}.")
        for note in self.notes:
            print(note)

    def to_arviz(self, num_samples: int = 1000, rng_key: jax.Array | None = None):
        """The estimate as ArviZ data: draws from its large-sample normal distribution (needs arviz).

        Entries on the boundary, which have no standard error, stay at their estimate.

        Args:
            num_samples: number of draws.
            rng_key: random key, default ``jax.random.key(0)``.

        Returns:
            ArviZ's inference data, with one chain in the posterior group.
        """
        arviz = optional_import("arviz", "arviz")
        found = self.covariance()
        matrix = np.nan_to_num(found.matrix)
        centre = np.concatenate([self.params[name].ravel() for name in self._program.free])
        values, vectors = np.linalg.eigh(matrix)
        key = jax.random.key(0) if rng_key is None else rng_key
        noise = np.asarray(jax.random.normal(key, (num_samples, len(centre))))
        draws = centre + noise @ (vectors * np.sqrt(np.maximum(values, 0))).T
        posterior, position = {}, 0
        for name in self._program.free:
            shape, size = self.params[name].shape, self.params[name].size
            posterior[name] = draws[:, position : position + size].reshape((1, num_samples, *shape))
            position += size
        return arviz.from_dict({"posterior": posterior})

    def plot_history(self, ax=None):
        """Plot the objective against iterations (needs matplotlib).

        Args:
            ax: axes to draw on; new ones by default.

        Returns:
            The axes.
        """
        pyplot = optional_import("matplotlib.pyplot", "plot")
        if ax is None:
            _, ax = pyplot.subplots()
        ax.plot(self.history["objective"])
        ax.set_xlabel("iteration")
        ax.set_ylabel("objective (nats)")
        return ax

    # ----------------------------------------------------------------------------------------------- helpers

    @property
    def _derived(self):
        return self.em._derive(self.args, self.kwargs)[0]

    @property
    def _leaves(self) -> list:
        return self.em._derive(self.args, self.kwargs)[1]

    @property
    def _program(self) -> Program:
        return self._derived.program

    @property
    def _free(self) -> dict[str, jax.Array]:
        return {name: jnp.asarray(self.params[name]) for name in self._program.free}

    def component_axes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """For every latent, the parameter axes that its states index (used to align labels)."""
        return component_axes(self._program)


def component_axes(program: Program) -> dict[str, dict[str, tuple[int, ...]]]:
    """For every latent, the axes of each parameter that run over its states."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for latent in program.latents:
        axes: dict[str, tuple[int, ...]] = {}
        for name, rule in program.rules.items():
            mine = tuple(number for number, latents in enumerate(program.indexed[name]) if latent in latents)
            own = any(t.site == latent and t.argument in ("probs", "logits") for t in _targets(rule))
            rank = len(program.trace.sites[name].shape)
            if own and rank and program.trace.sites[name].shape[-1] == program.trace.sites[latent].states:
                mine += (rank - 1,)
            if mine:
                axes[name] = mine
        found[latent] = axes
    return found


def _public(program: Program, name: str) -> str:
    return name.removesuffix("_unobserved") if program.trace.sites[name].labels else name


def _best(objective: np.ndarray, status: np.ndarray) -> int:
    """Index of the best restart: sound endings first, then the highest objective."""
    sound = (StopReason.CONVERGED, StopReason.MAX_ITERATIONS, StopReason.INTERRUPTED)
    rank = np.array([one in sound for one in status], float)
    score = np.where(np.isfinite(objective), objective, -np.inf)
    return int(np.lexsort((score, rank))[-1])


def _distinct(objectives: np.ndarray, best: float) -> tuple[int, int]:
    """Number of distinct optima and how many restarts are at the best one (within 1e-5 relative and absolute)."""
    if len(objectives) == 0:
        return 0, 0
    tolerance = 1e-5 * (1 + abs(best) * 1e-2)
    ordered = np.sort(objectives)
    return 1 + int(np.sum(np.diff(ordered) > tolerance)), int(np.sum(objectives >= best - tolerance))


def _collapsed_name(program: Program, flat: int) -> str:
    """Which component collapsed, from the flat position over all watched sites."""
    for name, factor in sorted(program.factors.items()):
        if factor.family is None or factor.family.scale_floor is None or name not in program.argument_shapes:
            continue
        if not factor.all_parameters & set(program.free):
            continue
        shapes = program.argument_shapes[name]
        ranks = factor.family.argument_ranks
        scale = [n for n in shapes if n != "loc"]
        cells = shapes[scale[0]][: len(shapes[scale[0]]) - ranks[scale[0]]]
        size = int(np.prod(cells))
        if flat < size:
            index = np.unravel_index(flat, cells)
            parts = [f"{n}={index[a]}" for a, n in enumerate(program.axes.names) if cells[a] > 1]
            parts += [f"element {i}" for i in index[program.axes.rank :]]
            return f"Site {name!r}, component {', '.join(parts) or 'only'}:"
        flat -= size
    return ""


def _symmetric_latent(program: Program, params: Mapping[str, np.ndarray]) -> str | None:
    """A latent with several states whose parameters are all equal across them, or None."""
    for latent, axes in component_axes(program).items():
        if program.trace.sites[latent].states < 2:
            continue
        free = {n: a for n, a in axes.items() if n in program.free and not _is_own_prior(program, latent, n)}
        if free and all(_constant_along(params[name], where) for name, where in free.items()):
            return latent
    return None


def _is_own_prior(program: Program, latent: str, name: str) -> bool:
    return any(target.site == latent for target in _targets(program.rules[name]))


def _targets(rule):
    return rule.targets if isinstance(rule, ClosedForm) else ()


def _constant_along(value: np.ndarray, axes: tuple[int, ...]) -> bool:
    spread = max(np.ptp(value, axis=axis).max(initial=0.0) for axis in axes)
    return bool(spread <= 1e-12 * (1e-300 + np.abs(value).max(initial=0.0)))


def _shortened(labels: list[str], most: int = 8) -> str:
    rest = len(labels) - most
    return ", ".join(labels[:most]) + (f" and {rest} more" if rest > 0 else "")

"""The check of a fit: at random values of all latents, emppl's density must be NumPyro's.

emppl's own likelihood cannot show that a model was misread: monotonicity, the score and the standard errors are all
consistent with the wrong model. NumPyro's density of the model as it is written, with a value for every latent, can.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import EMError, ModelError
from emppl.estep import log_likelihood, sample
from emppl.inputs.trees import as_declared
from emppl.model.model import Model
from emppl.names import model_name
from emppl.numerics.compiling import fast_options
from emppl.reduce.reduction import Source
from emppl.trace.density import Values, draw_latents, log_probs
from emppl.types import Data, Params
from emppl.verify.complete import PRIORS, CompleteData
from emppl.verify.values import Arrays, assignments, choose_groups, mixed

_TIMES = 6
"""How often the densities are compared at the same parameters: each time some faults may happen not to show."""


class Compared(NamedTuple):
    """The two sides at one value of all latents, in nats.

    Attributes:
        sites: by site, what emppl adds up, what NumPyro does, and the sum of absolute values.
        sums: over all states of a few cells of discrete latents, by elimination and one by one; None without any.
        integrals: by exact integral, its evidence, and the ratio of the joint to the conditional density.
        plain: the log-likelihood by the plain path; None where that takes integrals.
    """

    sites: Mapping[str, tuple[Any, Any, Any]]
    sums: tuple[Any, Any] | None
    integrals: Mapping[str, tuple[Any, Any, Any]]
    plain: Any

    @property
    def is_possible(self) -> bool:
        """Whether the values have a probability."""
        if self.sums is not None and np.isneginf(self.sums[0]):
            return False
        return not any(np.isneginf(own) or np.isnan(numpyro) for own, numpyro, _ in self.sites.values())

    def faults(self, fitted: float | None) -> Iterator[str]:
        """What is not the same, in words.

        Args:
            fitted: the log-likelihood of the fit at these parameters, if it is exact and of the same data.
        """
        for name, (own, numpyro, magnitude) in self.sites.items():
            if not abs(own - numpyro) <= _allowed(magnitude):
                yield _misread("in the priors" if name == PRIORS else f"at site {name!r}", own, numpyro)
        every = _allowed(sum(float(sizes) for *_, sizes in [*self.sites.values(), *self.integrals.values()]))
        if self.sums is not None and not abs(self.sums[0] - self.sums[1]) <= every:
            fast, plain = self.sums
            yield _two_paths(f"the sum over some states of its latents is {fast:.10g}", plain, "state by state")
        for name, (fast, plain, _) in self.integrals.items():
            if not abs(fast - plain) <= every:
                yield _two_paths(f"{name} is {fast:.10g}", plain, "from its densities")
        if self.plain is not None and fitted is not None and np.isfinite(fitted):
            if not abs(fitted - self.plain) <= every:
                yield _two_paths(
                    f"the fit ended with a log-likelihood of {fitted:.10g}", self.plain, "in the plain way"
                )


def _allowed(magnitude: Any) -> float:
    """By how much two sums may differ that are the same but for rounding."""
    return float(np.sqrt(jnp.finfo(jnp.result_type(float)).eps)) * (1 + float(magnitude))


class LatentValues(NamedTuple):
    """Values of all latents at which the densities are compared.

    Attributes:
        first: a value of every latent, which those of ``every`` begin with.
        second: another one, for continuous latents; the first again where there are none.
        taken: by integral, which of the two every group takes.
        mixed: the value that this makes, for NumPyro.
        every: the first value at all joint states of a few cells of discrete latents.
    """

    first: Mapping[str, Any]
    second: Mapping[str, Any]
    taken: Mapping[str, Any]
    mixed: Mapping[str, Any]
    every: Mapping[str, Any]


class Verification:
    """Compares a derived model with NumPyro's density.

    Args:
        source: what the model is derived from.
        model: the model.
        data: arrays of the model's arguments.
        is_part: whether these are not all the data of the fit.
        why_not: why the densities cannot be compared; None as long as they can. Also an attribute.
    """

    def __init__(self, source: Source, model: Model, data: Data, is_part: bool = False, why_not: str | None = None):
        self._is_part = is_part
        self._source = source
        self._model = model
        self._data = list(data)
        self._from_prior: Any = jax.jit(self._prior_draw, compiler_options=fast_options())
        self._from_posterior = jax.jit(self._posterior_draw, compiler_options=fast_options())
        self._compare: Any = jax.jit(self._compared, compiler_options=fast_options())
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._start: dict[str, jax.Array] = {}
        self._first: concurrent.futures.Future | None = None
        self.why_not = why_not

    def prepare(self) -> None:
        """Trace the comparison, and let another thread compile it."""
        if self.why_not is None and (lowered := self._tried(self._lowered)) is not None:
            self._first = self._pool.submit(self._compile, *lowered)

    def begin(self, params: Params) -> None:
        """Let the other thread compare at these parameters."""
        if self._first is not None:
            self._start = {name: jnp.asarray(params[name]) for name in self._model.free}
            compiled = self._first
            self._first = self._pool.submit(
                lambda: compiled.result() or self._compared_at(self._start, self._from_prior)
            )
        self._pool.shutdown(wait=False)

    def look(self) -> None:
        """Judge the comparison that :meth:`begin` began, if it is done.

        Raises:
            ModelError: emppl misreads the model; names the site.
        """
        if self._first is not None and self._first.done():
            first, self._first = self._first, None
            self._judge(self._start, self._tried(first.result))

    def finish(self, params: Params, log_likelihood: float) -> None:
        """Judge the comparison that was begun, and compare at these parameters.

        Args:
            params: estimates.
            log_likelihood: of the fit at these.

        Raises:
            ModelError: emppl misreads the model, or its fast path comes to another log-likelihood than its plain path.
        """
        if self._first is not None:
            concurrent.futures.wait([self._first])
            self.look()
        if self.why_not is None:
            end = {name: jnp.asarray(params[name]) for name in self._model.free}
            every = self._tried(lambda: self._compared_at(end, self._from_prior))
            self._judge(end, every, None if self._is_part else log_likelihood)

    def _judge(self, params: Params, every: list[Compared] | None, fitted: float | None = None) -> None:
        if every is not None and not all(compared.is_possible for compared in every):
            every = self._tried(lambda: self._compared_at(params, self._from_posterior))
        for compared in every or []:
            if not compared.is_possible:
                self.why_not = "the values of the latents that were drawn for it have probability zero"
                return
            for fault in compared.faults(fitted):
                raise ModelError(fault)

    def _tried(self, compute: Callable[[], Any]) -> Any:
        """An outcome, or None with the reason: a comparison that cannot be made is no reason to lose the fit."""
        try:
            return compute()
        except EMError as error:
            self.why_not = str(error)
        except Exception as error:  # the model's own code, or no memory
            self.why_not = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return None

    # -------------------------------------------------------------------------------------- values of the latents

    def _lowered(self) -> tuple[Any, Any]:
        """Both functions, traced; this happens in the thread that calls, so that thread-local settings of JAX hold."""
        shapes = self._model.trace.parameter_shapes
        params = {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in self._model.free}
        draw = self._from_prior.lower(params, self._data, jax.random.key(0))
        values = {name: np.zeros(shape.shape, shape.dtype) for name, shape in draw.out_info.items()}
        return draw, self._compare.lower(params, self._data, self._drawn(values, values, np.random.default_rng(0)))

    def _compile(self, draw: Any, compare: Any) -> None:
        self._from_prior, self._compare = draw.compile(), compare.compile()

    def _compared_at(self, params: Params, draw: Callable) -> list[Compared]:
        """The two sides at several draws of all latents."""
        found = []
        for number in range(_TIMES):
            keys = [jax.random.key(2 * number + second) for second in range(2 if self._model.integrals else 1)]
            values = jax.device_get([draw(params, self._data, key) for key in keys])
            drawn = self._drawn(values[0], values[-1], np.random.default_rng(number))
            found.append(jax.device_get(self._compare(params, self._data, drawn)))
        return found

    def _drawn(self, first: Arrays, second: Arrays, rng: np.random.Generator) -> LatentValues:
        taken = choose_groups(self._model, rng)
        every = assignments(self._model, first, rng)
        return LatentValues(first, second, taken, mixed(self._model, taken, first, second), every)

    def _prior_draw(self, params: Params, data: Data, rng_key: jax.Array) -> Values:
        """A draw of all latents from the model as it is written."""
        model, source = self._model, self._source
        drawn = draw_latents(source.function, source.skeleton, self._declared(params), data, rng_key)
        latents = {
            name for one in (*model.model_latents, *model.continuous_latents) for name in (one, self._whole(one))
        }
        return {name: value for name, value in drawn.items() if name in latents}

    def _posterior_draw(self, params: Params, data: Data, rng_key: jax.Array) -> Values:
        """A draw of all latents from emppl's posterior, where those from the prior make the data impossible."""
        model = self._model
        shapes = jax.eval_shape(self._prior_draw, params, data, rng_key)
        values = {}
        for name, value in sample(model, params, data, rng_key).items():
            if (atoms := model.trace.atoms.get(name)) is not None:  # a position in the support
                value = jnp.ravel(jnp.asarray(atoms))[value]
            values[name] = values[self._whole(name)] = jnp.reshape(value, shapes[name].shape).astype(shapes[name].dtype)
        return values

    # ------------------------------------------------------------------------------------------- the two densities

    def _compared(self, params: Params, data: Data, drawn: LatentValues) -> Compared:
        model = self._model
        own = CompleteData(model, params, data, drawn.first, drawn.second, drawn.taken)
        numpyro = self._numpyro_log_probs(params, drawn.mixed, data)
        by_site, cancelled = own.by_site(), _cancelled(params, data)
        sites: dict[str, tuple[Any, Any, Any]] = {}
        for name in sorted({*by_site, *numpyro} - self._left_out):
            total, magnitude = by_site.get(name, (jnp.zeros(()), jnp.zeros(())))
            before = sites.get(self._whole(name), (jnp.zeros(()),) * 3)
            sizes = before[2] + magnitude + cancelled
            sites[self._whole(name)] = before[0] + total, before[1] + numpyro.get(name, 0.0), sizes
        sums, plain = None, None
        if model.latents:
            marks = jax.vmap(own.marks)(drawn.every)
            one_by_one = jax.nn.logsumexp(jax.vmap(own.likelihood)(marks))
            some = {axis: jnp.max(mark, 0) for axis, mark in marks.items()}
            # The sum over the marked states, and that over all of them.
            by_elimination = jax.vmap(own.summed)(
                {axis: jnp.stack([mark, jnp.ones_like(mark)]) for axis, mark in some.items()}
            )
            sums, plain = (by_elimination[0], one_by_one), by_elimination[1]
        if model.integrals or model.drawn:
            plain = None
        elif not own.counts_every_state:
            plain = log_likelihood(model, params, data)
        return Compared(sites, sums, own.integrals(), plain)

    def _numpyro_log_probs(self, params: Params, values: Values, data: Data) -> dict[str, jax.Array]:
        """NumPyro's log density of every site, at values of the latents; what is computed from these is no value."""
        sites = set(map(model_name, self._model.trace.sites))
        latents = {name: value for name, value in values.items() if name in sites}
        return log_probs(self._source.function, self._source.skeleton, self._declared(params), latents, data)

    def _declared(self, params: Params) -> Params:
        """Values of all parameters, as the model's sites hold them."""
        return as_declared(self._model.complete(params), self._model.trace.trees)

    @property
    def _left_out(self) -> set[str]:
        """Sites of whose density emppl makes no use: hard limits of latents, priors that it drops, missing data."""
        model = self._model
        limits = {model_name(name) for integral in model.integrals for name in integral.way.constant_sites}
        missing = {f"{name.removesuffix('_observed')}_unobserved" for name in model.trace.sites} - set(
            model.trace.sites
        )
        return limits | missing | set(model.fixed if model.use_prior else model.trace.parameters)

    def _whole(self, name: str) -> str:
        """What a site is compared with: a half of a partly observed site with the other, a prior with all priors."""
        if name in self._model.trace.parameters:
            return PRIORS
        for site in self._model.trace.sites.values():
            if site.labels is not None and name in (site.labels, site.name):
                return site.name.removesuffix("_unobserved")
        return name


def _cancelled(params: Params, data: Data) -> jax.Array:
    """What large terms that cancel in a density add to its rounding error, in float32 above all.

    ``y log(rate) - rate - lgamma(y + 1)`` is a few nats where its terms are as large as the count.
    """
    largest = jnp.max(jnp.stack([jnp.zeros(()), *(jnp.max(jnp.abs(value), initial=0.0) for value in params.values())]))
    sizes = [jnp.sum(jnp.nan_to_num(jnp.abs(leaf.astype(float)))) + leaf.size * largest for leaf in data]
    return 64 * float(jnp.finfo(jnp.result_type(float)).eps) ** 0.5 * sum(sizes, jnp.zeros(()))


def verification_in_words(rows: int | None) -> str:
    """What is done, and what it costs, for the plan.

    Args:
        rows: size of the random part of the rows that is compared; None for all data.
    """
    where = "all data" if rows is None else f"{rows:,} random rows"
    return (
        f"the first fit, at its start and its end, against NumPyro's own density of {where} at {_TIMES} values\n"
        f"  of all latents: {2 * _TIMES} evaluations, compiled beside the fit"
    )


def _misread(where: str, own: Any, numpyro: Any) -> str:
    return (
        f"emppl misreads the model {where}, and gives no result: at random values of the latents it adds up "
        f"log-probabilities of {float(own):.10g} there, and NumPyro {float(numpyro):.10g}. The fault is emppl's; "
        "please report the model. Often another form of the same model is read rightly: data as arguments and not "
        "closed over, latents used elementwise or as an index, every site in the plates of what it depends on. "
        "EM(model, verify=False) leaves this check out."
    )


def _two_paths(fast: str, plain: Any, how: str) -> str:
    return (
        f"emppl gives no result: {fast}, and computed {how} it is {float(plain):.10g} at the same parameters. The "
        "fault is emppl's; please report the model. EM(model, verify=False) leaves this check out."
    )

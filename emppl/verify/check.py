"""The check of a fit: at random values of all latents, emppl's density must be NumPyro's.

emppl's own likelihood cannot show that a model was misread: monotonicity, the score and the standard errors are all
consistent with the wrong model. NumPyro's density of the model as it is written, with a value for every latent, can.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import EMError, ModelError
from emppl.estep import sample
from emppl.model.model import Model
from emppl.names import model_name
from emppl.reduce.reduction import Source
from emppl.trace.density import Values, draw_latents, log_probs
from emppl.types import Data, Params
from emppl.verify import complete

_TIMES = 6
"""How often the densities are compared at the same parameters: each time some faults may happen not to show."""

Sites = Mapping[str, tuple[Any, Any, Any]]
"""By site, what emppl adds up, what NumPyro does, and the sum of absolute values, in nats."""


class Check:
    """Compares a derived model with NumPyro's density.

    Args:
        source: what the model is derived from.
        model: the model.
        data: arrays of the model's arguments.

    Attributes:
        why_not: why the densities could not be compared; None if they could.
    """

    def __init__(self, source: Source, model: Model, data: Data):
        self._source = source
        self._model = model
        self._data = list(data)
        self._keys = [jax.random.key(number) for number in range(_TIMES)]
        self._at_prior_draws: Callable = jax.jit(self._compare_at_prior_draws, compiler_options=_cheap())
        self._at_posterior_draws: Callable = jax.jit(self._compare_at_posterior_draws, compiler_options=_cheap())
        self._start: dict[str, jax.Array] = {}
        self._first: concurrent.futures.Future | None = None
        self.why_not: str | None = None

    def begin(self, params: Params) -> None:
        """Trace the comparison, and let another thread compile it and do it at these parameters."""
        self._start = {name: jnp.asarray(params[name]) for name in self._model.free}
        try:
            # Tracing happens here, so that thread-local settings of JAX hold.
            lowered = self._at_prior_draws.lower(self._start, self._data, self._keys[0])
        except EMError as error:
            self.why_not = str(error)
            return
        except Exception as error:  # the model's own code, which need not run without enumeration
            self.why_not = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return

        def compare() -> list[Sites]:
            self._at_prior_draws = lowered.compile()
            return [jax.device_get(self._at_prior_draws(self._start, self._data, key)) for key in self._keys]

        pool = concurrent.futures.ThreadPoolExecutor(1)
        self._first = pool.submit(compare)
        pool.shutdown(wait=False)

    def look(self) -> None:
        """Judge the comparison that :meth:`begin` began, if it is done.

        Raises:
            ModelError: emppl misreads the model; names the site.
        """
        if self._first is not None and self._first.done():
            first, self._first = self._first, None
            self._judge(self._start, first.result())

    def finish(self, params: Params) -> None:
        """Judge the comparison that was begun, and compare at these parameters.

        Raises:
            ModelError: emppl misreads the model; names the site.
        """
        if self._first is not None:
            concurrent.futures.wait([self._first])
            self.look()
        if self.why_not is None:
            end = {name: jnp.asarray(params[name]) for name in self._model.free}
            self._judge(end, [jax.device_get(self._at_prior_draws(end, self._data, key)) for key in self._keys])

    def _judge(self, params: Params, compared: list[Sites]) -> None:
        for key, sites in zip(self._keys, compared, strict=True):
            if not _are_possible(sites):
                sites = jax.device_get(self._at_posterior_draws(params, self._data, key))
            if not _are_possible(sites):
                self.why_not = "the values of the latents that were drawn for it have probability zero"
                return
            for name, (own, theirs, magnitude) in sites.items():
                allowed = np.sqrt(np.finfo(np.asarray(own).dtype).eps) * (magnitude + 1)
                if not abs(own - theirs) <= allowed:
                    raise ModelError(_misread(name, float(own), float(theirs)))

    # ------------------------------------------------------------------------------------------- the two densities

    def _compare_at_prior_draws(self, params: Params, data: Data, rng_key: jax.Array) -> Sites:
        of_first, of_second, of_groups = jax.random.split(rng_key, 3)
        draw = functools.partial(draw_latents, self._source.function, self._source.skeleton)
        first, second = (draw(self._model.complete(params), data, key) for key in (of_first, of_second))
        return self._compare(params, first, second, of_groups, data)

    def _compare_at_posterior_draws(self, params: Params, data: Data, rng_key: jax.Array) -> Sites:
        of_first, of_second, of_groups = jax.random.split(rng_key, 3)
        first, second = (self._posterior_draw(params, data, key) for key in (of_first, of_second))
        return self._compare(params, first, second, of_groups, data)

    def _compare(self, params: Params, first: Values, second: Values, rng_key: jax.Array, data: Data) -> Sites:
        model, source = self._model, self._source
        taken = complete.choose_groups(model, rng_key)
        values = complete.mixed(model, taken, first, second)
        own = complete.log_probs(model, params, first, second, taken, data)
        theirs = log_probs(source.function, source.skeleton, model.complete(params), values, data)
        sites: dict[str, Any] = {}
        for name in sorted({*own, *theirs} - self._left_out):
            mine, magnitude = own.get(name, (0.0, 0.0))
            parts = mine, theirs.get(name, 0.0), magnitude
            before = sites.get(self._whole(name), (0.0, 0.0, 0.0))
            sites[self._whole(name)] = tuple(jnp.asarray(x + y, float) for x, y in zip(before, parts, strict=True))
        return sites

    @property
    def _left_out(self) -> set[str]:
        """Sites of whose density emppl makes no use: hard limits of latents, and priors that it drops."""
        model = self._model
        limits = {model_name(name) for integral in model.integrals for name in integral.way.constant_sites}
        return limits | set(model.fixed if model.use_prior else model.trace.parameters)

    def _whole(self, name: str) -> str:
        """The site that a half of a partly observed site belongs to."""
        for site in self._model.trace.sites.values():
            if site.labels is not None and name in (site.labels, site.name):
                return site.name.removesuffix("_unobserved")
        return name

    def _posterior_draw(self, params: Params, data: Data, rng_key: jax.Array) -> Values:
        """A draw of all latents from emppl's posterior, where those from the prior make the data impossible."""
        model, source = self._model, self._source
        draw = functools.partial(draw_latents, source.function, source.skeleton)
        shapes = jax.eval_shape(draw, model.complete(params), data, rng_key)
        values = {}
        for name, value in sample(model, params, data, rng_key).items():
            if (atoms := model.trace.atoms.get(name)) is not None:  # a position in the support
                value = jnp.ravel(jnp.asarray(atoms))[value]
            values[name] = values[self._whole(name)] = jnp.reshape(value, shapes[name].shape)
        return values


def _cheap() -> dict[str, Any]:
    """Options under which XLA compiles fast: what runs a few times takes less time than compiling it well."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


def _are_possible(sites: Sites) -> bool:
    return all(np.isfinite(own) and not np.isnan(theirs) for own, theirs, _ in sites.values())


def _misread(name: str, own: float, theirs: float) -> str:
    return (
        f"emppl misreads the model at site {name!r}, and gives no result: at random values of the latents it adds up "
        f"log-probabilities of {own:.10g} there, and NumPyro {theirs:.10g}. The fault is emppl's; please report the "
        "model. Often another form of the same model is read rightly: data as arguments and not closed over, latents "
        "used elementwise or as an index, every site in the plates of what it depends on. EM(model, verify=False) "
        "leaves this check out."
    )

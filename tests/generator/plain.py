"""NumPy stands in for NumPyro and JAX: the log density of a generated model at concrete latents, without any compiling.

The text of a model is run twice: by NumPyro under emppl, and here, where ``numpyro``, ``dist``, ``jnp`` and ``scan`` are
the few names of this file. Nothing is shared with emppl, and nothing needs to be traced or compiled. That this says the
same as NumPyro's own density is itself compared (:func:`tests.generator.compare.same_density`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types

import numpy as np
from scipy import special

from tests.generator.distributions import FAMILIES, masks


def _softmax(x):
    raised = np.exp(x - np.max(x, -1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


JAX = types.SimpleNamespace(
    nn=types.SimpleNamespace(
        one_hot=lambda z, k: np.eye(k)[z],
        sigmoid=special.expit,
        softmax=_softmax,
        softplus=lambda x: np.logaddexp(x, 0.0),
    )
)
"""What the text of a model calls of ``jax`` beside ``jax.numpy``."""


@dataclasses.dataclass
class Site:
    """One site of one run, or one step of a scanned one.

    Attributes:
        table: log-probability of every cell, masks applied.
        batch: the shape of the batch: plates, and ones where there is none.
        is_plate: which axes of the batch are plates.
        scale: weights of the cells (``handlers.scale``).
    """

    name: str
    kind: str
    fn: object
    value: object
    table: np.ndarray
    batch: tuple[int, ...]
    is_plate: tuple[bool, ...]
    present: np.ndarray
    scale: object
    step: int | None


class _Run:
    """The state of one run: the values that are put in, and the sites that were met."""

    def __init__(self, values):
        self.values, self.sites = values, []
        self.plates: dict[int, int] = {}
        self.masks: list = []
        self.scales: list = []
        self.step: int | None = None


class Plain:
    """A model's text, run by NumPy."""

    def __init__(self, source: str):
        self.run = _Run({})
        handlers = types.SimpleNamespace(mask=self._mask, scale=self._scale)
        effects = types.SimpleNamespace(
            param=self._param, sample=self._sample, plate=self._plate, factor=self._factor, handlers=handlers
        )
        effects.deterministic = lambda name, value: value
        namespace = {
            "np": np,
            "jnp": np,
            "jax": JAX,
            "numpyro": effects,
            "dist": types.SimpleNamespace(**{family.__name__: family for family in FAMILIES}),
            "constraints": _AnyName(),
            "scan": self._scan,
        }
        exec(source, namespace)  # the text is the generator's own
        self.model = namespace["model"]

    def sites(self, values, data) -> list[Site]:
        """Run the model with its parameters and latents at these values; latents without one are at their first."""
        self.run = _Run(values)
        self.model(**data)
        return self.run.sites

    def log_density(self, values, data, leave_out=()) -> float:
        """Log density of everything, but for some sites; weights do not count."""
        return float(sum(np.sum(site.table) for site in self.sites(values, data) if site.name not in leave_out))

    def _value(self, name, default):
        if name not in self.run.values:
            return default() if callable(default) else default
        value = self.run.values[name]
        return value if self.run.step is None else value[self.run.step]

    def _param(self, name, init, constraint=None):
        return np.asarray(self.run.values.get(name, init), float)

    def _plate(self, name, size, dim=None):
        return _Plate(self, size, dim)

    @contextlib.contextmanager
    def _mask(self, mask):
        self.run.masks.append(mask)
        yield
        self.run.masks.pop()

    @contextlib.contextmanager
    def _scale(self, scale):
        self.run.scales.append(scale)
        yield
        self.run.scales.pop()

    def _sample(self, name, fn, obs=None, obs_mask=None):
        if obs_mask is not None:
            self.run.masks.append(np.logical_not(obs_mask))
            drawn = self._sample(f"{name}_unobserved", fn)
            self.run.masks[-1] = obs_mask
            value = self._sample(f"{name}_observed", fn, np.where(obs_mask, obs, drawn))
            self.run.masks.pop()
            return value
        rank = max([0, *(-d for d in self.run.plates)])
        plates = tuple(self.run.plates.get(d, 1) for d in range(-rank, 0))
        batch = np.broadcast_shapes(fn.batch_shape, plates)
        kind = "data" if obs is not None else "continuous" if fn.support is None else "discrete"
        if obs is None:
            first = 0.5 if fn.support is None else fn.support[0]
            obs = self._value(name, lambda: np.full((*batch, *fn.event_shape), first))
        table = fn.log_prob(obs)
        batch = np.broadcast_shapes(np.shape(table), batch)
        present = np.ones(batch, bool)
        for mask in [*self.run.masks, *masks(fn)]:
            present = np.logical_and(present, mask)
        table = np.where(present, table, 0.0)
        is_plate = tuple(d in self.run.plates for d in range(-len(batch), 0))
        scale = math.prod(self.run.scales) if self.run.scales else None
        self.run.sites.append(Site(name, kind, fn, obs, table, batch, is_plate, present, scale, self.run.step))
        return obs

    def _factor(self, name, log_factor):
        rank = max([0, *(-d for d in self.run.plates)])
        plates = tuple(self.run.plates.get(d, 1) for d in range(-rank, 0))
        table = np.broadcast_to(log_factor, np.broadcast_shapes(np.shape(log_factor), plates))
        for mask in self.run.masks:
            table = np.where(mask, table, 0.0)
        site = Site(name, "data", None, None, table, table.shape, (), np.True_, None, self.run.step)
        self.run.sites.append(site)

    def _scan(self, step, carry, xs=None, length=None):
        length = len(_leaves(xs)[0]) if length is None else length
        outputs = []
        for time in range(length):
            self.run.step = time
            carry, output = step(carry, _pick(xs, time))
            outputs.append(output)
        self.run.step = None
        return carry, None if outputs[0] is None else np.stack(outputs)


class _Plate:
    """A plate, which may be entered again."""

    def __init__(self, plain, size, dim):
        self.plain, self.size, self.dim = plain, size, dim

    def __enter__(self):
        plates = self.plain.run.plates
        dim = next(d for d in range(-1, -9, -1) if d not in plates) if self.dim is None else self.dim
        assert dim not in plates
        plates[dim], self.entered = self.size, dim
        return np.arange(self.size)

    def __exit__(self, *error):
        del self.plain.run.plates[self.entered]


class _AnyName:
    def __getattr__(self, name):
        return lambda *arguments: name


def _leaves(tree):
    return [leaf for part in tree for leaf in _leaves(part)] if isinstance(tree, tuple) else [tree]


def _pick(tree, time):
    if tree is None:
        return None
    return tuple(_pick(part, time) for part in tree) if isinstance(tree, tuple) else tree[time]

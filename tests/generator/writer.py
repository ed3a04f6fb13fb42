"""What writes the text of a random model: parameters, data and lines, and the shape of every expression so far."""

from __future__ import annotations

import contextlib
import dataclasses
import re

import numpy as np

from tests.generator.plain import JAX

_PRIORS = {
    "real": ["dist.Normal(0.3, 2.0)", "dist.Normal(0.0, 1.0)", "dist.Laplace(0.1, 1.5)"],
    "positive": [
        "dist.InverseGamma(3.0, 2.0)",
        "dist.Gamma(2.0, 1.5)",
        "dist.Exponential(0.7)",
        "dist.HalfNormal(1.5)",
    ],
    "unit": ["dist.Beta(2.0, 3.0)", "dist.Beta(1.0, 1.0)"],
    "simplex": ["dist.Dirichlet(jnp.array({concentration}))"],
}
_CONSTRAINTS = {
    "real": "real",
    "positive": "positive",
    "unit": "unit_interval",
    "simplex": "simplex",
    "matrix": "positive_definite",
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A generated model, as plain data.

    Attributes:
        text: the function ``model``.
        data: its arguments.
        params: values of the parameters.
        kinds: by parameter, see :class:`~tests.generator.charts.Chart`.
        strategies: by continuous latent, the strategy to write.
        weights: the argument that says how often rows count, if there is one.
        rows: by argument, its axis of rows, where rows are weighted.
        features: what the grammar put in, for counts and for what is switched off.
    """

    text: str
    data: dict
    params: dict
    kinds: dict
    strategies: dict
    weights: str | None
    rows: dict
    features: frozenset

    @property
    def script(self) -> str:
        """A program that anybody can run: the model, its data, and what emppl says of it."""
        given = ", ".join(self.data)
        options = ", ".join(f'"{name}": emppl.{how}' for name, how in self.strategies.items())
        options = f", latents={{{options}}}" if options else ""
        return "\n".join(
            [
                _IMPORTS,
                self.text,
                *(f"{name} = np.array({literal(value)})" for name, value in self.data.items()),
                f"params = {{{', '.join(f'{n!r}: np.array({literal(v)})' for n, v in self.params.items())}}}",
                f"em = emppl.EM(model{options})",
                f"print(em.log_likelihood(params, {given}))" if given else "print(em.log_likelihood(params))",
            ]
        )


_IMPORTS = """import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl

jax.config.update("jax_enable_x64", True)

"""


class Unfit(Exception):
    """A random choice that makes no sensible model: draw another."""


class Writer:
    """The state of a model that is being written.

    Args:
        rng: random numbers; all choices come from it.
        off: features that are left out.
        interior: give every parameter a prior that keeps it from the ends of its range, however few the data are.
    """

    def __init__(self, rng: np.random.Generator, off: frozenset[str] = frozenset(), interior: bool = False):
        self.rng, self.off, self.interior = rng, off, interior
        self.head: list[str] = []
        self.lines: list[str] = []
        self.indent = 1
        self.data: dict[str, np.ndarray] = {}
        self.params: dict[str, np.ndarray] = {}
        self.kinds: dict[str, str] = {}
        self.strategies: dict[str, str] = {}
        self.features: set[str] = set()
        self.rows: dict[str, int] = {}
        self.steps = 0  # of the scan whose step is being written
        self.rowwise = False  # every row by itself, because rows are weighted
        self.latents: dict[str, int] = {}  # by name of the variable, how many values it has
        self.priors = self.chance(1.0 if interior else 0.2, "priors")
        self.scope: dict = {"np": np, "jnp": np, "jax": JAX}

    # -------------------------------------------------------------------------------------------- choices

    def chance(self, probability: float, feature: str | None = None) -> bool:
        """Whether something is put in; never if its feature is off."""
        happens = bool(self.rng.random() < probability)
        if feature is None or not happens:
            return happens
        if feature in self.off:
            return False
        self.features.add(feature)
        return True

    def pick(self, options):
        """One of several."""
        options = list(options)
        return options[int(self.rng.integers(len(options)))]

    def choose(self, *options):
        """Call one of ``(weight, feature or None, function)``; a function may find that it does not apply."""
        left = [(w, f, call) for w, f, call in options if f is None or f not in self.off]
        while left:
            weights = np.array([w for w, _, _ in left], float)
            place = int(self.rng.choice(len(left), p=weights / weights.sum()))
            _, feature, call = left.pop(place)
            before = self._state()
            try:
                found = call()
            except Unfit:
                self._go_back(before)
                continue
            if feature is not None:
                self.features.add(feature)
            return found
        raise Unfit

    def _state(self) -> tuple:
        return len(self.head), dict(self.params), dict(self.kinds), dict(self.data), set(self.features), dict(self.rows)

    def _go_back(self, state: tuple) -> None:
        """Forget what a choice wrote that came to nothing."""
        length, self.params, self.kinds, self.data, self.features, self.rows = state
        del self.head[length:]

    # -------------------------------------------------------------------------------- parameters and data

    def values(self, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        """Random values of a kind."""
        rng = self.rng
        if kind == "positive":
            return np.round(rng.uniform(0.4, 2.0, shape), 2)
        if kind == "unit":
            return np.round(rng.uniform(0.15, 0.85, shape), 2)
        if kind == "simplex":
            table = np.round(rng.dirichlet(np.full(shape[-1], 3.0), shape[:-1]) * 0.9 + 0.1 / shape[-1], 2)
            table[..., -1] = 1 - table[..., :-1].sum(-1)
            return np.round(table, 2)
        if kind == "matrix":
            root = rng.normal(size=shape) * 0.5
            return np.round(root @ np.swapaxes(root, -1, -2) + np.eye(shape[-1]), 2)
        return np.round(rng.normal(size=shape), 2)

    def param(self, kind: str, shape: tuple[int, ...]) -> str:
        """A new parameter."""
        name = f"{ {'real': 'a', 'positive': 's', 'unit': 'p', 'simplex': 'w', 'matrix': 'c'}[kind] }{len(self.params)}"
        value = self.values(kind, shape)
        if self.priors and kind in _PRIORS and self.chance(1.0 if self.interior else 0.6):
            event = {"simplex": 1}.get(kind, 0)
            known = [prior for prior in _PRIORS[kind] if "Laplace" not in prior or "Laplace prior" not in self.off]
            prior = self.pick(known[:1] if self.interior else known)
            if "Laplace" in prior:
                self.features.add("Laplace prior")
            prior = prior.format(concentration=[1.5] * (shape[-1] if shape else 1))
            if len(shape) > event:
                prior += f".expand({list(shape[: len(shape) - event])}).to_event({len(shape) - event})"
            self.head.append(f'{name} = numpyro.sample("{name}", {prior})')
        else:
            constraint = "" if kind == "real" else f", constraint=constraints.{_CONSTRAINTS[kind]}"
            self.head.append(f'{name} = numpyro.param("{name}", jnp.array({literal(value)}){constraint})')
        self.params[name], self.kinds[name], self.scope[name] = value, kind, value
        return name

    def argument(self, value, rows: int | None = -1, prefix: str = "x") -> str:
        """A new argument of the model."""
        name = f"{prefix}{len(self.data)}"
        if self.steps:  # inside a scan: one for every step, of which the step sees its own
            value = np.asarray(value)
            self.data[name] = self._like(value)
            self.scope[f"{name}_t"] = value
            return f"{name}_t"
        self.data[name] = self.scope[name] = np.asarray(value)
        if self.rowwise and rows is not None and np.ndim(value) >= -rows:
            self.rows[name] = rows
        return name

    def _like(self, value: np.ndarray) -> np.ndarray:
        """As many values of the same kind as the scan has steps."""
        shape = (self.steps, *value.shape)
        if value.dtype == bool:
            return self.rng.random(shape) < 0.7
        if value.dtype.kind == "i":
            return self.rng.integers(0, max(int(np.max(value)), 1) + 1, shape)
        return np.round(
            value
            * np.exp(0.7 * self.rng.normal(size=shape))
            * (1 if np.all(value > 0) else self.rng.choice([-1, 1], shape)),
            2,
        )

    # ----------------------------------------------------------------------------------- lines and shapes

    def line(self, text: str) -> None:
        """Add one line."""
        self.lines.append("    " * self.indent + text)

    @contextlib.contextmanager
    def block(self, opening: str | None):
        """Lines inside a ``with``; without one if there is nothing to open."""
        if opening:
            self.line(opening)
            self.indent += 1
        yield
        if opening:
            self.indent -= 1

    def shape(self, expression: str) -> tuple[int, ...]:
        """Shape of an expression of what exists so far."""
        try:
            return np.shape(eval(expression, dict(self.scope)))  # the text is the generator's own
        except (ValueError, IndexError, TypeError) as error:
            raise Unfit(expression) from error

    def fits(self, expression: str, shape: tuple[int, ...], event: int = 0) -> bool:
        """Whether an expression broadcasts to the cells of a site."""
        own = self.shape(expression)
        own = own[: len(own) - event] if event else own
        try:
            return np.broadcast_shapes(own, shape) == tuple(shape)
        except ValueError:
            return False

    def fitting(self, expression: str, shape: tuple[int, ...], event: int = 0) -> str:
        """The expression, if it broadcasts to the cells of a site."""
        if not self.fits(expression, shape, event):
            raise Unfit(expression)
        return expression

    def program(self, features=()) -> Program:
        """What was written."""
        body = "\n".join(self.lines)
        used = {name for name in (*self.params, *self.data) if re.search(rf"\b{name}(_t)?\b", body)}
        self.params, self.kinds, self.data, self.rows = (
            {n: v for n, v in table.items() if n in used} for table in (self.params, self.kinds, self.data, self.rows)
        )
        head = ["    " + line for line in self.head if line.split(" = ")[0] in used]
        lines = [f"def model({', '.join(self.data)}):", *head, *self.lines]
        weights = next((n for n in self.data if n.startswith("weight")), None)
        return Program(
            "\n".join(lines) + "\n",
            self.data,
            self.params,
            self.kinds,
            self.strategies,
            weights,
            self.rows,
            frozenset(self.features | set(features)),
        )


def literal(value) -> str:
    """An array as Python text."""
    return repr(np.asarray(value).tolist())

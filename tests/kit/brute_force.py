"""An oracle that emppl did not write: loop over every joint assignment of every latent cell.

Only NumPyro's own handlers and log-probabilities are used, and plain sums over the full joint table. The one
idea taken from emppl is the definition of a weight (``handlers.scale``): it multiplies the log evidence of a
plate cell, outside the sum over that cell's latents. Without weights the sum over assignments is literal; with
them the same table is summed plate cell by plate cell.

Everything here is exponential in the number of latent cells, so keep plates tiny.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.distribution import validation_enabled
from numpyro.handlers import seed, substitute, trace

Coordinates = frozenset[tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of one latent site: where it sits and which values it can take."""

    site: str
    index: tuple[int, ...]
    support: np.ndarray
    coordinates: Coordinates


@dataclasses.dataclass(frozen=True)
class Term:
    """Log-probability of one cell of one site, for every joint assignment, with the cell's weight."""

    site: str
    table: Any
    coordinates: Coordinates
    weight: float


class BruteForce:
    """The joint distribution of a model's discrete latents, written out in full.

    Args:
        model: a NumPyro model.
        params: constrained value of every param and every unobserved continuous site.
        args: model arguments.
        kwargs: model keyword arguments.
    """

    def __init__(self, model: Callable, params: Mapping[str, Any], *args: Any, **kwargs: Any):
        self.model, self.args, self.kwargs = model, args, kwargs
        self.params = {name: jnp.asarray(value) for name, value in params.items()}
        messages = self._trace(self.params)
        self.constraints = {name: _constraint(messages[name]) for name in self.params}
        self.latents = [
            name
            for name, msg in messages.items()
            if msg["type"] == "sample" and not msg["is_observed"] and name not in self.params
        ]
        self.shapes = {name: tuple(messages[name]["fn"].shape()) for name in self.latents}
        self.cells = [cell for name in self.latents for cell in _cells(name, messages[name])]
        values = itertools.product(*(cell.support for cell in self.cells))
        columns = np.array(list(values)).reshape(-1, len(self.cells))
        self.assignments = {
            name: np.stack([columns[:, i] for i, cell in enumerate(self.cells) if cell.site == name], -1).reshape(
                (-1, *self.shapes[name])
            )
            for name in self.latents
        }
        self.messages = messages
        self.tables = jax.tree.map(np.asarray, self.site_tables(self.params, compiled=True))

    # -------------------------------------------------------------------------------------- the joint table

    def _trace(self, values):
        return _run(self.model, values, self.args, self.kwargs)

    def site_tables(self, params: Mapping[str, Any], compiled: bool = False) -> dict[str, jax.Array]:
        """Log-probability of every cell of every likelihood site: ``(assignments, *batch)``."""
        flat, treedef = jax.tree.flatten((self.args, self.kwargs))
        arrays = [leaf for leaf in flat if isinstance(leaf, (np.ndarray, jax.Array))]
        static = tuple(None if isinstance(leaf, (np.ndarray, jax.Array)) else leaf for leaf in flat)
        function = _compiled_site_tables if compiled else _site_tables
        return function(self.model, (treedef, static), arrays, dict(params), self.assignments)

    def terms(self, tables: Mapping[str, Any]) -> list[Term]:
        """Every cell of every likelihood site."""
        found = []
        for name, table in tables.items():
            msg, batch = self.messages[name], table.shape[1:]
            weights = np.broadcast_to(1.0 if msg.get("scale") is None else np.asarray(msg["scale"]), batch)
            for index in np.ndindex(batch):
                place = _coordinates(msg, index, batch)
                found.append(Term(name, table[(slice(None), *index)], place, float(weights[index])))
        return found

    @property
    def weighted(self) -> bool:
        """Does any site carry a weight other than one?"""
        return any(term.weight != 1 for term in self.terms(self.tables))

    # ------------------------------------------------------------------------------------------- quantities

    def log_likelihood(self, params: Mapping[str, Any] | None = None) -> Any:
        """Log evidence of the data; a differentiable function of ``params`` when these are given."""
        xp = np if params is None else jnp
        tables = self.tables if params is None else self.site_tables(params)
        if self.weighted:
            return self._by_cells(tables, xp)[0]
        return _logsumexp(sum(term.table for term in self.terms(tables)), (0,), xp).sum()

    def log_prior(self, params: Mapping[str, Any]) -> Any:
        """Log prior density of the unobserved continuous sites."""
        messages = self._trace(params)
        total = jnp.zeros(())
        for name in self.params:
            if messages[name]["type"] == "sample":
                total += jnp.sum(_log_prob(messages[name]))
        return total

    def posterior(self) -> np.ndarray:
        """Posterior probability of every joint assignment."""
        if self.weighted:
            return self._by_cells(self.tables, np)[1]
        log_joint = sum(term.table for term in self.terms(self.tables))
        return np.exp(log_joint - _logsumexp(log_joint, (0,), np))

    def marginals(self) -> dict[str, np.ndarray]:
        """Posterior probabilities of every latent: ``(*plates, states)``; NaN where a cell is masked out."""
        posterior = self.posterior()
        result = {}
        for name in self.latents:
            support = _support(self.messages[name])
            table = np.stack(
                [np.tensordot(posterior, self.assignments[name] == value, (0, 0)) for value in support], -1
            )
            present = [len(cell.support) > 1 or len(support) == 1 for cell in self.cells if cell.site == name]
            table[~np.array(present).reshape(self.shapes[name])] = np.nan
            result[name] = table.reshape((*self.plate_shape(name), len(support)))
        return result

    def plate_shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a latent's plates, outermost first (numpyro pads ``dim=`` with axes of size one)."""
        plates = {frame.dim for frame in self.messages[name]["cond_indep_stack"]}
        shape = self.shapes[name]
        return tuple(size for dim, size in zip(range(-len(shape), 0), shape, strict=True) if dim in plates or size > 1)

    def log_joint(self) -> np.ndarray:
        """Weighted log joint density of every assignment."""
        return sum(term.weight * term.table for term in self.terms(self.tables))

    def score(self, decoded: Mapping[str, Any]) -> float:
        """Weighted log joint density of one assignment (its masked cells are ignored)."""
        match = np.ones(len(self.log_joint()), bool)
        for cell in self.cells:
            if len(cell.support) > 1:
                state = np.reshape(decoded[cell.site], self.shapes[cell.site])[cell.index]
                match &= self.assignments[cell.site][(slice(None), *cell.index)] == state
        (position,) = np.flatnonzero(match)
        return float(self.log_joint()[position])

    def q(self, params: Mapping[str, Any]) -> jax.Array:
        """Expected complete-data log-likelihood at ``params`` under this posterior, differentiable."""
        posterior = jnp.asarray(self.posterior())
        used = posterior > 0
        total = jnp.zeros(())
        for term in self.terms(self.site_tables(params)):
            if term.weight:
                total += term.weight * jnp.sum(jnp.where(used, posterior * jnp.where(used, term.table, 0), 0))
        return total

    # ------------------------------------------------------------------------------- weights, cell by cell

    def _by_cells(self, tables, xp):
        """Log evidence with weights, and the posterior of the joint assignment.

        Latents at the same plate coordinates form a group. Innermost groups go first: their terms, relative to
        the group's own weight, are summed over the group's states only; the result is one term of the plate
        cell around it, with that weight.
        """
        sizes = tuple(len(cell.support) for cell in self.cells)
        terms = [dataclasses.replace(t, table=xp.reshape(t.table, sizes)) for t in self.terms(tables)]
        groups: dict[Coordinates, list[int]] = {}
        for axis, cell in enumerate(self.cells):
            groups.setdefault(cell.coordinates, []).append(axis)
        log_posterior = xp.zeros(sizes)
        for place in sorted(groups, key=len, reverse=True):
            axes = tuple(groups[place])
            weights = {
                t.weight for t in terms if t.coordinates == place and t.site in {self.cells[a].site for a in axes}
            }
            if len(weights) > 1:
                raise ValueError(
                    f"Latents in one cell carry different weights {weights}: no definition of the evidence."
                )
            (weight,) = weights
            home = [t for t in terms if self._home(t.coordinates, groups) == place]
            terms = [t for t in terms if not any(t is other for other in home)]
            # A cell of weight zero counts for nothing outside; inside, its posterior is the unweighted one.
            table = sum(t.table * (t.weight / weight if weight else 1.0) for t in home)
            evidence = _logsumexp(table, axes, xp)
            log_posterior = log_posterior + table - evidence
            outer = max((other for other in groups if other < place), key=len, default=frozenset())
            terms.append(Term("evidence", evidence, outer, weight))
        total = sum(xp.mean(t.weight * t.table) for t in terms)
        return total, xp.reshape(xp.exp(log_posterior), (-1,))

    @staticmethod
    def _home(coordinates: Coordinates, groups) -> Coordinates | None:
        return max((place for place in groups if place <= coordinates), key=len, default=None)


def _run(model, values, args, kwargs):
    """NumPyro's trace of the model at given values."""

    def first_state(msg, rng_key=None):
        # A latent without a value is put at zero; only static facts are read off such a trace.
        if msg["type"] == "sample" and not msg["is_observed"] and msg["name"] not in values:
            return np.zeros(msg["fn"].shape(), int)
        return values.get(msg["name"])

    with validation_enabled(False), jax.numpy_rank_promotion("allow"):
        return trace(substitute(seed(model, 0), substitute_fn=first_state)).get_trace(*args, **kwargs)


def _log_prob(msg):
    with validation_enabled(False), jax.numpy_rank_promotion("allow"):
        return msg["fn"].log_prob(msg["value"])


def _site_tables(model, skeleton, arrays, params, assignments):
    treedef, static = skeleton
    remaining = iter(arrays)
    args, kwargs = jax.tree.unflatten(treedef, [next(remaining) if leaf is None else leaf for leaf in static])

    def one(assignment):
        messages = _run(model, {**params, **assignment}, args, kwargs)
        return {n: _log_prob(m) for n, m in messages.items() if m["type"] == "sample" and n not in params}

    count = len(next(iter(assignments.values())))
    tables = jax.vmap(one)(assignments)
    return {name: jnp.broadcast_to(table, (count, *table.shape[1:])) for name, table in tables.items()}


_compiled_site_tables = jax.jit(_site_tables, static_argnums=(0, 1))


def unconstrained_gradient(function: Callable, params: Mapping[str, Any], supports: Mapping[str, Any]) -> dict:
    """Gradient of a function of constrained parameters in numpyro's unconstrained coordinates."""
    with jax.numpy_rank_promotion("allow"):
        free = {name: biject_to(supports[name]).inv(jnp.asarray(value)) for name, value in params.items()}
        return jax.grad(lambda free: function({n: biject_to(supports[n])(v) for n, v in free.items()}))(free)


def _constraint(msg):
    return msg["kwargs"].get("constraint", constraints.real) if msg["type"] == "param" else msg["fn"].support


def _support(msg) -> np.ndarray:
    base = msg["fn"]
    while hasattr(base, "base_dist"):
        base = base.base_dist
    with validation_enabled(False):
        return np.asarray(base.enumerate_support(expand=False)).reshape(-1)


def _present(msg, shape) -> np.ndarray:
    """Which cells of a latent are not masked out."""
    fn, present = msg["fn"], np.ones(shape, bool)
    while hasattr(fn, "base_dist"):
        if isinstance(fn, numpyro.distributions.MaskedDistribution):
            present &= np.asarray(fn._mask, bool)
        fn = fn.base_dist
    return present


def _cells(name, msg) -> list[Cell]:
    shape, support = tuple(msg["fn"].shape()), _support(msg)
    present = _present(msg, shape)
    return [
        Cell(name, index, support if present[index] else support[:1], _coordinates(msg, index, shape))
        for index in np.ndindex(shape)
    ]


def _coordinates(msg, index, batch) -> Coordinates:
    by_dim = {frame.dim: frame.name for frame in msg["cond_indep_stack"]}
    dims = range(-len(batch), 0)
    return frozenset(
        (by_dim.get(dim, f"axis{dim}"), place)
        for dim, place, size in zip(dims, index, batch, strict=True)
        if size > 1 or dim in by_dim
    )


def _logsumexp(table, axes, xp):
    peak = xp.max(table, axes, keepdims=True)
    peak = xp.where(xp.isfinite(peak), peak, 0)
    peak = jax.lax.stop_gradient(peak) if xp is jnp else peak
    return peak + xp.log(xp.sum(xp.exp(table - peak), axes, keepdims=True))

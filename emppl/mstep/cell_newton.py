"""Newton steps cell by cell: Q falls apart into one small smooth problem per component, each solved to full precision.

This is how likelihood equations without a closed solution are solved (Gamma, Beta, Weibull, Student's t ...), and how a
prior that is not conjugate, or an argument that is a function of a parameter (``jnp.exp(log_scale)[z]``), is
handled. Parameters with the same cells are one block: shape and rate of a Gamma are maximised jointly. Where the site is
an exponential family, Q is a function of sums of statistics and a step costs nothing; otherwise every step goes through
the rows, with NumPyro's ``log_prob``.

The steps are taken on the unconstrained scale, with Levenberg's damping in every cell, and only steps that do not lower
Q plus the log prior are accepted.

Reference:
    Levenberg (1944), A method for the solution of certain non-linear problems in least squares.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from emppl.axes import reduce_to
from emppl.mstep.closed_form import entries_of, keeps_cells_whole, prior_depends_on, prior_of
from emppl.mstep.maximisation import Maximisation
from emppl.numerics import weighted
from emppl.parameters import constrain, constraint_name, free_dimensions, innermost, unconstrain
from emppl.rules import Rule, RuleContext
from emppl.separation import MIXED
from emppl.trace import as_numpyro_expects

LARGEST_BLOCK = 16
"""Most unconstrained dimensions of one cell: second derivatives cost the square of it."""

_MOST_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Anchor:
    """An array of a site that holds the parameter's cells.

    Attributes:
        site: the site.
        argument: name of the argument, or None for an array inside the distribution.
        leaf: which array inside the distribution.
        event_rank: its trailing axes that belong to one cell.
    """

    site: str
    argument: str | None
    leaf: int
    event_rank: int


@dataclasses.dataclass(frozen=True)
class CellNewton(Rule):
    """Damped Newton steps in every cell of one or more parameters.

    Attributes:
        anchors: for every parameter, by site, where its cells are found.
        maps: for every parameter, by site, the identity of its map of cells.
        event_ranks: for every parameter, its trailing axes that belong to one cell.
        sizes: for every parameter, the unconstrained dimensions of one cell.
        by_rows: sites whose log-probabilities have to be evaluated row by row.
        transformed: parameters of which an argument is a function, not a plain selection.
    """

    anchors: Mapping[str, Mapping[str, Anchor]]
    maps: Mapping[str, Mapping[str, int]]
    event_ranks: Mapping[str, int]
    sizes: Mapping[str, int]
    by_rows: frozenset[str]
    transformed: frozenset[str] = frozenset()

    kind: ClassVar[str] = "Newton by cell"

    @property
    def reads_weights(self) -> bool:  # type: ignore[override]
        """Only where a site is no exponential family."""
        return bool(self.by_rows)

    @property
    def order(self) -> int:
        """After the closed forms, before what is less exact."""
        return 15

    def __or__(self, other: CellNewton) -> CellNewton:
        """One block of both."""
        return CellNewton(
            self.parameters + other.parameters,
            "",
            {**self.anchors, **other.anchors},
            {**self.maps, **other.maps},
            {**self.event_ranks, **other.event_ranks},
            {**self.sizes, **other.sizes},
            self.by_rows | other.by_rows,
            self.transformed | other.transformed,
            rejected={**self.rejected, **other.rejected},
            prior=" and ".join(dict.fromkeys(filter(None, (self.prior, other.prior)))) or None,
        )

    @property
    def sites(self) -> list[str]:
        """Every site that the block enters."""
        return list(dict.fromkeys(site for found in self.anchors.values() for site in found))

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Maximise every cell."""
        return Cells(self, step).maximise()


# ------------------------------------------------------------------------------------- does it apply, and why not


def propose(context: RuleContext, name: str, kinks: bool = False) -> CellNewton | str:
    """The rule for one parameter, or the reason why it does not apply; ``kinks`` says that they do not matter."""
    site = context.trace.sites[name]
    found = entries_of(context, name)
    if not found:
        return "no likelihood site depends on it"
    separation = context.separation
    anchors: dict[str, Anchor] = {}
    maps: dict[str, int] = {}
    for factor, field, position in found:
        if field in ("value", "mask", "cell_weight") or factor.labels_of or factor.site.kind == "factor":
            return f"it enters the {'log factor' if factor.site.kind == 'factor' else field} of site {factor.name!r}"
        if factor.parameters.get("value") or factor.latents.get("mask"):
            return f"value or mask of site {factor.name!r} are not data"
        if field in factor.family.kinks and not kinks:
            return f"the log-probability of site {factor.name!r} is not smooth in {field}"
        number = separation.map_of(name, position)
        if number == MIXED:
            return f"{field} of site {factor.name!r} mixes its entries"
        rank = factor.family.argument_ranks.get(field, 0 if factor.family.value_rank == 0 else None)
        if maps.setdefault(factor.name, number) != number:
            return f"site {factor.name!r} uses two different entries of it in one row"
        if rank is not None and (field != "distribution" or factor.name not in anchors):
            leaf = _leaf_number(context, factor.name, position) if field == "distribution" else 0
            anchors[factor.name] = Anchor(factor.name, None if field == "distribution" else field, leaf, rank)
    if set(anchors) != set(maps):
        return f"the event axes of {', '.join(sorted(set(maps) - set(anchors)))} are not known"
    event_ranks = {anchor.event_rank for anchor in anchors.values()}
    if len(event_ranks) > 1:
        return "it enters as a scalar and as a vector"
    (event_rank,) = event_ranks
    cell = innermost(site.constraint)
    if cell.event_dim > event_rank or len(site.shape) < event_rank:
        return f"its constraint {constraint_name(cell)!r} binds entries of different cells"
    for factor, field, position in found:
        if event_rank and field != "distribution":
            selection = context.dependence.selection(name, position)
            if isinstance(selection, str) or not keeps_cells_whole(
                context, selection, len(site.shape), event_rank, position
            ):
                return f"{field} of site {factor.name!r} does not keep its last {event_rank} axes whole"
    for other in context.trace.parameters:
        if context.use_prior and other != name and prior_depends_on(context, other, name):
            return f"the prior of {other!r} depends on it"
    prior = prior_of(context.trace, name) if context.use_prior else None
    if prior is not None and len(site.event_shape) - site.reinterpreted > event_rank:
        return f"its prior {prior} binds entries of different cells"
    size = free_dimensions(cell, site.shape[len(site.shape) - event_rank :])
    if size > LARGEST_BLOCK:
        return f"one cell has {size} dimensions (at most {LARGEST_BLOCK})"
    by_rows = frozenset(n for n in anchors if not context.factors[n].is_exponential)
    plain = all(not isinstance(context.dependence.selection(name, position), str) for *_, position in found)
    transformed = frozenset() if plain else frozenset([name])
    block = {name: anchors}, {name: maps}, {name: event_rank}, {name: size}
    return CellNewton((name,), "", *block, by_rows, transformed, prior=prior)


def merge(rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """Make one block of all parameters that share a site and the map of cells there.

    Args:
        rules: by parameter.

    Returns:
        The same, with shared blocks, and the update of each put into words.
    """
    merged = dict(rules)
    blocks: list[CellNewton] = []
    for rule in rules.values():
        if type(rule) is not CellNewton:
            continue
        for block in blocks:
            if _share_cells(block, rule) and sum((block | rule).sizes.values()) <= LARGEST_BLOCK:
                blocks[blocks.index(block)] = block | rule
                break
        else:
            blocks.append(rule)
    for block in blocks:
        told = dataclasses.replace(block, detail=_in_words(block))
        merged.update(dict.fromkeys(block.parameters, told))
    return merged


def _share_cells(one: CellNewton, other: CellNewton) -> bool:
    return any(
        site in theirs and theirs[site] == number
        for mine in one.maps.values()
        for site, number in mine.items()
        for theirs in other.maps.values()
    )


def _in_words(block: CellNewton) -> str:
    together = f" of {' and '.join(block.parameters)} together" if len(block.parameters) > 1 else ""
    source = f"the rows of {', '.join(sorted(block.by_rows))}" if block.by_rows else "sums of statistics"
    return f"damped Newton steps{together} in every cell, from {source}"


def _leaf_number(context: RuleContext, site: str, position: int) -> int:
    """Which array of the distribution a traced output is."""
    leaves = sorted(where for path, where in context.trace.outputs.items() if path[:2] == (site, "distribution"))
    return leaves.index(position)


# ----------------------------------------------------------------------------------------------- carrying it out


class _State(NamedTuple):
    """One vector per cell, and Q with its derivatives there."""

    point: jax.Array
    value: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    damping: jax.Array
    done: jax.Array


class Cells:
    """Q plus the log prior as one function per cell, of the unconstrained parameters of the block."""

    def __init__(self, rule: CellNewton, step: Maximisation):
        self.rule, self.step, self.program = rule, step, step.program
        sites = self.program.trace.sites
        self.constraints = {name: innermost(sites[name].constraint) for name in rule.parameters}
        first = rule.parameters[0]
        rank = len(sites[first].shape) - rule.event_ranks[first]
        self.shape = sites[first].shape[:rank]
        self.wanted = frozenset(
            (site, field) for site in rule.sites for field in ("arguments", "distribution", "value", "mask")
        ) | frozenset((name, field) for name in rule.parameters for field in _PRIOR_FIELDS)
        self.pull_back = self._selections()

    def maximise(self) -> dict[str, jax.Array]:
        """New constrained values."""
        start = self.vector({name: self.step.params[name] for name in self.rule.parameters})
        nothing = jnp.zeros(self.shape, start.dtype)
        # The first step goes nowhere: it evaluates the start, in the one place where derivatives are compiled.
        hessian = jnp.zeros((*start.shape, start.shape[-1]), start.dtype)
        state = _State(start, nothing - jnp.inf, 0 * start, hessian, nothing, jnp.zeros(self.shape, bool))

        def keep_going(carry):
            state, number = carry
            return (number < _MOST_STEPS) & ~jnp.all(state.done)

        def advance(carry):
            state, number = carry
            return self._advance(state), number + 1

        state, _ = jax.lax.while_loop(keep_going, advance, (state, 0))
        return self.params(state.point)

    def _advance(self, state: _State) -> _State:
        move, gain = _damped_step(state.gradient, state.hessian, state.damping)
        trial = state.point + move
        value, gradient, hessian = self.derivatives(trial, 2)
        eps = jnp.finfo(value.dtype).eps
        rounding = eps * (jnp.abs(state.value) + 1)
        finite = jnp.all(jnp.isfinite(gradient), -1) & jnp.all(jnp.isfinite(hessian), (-2, -1))
        accepted = (value >= state.value - 16 * rounding) & finite & ~state.done
        # Convergence is quadratic: after an undamped step that gains less than rounding nothing is left to gain.
        undamped = (state.damping <= 0) & jnp.isfinite(state.value)
        done = state.done | (accepted & undamped & (gain <= rounding)) | (state.damping > 1e12)
        calmer = jnp.where(state.damping > 1e-3, state.damping / 8, 0)
        damping = jnp.where(accepted, calmer, jnp.maximum(8 * state.damping, 1e-2))
        keep = lambda new, old: jnp.where(  # noqa: E731
            jnp.reshape(accepted, accepted.shape + (1,) * (old.ndim - accepted.ndim)), new, old
        )
        return _State(
            keep(trial, state.point),
            keep(value, state.value),
            keep(gradient, state.gradient),
            keep(hessian, state.hessian),
            damping,
            done,
        )

    def vector(self, params: Mapping[str, jax.Array]) -> jax.Array:
        """Unconstrained parameters, ``(*cells, dimensions)``."""
        parts = [unconstrain(self.constraints[name], params[name]) for name in self.rule.parameters]
        return jnp.concatenate([jnp.reshape(part, (*self.shape, -1)) for part in parts], -1)

    def params(self, point: jax.Array) -> dict[str, jax.Array]:
        """Constrained parameters from their vector."""
        params, begin = {}, 0
        for name in self.rule.parameters:
            shape = self.program.trace.sites[name].shape[len(self.shape) :]
            size = self.rule.sizes[name]
            part = point[..., begin : begin + size]
            begin += size
            # A constraint on vectors or matrices takes its free numbers as one axis, an elementwise one as they are.
            event = (size,) if self.constraints[name].event_dim else shape
            params[name] = constrain(self.constraints[name], jnp.reshape(part, (*self.shape, *event)))
        return params

    def derivatives(self, point: jax.Array, orders: int) -> list[jax.Array]:
        """Q of every cell with its gradient and Hessian, up to ``orders``.

        All cells move along one direction at once; as no term depends on two cells, a derivative along that common
        direction is the derivative in each of them.
        """

        def terms(move):
            return self._terms(self.params(point + jnp.reshape(move, (1,) * len(self.shape) + (-1,))))

        zero = jnp.zeros(point.shape[-1], point.dtype)
        pooled = []
        for order in range(orders + 1):
            sites, prior = terms(zero)
            terms = jax.jacfwd(terms)
            last = lambda array: tuple(range(array.ndim - order, array.ndim))  # noqa: B023, E731
            fronted = {s: jnp.moveaxis(a, last(a), tuple(range(order))) for s, a in sites.items()}
            total = jnp.moveaxis(self._pool(fronted, order), tuple(range(order)), tuple(range(-order, 0)))
            pooled.append(total + prior)
        return pooled

    def _terms(self, block: Mapping[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
        """Expected log-probability of every cell of every site, and the log prior of the block's own cells."""
        arrays = self.program.evaluate({**self.step.params, **block}, self.step.leaves, self.wanted)
        sites = {}
        for site in self.rule.sites:
            factor = self.program.factors[site]
            if site in self.rule.by_rows:
                weights = self.step.expectations.weights[site]
                weights = jnp.reshape(weights, weights.shape + (1,) * len(factor.event_sizes))
                elements = weighted(weights, factor.elements(arrays))
            else:
                reference = self.step.prepared[site].reference
                elements = factor.expected_elements(factor.arguments(arrays), self.step.sums(site), reference)
            sites[site] = reduce_to(elements, self._cell_shape(site, elements.shape))
        prior = jnp.zeros(self.shape, jnp.result_type(float))
        for name in self.rule.parameters:
            if self.program.use_prior and self.program.trace.sites[name].kind == "continuous":
                prior = prior + _prior_by_cell(arrays[name], len(self.shape))
        return sites, prior

    # ---------------------------------------------------------------------------------- from the site to the cells

    def _owner(self, site: str) -> str:
        return next(name for name in self.rule.parameters if site in self.rule.anchors[name])

    def _anchored(self, site: str, params) -> jax.Array:
        """An array of the site that holds the block's cells: common axes, ``to_event`` axes, event axes."""
        anchor = self.rule.anchors[self._owner(site)][site]
        factor = self.program.factors[site]
        arrays = self.program.evaluate(
            params, self.step.leaves, frozenset([(site, "arguments"), (site, "distribution")])
        )
        if anchor.argument is not None:
            raw, depends = arrays[site].arguments[anchor.argument], factor.latents[anchor.argument]
        else:
            raw, depends = jax.tree.leaves(arrays[site].distribution)[anchor.leaf], factor.latents["distribution"]
        return factor.aligned(raw, depends, anchor.event_rank)

    def _cell_shape(self, site: str, full: tuple[int, ...]) -> tuple[int, ...]:
        shape = self._shapes[site]
        return tuple(1 if cells == 1 else size for cells, size in zip(shape, full, strict=True))

    def _selections(self):
        """For every site, the transpose of the map from the block's cells to the site's."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        found = {}
        for site in self.rule.sites:
            name = self._owner(site)
            rank = self.rule.event_ranks[name]

            def selected(value, site=site, name=name):
                return self._anchored(site, {**self.step.params, name: value})

            value = self.step.params[name]
            array, slope = jax.jvp(selected, (value,), (jnp.ones_like(value),))
            _, pull_back = jax.vjp(selected, value)
            self._shapes[site] = array.shape[: array.ndim - rank]
            found[site] = (pull_back, slope, rank)
        return found

    def _pool(self, sites: Mapping[str, jax.Array], extra: int) -> jax.Array:
        """Sum over everything that shares a cell of the block; ``extra`` leading axes are kept."""
        total: Any = 0.0
        for site, array in sites.items():
            pull_back, slope, rank = self.pull_back[site]

            def back(one, pull_back=pull_back, slope=slope, rank=rank):
                # The array may be a function of the parameter, entry by entry: divide by its derivative.
                one = jnp.broadcast_to(jnp.reshape(one, one.shape + (1,) * rank), slope.shape)
                flat = slope != 0
                entries = pull_back(jnp.where(flat, one / jnp.where(flat, slope, 1), 0))[0]
                return entries[(..., *(0,) * rank)]

            for _ in range(extra):
                back = jax.vmap(back)
            total = total + back(array)
        return total


_PRIOR_FIELDS = ("distribution", "value", "mask", "cell_weight")


def _prior_by_cell(mine, rank: int) -> jax.Array:
    """Log prior density of every cell (the first ``rank`` axes of the parameter)."""
    with as_numpyro_expects():
        log_prob = mine.distribution.log_prob(mine.value)
        if mine.mask is not None:
            log_prob = jnp.where(mine.mask, log_prob, 0)
        if mine.cell_weight is not None:
            log_prob = log_prob * mine.cell_weight
    return jnp.sum(log_prob, tuple(range(rank, log_prob.ndim)))


def _damped_step(gradient: jax.Array, hessian: jax.Array, damping: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Newton's step in units of the curvature, away from saddles and minima, and the gain that it promises."""
    diagonal = jnp.abs(jnp.diagonal(hessian, axis1=-2, axis2=-1))
    unit = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    scaled = -hessian / (unit[..., None] * unit[..., None, :])
    values, vectors = jnp.linalg.eigh(scaled)
    slope = jnp.squeeze(jnp.swapaxes(vectors, -1, -2) @ (gradient / unit)[..., None], -1)
    floor = jnp.finfo(values.dtype).eps * math.sqrt(values.shape[-1])
    curvature = jnp.maximum(jnp.abs(values), floor) + damping[..., None]
    move = jnp.squeeze(vectors @ (slope / curvature)[..., None], -1) / unit
    return move, 0.5 * jnp.sum(slope**2 / curvature, -1)

"""A chain of latents, reduced in one go: named tables arranged as the initial, transition and emission factors.

All latents that later steps refer to form one joint state. Tables over the present state alone are emissions, tables
that also hold the state before are transitions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination.chain import Symbols, filtered, fused_log_evidence, log_evidence


@dataclasses.dataclass(frozen=True)
class ChainAxes:
    """The axes of one chain.

    Attributes:
        time: the time axis of the later steps.
        initial: axes of the joint state after the first steps.
        current: axes of the joint state at a later step, in the same order.
        previous: axes of the joint state one step before.
        presence: the latents whose masks say which steps exist.
    """

    time: str
    initial: tuple[str, ...]
    current: tuple[str, ...]
    previous: tuple[str, ...]
    presence: tuple[str, ...] = ()

    @property
    def before(self) -> frozenset[str]:
        """Axes that only a transition has."""
        return frozenset(self.previous) - frozenset(self.current)

    @property
    def own(self) -> frozenset[str]:
        """Axes of the chain; the others are batch axes."""
        return frozenset({self.time, *self.initial, *self.current, *self.previous})


@dataclasses.dataclass(frozen=True)
class Emission:
    """A factor of the present state that is computed step by step, so that its table never exists as a whole.

    Attributes:
        function: ``(parameters, slice) -> table`` of one step, with the common axes; closes over no traced array.
        parameters: what it is differentiated by.
        slices: constants with a leading time axis, the first row of which gives zero.
        gathers: it only looks up the last axis of the parameters at the slices' positions (-1 gives zero).
    """

    function: Callable[[jax.Array, jax.Array], jax.Array]
    parameters: jax.Array
    slices: jax.Array
    gathers: bool = False

    def map(self, function: Callable[[jax.Array], jax.Array]) -> Emission:
        """Change the table of every step."""
        inner = self.function
        return dataclasses.replace(
            self, function=lambda parameters, part: function(inner(parameters, part)), gathers=False
        )

    @property
    def step_shape(self) -> tuple[int, ...]:
        """Shape of the table of one step."""
        return jax.eval_shape(self.function, self.parameters, self.slices[0]).shape

    def table(self, time: int) -> jax.Array:
        """The table of all steps but the first, with time in its place among the axes."""
        steps = jax.vmap(self.function, in_axes=(None, 0), out_axes=time)(self.parameters, self.slices[1:])
        return jnp.squeeze(steps, time + 1)


@dataclasses.dataclass(frozen=True)
class ChainFactors:
    """The factors of one chain, tables on the common axes.

    Attributes:
        names: the common axes.
        sizes: their sizes.
        chain: the axes of the chain.
        initial: tables of the first steps.
        later: tables with the time axis (of size one where they do not vary), or emissions that are computed step by
            step.
        present: which steps exist, laid out like the tables, or None.
    """

    names: tuple[str, ...]
    sizes: Mapping[str, int]
    chain: ChainAxes
    initial: Sequence[jax.Array]
    later: Sequence[jax.Array | Emission]
    present: jax.Array | None

    @property
    def batch(self) -> list[str]:
        """The axes that are not the chain's own."""
        return [name for name in self.names if name not in self.chain.own]

    @property
    def emissions(self) -> list[Emission]:
        """Factors that are computed step by step."""
        return [factor for factor in self.later if isinstance(factor, Emission)]

    @property
    def tables(self) -> list[jax.Array]:
        """Later factors that exist as a whole."""
        return [factor for factor in self.later if not isinstance(factor, Emission)]

    def places(self, names: Sequence[str]) -> list[int]:
        """Positions among the common axes."""
        return [self.names.index(name) for name in names]

    def varies(self, table: jax.Array, names: Sequence[str] | frozenset[str]) -> bool:
        """Whether a table varies along any of some axes."""
        return any(table.shape[self.names.index(name)] > 1 for name in names)

    def laid_out(self, table: jax.Array, leading: Sequence[str]) -> jax.Array:
        """A table with some axes first, then those of the batch, and no others."""
        order = self.places([*leading, *self.batch])
        rest = [axis for axis in range(len(self.names)) if axis not in order]
        moved = jnp.transpose(table, order + rest)
        return jnp.reshape(moved, moved.shape[: len(order)])

    def product(
        self, tables: Sequence[jax.Array], states: Sequence[str], steps: int, batch: tuple[int, ...]
    ) -> jax.Array:
        """The sum of some tables of logs: time, states, batch."""
        shape = (steps, *(self.sizes[name] for name in states), *batch)
        if not tables:
            return jnp.zeros(shape)
        laid_out = (self.laid_out(table, (self.chain.time, *states)) for table in tables)
        return jnp.broadcast_to(functools.reduce(operator.add, laid_out), shape)


@dataclasses.dataclass(frozen=True)
class ChainTables:
    """Factors of one chain: time first, states before batch cells, batch cells last.

    Attributes:
        log_initial: ``(states, *batch)``.
        log_transition: ``(steps - 1 or 1, from, to, *batch or 1)``.
        log_emission: ``(steps, states, *batch)``; the first row is zero, as the first steps are in ``log_initial``.
            A scalar zero if emissions are computed step by step.
        present: ``(steps, *batch or 1)`` or None.
        shape: sizes of the common axes of the outcome.
    """

    log_initial: jax.Array
    log_transition: jax.Array
    log_emission: jax.Array
    present: jax.Array | None
    shape: tuple[int, ...]

    @property
    def arrays(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """The factors as :mod:`emppl.elimination.chain` takes them."""
        return self.log_initial, self.log_transition, self.log_emission, self.present

    def apply(self, function: Callable[..., jax.Array], *options: Any) -> jax.Array:
        """A function of the arrays that gives one value per sequence, laid out like the tables of the elimination."""
        return jnp.reshape(function(*self.arrays, *options), self.shape)


def arrange(factors: ChainFactors) -> ChainTables:
    """Bring named tables into the form that the chain kernels take."""
    chain, sizes, names = factors.chain, factors.sizes, factors.names
    tables = factors.tables
    present = factors.present
    shapes = [table.shape for table in (*factors.initial, *tables, *([] if present is None else [present]))]
    shapes += [emission.step_shape for emission in factors.emissions]
    places = factors.places(factors.batch)
    width = jnp.broadcast_shapes(*(tuple(shape[place] for place in places) for shape in shapes))
    cells = math.prod(width)
    flat = (cells,) if cells > 1 else ()
    states, length = math.prod(sizes[name] for name in chain.current), sizes[chain.time]

    log_initial = jnp.reshape(factors.product(factors.initial, chain.initial, 1, width), (states, *flat))
    log_emission = jnp.zeros(())
    if not factors.emissions:
        whole = [table for table in tables if not factors.varies(table, chain.before)]
        log_emission = jnp.reshape(factors.product(whole, chain.current, length, width), (length, states, *flat))
        log_emission = jnp.concatenate([jnp.zeros_like(log_emission[:1]), log_emission])
    moving = [table for table in tables if factors.varies(table, chain.before)]
    fresh = tuple(name for name in chain.current if name not in chain.previous)
    steps = max([table.shape[names.index(chain.time)] for table in moving], default=1)
    has_batch = any(factors.varies(table, factors.batch) for table in moving)
    transition = factors.product(moving, (*chain.previous, *fresh), steps, width if has_batch else (1,) * len(width))
    transition = _repeat_shared(transition, chain, sizes)
    log_transition = jnp.reshape(transition, (steps, states, states, *(flat if has_batch or not flat else (1,))))
    if present is not None:
        present = jnp.broadcast_to(factors.laid_out(present, (chain.time,)), (length, *width))
        present = jnp.reshape(present, (length, *flat))
        present = jnp.concatenate([jnp.ones_like(present[:1]), present])
    shape = tuple(1 if name in chain.own else width[factors.batch.index(name)] for name in names)
    return ChainTables(log_initial, log_transition, log_emission, present, shape)


def _repeat_shared(table: jax.Array, chain: ChainAxes, sizes: Mapping[str, int]) -> jax.Array:
    """Give a transition of higher order all axes of the new state: what both states hold must agree."""
    before, after = list(chain.previous), list(chain.current)
    shared = [name for name in after if name in before]
    if not shared:
        return table
    fresh = [name for name in after if name not in before]
    for name in shared:
        position = 1 + len(before) + len(fresh)
        size = sizes[name]
        table = jnp.expand_dims(table, position)
        table = jnp.broadcast_to(table, table.shape[:position] + (size,) + table.shape[position + 1 :])
        shape = [1] * table.ndim
        shape[1 + before.index(name)] = shape[position] = size
        table = jnp.where(jnp.reshape(jnp.eye(size, dtype=bool), shape), table, -jnp.inf)
        fresh = [*fresh, name]
    start = 1 + len(before)
    order = [start + fresh.index(name) for name in after]
    return jnp.transpose(table, [*range(start), *order, *range(start + len(after), table.ndim)])


def filter_steps(tables: ChainTables) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the past says about every state.

    Returns:
        Probabilities of every state given the observations so far ``(steps, states, *batch)``, given the
        observations before ``(steps - 1, states, *batch)``, from the second step on, and the log-probability of every
        observation given those before ``(steps, *batch)``.
    """
    states, evidence = filtered(*tables.arrays)
    states = jnp.exp(states)
    predicted = jnp.einsum("ti...,tij...->tj...", states[:-1], jnp.exp(tables.log_transition))
    if tables.present is not None:
        predicted = jnp.where(tables.present[1:, None], predicted, states[:-1])
    return states, predicted, evidence


def kernel_evidence(factors: ChainFactors) -> jax.Array:
    """Log evidence by the fast kernels: laid out like the tables, states and time of size one."""
    chain = factors.chain
    if not all(factors.varies(table, chain.before) for table in factors.tables):
        # Some emission exists as a table anyway: add the others to it.
        time = factors.names.index(chain.time)
        added = [emission.table(time) for emission in factors.emissions]
        factors = dataclasses.replace(factors, later=[*factors.tables, *added])
    tables, emissions = arrange(factors), factors.emissions
    if not emissions:
        return tables.apply(log_evidence)
    batch = tables.log_initial.shape[1:]
    width = tuple(tables.shape[place] for place in factors.places(factors.batch))
    states = tuple(factors.sizes[name] for name in chain.current)

    symbols = _symbols(factors, width, states)
    if symbols is not None:
        log_table, codes = symbols
        codes = jnp.reshape(codes, (len(codes), *batch))
        evidence = fused_log_evidence(
            tables.log_initial, tables.log_transition, Symbols(), log_table, codes, tables.present
        )
        return jnp.reshape(evidence, tables.shape)

    def emission_of_step(parameters: Sequence[jax.Array], slices: Sequence[jax.Array]) -> jax.Array:
        parts = [
            emission.function(natural, part)
            for emission, natural, part in zip(emissions, parameters, slices, strict=True)
        ]
        total = factors.laid_out(functools.reduce(operator.add, parts), chain.current)
        return jnp.reshape(jnp.broadcast_to(total, states + width), (math.prod(states), *batch))

    evidence = fused_log_evidence(
        tables.log_initial,
        tables.log_transition,
        emission_of_step,
        [emission.parameters for emission in emissions],
        [emission.slices for emission in emissions],
        tables.present,
    )
    return jnp.reshape(evidence, tables.shape)


def _symbols(
    factors: ChainFactors, width: tuple[int, ...], states: tuple[int, ...]
) -> tuple[jax.Array, jax.Array] | None:
    """The one emission as a table of symbols, if it is nothing but a look-up that all batch cells share.

    Returns:
        ``(states, symbols + 1)``, whose last column of zeros stands for no symbol, and codes ``(steps, *batch axes)``.
    """
    if len(factors.emissions) != 1 or not factors.emissions[0].gathers:
        return None
    (emission,) = factors.emissions
    natural, codes, current = emission.parameters, emission.slices, factors.places(factors.chain.current)
    if codes.shape[-2] != 1 or math.prod(natural.shape[:-1]) != math.prod(natural.shape[place] for place in current):
        return None
    others = [axis for axis in range(natural.ndim - 1) if axis not in current]
    table = jnp.transpose(natural, [*current, *others, natural.ndim - 1])
    table = jnp.reshape(table, table.shape[: len(current)] + table.shape[-1:])
    table = jnp.reshape(jnp.broadcast_to(table, states + table.shape[-1:]), (math.prod(states), -1))
    codes = jnp.squeeze(codes, -2)
    # The axes of a slice are the common ones without time.
    names = [name for name in factors.names if name != factors.chain.time]
    codes = jnp.squeeze(codes, [1 + number for number, name in enumerate(names) if name in factors.chain.own])
    codes = jnp.broadcast_to(codes, (len(codes), *width))
    none = table.shape[1]
    return jnp.concatenate([table, jnp.zeros_like(table[:, :1])], 1), jnp.where(codes < 0, none, codes)

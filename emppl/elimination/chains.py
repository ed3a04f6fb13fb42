"""A chain of latents, summed out in one go: named tables arranged as the initial, transition and emission factors.

All latents that later steps refer to form one joint state. Tables over the present state alone are emissions, tables
that also hold the state before are transitions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from emppl.elimination.chain import SumOut, Symbols, filtered, fused_log_evidence, log_evidence

__all__ = ["ChainAxes", "ChainTables", "Emission", "SumOut", "arrange", "filter_steps", "kernel_evidence"]


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


@dataclasses.dataclass(frozen=True)
class ChainTables:
    """Factors of one chain: time first, states before batch cells, batch cells last.

    Attributes:
        log_initial: ``(states, *batch)``.
        log_transition: ``(steps - 1 or 1, from, to, *batch or 1)``.
        log_emission: ``(steps, states, *batch)``; the first row is zero, as the first steps are in ``log_initial``.
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


def arrange(
    axes: tuple[str, ...],
    sizes: Mapping[str, int],
    chain: ChainAxes,
    initial: list[jax.Array],
    later: list[jax.Array],
    present: jax.Array | None,
    lazy: list[tuple[int, ...]] | None = None,
) -> ChainTables:
    """Bring named tables into the form that the chain kernels take.

    Args:
        axes: names of the tables' axes.
        sizes: their sizes.
        chain: the axes of the chain.
        initial: tables of the first steps.
        later: tables with the time axis (of size one where they do not vary).
        present: which steps exist, laid out like the tables, or None.
        lazy: shapes of the emissions of one step that are computed elsewhere; there is no table of emissions then.

    Returns:
        The factors.
    """
    place = {name: number for number, name in enumerate(axes)}
    special = {chain.time, *chain.initial, *chain.current, *chain.previous}
    batch = [name for name in axes if name not in special]
    everything = [*initial, *later] + ([] if present is None else [present])
    shapes = [table.shape for table in everything] + (lazy or [])
    width = jnp.broadcast_shapes(*(tuple(shape[place[n]] for n in batch) for shape in shapes))
    cells = math.prod(width)
    flat = (cells,) if cells > 1 else ()

    def laid_out(table, states):
        order = [place[n] for n in (chain.time, *states, *batch)]
        rest = [a for a in range(len(axes)) if a not in order]
        moved = jnp.transpose(table, order + rest)
        return jnp.reshape(moved, moved.shape[: len(order)])

    def total(tables, states, steps, whole_batch):
        out = None
        for table in tables:
            table = laid_out(table, states)
            out = table if out is None else out + table
        kind = tuple(sizes[name] for name in states)
        across = width if whole_batch else (1,) * len(width)
        if out is None:
            return jnp.zeros((steps, *kind, *across))
        return jnp.broadcast_to(out, (steps, *kind, *across))

    states = math.prod(sizes[name] for name in chain.current)
    length = sizes[chain.time]
    emissions: list[jax.Array] = []
    transitions: list[jax.Array] = []
    for table in later:
        moves = any(table.shape[place[name]] > 1 for name in chain.before)
        (transitions if moves else emissions).append(table)
    log_initial = jnp.reshape(total(initial, chain.initial, 1, True), (states, *flat))
    log_emission = jnp.zeros(())
    if not lazy:
        log_emission = jnp.reshape(total(emissions, chain.current, length, True), (length, states, *flat))
        log_emission = jnp.concatenate([jnp.zeros_like(log_emission[:1]), log_emission])
    fresh = tuple(name for name in chain.current if name not in chain.previous)
    steps = max([table.shape[place[chain.time]] for table in transitions], default=1)
    whole = any(table.shape[place[name]] > 1 for table in transitions for name in batch)
    moved = total(transitions, (*chain.previous, *fresh), steps, whole)
    wide = flat if whole or not flat else (1,)
    moved = _repeat_shared(moved, chain, sizes)
    log_transition = jnp.reshape(moved, (steps, states, states, *wide))
    if present is not None:
        spread = jnp.broadcast_to(laid_out(present, ()), (length, *width))
        present = jnp.reshape(spread, (length, *flat))
        present = jnp.concatenate([jnp.ones_like(present[:1]), present])
    shape = tuple(1 if name in special else width[batch.index(name)] for name in axes)
    return ChainTables(log_initial, log_transition, log_emission, present, shape)


def _repeat_shared(table, chain: ChainAxes, sizes):
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

    Args:
        tables: the factors.

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
        mine = self.function
        return dataclasses.replace(
            self, function=lambda parameters, one: function(mine(parameters, one)), gathers=False
        )


def kernel_evidence(
    axes: tuple[str, ...],
    sizes: Mapping[str, int],
    chain: ChainAxes,
    initial: list[jax.Array],
    later: list[jax.Array | Emission],
    present: jax.Array | None,
) -> jax.Array:
    """Log evidence by the fast kernels: laid out like the tables, states and time of size one.

    Args:
        axes: names of the tables' axes.
        sizes: their sizes.
        chain: the axes of the chain.
        initial: tables of the first steps.
        later: tables, or emissions that are computed step by step.
        present: which steps exist, or None.
    """
    lazy = [factor for factor in later if isinstance(factor, Emission)]
    whole = [factor for factor in later if not isinstance(factor, Emission)]
    place = {name: number for number, name in enumerate(axes)}
    if any(all(table.shape[place[name]] == 1 for name in chain.before) for table in whole):
        # Some emission exists as a table anyway: add the others to it.
        whole += [_materialised(one, place[chain.time]) for one in lazy]
        lazy = []
    if not lazy:
        tables = arrange(axes, sizes, chain, initial, whole, present)
        evidence = log_evidence(*tables.arrays)
        return jnp.reshape(evidence, tables.shape)
    samples = [jax.eval_shape(one.function, one.parameters, one.slices[0]).shape for one in lazy]
    tables = arrange(axes, sizes, chain, initial, whole, present, samples)
    batch = tables.log_initial.shape[1:]
    special = {chain.time, *chain.initial, *chain.current, *chain.previous}
    order = [place[n] for n in chain.current] + [place[n] for n in axes if n not in special]
    rest = [place[n] for n in axes if place[n] not in order]
    width = tuple(tables.shape[place[n]] for n in axes if n not in special)
    states = tuple(sizes[n] for n in chain.current)

    symbols = _symbols(lazy, place, chain, width, states)
    if symbols is not None:
        log_table, codes = symbols
        codes = jnp.reshape(codes, (len(codes), *batch))
        evidence = fused_log_evidence(
            tables.log_initial, tables.log_transition, Symbols(), log_table, codes, tables.present
        )
        return jnp.reshape(evidence, tables.shape)

    def emission(parameters, slices):
        tables = [one.function(eta, part) for one, eta, part in zip(lazy, parameters, slices, strict=True)]
        total = jnp.transpose(functools.reduce(operator.add, tables), order + rest)
        total = jnp.reshape(total, total.shape[: len(order)])
        return jnp.reshape(jnp.broadcast_to(total, states + width), (math.prod(states), *batch))

    evidence = fused_log_evidence(
        tables.log_initial,
        tables.log_transition,
        emission,
        [one.parameters for one in lazy],
        [one.slices for one in lazy],
        tables.present,
    )
    return jnp.reshape(evidence, tables.shape)


def _symbols(lazy: list[Emission], place, chain: ChainAxes, width, states) -> tuple[jax.Array, jax.Array] | None:
    """The one emission as a table of symbols, if it is nothing but a look-up that all batch cells share.

    Returns:
        ``(states, symbols + 1)``, whose last column of zeros stands for no symbol, and codes ``(steps, *batch axes)``.
    """
    if len(lazy) != 1 or not lazy[0].gathers:
        return None
    natural, codes = lazy[0].parameters, lazy[0].slices
    current = [place[name] for name in chain.current]
    if codes.shape[-2] != 1 or math.prod(natural.shape[:-1]) != math.prod(natural.shape[a] for a in current):
        return None
    others = [a for a in range(natural.ndim - 1) if a not in current]
    table = jnp.transpose(natural, [*current, *others, natural.ndim - 1])
    table = jnp.reshape(table, table.shape[: len(current)] + table.shape[-1:])
    table = jnp.reshape(jnp.broadcast_to(table, states + table.shape[-1:]), (math.prod(states), -1))
    codes = jnp.squeeze(codes, -2)
    # The axes of a slice are the common ones without time.
    special = {place[name] for name in (*chain.initial, *chain.current, *chain.previous)}
    axes = [a for a in range(len(place)) if a != place[chain.time]]
    gone = [1 + number for number, a in enumerate(axes) if a in special]
    codes = jnp.broadcast_to(jnp.squeeze(codes, gone), (len(codes), *width))
    none = table.shape[1]
    return jnp.concatenate([table, jnp.zeros_like(table[:, :1])], 1), jnp.where(codes < 0, none, codes)


def _materialised(one: Emission, position: int) -> jax.Array:
    table = jax.vmap(one.function, in_axes=(None, 0), out_axes=position)(one.parameters, one.slices[1:])
    return jnp.squeeze(table, position + 1)

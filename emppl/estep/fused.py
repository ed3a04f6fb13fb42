"""The fused E-step of the loop: natural forms, rows in chunks, sums of statistics instead of weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from emppl.elimination.chains import Emission
from emppl.elimination.order import EliminationPlan, EliminationStep
from emppl.elimination.reductions import SUM
from emppl.elimination.run import log_normalizer
from emppl.estep.expectations import Expectations
from emppl.estep.plain import absent_cells, all_scales, spread_over_atoms, with_evidence
from emppl.integrals.integrated import Integrated
from emppl.integrals.way import integrate_all, prepare_integrals
from emppl.model.log_prob_table import log_prob_table
from emppl.model.masked import states_of_flat_cells
from emppl.model.model import Model, Part
from emppl.model.natural import NaturalForm, Prepared, table_from_statistics
from emppl.model.site import AlignedSite
from emppl.numerics.guarded import impossible_to_infinite
from emppl.types import Data, Params, Scales, Tables

_CHUNK_ROWS = (256, 1024)
"""Fewest and most rows of a chunk."""

_CHUNK_CELLS = 16384
"""Cells of the largest table of a chunk."""

_CHAIN_CELLS = 2**23
"""Cells of all that a chain's kernel keeps of a chunk."""


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How rows are cut: ``count`` chunks of ``size`` rows, the last padded with ``padding`` empty rows."""

    count: int
    size: int
    padding: int


@dataclasses.dataclass(frozen=True)
class FusedPlan:
    """Static choices of the fused path.

    Attributes:
        natural: sites whose tables are matrix products.
        chunking: how rows are cut.
        by_step: sites inside a scan whose tables are computed step by step, inside the kernel of the chain.
    """

    natural: frozenset[str]
    chunking: Chunking
    by_step: frozenset[str] = frozenset()


def plan_fused(model: Model, weighted: Collection[str] = ()) -> FusedPlan:
    """Choose natural forms and the size of chunks, whose features and tables fit a core's second-level cache.

    Args:
        weighted: sites of which the M-step needs the weight of every cell.
    """
    natural = frozenset(
        name
        for name, factor in model.factors.items()
        if name not in weighted
        and name not in model.integrated
        and (name in model.regressions or _has_small_arguments(model, factor))
    )
    rows = model.axes.sizes[model.axes.rows]
    chunked = any(part.by_rows for part in model.parts)
    if not chunked or rows <= 2 * _CHUNK_ROWS[0]:
        return FusedPlan(natural, Chunking(1, rows, 0), _by_step(model, natural))
    return FusedPlan(natural, _cut(rows, _target_rows(model)), _by_step(model, natural))


def _by_step(model: Model, natural: frozenset[str]) -> frozenset[str]:
    """Emissions in natural form that enter a chain directly, or after a sum over plates inside the step."""
    by_step: set[str] = set()
    for part in model.parts:
        source = {step.output: step for step in part.plan.steps}
        for step in part.plan.steps:
            if step.chain is None or step.reduced in model.picked:
                continue
            emissions = set()
            for name in step.later:
                before = source.get(name)
                if before is not None and before.latent is None and before.chain is None and len(before.inputs) == 1:
                    (name,) = before.inputs
                is_move = name in model.factors and model.factors[name].all_latents & step.chain.before
                if not is_move:
                    emissions.add(name)
            if all(name in natural and _varies_by_step(model, name) for name in emissions):
                by_step |= emissions
    return frozenset(by_step)


def _varies_by_step(model: Model, name: str) -> bool:
    factor = model.factors[name]
    # Arguments that vary over time (a regression on the step before) make natural parameters that do: a table anyway.
    # In a regression's own form they are in the statistics.
    moving = name not in model.regressions and any(path[0] == "arguments" for path in factor.timed)
    return ("value",) in factor.timed and not moving and "cell_weight" not in factor.latents


def _has_small_arguments(model: Model, factor: AlignedSite) -> bool:
    """Whether a site has a natural form whose parameters are the same in all rows."""
    if factor.family is None or not factor.has_statistics:
        return False
    # A base measure is added up outside the sum over states, so that it must not differ between them.
    is_plain_latent = factor.site.kind == "discrete" and not factor.family.has_base_measure
    if not (is_plain_latent and "mask" not in factor.latents) and not factor.has_natural_form:
        return False
    shapes, rows = model.argument_shapes[factor.name], model.axes.rank - 1
    return all(shape[rows] == 1 for name, shape in shapes.items() if name not in factor.family.fixed)


def _target_rows(model: Model) -> int:
    """Rows per chunk: tables small enough for the cache, and for XLA to keep each loop on one thread.

    Measured on a 2-core x86 machine: a table of more than about 16,000 cells is split over threads, whose
    synchronisation costs more than it saves (1.5 times slower at 20,000 cells).
    """
    sizes = model.axes.sizes

    def per_row(step: EliminationStep) -> int:
        cells = step.cells // sizes[model.axes.rows]
        if step.chain is None:
            return cells
        # The kernels of chains go step by step: their tables are those of one step, and what they keep of all steps.
        return max(cells // (sizes[step.chain.time] + 1), cells // (_CHAIN_CELLS // _CHUNK_CELLS))

    cells = max(per_row(step) for part in model.parts if part.by_rows for step in part.plan.steps)
    return min(max(_CHUNK_CELLS // max(cells, 1), _CHUNK_ROWS[0]), _CHUNK_ROWS[1])


def _cut(rows: int, target: int) -> Chunking:
    for size in range(target, target // 2, -1):
        if rows % size == 0:
            return Chunking(rows // size, size, 0)
    count = math.ceil(rows / target)
    size = math.ceil(rows / count)
    return Chunking(count, size, count * size - rows)


def prepare(model: Model, fused: FusedPlan, data: Data) -> dict[str, Any]:
    """Statistics of all sites that have them, computed once per fit.

    Returns:
        By site; statistics of sites in the row plate are cut into chunks ``(chunks, ..., features, rows)``. By
        integral, what its way computes from the data.
    """
    arrays = model.evaluate(model.placeholders(), data)
    prepared = prepare_integrals(model, data)
    for name, factor in model.factors.items():
        if not factor.has_statistics or factor.value_has_atoms:
            continue
        if name in fused.natural and name in model.regressions:
            of_site = model.regressions[name].prepare(arrays, data)
        else:
            of_site = NaturalForm.of(factor).prepare(arrays)
        if name in fused.by_step:
            of_site = dataclasses.replace(of_site, statistics=_with_first_step(model, factor, of_site.statistics))
        if name in fused.natural and any(part.by_rows and name in part.factors for part in model.parts):
            of_site = dataclasses.replace(of_site, statistics=_chunks(of_site.statistics, fused.chunking))
        prepared[name] = of_site
    return prepared


def _with_first_step(model: Model, factor: AlignedSite, statistics: jax.Array) -> jax.Array:
    """A row in front for the first step, which a chain starts from: it adds nothing to its log-probability."""
    axis = _time_axis(model, factor)
    nothing = -1 if jnp.issubdtype(statistics.dtype, jnp.integer) else 0
    return jnp.concatenate(
        [jnp.full_like(jax.lax.slice_in_dim(statistics, 0, 1, axis=axis), nothing), statistics], axis
    )


def _time_axis(model: Model, factor: AlignedSite) -> int:
    assert factor.site.time is not None
    return model.axes.names.index(factor.site.time.name)


def _chunks(array: jax.Array, chunking: Chunking) -> jax.Array:
    """Cut the last axis into a leading axis of chunks; arrays constant along it are repeated by reference."""
    if array.shape[-1] == 1:
        return jnp.broadcast_to(array, (chunking.count, *array.shape))
    if chunking.padding:
        array = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, chunking.padding)])
    cut = jnp.reshape(array, array.shape[:-1] + (chunking.count, chunking.size))
    return jnp.moveaxis(cut, -2, 0)


def _uncut(array: jax.Array, chunking: Chunking) -> jax.Array:
    """Inverse of :func:`_chunks`; arrays constant along the rows are added up."""
    if array.shape[-1] == 1:
        return jnp.sum(array, 0)
    joined = jnp.moveaxis(array, 0, -2)
    joined = jnp.reshape(joined, joined.shape[:-2] + (chunking.count * chunking.size,))
    return joined[..., : chunking.count * chunking.size - chunking.padding]


def expectations(
    model: Model,
    fused: FusedPlan,
    params: Params,
    data: Data,
    prepared: Mapping[str, Prepared],
    guesses: Mapping[str, jax.Array] | None = None,
    integrated: Mapping[str, Integrated] | None = None,
    key: jax.Array | None = None,
) -> Expectations:
    """Expected statistics and weights at given parameters, rows in chunks.

    Args:
        fused: static choices.
        prepared: from :func:`prepare`.
        guesses: by integral, where its atoms were last.
        integrated: integrals that were done elsewhere.
        key: random key of the draws of latents that are drawn.

    Returns:
        The expectations; ``log_likelihood`` includes every constant.
    """
    arrays = model.evaluate(params, data)
    scales, present = all_scales(model, arrays), model.present(arrays)
    if integrated is None:
        integrated = integrate_all(model, params, data, guesses, prepared=prepared)
    natural, tables = {}, {}
    amplification = jnp.zeros((), jnp.result_type(float))
    for name, factor in model.factors.items():
        if name in fused.natural:
            form = model.natural_form(name)
            natural[name] = form.natural(form.arguments(arrays), prepared[name].reference)
            if factor.family is not None and factor.family.local_reference is not None:
                amplification = jnp.maximum(amplification, _largest_sum(natural[name], prepared[name].bound))
        elif name not in model.integrated:
            tables[name] = log_prob_table(factor, arrays)
    tables = with_evidence(tables, integrated)
    value = sum((prepared[name].base_measure for name in natural), model.fault(arrays))
    value = value + absent_cells(model, arrays) + states_of_flat_cells(model, data, model.hard)
    sums: dict[str, jax.Array] = {}
    weights: dict[str, jax.Array] = {}
    for number, part in enumerate(model.parts):
        part_key = None if key is None else jax.random.fold_in(key, number)
        statistics = {name: prepared[name].statistics for name in part.factors if name in natural}
        inputs = _Inputs(
            {name: natural[name] for name in statistics},
            {name: tables[name] for name in part.factors if name in tables},
            statistics,
            scales,
            present,
        )
        if part.by_rows and fused.chunking.count > 1:
            part_value, (part_sums, part_weights) = _by_chunks(model, part, fused, inputs, part_key)
        else:
            if part.by_rows:
                inputs = inputs._replace(statistics={name: chunks[0] for name, chunks in statistics.items()})
            part_value, (part_sums, part_weights) = _value_and_gradient(model, part, part.plan, fused, inputs, part_key)
        value = value + part_value
        sums.update(part_sums)
        weights.update(part_weights)
    evidence_weights = {axis: weights[axis] for axis in integrated}
    weights, atoms = spread_over_atoms(model, integrated, weights, params, data)
    with_atoms = [name for name, factor in model.factors.items() if factor.value_has_atoms and factor.has_statistics]
    at_atoms = model.evaluate(params, data, atoms=atoms) if with_atoms else {}
    return Expectations(
        impossible_to_infinite(value),
        sums,
        weights,
        amplification,
        atoms,
        {axis: outcome.mean for axis, outcome in integrated.items()},
        {name: NaturalForm.of(model.factors[name]).prepare(at_atoms) for name in with_atoms},
        sum((outcome.cancelled for outcome in integrated.values()), jnp.zeros(())),
        evidence_weights,
    )


def _largest_sum(natural: jax.Array, bound: jax.Array) -> jax.Array:
    """Largest sum of absolute terms in one log-probability, the count column left out."""
    bound = jnp.reshape(bound, (1,) * (natural.ndim - 1) + (-1,))
    return jnp.max(jnp.sum(jnp.abs(natural[..., :-1]) * bound[..., :-1], -1))


class _Inputs(NamedTuple):
    """What the evidence of one part is computed from, by site."""

    natural: Tables
    tables: Tables
    statistics: Tables
    scales: Scales
    present: Tables


_Outcome: TypeAlias = tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, jax.Array]]]
"""``(value, (sums, weights))``: the log evidence, and its derivatives in natural parameters and in tables."""


def _value_and_gradient(
    model: Model, part: Part, plan: EliminationPlan, fused: FusedPlan, inputs: _Inputs, key: jax.Array | None
) -> _Outcome:
    """Log evidence of a part, its expected statistics (the derivative in natural parameters), and its weights."""
    scales, present = inputs.scales, inputs.present
    reductions = model.reductions(plan, SUM, key)

    def evidence(natural: Tables, tables: Tables) -> jax.Array:
        from_statistics = {
            n: _emission(model, model.factors[n], natural[n], inputs.statistics[n])
            if n in fused.by_step
            else table_from_statistics(natural[n], inputs.statistics[n])
            for n in natural
        }
        everything = {**tables, **from_statistics}
        mine = {name: everything[name] for name in part.factors}
        return log_normalizer(plan, mine, scales, reductions, present)

    return jax.value_and_grad(evidence, argnums=(0, 1))(inputs.natural, inputs.tables)


def _emission(model: Model, factor: AlignedSite, natural: jax.Array, statistics: jax.Array) -> Emission:
    axis = _time_axis(model, factor)

    def one_step(natural: jax.Array, statistics: jax.Array) -> jax.Array:
        return table_from_statistics(natural, jnp.expand_dims(statistics, axis))

    gathers = jnp.issubdtype(statistics.dtype, jnp.integer)
    return Emission(one_step, natural, jnp.moveaxis(statistics, axis, 0), gathers)


def _by_chunks(model: Model, part: Part, fused: FusedPlan, inputs: _Inputs, key: jax.Array | None) -> _Outcome:
    """As :func:`_value_and_gradient`, one chunk of rows after the other."""
    chunking, statistics = fused.chunking, inputs.statistics
    constant = [name for name in inputs.natural if statistics[name].shape[-1] == 1]
    small, pull_back = jax.vjp(
        lambda natural: {n: table_from_statistics(natural[n], statistics[n][0]) for n in constant},
        {name: inputs.natural[name] for name in constant},
    )
    natural = {name: eta for name, eta in inputs.natural.items() if name not in constant}
    plan = dataclasses.replace(part.plan, sizes={**part.plan.sizes, model.axes.rows: chunking.size})
    scales: Scales = {name: inputs.scales[name] for name in part.factors}
    if chunking.padding:
        scales = _without_padding(model, chunking, scales)
    tables, wide_tables = _split(inputs.tables, chunking)
    scales, wide_scales = _split(scales, chunking)
    present, wide_present = _split(inputs.present, chunking)
    same = _Inputs(natural, small | tables, {}, scales, present)
    by_chunk = _Inputs({}, wide_tables, {name: statistics[name] for name in natural}, wide_scales, wide_present)

    def step(carry: Any, numbered: tuple[jax.Array, _Inputs]) -> tuple[Any, Any]:
        number, chunk = numbered
        chunk_key = None if key is None else jax.random.fold_in(key, number)
        pairs: Any = zip(same, chunk, strict=True)
        whole = _Inputs(*({**shared, **own} for shared, own in pairs))
        value, (sums, weights) = _value_and_gradient(model, part, plan, fused, whole, chunk_key)
        carry = jax.tree.map(jnp.add, carry, (sums, {name: weights[name] for name in same.tables}))
        # Values are summed after the loop, pairwise: a running total would lose digits in float32.
        return carry, (value, {name: weights[name] for name in chunk.tables})

    zeros = jax.tree.map(jnp.zeros_like, (natural, same.tables))
    (sums, weights), (values, wide) = jax.lax.scan(step, zeros, (jnp.arange(chunking.count), by_chunk))
    sums |= pull_back({name: weights.pop(name) for name in constant})[0]
    return jnp.sum(values), (sums, weights | {name: _uncut(weight, chunking) for name, weight in wide.items()})


def _split(arrays: Scales, chunking: Chunking) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Arrays that are the same for all rows, and the chunks of the others."""
    wide = {name: array for name, array in arrays.items() if array is not None and array.shape[-1] > 1}
    same = {name: array for name, array in arrays.items() if name not in wide}
    return same, {name: _chunks(array, chunking) for name, array in wide.items()}


def _without_padding(model: Model, chunking: Chunking, scales: Scales) -> dict[str, jax.Array]:
    """Weights of zero for the rows that only fill the last chunk (the pad is added when rows are cut)."""
    rank = model.axes.rank
    rows = chunking.count * chunking.size - chunking.padding
    shape = (1,) * (rank - 1) + (rows,)
    return {
        name: jnp.ones(shape) if s is None else jnp.broadcast_to(s, s.shape[:-1] + (rows,))
        for name, s in scales.items()
    }

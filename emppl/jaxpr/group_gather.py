"""Group numbers through an index: known, of data, or part of the block itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from emppl.jaxpr.groups import SHARED, Grouped, Meeting, compact, merged

if TYPE_CHECKING:
    from emppl.jaxpr.separation import GroupRun


def gather(run: GroupRun, equation):
    """What an index picks."""
    operand, indices = equation.invars
    if run.of(indices) is not None:
        return _looked_up(run, equation)
    entry, dims = run.operand(operand), equation.params["dimension_numbers"]
    sizes, shape = equation.params["slice_sizes"], operand.aval.shape
    rank = len(equation.outvars[0].aval.shape)
    places = [axis for axis in range(rank) if axis not in dims.offset_dims]
    indexed = set(dims.start_index_map)
    if dims.operand_batching_dims:
        return _gather_in_batches(entry, dims, sizes, shape, places, equation.outvars[0].aval.shape)
    known = run.known(indices)
    if not known and _picks_one_group(entry, dims, sizes, shape):
        # Which group is picked is for the data to say.
        moves = tuple(
            entry.varies[kept[dims.offset_dims.index(place)]] if place in dims.offset_dims else True
            for kept in [[axis for axis in range(len(shape)) if axis not in dims.collapsed_slice_dims]]
            for place in range(rank)
        )
        columns = tuple(column for column, axis in enumerate(dims.start_index_map) if entry.numbers.shape[axis] > 1)
        return Grouped(np.full((1,) * rank, run.number_of(indices, columns)), moves)
    if any(
        entry.numbers.shape[axis] > 1
        and (sizes[axis] != shape[axis] if axis not in indexed else not known or axis not in dims.collapsed_slice_dims)
        for axis in range(len(shape))
    ):
        return Meeting("it is indexed by data across groups")
    kept = [axis for axis in range(len(shape)) if axis not in dims.collapsed_slice_dims]
    # Axes that are not groups: whatever is picked from them has the one number that all of them have.
    index: list[Any] = [slice(None) if axis in kept else 0 for axis in range(len(shape))]
    batch = indices.aval.shape[:-1]
    varies = [False] * rank
    if known:
        table = run.value(indices)
        for column, axis in enumerate(dims.start_index_map):
            if entry.numbers.shape[axis] > 1:
                index[axis] = np.clip(table[..., column], 0, shape[axis] - 1)
    for axis in indexed:
        if entry.varies[axis]:  # which entry of the group is picked may differ along the axes of the index
            for number, place in enumerate(places):
                varies[place] = varies[place] or batch[number] > 1
    moved = [axis for axis in kept]
    numbers = np.transpose(entry.numbers, [a for a in range(len(shape)) if a not in kept] + moved)
    lead = tuple(index[a] for a in range(len(shape)) if a not in kept)
    picked = numbers[lead] if any(isinstance(one, np.ndarray) for one in lead) else numbers[(*(0 for _ in lead),)]
    if not any(isinstance(one, np.ndarray) for one in lead):
        picked = picked.reshape((1,) * len(batch) + picked.shape)
    order = np.argsort([*places, *dims.offset_dims])
    for axis, place in zip(kept, dims.offset_dims, strict=True):
        varies[place] = entry.varies[axis]
    return Grouped(compact(np.transpose(picked, order)), tuple(varies))


def _looked_up(run: GroupRun, equation) -> Grouped | Meeting:
    """A table that all groups share, indexed by an array of the block: every group picks for itself."""
    table, index = (run.operand(atom) for atom in equation.invars)
    dims = equation.params["dimension_numbers"]
    if table.numbers.size > 1 or np.any(table.numbers != SHARED):
        return Meeting("it is used as an index")
    number = index.numbers[..., :1]
    for column in range(1, index.numbers.shape[-1]):
        other = index.numbers[..., column : column + 1]
        if np.any((number != other) & (number != SHARED) & (other != SHARED)):
            return Meeting("different groups meet in one index")
        number = np.where(number == SHARED, other, number)
    rank = len(equation.outvars[0].aval.shape)
    places = [axis for axis in range(rank) if axis not in dims.offset_dims]
    gone = (*dims.collapsed_slice_dims, *dims.operand_batching_dims)
    kept = [axis for axis in range(len(table.varies)) if axis not in gone]
    shape, varies = [1] * rank, [False] * rank
    for axis, place in enumerate(places):
        shape[place], varies[place] = number.shape[axis], index.varies[axis]
    for axis, place in zip(kept, dims.offset_dims, strict=True):
        varies[place] = table.varies[axis]
    for axis, batch in zip(dims.operand_batching_dims, dims.start_indices_batching_dims, strict=True):
        varies[places[batch]] = varies[places[batch]] or table.varies[axis]
    return Grouped(compact(number.reshape(shape)), tuple(varies))


def _picks_one_group(entry: Grouped, dims, sizes, shape) -> bool:
    """Does a gather take, in every cell, entries of one group only: is it an index into all axes of the groups?"""
    return all(
        axis in dims.start_index_map and axis in dims.collapsed_slice_dims and sizes[axis] == 1
        for axis in range(len(shape))
        if entry.numbers.shape[axis] > 1
    ) and any(size > 1 for size in entry.numbers.shape)


def _gather_in_batches(entry: Grouped, dims, sizes, shape, places, out_shape) -> Grouped | Meeting:
    """An index into other axes than those of the groups, which stay where they are (``take_along_axis``)."""
    batched = dict(zip(dims.operand_batching_dims, dims.start_indices_batching_dims, strict=True))
    kept = [axis for axis in range(len(shape)) if axis not in dims.collapsed_slice_dims and axis not in batched]
    goes = {axis: places[batch] for axis, batch in batched.items()}
    goes |= dict(zip(kept, dims.offset_dims, strict=True))
    numbers = merged(entry.numbers, [axis for axis in range(len(shape)) if axis not in goes])
    if numbers is None:
        return Meeting("it is indexed by data across groups")
    entry = Grouped(numbers, entry.varies)
    for axis, size in enumerate(entry.numbers.shape):
        if size > 1 and (axis not in goes or (axis in kept and sizes[axis] != shape[axis])):
            return Meeting("it is indexed by data across groups")
    order = sorted(goes, key=lambda axis: goes[axis])
    rest = [axis for axis in range(len(shape)) if axis not in goes]
    target = [1] * len(out_shape)
    varies = [place in places and out_shape[place] > 1 for place in range(len(out_shape))]
    for axis in order:
        target[goes[axis]] = entry.numbers.shape[axis]
        varies[goes[axis]] = varies[goes[axis]] or entry.varies[axis]
    return Grouped(np.transpose(entry.numbers, [*order, *rest]).reshape(target), tuple(varies))

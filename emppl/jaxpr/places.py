"""Where the axes of operands go: a rule for every way in which primitives move, combine or drop them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from emppl.jaxpr.equations import AxisMap, Equation, OperandAxes, shape_of


def same_place(equation: Equation) -> AxisMap:
    """Operands that are shorter in some axis are repeated along it."""
    return AxisMap(tuple(_aligned(shape, equation.shape) for shape in equation.shapes))


def _aligned(shape: tuple[int, ...], target: tuple[int, ...]) -> OperandAxes:
    first = len(target) - len(shape)
    return OperandAxes({axis: first + axis for axis, size in enumerate(shape) if size == target[first + axis]})


def looked_up(position: int) -> Callable[[Equation], AxisMap]:
    """Every entry of one operand is looked for in the others."""

    def axes(equation: Equation) -> AxisMap:
        own = [OperandAxes()] * len(equation.operands)
        own[position] = _aligned(equation.shapes[position], equation.shape)
        return AxisMap(tuple(own))

    return axes


def nowhere(equation: Equation) -> AxisMap:
    """All entries may meet."""
    rank = max((len(shape_of(result)) for result in equation.results), default=0)
    return AxisMap((OperandAxes(),) * len(equation.operands), frozenset(range(rank)))


def broadcast(equation: Equation) -> AxisMap:
    """Axes of size one that are spread out are new ones."""
    before, places = equation.shapes[0], equation.params["broadcast_dimensions"]
    whole = {axis: place for axis, place in enumerate(places) if before[axis] == equation.shape[place]}
    return AxisMap((OperandAxes(whole), *(OperandAxes() for _ in equation.operands[1:])))


def reshape(equation: Equation) -> AxisMap:
    """An axis stays whole beside another of its size with as many entries before it."""
    before, after = equation.shapes[0], equation.shape
    places = {(size, math.prod(after[:place])): place for place, size in reversed(list(enumerate(after)))}
    keys = ((axis, (size, math.prod(before[:axis]))) for axis, size in enumerate(before))
    whole = {axis: places[key] for axis, key in keys if key in places}
    return AxisMap((OperandAxes(whole),), frozenset(range(len(after))) - set(whole.values()))


def transpose(equation: Equation) -> AxisMap:
    """Axes in another order."""
    return AxisMap((OperandAxes({axis: place for place, axis in enumerate(equation.params["permutation"])}),))


def without(parameter: str) -> Callable[[Equation], AxisMap]:
    """Axes that go, the later ones moving up."""

    def axes(equation: Equation) -> AxisMap:
        gone = equation.params[parameter]
        kept = [axis for axis in range(len(equation.shapes[0])) if axis not in gone]
        return AxisMap((OperandAxes({axis: place for place, axis in enumerate(kept)}),) * len(equation.operands))

    return axes


def along(parameter: str) -> Callable[[Equation], AxisMap]:
    """Axes that are mixed, or put in another order, and stay where they are."""

    def axes(equation: Equation) -> AxisMap:
        mixed = equation.params[parameter]
        mixed = mixed if isinstance(mixed, tuple) else (mixed,)
        rank = range(len(equation.shape))
        own = OperandAxes({axis: axis for axis in rank if axis not in mixed}, {axis: axis for axis in mixed})
        return AxisMap((own,) * len(equation.operands), frozenset(mixed))

    return axes


def reverse(equation: Equation) -> AxisMap:
    """Entries in the opposite order."""
    return dataclasses.replace(along("dimensions")(equation), varying=frozenset())


def cut_out(equation: Equation) -> AxisMap:
    """A piece keeps the axes that stay whole."""
    before, after = equation.shapes[0], equation.shape
    whole = {axis: axis for axis, size in enumerate(before) if size == after[axis]}
    piece = OperandAxes(whole, {axis: axis for axis in range(len(before)) if axis not in whole})
    return AxisMap((piece, *(OperandAxes() for _ in equation.operands[1:])))


def stack(equation: Equation) -> AxisMap:
    """A new axis, along which the operands lie."""
    new = equation.params["axis"]
    own = OperandAxes({axis: axis + (axis >= new) for axis in range(len(equation.shape) - 1)})
    return AxisMap((own,) * len(equation.operands), frozenset([new]))


def pad(equation: Equation) -> AxisMap:
    """Axes that are padded are cut."""
    padded = frozenset(axis for axis, amounts in enumerate(equation.params["padding_config"]) if any(amounts))
    rank = range(len(equation.shape))
    own = OperandAxes({axis: axis for axis in rank if axis not in padded}, {axis: axis for axis in padded})
    return AxisMap((own, OperandAxes()), padded)


def written_over(equation: Equation) -> AxisMap:
    """The written-over array keeps its axes; what is written into it lies elsewhere."""
    rank = range(len(equation.shape))
    return AxisMap(
        (OperandAxes({axis: axis for axis in rank}), *(OperandAxes() for _ in equation.operands[1:])), frozenset(rank)
    )


def gather(equation: Equation) -> AxisMap:
    """Windows of the operand, and its batches; of the indices all axes but the last."""
    dims, sizes, shape = equation.params["dimension_numbers"], equation.params["slice_sizes"], equation.shapes[0]
    gone = {*dims.collapsed_slice_dims, *dims.operand_batching_dims}
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    windows = dict(zip(kept, dims.offset_dims, strict=True))
    places = [axis for axis in range(len(equation.shape)) if axis not in dims.offset_dims]
    whole = {axis: place for axis, place in windows.items() if sizes[axis] == shape[axis]}
    cut = {axis: place for axis, place in windows.items() if axis not in whole}
    batches = zip(dims.operand_batching_dims, dims.start_indices_batching_dims, strict=True)
    whole |= {axis: places[batch] for axis, batch in batches}
    return AxisMap((OperandAxes(whole, cut), OperandAxes(dict(enumerate(places)))))


def gather_columns(equation: Equation) -> Mapping[int, tuple[int, int | None]]:
    """By axis of the operand, the column of the index (operand 1) that picks from it."""
    columns = equation.params["dimension_numbers"].start_index_map
    return {axis: (1, column) for column, axis in enumerate(columns)}


def slice_starts(equation: Equation) -> Mapping[int, tuple[int, int | None]]:
    """By axis of the operand, the scalar operand that says where a dynamic slice begins."""
    return {axis: (axis + 1, None) for axis in range(len(equation.shape))}


def dot_general(equation: Equation) -> AxisMap:
    """Batches, then what is free of the left side, then of the right."""
    contracted, batches = equation.params["dimension_numbers"]
    operands, start = [], len(batches[0])
    for side in (0, 1):
        rank = len(equation.shapes[side])
        free = [axis for axis in range(rank) if axis not in (*contracted[side], *batches[side])]
        whole = {axis: place for place, axis in enumerate(batches[side])}
        operands.append(OperandAxes(whole | {axis: place for place, axis in enumerate(free, start)}))
        start += len(free)
    return AxisMap(tuple(operands))


def matrices(equation: Equation) -> AxisMap:
    """Linear algebra on the last two axes of a stack of matrices."""
    rank = len(equation.shape)
    own = OperandAxes({axis: axis for axis in range(rank - 2)})
    return AxisMap((own,) * len(equation.operands), frozenset((rank - 2, rank - 1)))


def stacked(equation: Equation) -> AxisMap:
    """Linear algebra on every matrix of a stack; of several results, with other axes behind those of the stack."""
    first = len(equation.shapes[0]) - (1 if equation.name == "tridiagonal_solve" else 2)
    own = OperandAxes({axis: axis for axis in range(first)})
    return AxisMap((own,) * len(equation.operands), frozenset(range(first, len(equation.shape))))


def triangular_solve(equation: Equation) -> AxisMap:
    """One matrix, many right-hand sides, which do not meet."""
    rank = len(equation.shape)
    along, across = (rank - 2, rank - 1) if equation.params["left_side"] else (rank - 1, rank - 2)
    batch = {axis: axis for axis in range(rank - 2)}
    return AxisMap((OperandAxes(batch), OperandAxes({**batch, across: across})), frozenset([along]))

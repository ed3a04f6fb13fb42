"""Which entries of a block of parameters never meet in one cell: the computation is run on *group numbers*.

Give every entry of ``beta`` the number of its row. Then ``(beta[z] * x).sum(-1)`` carries, for every cell of the table,
the number of the only row it depends on, and two rows never share a cell: the Hessian of Q is block-diagonal. Numbers
go through the operations of the jaxpr as values would; where two different ones meet, the answer is "they meet". The
atoms of latents are known, so an index made of them is a number too. Nothing of the data is looked at: an index made of
data picks some group, of which only is known that the same index picks the same group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from emppl.structure.jaxpr_walk import INLINE, searched_for

SHARED = -1
"""Number of an entry that may meet every group. Smaller numbers are groups picked by the data, one for every index."""

_MOST_CELLS = 2_000_000


@dataclasses.dataclass(frozen=True)
class Grouped:
    """An array each of whose cells depends on one group only.

    Attributes:
        numbers: the group of every cell (``SHARED`` for none in particular); axes along which it is constant have size
            one.
        varies: for every axis, may cells differ along it otherwise than by their group? If not, all groups enter
            through one and the same function.
    """

    numbers: np.ndarray
    varies: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Entries of different groups may meet here."""

    reason: str


class Separation:
    """A function of a block, ready to be run on group numbers.

    Args:
        function: ``(block, *arguments) -> arrays``; atoms of latents are constants in it.
        shapes: by parameter of the block; with a dtype where it is not floating.
        *arguments: shapes of everything else.
    """

    def __init__(self, function: Callable, shapes: Mapping[str, Any], *arguments):
        self.names = sorted(shapes)
        block = {name: _struct(one) for name, one in shapes.items()}
        self.closed = jax.make_jaxpr(function)(block, *arguments)

    def groups(self, numbers: Mapping[str, np.ndarray]) -> list[Grouped | Meeting | None]:
        """Which group every cell of every output depends on.

        Args:
            numbers: by parameter of the block, the group of every entry, in the parameter's full shape.

        Returns:
            For every output: its groups, or that they meet, or None if it does not depend on the block.
        """
        run = _Run()
        for variable, name in zip(self.closed.jaxpr.invars, self.names, strict=False):
            compact = _compact(numbers[name])
            # Along an axis of group numbers the function is one and the same: entry k of group k is itself.
            own = tuple(size > 1 and compact.shape[axis] == 1 for axis, size in enumerate(numbers[name].shape))
            run.state[variable] = Grouped(compact, own)
        run.jaxpr(self.closed)
        return [run.of(atom) for atom in self.closed.jaxpr.outvars]


def _struct(one) -> jax.ShapeDtypeStruct:
    if isinstance(one, jax.ShapeDtypeStruct):
        return one
    return jax.ShapeDtypeStruct(one, jax.numpy.result_type(float))


class _Run:
    def __init__(self):
        self.state: dict[Any, Grouped | Meeting] = {}
        self.constants: dict[Any, np.ndarray] = {}
        self.keys: dict[Any, Any] = {}
        self.picked: dict[Any, int] = {}
        self.outside: dict[Any, tuple[bool, ...]] = {}  # of arrays that the block does not touch: `varies`

    def key(self, atom) -> Any:
        """Equal for two arrays that are computed in the same way from the same inputs."""
        return ("literal", str(atom.val)) if isinstance(atom, Literal) else self.keys.get(atom, atom)

    def number_of(self, indices, columns: tuple[int, ...]) -> int:
        """The number of the group that some columns of an index made of data pick."""
        key = self.key(indices)
        match key:
            case (0, ("concatenate", _, *parts)) if len(parts) == indices.aval.shape[-1]:
                key = tuple(parts[column] for column in columns)
            case _:
                key = (key,) if indices.aval.shape[-1] == 1 else (key, columns)
        return self.picked.setdefault(key, SHARED - 1 - len(self.picked))

    def of(self, atom) -> Grouped | Meeting | None:
        return None if isinstance(atom, Literal) else self.state.get(atom)

    def known(self, atom) -> bool:
        return isinstance(atom, Literal) or atom in self.constants

    def value(self, atom) -> np.ndarray:
        return np.asarray(atom.val) if isinstance(atom, Literal) else self.constants[atom]

    def jaxpr(self, closed: ClosedJaxpr) -> None:
        for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            self._remember(variable, value)
        self.equations(closed.jaxpr)

    def _remember(self, variable, value) -> None:
        if not isinstance(value, jax.core.Tracer) and np.size(value) <= _MOST_CELLS:
            try:
                self.constants[variable] = np.asarray(value)
            except TypeError:  # a random key is no array of numbers
                return

    def equations(self, jaxpr) -> None:
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            touched = [self.of(atom) for atom in equation.invars]
            if name in INLINE and (self._looked_up(equation) or self._inline(equation)):
                continue
            if all(entry is None for entry in touched):
                self._fold(equation)
                params = id(equation) if "jaxpr" in equation.params else str(equation.params)
                key = (name, params, *map(self.key, equation.invars))
                self.keys.update({variable: (n, key) for n, variable in enumerate(equation.outvars)})
                if name == "broadcast_in_dim":
                    self.outside[equation.outvars[0]] = _broadcast(self, equation).varies
                continue
            meeting = next((entry for entry in touched if isinstance(entry, Meeting)), None)
            rule = _RULES.get(name, _unknown)
            result: Grouped | Meeting = meeting if meeting is not None else rule(self, equation)
            for variable in equation.outvars:
                self.state[variable] = result

    def _looked_up(self, equation) -> bool:
        """Digitized entry by entry, in edges that do not depend on the block?"""
        query = searched_for(equation)
        touched = [atom for atom in equation.invars if self.of(atom) is not None]
        if query is None or len(touched) != 1 or touched[0] is not query:
            return False
        self.state[equation.outvars[0]] = self.operand(query)
        return True

    def _inline(self, equation) -> bool:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is None:
            return False
        consts = getattr(inner, "consts", ())
        inner = getattr(inner, "jaxpr", inner)
        # One jaxpr object may be called several times with other arguments: what it left behind goes first.
        for variable in (*inner.invars, *(v for one in inner.eqns for v in one.outvars)):
            self.state.pop(variable, None)
            self.constants.pop(variable, None)
            self.outside.pop(variable, None)
            self.keys.pop(variable, None)
        for variable, value in zip(inner.constvars, consts, strict=True):
            self._remember(variable, value)
        for variable, atom in zip(inner.invars, equation.invars, strict=True):
            self._copy(atom, variable)
        self.equations(inner)
        for variable, atom in zip(equation.outvars, inner.outvars, strict=True):
            self._copy(atom, variable)
        return True

    def _copy(self, atom, variable) -> None:
        entry = self.of(atom)
        if entry is not None:
            self.state[variable] = entry
            return
        self.keys[variable] = self.key(atom)
        if not isinstance(atom, Literal) and atom in self.outside:
            self.outside[variable] = self.outside[atom]
        if self.known(atom):
            self.constants[variable] = self.value(atom)

    def _fold(self, equation) -> None:
        """Evaluate the few operations of which indices are made, where everything is known."""
        rule = _FOLD.get(equation.primitive.name)
        size = max((np.prod(v.aval.shape, dtype=int) for v in equation.outvars), default=0)
        if rule is None or size > _MOST_CELLS or not all(self.known(atom) for atom in equation.invars):
            return
        values = [self.value(atom) for atom in equation.invars]
        self.constants[equation.outvars[0]] = np.asarray(rule(equation.params, *values))

    # ---------------------------------------------------------------------------------------------- operands

    def operands(self, equation) -> list[Grouped]:
        """Every operand of full rank: groups and variation, those outside the block as shared by all groups."""
        rank = len(equation.outvars[0].aval.shape)
        found = []
        for atom in equation.invars:
            if len(atom.aval.shape) == rank and rank:
                found.append(self.operand(atom))
            elif isinstance(entry := self.of(atom), Grouped):  # a scalar beside arrays
                found.append(Grouped(entry.numbers.reshape((1,) * rank), (False,) * rank))
        return found

    def operand(self, atom) -> Grouped:
        entry = self.of(atom)
        if isinstance(entry, Grouped):
            return entry
        shape = atom.aval.shape
        varies = self.outside.get(atom) if not isinstance(atom, Literal) else None
        varies = varies if varies is not None else tuple(size > 1 for size in shape)
        if self.known(atom):
            value = self.value(atom)
            varies = tuple(
                size > 1 and bool(np.any(value != np.take(value, [0], axis))) for axis, size in enumerate(shape)
            )
        return Grouped(np.full((1,) * len(shape), SHARED), varies)


def _compact(numbers: np.ndarray) -> np.ndarray:
    """One copy along every axis along which the numbers are constant."""
    for axis, size in enumerate(numbers.shape):
        first = np.take(numbers, [0], axis) if size > 1 else numbers
        if size > 1 and np.all(numbers == first):
            numbers = first
    return numbers


def _together(operands: list[Grouped]) -> Grouped | Meeting:
    numbers = operands[0].numbers
    for other in operands[1:]:
        left, right = np.broadcast_arrays(numbers, other.numbers)
        if np.any((left != right) & (left != SHARED) & (right != SHARED)):
            return Meeting("entries of different groups meet")
        numbers = np.where(left == SHARED, right, left)
    varies = tuple(any(one.varies[axis] for one in operands) for axis in range(numbers.ndim))
    return Grouped(_compact(numbers), varies)


def _elementwise(run: _Run, equation):
    return _together(run.operands(equation))


def _select(run: _Run, equation):
    """A ``where`` whose condition is one known value is the branch that it takes."""
    which, *cases = equation.invars
    if run.known(which) and run.of(which) is None and np.size(run.value(which)) == 1:
        return run.operand(cases[int(run.value(which).item())])
    return _elementwise(run, equation)


def _unknown(run: _Run, equation):
    return Meeting(f"it goes through `{equation.primitive.name}`")


def _broadcast(run: _Run, equation):
    entry, dims = run.operand(equation.invars[0]), equation.params["broadcast_dimensions"]
    after = equation.outvars[0].aval.shape
    shape, varies = [1] * len(after), [False] * len(after)
    for axis, place in enumerate(dims):
        shape[place], varies[place] = entry.numbers.shape[axis], entry.varies[axis]
    return Grouped(entry.numbers.reshape(shape), tuple(varies))


def _reshape(run: _Run, equation):
    entry = run.operand(equation.invars[0])
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    kept = [axis for axis, size in enumerate(before) if size > 1]
    places = [axis for axis, size in enumerate(after) if size > 1]
    if [before[axis] for axis in kept] == [after[axis] for axis in places]:  # only axes of size one come or go
        shape, varies = [1] * len(after), [False] * len(after)
        for axis, place in zip(kept, places, strict=True):
            shape[place], varies[place] = entry.numbers.shape[axis], entry.varies[axis]
        return Grouped(entry.numbers.reshape(shape), tuple(varies))
    if np.prod(before, dtype=int) > _MOST_CELLS:
        return Meeting("it goes through a `reshape` of a large array")
    numbers = np.broadcast_to(entry.numbers, before).reshape(after)
    return Grouped(_compact(numbers), tuple(size > 1 for size in after))


def _transpose(run: _Run, equation):
    entry, order = run.operand(equation.invars[0]), equation.params["permutation"]
    return Grouped(np.transpose(entry.numbers, order), tuple(entry.varies[axis] for axis in order))


def _drop(entry: Grouped, axes) -> Grouped | Meeting:
    axes = tuple(axes)
    if any(entry.numbers.shape[axis] > 1 for axis in axes):
        return Meeting("different groups are added up")
    varies = tuple(v for axis, v in enumerate(entry.varies) if axis not in axes)
    return Grouped(np.squeeze(entry.numbers, axes), varies)


def _squeeze(run: _Run, equation):
    return _drop(run.operand(equation.invars[0]), equation.params["dimensions"])


def _reduce(run: _Run, equation):
    return _drop(run.operand(equation.invars[0]), equation.params["axes"])


def _cumulative(run: _Run, equation):
    entry, axis = run.operand(equation.invars[0]), equation.params["axis"]
    if entry.numbers.shape[axis] > 1:
        return Meeting("different groups are added up")
    return Grouped(entry.numbers, tuple(v or a == axis for a, v in enumerate(entry.varies)))


def _slice(run: _Run, equation):
    entry, params = run.operand(equation.invars[0]), equation.params
    steps = params["strides"] or (1,) * len(params["start_indices"])
    cut = tuple(
        slice(None) if size == 1 else slice(start, stop, step)
        for size, start, stop, step in zip(
            entry.numbers.shape, params["start_indices"], params["limit_indices"], steps, strict=True
        )
    )
    return Grouped(_compact(entry.numbers[cut]), entry.varies)


def _reverse(run: _Run, equation):
    entry, axes = run.operand(equation.invars[0]), equation.params["dimensions"]
    return Grouped(np.flip(entry.numbers, axes), entry.varies)


def _concatenate(run: _Run, equation):
    parts = [run.operand(atom) for atom in equation.invars]
    return _beside_each_other(equation, parts, equation.params["dimension"])


def _stack(run: _Run, equation):
    new, parts = equation.params["axis"], []
    for one in map(run.operand, equation.invars):
        parts.append(Grouped(np.expand_dims(one.numbers, new), (*one.varies[:new], False, *one.varies[new:])))
    return _beside_each_other(equation, parts, new)


def _beside_each_other(equation, parts: list[Grouped], dimension: int):
    stacked = equation.primitive.name == "stack"
    others = np.broadcast_shapes(
        *(tuple(1 if a == dimension else s for a, s in enumerate(p.numbers.shape)) for p in parts)
    )
    numbers = []
    for part, atom in zip(parts, equation.invars, strict=True):
        shape = list(others)
        shape[dimension] = 1 if stacked else atom.aval.shape[dimension]
        numbers.append(np.broadcast_to(part.numbers, shape))
    varies = tuple(a == dimension or any(p.varies[a] for p in parts) for a in range(len(others)))
    return Grouped(_compact(np.concatenate(numbers, dimension)), varies)


def _dot_general(run: _Run, equation):
    (left_out, right_out), (left_batch, right_batch) = equation.params["dimension_numbers"]
    sides = [run.operand(atom) for atom in equation.invars]
    left, right = _drop(sides[0], left_out), _drop(sides[1], right_out)
    if isinstance(left, Meeting) or isinstance(right, Meeting):
        return Meeting("different groups are added up")
    ranks = [len(side.varies) for side in sides]
    batch = len(left_batch)
    free = [
        [a for a in range(ranks[0]) if a not in left_out and a not in left_batch],
        [a for a in range(ranks[1]) if a not in right_out and a not in right_batch],
    ]
    rank = batch + len(free[0]) + len(free[1])
    placed = []
    for side, batches, own, start in (
        (sides[0], left_batch, free[0], batch),
        (sides[1], right_batch, free[1], batch + len(free[0])),
    ):
        shape, varies = [1] * rank, [False] * rank
        for place, axis in [*enumerate(batches), *enumerate(own, start)]:
            shape[place], varies[place] = side.numbers.shape[axis], side.varies[axis]
        order = [*batches, *own, *(a for a in range(side.numbers.ndim) if a not in (*batches, *own))]
        placed.append(Grouped(np.transpose(side.numbers, order).reshape(shape), tuple(varies)))
    return _together(placed)


def _gather(run: _Run, equation):
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
    return Grouped(_compact(np.transpose(picked, order)), tuple(varies))


def _looked_up(run: _Run, equation) -> Grouped | Meeting:
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
    return Grouped(_compact(number.reshape(shape)), tuple(varies))


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


def _linear_algebra(run: _Run, equation):
    """Matrices and vectors in the last two axes, everything before them batch."""
    entries = [run.operand(atom) for atom in equation.invars]
    if any(size > 1 for one in entries for size in one.numbers.shape[-2:]):
        return Meeting("different groups meet in one matrix")
    found = _together(entries)
    if isinstance(found, Meeting):
        return found
    return Grouped(found.numbers, found.varies[:-2] + (True, True))


def _triangular_solve(run: _Run, equation):
    """One matrix, many right-hand sides, which do not meet."""
    matrix, sides = (run.operand(atom) for atom in equation.invars)
    across = -2 if equation.params["left_side"] else -1
    if any(size > 1 for size in matrix.numbers.shape[-2:]) or sides.numbers.shape[across] > 1:
        return Meeting("different groups meet in one matrix")
    found = _together([matrix, sides])
    if isinstance(found, Meeting):
        return found
    # Along right-hand sides only they vary; along the system everything does.
    last = (True, sides.varies[-1]) if across == -2 else (sides.varies[-2], True)
    return Grouped(found.numbers, found.varies[:-2] + last)


_RULES: dict[str, Callable] = {
    **dict.fromkeys(
        "add sub mul div rem neg sign abs floor ceil round exp exp2 expm1 log log1p logistic tanh sinh cosh asinh "
        "acosh atanh sin cos tan asin acos atan atan2 sqrt rsqrt cbrt square pow integer_pow max min clamp "
        "eq ne lt le gt ge and or xor not is_finite nextafter erf erfc erf_inv lgamma digamma polygamma igamma "
        "igammac igamma_grad_a random_gamma_grad regularized_incomplete_beta bessel_i0e bessel_i1e "
        "convert_element_type copy copy_p reduce_precision stop_gradient add_any real".split(),
        _elementwise,
    ),
    **dict.fromkeys("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin".split(), _reduce),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), _cumulative),
    "cholesky": _linear_algebra,
    "triangular_solve": _triangular_solve,
    "select_n": _select,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "slice": _slice,
    "rev": _reverse,
    "concatenate": _concatenate,
    "stack": _stack,
    "dot_general": _dot_general,
    "gather": _gather,
}


def _fold_broadcast(params, value):
    shape = [1] * len(params["shape"])
    for axis, place in enumerate(params["broadcast_dimensions"]):
        shape[place] = value.shape[axis]
    return np.broadcast_to(value.reshape(shape), params["shape"])


def _fold_iota(params):
    shape = [1] * len(params["shape"])
    shape[params["dimension"]] = -1
    count = np.arange(params["shape"][params["dimension"]])
    return np.broadcast_to(count.reshape(shape), params["shape"])


_FOLD: dict[str, Callable] = {
    "iota": _fold_iota,
    "add": lambda params, a, b: a + b,
    "sub": lambda params, a, b: a - b,
    "mul": lambda params, a, b: a * b,
    "lt": lambda params, a, b: a < b,
    "eq": lambda params, a, b: a == b,
    "max": lambda params, a, b: np.maximum(a, b),
    "min": lambda params, a, b: np.minimum(a, b),
    "clamp": lambda params, low, value, high: np.clip(value, low, high),
    "select_n": lambda params, which, *cases: np.choose(which.astype(int), cases),
    "convert_element_type": lambda params, value: value.astype(params["new_dtype"]),
    "broadcast_in_dim": _fold_broadcast,
    "reshape": lambda params, value: value.reshape(params["new_sizes"]),
    "squeeze": lambda params, value: np.squeeze(value, params["dimensions"]),
    "transpose": lambda params, value: np.transpose(value, params["permutation"]),
    "concatenate": lambda params, *parts: np.concatenate(parts, params["dimension"]),
    "stack": lambda params, *parts: np.stack(parts, params["axis"]),
    "copy": lambda params, value: value,
}

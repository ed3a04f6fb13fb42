"""Group numbers through the operations of a jaxpr: a rule for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from emppl.jaxpr.group_gather import gather
from emppl.jaxpr.groups import MOST_CELLS, Grouped, Meeting, compact, drop, together

if TYPE_CHECKING:
    from emppl.jaxpr.separation import GroupRun


def _elementwise(run: GroupRun, equation):
    return together(run.operands(equation))


def _select(run: GroupRun, equation):
    """A ``where`` whose condition is one known value is the branch that it takes."""
    which, *cases = equation.invars
    if run.known(which) and run.of(which) is None and np.size(run.value(which)) == 1:
        return run.operand(cases[int(run.value(which).item())])
    return _elementwise(run, equation)


def unknown(run: GroupRun, equation):
    """An operation without a rule: nothing is claimed."""
    return Meeting(f"it goes through `{equation.primitive.name}`")


def broadcast(run: GroupRun, equation):
    """New axes, and axes of size one spread out."""
    entry, dims = run.operand(equation.invars[0]), equation.params["broadcast_dimensions"]
    after = equation.outvars[0].aval.shape
    shape, varies = [1] * len(after), [False] * len(after)
    for axis, place in enumerate(dims):
        shape[place], varies[place] = entry.numbers.shape[axis], entry.varies[axis]
    return Grouped(entry.numbers.reshape(shape), tuple(varies))


def _reshape(run: GroupRun, equation):
    entry = run.operand(equation.invars[0])
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    kept = [axis for axis, size in enumerate(before) if size > 1]
    places = [axis for axis, size in enumerate(after) if size > 1]
    if [before[axis] for axis in kept] == [after[axis] for axis in places]:  # only axes of size one come or go
        shape, varies = [1] * len(after), [False] * len(after)
        for axis, place in zip(kept, places, strict=True):
            shape[place], varies[place] = entry.numbers.shape[axis], entry.varies[axis]
        return Grouped(entry.numbers.reshape(shape), tuple(varies))
    if np.prod(before, dtype=int) > MOST_CELLS:
        return Meeting("it goes through a `reshape` of a large array")
    numbers = np.broadcast_to(entry.numbers, before).reshape(after)
    return Grouped(compact(numbers), tuple(size > 1 for size in after))


def _transpose(run: GroupRun, equation):
    entry, order = run.operand(equation.invars[0]), equation.params["permutation"]
    return Grouped(np.transpose(entry.numbers, order), tuple(entry.varies[axis] for axis in order))


def _squeeze(run: GroupRun, equation):
    return drop(run.operand(equation.invars[0]), equation.params["dimensions"])


def _reduce(run: GroupRun, equation):
    return drop(run.operand(equation.invars[0]), equation.params["axes"])


def _cumulative(run: GroupRun, equation):
    entry, axis = run.operand(equation.invars[0]), equation.params["axis"]
    if entry.numbers.shape[axis] > 1:
        return Meeting("different groups are added up")
    return Grouped(entry.numbers, tuple(v or a == axis for a, v in enumerate(entry.varies)))


def _slice(run: GroupRun, equation):
    entry, params = run.operand(equation.invars[0]), equation.params
    steps = params["strides"] or (1,) * len(params["start_indices"])
    cut = tuple(
        slice(None) if size == 1 else slice(start, stop, step)
        for size, start, stop, step in zip(
            entry.numbers.shape, params["start_indices"], params["limit_indices"], steps, strict=True
        )
    )
    return Grouped(compact(entry.numbers[cut]), entry.varies)


def _reverse(run: GroupRun, equation):
    entry, axes = run.operand(equation.invars[0]), equation.params["dimensions"]
    return Grouped(np.flip(entry.numbers, axes), entry.varies)


def _concatenate(run: GroupRun, equation):
    parts = [run.operand(atom) for atom in equation.invars]
    return _beside_each_other(equation, parts, equation.params["dimension"])


def _stack(run: GroupRun, equation):
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
    return Grouped(compact(np.concatenate(numbers, dimension)), varies)


def _dot_general(run: GroupRun, equation):
    (left_out, right_out), (left_batch, right_batch) = equation.params["dimension_numbers"]
    sides = [run.operand(atom) for atom in equation.invars]
    left, right = drop(sides[0], left_out), drop(sides[1], right_out)
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
    return together(placed)


def _linear_algebra(run: GroupRun, equation):
    """Matrices and vectors in the last two axes, everything before them batch."""
    entries = [run.operand(atom) for atom in equation.invars]
    if any(size > 1 for one in entries for size in one.numbers.shape[-2:]):
        return Meeting("different groups meet in one matrix")
    found = together(entries)
    if isinstance(found, Meeting):
        return found
    return Grouped(found.numbers, found.varies[:-2] + (True, True))


def _triangular_solve(run: GroupRun, equation):
    """One matrix, many right-hand sides, which do not meet."""
    matrix, sides = (run.operand(atom) for atom in equation.invars)
    across = -2 if equation.params["left_side"] else -1
    if any(size > 1 for size in matrix.numbers.shape[-2:]) or sides.numbers.shape[across] > 1:
        return Meeting("different groups meet in one matrix")
    found = together([matrix, sides])
    if isinstance(found, Meeting):
        return found
    # Along right-hand sides only they vary; along the system everything does.
    last = (True, sides.varies[-1]) if across == -2 else (sides.varies[-2], True)
    return Grouped(found.numbers, found.varies[:-2] + last)


RULES: dict[str, Callable] = {
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
    "broadcast_in_dim": broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "slice": _slice,
    "rev": _reverse,
    "concatenate": _concatenate,
    "stack": _stack,
    "dot_general": _dot_general,
    "gather": gather,
}

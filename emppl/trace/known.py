"""Which arguments a model's Python reads (``len(np.unique(code))``, ``if np.isnan(x).any()``), found by trying.

NumPyro's samplers run a model on its arrays themselves; here it runs on what stands for arrays of any values. Where
that fails, every argument is known by its values, and then as few as possible.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax

from emppl.errors import EMError, ModelError, NeedsValues
from emppl.inputs.arguments import Skeleton, known_among, readable, with_known
from emppl.inputs.containers import Known, Table
from emppl.trace.discover import try_run

_LIBRARIES = {"contextlib", "emppl", "functools", "jax", "numpy", "numpyro", "pandas", "polars", "scipy"}


def with_values_read(
    model: Callable, data: Sequence[Any], given: Sequence[Any], skeleton: Skeleton, error: NeedsValues
) -> Skeleton:
    """The skeleton in which those arguments are known by their values that the model's Python reads.

    Args:
        model: a NumPyro model.
        data: its array arguments.
        given: what the caller gave for these.
        skeleton: its static arguments, under which the model fails.
        error: how it fails.

    Raises:
        ModelError: the same error, if values of the arguments do not help.
    """
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in data]
    attempt = functools.partial(_attempt, model, shapes, error.site)
    before = known_among(skeleton)
    unknown = [number for number in range(len(data)) if number not in before and _has_values(data[number])]
    known = {number: readable(given[number], data[number], "") for number in unknown}
    if not known or attempt(with_known(skeleton, known)) is not None:
        raise ModelError(str(error)) from error.__cause__
    for number in unknown:
        failure = attempt(with_known(skeleton, {n: leaf for n, leaf in known.items() if n != number}))
        if failure is None:
            del known[number]
        else:
            known[number] = readable(given[number], data[number], _line(failure))
    return with_known(skeleton, known)


def _attempt(model: Callable, shapes: Sequence[Any], site: str | None, skeleton: Skeleton) -> EMError | None:
    """How a model fails, if it does."""
    try:
        try_run(model, shapes, skeleton, site)
    except EMError as error:
        return error
    return None


def _has_values(array: Any) -> bool:
    """Whether the values of an array can be read here: it is no tracer, and lies in this process."""
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)


def _line(error: BaseException) -> str:
    """Where the user's own code failed."""
    cause = error.__cause__ or error
    frames = [
        (frame, number)
        for frame, number in traceback.walk_tb(cause.__traceback__)
        if frame.f_globals.get("__name__", "").split(".")[0] not in _LIBRARIES
    ]
    if not frames:
        return str(error).split("\n")[0]
    frame, number = frames[-1]
    text = linecache.getline(frame.f_code.co_filename, number, frame.f_globals).strip()
    return f"line {number}: {text}" if text else f"line {number} of {frame.f_code.co_name}"


def known_in_words(model: Callable, skeleton: Skeleton) -> tuple[str, ...]:
    """Arguments that are known by their values, each with the reason."""
    tree = jax.tree.unflatten(skeleton[0], skeleton[1])
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, (Known, Table)))
    words = []
    for path, leaf in leaves:
        known = leaf.frame if isinstance(leaf, Table) else leaf
        if isinstance(known, Known):
            words.append(f"{_name(model, path)} is known by its values, others derive anew: {known.reason}")
    return tuple(words)


def _name(model: Callable, path: Any) -> str:
    """An argument of a model, or what lies in one, as its signature calls it."""
    is_keyword, own, *inside = path
    key = own.key if is_keyword.idx else own.idx
    try:
        names = [n for n, p in inspect.signature(model).parameters.items() if p.kind not in (p.VAR_POSITIONAL,)]
    except (TypeError, ValueError):
        names = []
    if not is_keyword.idx:
        key = names[key] if key < len(names) else f"argument {key + 1}"
    return key + jax.tree_util.keystr(tuple(inside))

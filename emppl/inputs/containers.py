"""Containers among a model's arguments that JAX does not know: dataclasses, namespaces, data frames and their columns.

Records are opened, so that the arrays in them are data like any others. A data frame is handed to the model as it is:
whatever the model asks of it, its values are known. No library of data frames is imported here.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import types
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from emppl.errors import DataError

NUMBERS = "biufc"
"""Kinds of arrays that JAX can use."""


class Known:
    """An argument that a derivation knows by its values, and not only by its shape.

    Args:
        value: what the model is given, a copy every time.
        reason: where the model reads it.
        array: the same as an array among the data; None if it is not among them.
    """

    def __init__(self, value: Any, reason: str, array: np.ndarray | None = None):
        self.value = _copy(value)
        self.reason = reason
        self.array = None if array is None else np.array(array)
        self.digest = _digest(value)

    def fresh(self) -> Any:
        """The value, in a copy that the model may write into."""
        return _copy(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"values {self.digest}"


class Readable(np.ndarray):
    """Values of an array of JAX, with what such arrays can do and those of NumPy cannot."""

    @property
    def at(self) -> Any:
        """Updates out of place."""
        return jax.numpy.asarray(np.asarray(self)).at

    def __getitem__(self, index: Any) -> Any:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(index)):
            return jax.numpy.asarray(np.asarray(self))[index]
        return super().__getitem__(index)


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Record:
    """An object as its attributes.

    Attributes:
        kind: its class.
        names: of the attributes.
        values: of the attributes, opened too.
    """

    kind: type
    names: tuple[str, ...]
    values: tuple[Any, ...]

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], Any]:
        """Attributes with their names, and what is static."""
        keys = map(jax.tree_util.GetAttrKey, self.names)
        return list(zip(keys, self.values, strict=True)), (self.kind, self.names)

    @classmethod
    def tree_unflatten(cls, static: tuple[type, tuple[str, ...]], values: Sequence[Any]) -> Record:
        """The inverse of :meth:`tree_flatten_with_keys`."""
        return cls(*static, tuple(values))

    def closed(self) -> Any:
        """The object again."""
        kind: Any = self.kind
        again = kind.__new__(kind)
        for name, value in zip(self.names, self.values, strict=True):
            object.__setattr__(again, name, closed(value))
        return again


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Table:
    """A data frame, and those of its columns that hold numbers.

    Attributes:
        frame: the data frame, known by its contents.
        names: of these columns.
        columns: their arrays; the model sees those of the frame.
    """

    frame: Known
    names: tuple[Any, ...]
    columns: tuple[Any, ...]

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], Any]:
        """Columns with their names, and what is static."""
        keys = map(jax.tree_util.DictKey, self.names)
        return list(zip(keys, self.columns, strict=True)), (self.frame, self.names)

    @classmethod
    def tree_unflatten(cls, static: tuple[Known, tuple[Any, ...]], columns: Sequence[Any]) -> Table:
        """The inverse of :meth:`tree_flatten_with_keys`."""
        return cls(*static, tuple(columns))


def opened(tree: Any) -> Any:
    """Arguments whose records and data frames JAX can flatten."""
    return jax.tree.map(_opened, tree, is_leaf=lambda node: node is None)


def closed(tree: Any) -> Any:
    """The inverse of :func:`opened`."""

    def close(node: Any) -> Any:
        return node.closed() if isinstance(node, Record) else node.frame.fresh() if isinstance(node, Table) else node

    return jax.tree.map(close, tree, is_leaf=lambda node: node is None or isinstance(node, (Record, Table)))


def _opened(leaf: Any) -> Any:
    if is_frame(leaf):
        columns = {name: array_of(leaf[name]) for name in leaf.columns}
        numbers = {name: column for name, column in columns.items() if column.dtype.kind in NUMBERS}
        held = tuple(Known(column, "", column) for column in numbers.values())
        return Table(Known(leaf, "a data frame"), tuple(numbers), held)
    is_record = dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)
    if not is_record and not isinstance(leaf, (argparse.Namespace, types.SimpleNamespace)):
        return leaf
    if _is_plain(leaf):
        return leaf
    fields = [field.name for field in dataclasses.fields(leaf)] if is_record else []
    names = tuple(dict.fromkeys([*fields, *getattr(leaf, "__dict__", {})]))
    return Record(type(leaf), names, tuple(opened(getattr(leaf, name)) for name in names))


def _is_plain(record: Any) -> bool:
    """Whether a record says itself that it is equal to another one: what it holds is no array."""
    try:
        hash(record)
    except TypeError:
        return False
    return type(record).__eq__ is not object.__eq__


def is_frame(leaf: Any) -> bool:
    """Whether an object is a data frame of pandas, polars or the like."""
    return hasattr(leaf, "columns") and hasattr(leaf, "to_numpy") and hasattr(leaf, "__getitem__")


def is_column(leaf: Any) -> bool:
    """Whether an object is a column of a data frame, or an index."""
    return hasattr(leaf, "to_numpy") and hasattr(leaf, "dtype") and not hasattr(leaf, "columns")


def array_of(column: Any) -> np.ndarray:
    """The values of a column: categories by their codes, missing numbers as NaN.

    Raises:
        DataError: a category is missing.
    """
    kind = str(column.dtype)
    if kind == "category" or kind.startswith(("Categorical", "Enum")):
        codes = np.asarray((column.cat.codes if kind == "category" else column.to_physical()).to_numpy())
        if np.any(np.isnan(codes) if codes.dtype.kind == "f" else codes < 0):
            raise DataError(
                f"Column {getattr(column, 'name', None)!r} of categories has missing ones, which have no code. Drop "
                "these rows, or make them a category: column.cat.add_categories('missing').fillna('missing')."
            )
        return codes
    values = np.asarray(column.to_numpy())
    if values.dtype == object and getattr(column.dtype, "kind", "O") in "biuf":  # numbers of which some are missing
        values = np.asarray(column.to_numpy(dtype=float, na_value=np.nan))
    return values


def _copy(value: Any) -> Any:
    for name in ("copy", "clone"):
        if hasattr(value, name):
            return getattr(value, name)()
    return value


def _digest(value: Any) -> str:
    """A hash of what an array, a column or a data frame holds."""
    total = hashlib.sha256(type(value).__name__.encode())
    index = [("index", value.index)] if hasattr(value, "index") and not callable(value.index) else []
    columns = [(str(name), value[name]) for name in value.columns] if is_frame(value) else [("", value)]
    for name, column in [*index, *columns]:
        array = np.asarray(column if isinstance(column, np.ndarray) else column.to_numpy())
        categories: Any = getattr(column.dtype, "categories", None)
        codes = list(categories) if hasattr(categories, "__iter__") else categories
        total.update(f"{name} {column.dtype} {codes} {array.shape}".encode())
        total.update(repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes())
    return total.hexdigest()

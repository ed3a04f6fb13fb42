"""What functions read beside their arguments (closures, globals, attributes), in a form that shows whether it changed.

A model is derived and compiled once, with whatever it read at that time. Arrays, numbers and containers are compared by
what they hold, functions by their code, objects by their attributes, arrays of JAX by identity: these never change.
Functions of libraries are followed into what they close over, not into their globals. A name may stand in a text
(``globals()["width"]``, ``getattr(settings, "width")``). Files, random states, and what is looked up under a name that
is computed (``getattr(settings, name)``, ``globals()[name]``) are out of sight.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import re
import sys
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))

_LIBRARIES = {"emppl", "jax", "jaxlib", "ml_dtypes", "numpy", "numpyro", "optax", "scipy"}
"""Packages that are libraries wherever they are installed."""

_MOST_OBJECTS = 100_000
"""Objects that are followed; there is more behind some library's objects than a model reads."""

_LONG = 32
"""Entries of a list of numbers from which on they are hashed together."""


def read_by(roots: Mapping[str, Any], lists: bool = True) -> dict[str, Any]:
    """What some functions or objects read, by how it is reached from them.

    Args:
        roots: functions and objects, by name.
        lists: whether lists count, into which functions write.

    Returns:
        A dictionary that is equal to another one if nothing changed. Numbers, texts and arrays are strings, which are
        the same in every process.
    """
    walk = _Walk({_package(_module_of(root)) for root in roots.values()}, lists)
    for name, root in roots.items():
        walk.follow(name, root)
    return walk.parts


def first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Where something changed that functions read, or None.

    Args:
        before: what they read then; of another process only numbers, texts and arrays.
        now: what they read now.
    """
    if before == now:
        return None
    is_whole = not all(isinstance(part, str) for part in before.values())
    return next(
        (path for path in ({**before, **now} if is_whole else before) if before.get(path) != now.get(path)), None
    )


def lasting(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers, texts and arrays among what functions read: these can be compared in another process."""
    return {path: part for path, part in parts.items() if isinstance(part, str)}


class _Walk:
    """Everything that can be reached from some objects.

    Args:
        own: packages of the user's, though they may lie where libraries do.
        lists: whether lists count.
    """

    def __init__(self, own: set[str], lists: bool):
        self.parts: dict[str, Any] = {}
        self._lists = lists
        self._own = own - _LIBRARIES - sys.stdlib_module_names
        self._paths: dict[int, str] = {}
        self._alive: list[Any] = []  # so that no address is used twice
        self._ahead: list[tuple[str, Any]] = []

    def follow(self, path: str, root: Any) -> None:
        self._ahead.append((path, root))
        while self._ahead:
            self._visit(*self._ahead.pop())

    def _visit(self, path: str, value: Any) -> None:
        kind = type(value)
        if kind in _PLAIN:
            self.parts[path] = f"{kind.__name__} {value!r}"
        elif id(value) in self._paths:
            self.parts[path] = ("the same as", self._paths[id(value)])
        elif len(self._paths) < _MOST_OBJECTS:
            self._paths[id(value)] = path
            self._alive.append(value)
            try:
                inside = list(self._inside(path, value))
            except Exception:  # an object that does not let itself be looked at
                inside, self.parts[path] = [], (_name(value), "out of sight")
            self._ahead.extend((f"{path} > {name}", part) for name, part in inside)

    def _inside(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Note what an object is, and find what it holds."""
        if isinstance(value, (np.ndarray, np.generic, jax.Array)):
            self.parts[path] = _of_array(value)
            if isinstance(value, np.ndarray) and value.dtype.hasobject:
                yield "entries", value.tolist()
        elif isinstance(value, types.FunctionType):
            yield from self._of_function(path, value)
        elif isinstance(value, types.MethodType):
            self.parts[path] = ("method",)
            yield from (("function", value.__func__), ("object", value.__self__))
        elif isinstance(value, functools.partial):
            self.parts[path] = ("partial",)
            yield from (("function", value.func), ("arguments", value.args), ("keywords", value.keywords))
        elif type(value) is list and not self._lists:
            self.parts[path] = ("list",)
        elif isinstance(value, (dict, types.MappingProxyType, tuple, list, set, frozenset, collections.deque)):
            yield from self._of_container(path, value)
        elif isinstance(value, type):
            yield from self._of_class(path, value)
        elif isinstance(value, types.ModuleType):
            self.parts[path] = ("module", value.__name__)
        else:
            yield from self._of_object(path, value)

    def _of_container(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, (dict, types.MappingProxyType)):
            self.parts[path] = (_name(value), tuple(_without_addresses(repr(key)) for key in value))
            yield from ((f"[{_without_addresses(repr(key))}]", entry) for key, entry in value.items())
        else:
            entries = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else list(value)
            self.parts[path] = (_name(value), len(entries))
            if len(entries) > _LONG and all(type(entry) in _PLAIN for entry in entries):
                self.parts[f"{path} > entries"] = hashlib.sha256(repr(entries).encode()).hexdigest()
            else:
                yield from ((f"[{number}]", entry) for number, entry in enumerate(entries))
        if not self._is_library(type(value).__module__):
            yield from self._attributes(value)
            yield "class", type(value)

    def _of_function(self, path: str, function: Any) -> Iterator[tuple[str, Any]]:
        code = function.__code__
        self.parts[path] = code
        is_library = self._is_library(function.__module__ or function.__globals__.get("__name__", ""))
        names = () if is_library else _names(code)
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        found = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
        for name in names:
            if name in function.__globals__:
                found.setdefault(name, function.__globals__[name])
            elif name in sys.modules:  # imported inside the function
                found.setdefault(name, sys.modules[name])
        for name, value in found.items():
            if isinstance(value, types.ModuleType):
                yield from self._of_module(name, value, names, ())
            else:
                yield name, value
        if function.__defaults__:
            yield "defaults", function.__defaults__
        if function.__kwdefaults__:
            yield "keyword defaults", function.__kwdefaults__
        yield from ((name, part) for name, part in vars(function).items() if name != "__wrapped__")

    def _of_module(self, path: str, module: Any, names: tuple[str, ...], outer: tuple) -> Iterator[tuple[str, Any]]:
        """What is read of a module by these names."""
        if self._is_library(module.__name__) or module in outer:
            return
        for name in names:
            found = vars(module).get(name)
            if isinstance(found, types.ModuleType):
                yield from self._of_module(f"{path}.{name}", found, names, (*outer, module))
            elif name in vars(module):
                yield f"{path}.{name}", found

    def _of_class(self, path: str, kind: type) -> Iterator[tuple[str, Any]]:
        self.parts[path] = ("class", kind.__module__, kind.__qualname__)
        if self._is_library(kind.__module__):
            return
        yield from ((f"base {base.__name__}", base) for base in kind.__bases__)
        for name, part in vars(kind).items():
            if isinstance(part, types.FunctionType) or not (name.startswith("__") or name.startswith("_abc_")):
                yield name, part

    def _of_object(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        kind, module = type(value), type(value).__module__
        self.parts[path] = (_name(value), getattr(value, "__name__", ""))
        if isinstance(value, (staticmethod, classmethod)):
            yield "function", value.__func__
        elif isinstance(value, (property, functools.cached_property)):
            parts = ("fget", "fset") if isinstance(value, property) else ("func",)
            yield from ((part, getattr(value, part)) for part in parts)
        elif module.startswith("emppl.") and not module.startswith(("emppl.strategies", "emppl.mstep", "emppl.trace")):
            return  # fits and their results: no model reads these
        elif hasattr(value, "__wrapped__"):  # jax.jit, functools.cache, handlers
            yield "function", value.__wrapped__
            yield from self._attributes(value)
        elif _package(module) in sys.stdlib_module_names and kind is not types.SimpleNamespace:
            self.parts[path] = (*self.parts[path], _in_words(value))
        else:
            if hasattr(kind, "__array__"):  # frames of data
                yield "entries", _as_array(value)
                yield "columns", list(getattr(value, "columns", ()))
            if not self._is_library(module):
                yield "class", kind
            if not (self._is_library(module) and hasattr(kind, "__array__")):
                yield from self._attributes(value)

    def _attributes(self, value: Any) -> Iterator[tuple[str, Any]]:
        yield from getattr(value, "__dict__", {}).items()
        for kind in type(value).__mro__:
            slots = kind.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if not name.startswith("__") and hasattr(value, name):
                    yield name, getattr(value, name)

    def _is_library(self, module: str) -> bool:
        package = _package(module)
        return package not in self._own and _lies_among_libraries(package)


def _module_of(root: Any) -> str:
    """The module of a function, or of the innermost one of what is wrapped around it."""
    while True:
        inner = (getattr(root, name, None) for name in ("func", "__self__", "fn", "__wrapped__"))
        inside = next((one for one in inner if one is not None and not isinstance(one, types.ModuleType)), None)
        if inside is None:
            break
        root = inside
    own = getattr(root, "__module__", None)
    return own if isinstance(own, str) else type(root).__module__


def _package(module: str) -> str:
    return module.partition(".")[0]


@functools.cache
def _lies_among_libraries(package: str) -> bool:
    if package in _LIBRARIES or package in sys.stdlib_module_names:
        return True
    place = getattr(sys.modules.get(package), "__file__", None) or ""
    return "site-packages" in place or "dist-packages" in place


_BY_TEXT = {"__dict__", "__getattribute__", "__globals__", "attrgetter", "eval", "exec", "getattr", "globals", "vars"}
"""Names in a function that looks others up by a text."""

_NAMES: dict[int, tuple[types.CodeType, tuple[str, ...]]] = {}


def _names(code: types.CodeType) -> tuple[str, ...]:
    """Globals and attributes that a function names, and the functions inside it."""
    if id(code) not in _NAMES:
        inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
        own = [*code.co_names, *(_in_texts(code.co_consts) if _BY_TEXT & set(code.co_names) else ())]
        _NAMES[id(code)] = code, tuple(dict.fromkeys([*own, *(name for names in inner for name in names)]))
    return _NAMES[id(code)][1]


def _in_texts(constants: tuple[Any, ...]) -> Iterator[str]:
    """Everything in texts of a function that may be a name."""
    for constant in constants:
        if isinstance(constant, str):
            yield from re.findall(r"[^\W\d]\w*", constant)
        elif isinstance(constant, tuple):
            yield from _in_texts(constant)


_DIGESTS: dict[int, tuple[weakref.ref, str]] = {}


def _of_array(array: Any) -> Any:
    """An array by what it holds; arrays of JAX, which never change, are read once."""
    if isinstance(array, np.generic):
        return f"{array.dtype} {array!r}"
    if isinstance(array, np.ndarray):
        return _digest(array)
    if isinstance(array, jax.core.Tracer) or not array.is_fully_addressable or array.is_deleted():
        return _Itself(array)
    known = _DIGESTS.get(id(array))
    if known is None or known[0]() is not array:
        is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        text = _digest(np.asarray(jax.random.key_data(array) if is_key else array))
        key = id(array)
        known = _DIGESTS[key] = weakref.ref(array, lambda _: _DIGESTS.pop(key, None)), text
    return known[1]


def _digest(array: np.ndarray) -> str:
    total = hashlib.sha256()
    if not array.dtype.hasobject:
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return f"{array.shape} {array.dtype} {total.hexdigest()}"


class _Itself:
    """A value that is compared by identity."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "a value of JAX"


def _as_array(value: Any) -> np.ndarray | None:
    try:
        return np.asarray(value)
    except Exception:  # a tensor that is differentiated, or lies elsewhere
        return None


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that is not there yet
        return False


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _in_words(value: Any) -> str:
    try:
        return _without_addresses(repr(value))
    except Exception:  # what cannot be printed is told apart by its type alone
        return ""


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)

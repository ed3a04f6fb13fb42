"""Checkpoints: the state of a fit in a file, from which the same fit goes on after it was killed.

A file is an uncompressed ``.npz`` of plain arrays, nothing in it is ever executed. It is written next to its place and
moved there, so that a kill leaves the old one or the new one. With the state it holds what the fit depends on; a file
of another fit is refused, by the name of what differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import ParameterError
from emppl.parameters import constraint_name
from emppl.trace import Trace

_IDENTITY = "identity"
_SHARE = 0.05
"""Largest share of a fit's time that goes into writing."""


class Checkpoint:
    """The file of one fit.

    Args:
        path: where it is.
        identity: by name in words, what the fit depends on; texts that begin with ``#`` are hashes, and not shown.
    """

    def __init__(self, path: str | os.PathLike, identity: Mapping[str, str]):
        self.path = pathlib.Path(path)
        self.identity = dict(identity)
        self._next = 0.0
        if not self.path.parent.is_dir():
            raise ParameterError(f"checkpoint={str(path)!r}: there is no directory {str(self.path.parent)!r}.")

    def load(self) -> dict[str, np.ndarray] | None:
        """What was saved, or None without a file.

        Raises:
            ParameterError: the file is of another fit, or no checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            identity = json.loads(str(found.pop(_IDENTITY)))
        except (ValueError, KeyError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ParameterError(
                f"checkpoint={str(self.path)!r} is a file, but no checkpoint of emppl ({type(error).__name__}). "
                "Give another path."
            ) from None
        differing = [
            name if text.startswith("#") else f"{name} ({identity.get(name, 'nothing')} there, {text} here)"
            for name, text in self.identity.items()
            if identity.get(name) != text
        ]
        if differing:
            raise ParameterError(
                f"checkpoint={str(self.path)!r} is of another fit; what differs: {', '.join(differing)}. Give another "
                "path, or delete the file to start afresh."
            )
        return found

    def save(self, arrays: Mapping[str, Any]) -> None:
        """Write a state, in the place of the one before."""
        began = time.perf_counter()
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with open(beside, "wb") as file:
                everything: dict[str, Any] = {_IDENTITY: np.array(json.dumps(self.identity)), **arrays}
                np.savez(file, **jax.device_get(everything))
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)
        now = time.perf_counter()
        self._next = now + (now - began) / _SHARE

    def save_at_times(self, arrays: Callable[[], Mapping[str, Any]]) -> None:
        """Write a state, unless that would take too much of the fit's time."""
        if time.perf_counter() >= self._next:
            self.save(arrays())


def flattened(prefix: str, tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by name."""
    return {f"{prefix}{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def restored(prefix: str, arrays: Mapping[str, np.ndarray], like: Any) -> Any:
    """A pytree from its leaves by name.

    Args:
        prefix: that of :func:`flattened`.
        arrays: what was saved.
        like: a pytree of the same form.
    """
    leaves, form = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree.unflatten(form, [arrays[f"{prefix}{jax.tree_util.keystr(path)}"] for path, _ in leaves])


# ------------------------------------------------------------------------------------------- what a fit depends on


def fit_identity(
    trace: Trace, leaves: Sequence, skeleton: Any, rng_key: jax.Array, start: Mapping[str, Any], options: Mapping
) -> dict[str, str]:
    """What a fit depends on, by name in words.

    Args:
        trace: the traced model.
        leaves: the data.
        skeleton: static arguments.
        rng_key: random key.
        start: starting values of all restarts.
        options: those of ``EM``, by name.
    """
    found = {
        "the model": _hashed(*_model(trace)),
        "the data": _hashed(*(part for leaf in leaves for part in _array(leaf))),
        "the static arguments of the model": _hashed(_without_addresses(repr(skeleton))),
        "rng_key": _hashed(*_array(key_data(rng_key))),
        "the starting values (init_params)": _hashed(*(p for n in sorted(start) for p in (n, *_array(start[n])))),
        "the precision": str(jnp.result_type(float)),
    }
    return found | {name: _without_addresses(repr(value)) for name, value in options.items()}


def key_data(key: jax.Array) -> np.ndarray:
    """The numbers of a random key, of either kind."""
    return np.asarray(jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key)


def key_like(data: np.ndarray, key: jax.Array) -> jax.Array:
    """A random key of the same kind as another, from its numbers."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jnp.asarray(data)
    return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(key))


def _model(trace: Trace) -> Iterator[str]:
    """The model in words: sites, and every operation with its constants, in an order that is always the same."""
    lines: list[str] = []
    for name, site in trace.sites.items():
        yield f"{name} {site.kind} {site.distribution} {site.shape} {constraint_name(site.constraint)}"
    outcomes = trace.jaxpr.jaxpr.outvars
    for path, position in trace.outputs.items():
        # NumPyro numbers the parts of a distribution in an order that varies from process to process.
        place, atom = path if path[1] != "distribution" else path[:2], outcomes[position]
        lines.append(f"{place} {atom if hasattr(atom, 'val') else atom.aval}")
    yield from sorted(lines)
    yield from sorted(_operations(trace.jaxpr.jaxpr))
    yield from sorted(_hashed(*_array(const)) for const in trace.jaxpr.consts)


def _operations(jaxpr) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield " ".join(
            [equation.primitive.name]
            + [str(one) for one in equation.invars if hasattr(one, "val")]
            + [str(one.aval) for one in (*equation.invars, *equation.outvars)]
        )
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _operations(inner)


def _array(array: Any) -> tuple[str, bytes]:
    array = np.ascontiguousarray(array)
    return f"{array.shape} {array.dtype}", array.tobytes()


def _hashed(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return f"#{total.hexdigest()}"


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)

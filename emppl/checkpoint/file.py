"""Checkpoints: the state of a fit in a file, from which the same fit goes on after it was killed.

A file is an uncompressed ``.npz`` of plain arrays, nothing in it is ever executed. It is written next to its place and
moved there, so that a kill leaves the old one or the new one. With the state it holds what the fit depends on; a file
of another fit is refused, by the name of what differs.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import ParameterError

_IDENTITY = "identity"
_FORMAT = "format"
_VERSION = 4
"""Version of the file format, raised whenever a name in it or its meaning changes; files without one are version 1."""
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
        if self.path.is_dir():
            raise ParameterError(
                f"checkpoint={str(path)!r} is a directory: give a file in it, {str(self.path / 'fit.npz')!r}."
            )
        if not self.path.parent.is_dir():
            raise ParameterError(f"checkpoint={str(path)!r}: there is no directory {str(self.path.parent)!r}.")

    def load(self) -> dict[str, np.ndarray] | None:
        """What was saved, or None without a file.

        Raises:
            ParameterError: the file is of another fit or another version of emppl, or no checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            identity = json.loads(str(arrays.pop(_IDENTITY)))
        except (ValueError, KeyError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ParameterError(
                f"checkpoint={str(self.path)!r} is a file, but no checkpoint of emppl ({type(error).__name__}). "
                "Give another path."
            ) from None
        version = int(arrays.pop(_FORMAT, 1))
        if version != _VERSION:
            raise ParameterError(
                f"checkpoint={str(self.path)!r} was written by {'an older' if version < _VERSION else 'a newer'} "
                "emppl: start the fit again (give another path, or delete the file), or use the version that wrote it."
            )
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
        return arrays

    def save(self, arrays: Mapping[str, Any]) -> None:
        """Write a state, in the place of the one before."""
        began = time.perf_counter()
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with open(beside, "wb") as file:
                everything: dict[str, Any] = {
                    _FORMAT: np.array(_VERSION),
                    _IDENTITY: np.array(json.dumps(self.identity)),
                    **arrays,
                }
                np.savez(file, **jax.device_get(everything))
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)
        ended = time.perf_counter()
        self._next = ended + (ended - began) / _SHARE

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

    Raises:
        ParameterError: a leaf is missing.
    """
    data, form = jax.tree_util.tree_flatten_with_path(like)
    names = [f"{prefix}{jax.tree_util.keystr(path)}" for path, _ in data]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ParameterError(
            f"The file given as checkpoint= is of another fit: it holds nothing of {', '.join(missing)}. Give another "
            "path, or delete the file to start afresh."
        )
    return jax.tree.unflatten(form, [arrays[name] for name in names])


def key_data(key: jax.Array) -> np.ndarray:
    """The numbers of a random key, of either kind."""
    return np.asarray(jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key)


def key_like(data: np.ndarray, key: jax.Array) -> jax.Array:
    """A random key of the same kind as another, from its numbers."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jnp.asarray(data)
    return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(key))

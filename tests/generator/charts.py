"""Coordinates without constraints for the parameters of a generated model, in NumPy alone."""

from __future__ import annotations

import math

import numpy as np


class Chart:
    """All parameters as one vector of real numbers, and back.

    Args:
        kinds: by parameter ``"real"``, ``"positive"``, ``"unit"``, ``"simplex"`` or ``"matrix"`` (positive definite).
        params: values, whose shapes count.
    """

    def __init__(self, kinds: dict[str, str], params: dict[str, np.ndarray]):
        self.kinds, self.shapes = kinds, {name: np.shape(params[name]) for name in kinds}

    def size(self, name: str) -> int:
        """Number of coordinates of one parameter."""
        shape = self.shapes[name]
        if self.kinds[name] == "simplex":
            return math.prod(shape[:-1]) * (shape[-1] - 1)
        if self.kinds[name] == "matrix":
            return math.prod(shape[:-2]) * shape[-1] * (shape[-1] + 1) // 2
        return math.prod(shape)

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return sum(map(self.size, self.kinds))

    def vector(self, params: dict[str, np.ndarray]) -> np.ndarray:
        """Coordinates of these values; infinite on a boundary."""
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [_free(kind, np.asarray(params[name], float)).ravel() for name, kind in self.kinds.items()]
        return np.concatenate(parts) if parts else np.zeros(0)

    def params(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Values at these coordinates."""
        found, place = {}, 0
        for name, kind in self.kinds.items():
            size = self.size(name)
            found[name] = _constrained(kind, vector[place : place + size], self.shapes[name])
            place += size
        return found


def _free(kind: str, value: np.ndarray) -> np.ndarray:
    if kind == "positive":
        return np.log(value)
    if kind == "unit":
        return np.log(value) - np.log1p(-value)
    if kind == "simplex":
        return np.log(value[..., :-1]) - np.log(value[..., -1:])
    if kind == "matrix":
        low = np.linalg.cholesky(value)
        rows, columns = np.tril_indices(value.shape[-1])
        entries = low[..., rows, columns]
        return np.where(rows == columns, np.log(np.where(rows == columns, entries, 1.0)), entries)
    return value


def _constrained(kind: str, free: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if kind == "positive":
        return np.exp(free).reshape(shape)
    if kind == "unit":
        return (1 / (1 + np.exp(-free))).reshape(shape)
    if kind == "simplex":
        raised = np.exp(free.reshape(*shape[:-1], shape[-1] - 1))
        whole = np.concatenate([raised, np.ones((*shape[:-1], 1))], -1)
        return whole / whole.sum(-1, keepdims=True)
    if kind == "matrix":
        rows, columns = np.tril_indices(shape[-1])
        entries = free.reshape(*shape[:-2], len(rows))
        low = np.zeros(shape)
        low[..., rows, columns] = np.where(rows == columns, np.exp(entries), entries)
        return low @ np.swapaxes(low, -1, -2)
    return free.reshape(shape)

"""The few operations of which known indices are made, on numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


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


FOLD: dict[str, Callable] = {
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

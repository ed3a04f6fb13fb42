"""Answers that papers print and other programs compute, with their tolerances: the files in tests/oracles.

A limit ``t`` there means ``|got - reference| <= t * max(1, |reference|)``, entry by entry; its key is the block that it
applies to.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

ORACLES = pathlib.Path(__file__).parents[1] / "oracles"
# Blocks without a limit of their own follow the quantity that they are computed from.
FOLLOWS = {
    "posterior": "params",
    "map_beta_2_2": "params",
    "information": "params",
    "bic_mclust_convention": "loglik",
}


@functools.cache
def oracle(name: str) -> dict:
    return json.loads((ORACLES / f"{name}.json").read_text())


def data_set(name: str, **options: Any) -> np.ndarray:
    """A data set that stands beside the oracles."""
    return np.loadtxt(ORACLES / "data" / f"{name}.csv", delimiter=",", skiprows=1, **options)


def check(got: Any, reference: Any, limit: float, where: str) -> None:
    if isinstance(got, Mapping):
        for key, value in got.items():
            check(value, reference[key], limit, f"{where}.{key}")
        return
    expected = np.asarray(reference, float)
    got = np.asarray(got, float)
    assert got.shape == expected.shape, where
    error = np.max(np.abs(got - expected) / np.maximum(1, np.abs(expected)))
    assert error <= limit, f"{where}: scaled difference {error:.2g}, limit {limit:.0e}"


def check_block(name: str, block: str, got: Any) -> None:
    tolerance = oracle(name)["tolerance"]
    assert "relative_keys" not in tolerance
    check(got, oracle(name)["reference"][block], tolerance[FOLLOWS.get(block, block)], f"{name}.{block}")

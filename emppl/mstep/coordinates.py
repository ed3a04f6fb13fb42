"""The unconstrained coordinates of a block of parameters, in which iterative rules climb."""

from __future__ import annotations

from collections.abc import Iterable

import jax

from emppl.model.model import Model
from emppl.parameters.constraints import from_coordinates, to_coordinates
from emppl.types import Params


def coordinates(model: Model, params: Params, names: Iterable[str]) -> dict[str, jax.Array]:
    """Coordinates of some parameters."""
    return {name: to_coordinates(model.trace.sites[name].constraint, params[name]) for name in names}


def from_block(model: Model, block: Params) -> dict[str, jax.Array]:
    """Constrained values of a block in coordinates."""
    return {name: from_coordinates(model.trace.sites[name].constraint, free) for name, free in block.items()}

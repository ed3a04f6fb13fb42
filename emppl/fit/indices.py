"""Indices out of bounds, refused before a fit: by data (``b[subject]``), or by a latent with too many states."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import DataError, ModelError
from emppl.jaxpr.equations import shape_of
from emppl.jaxpr.picks import Pick
from emppl.jaxpr.walk import Labels
from emppl.model.model import Model, prior_cells
from emppl.names import latent_of, model_name
from emppl.types import Data, Params


def index_ranges(model: Model, data: Data) -> list[dict[int, jax.Array]]:
    """The smallest and largest index of every pick (see :class:`~emppl.jaxpr.picks.Picks`): pure, to be jitted."""
    atoms = {("latent", name): jnp.asarray(values) for name, values in model.trace.atoms.items()}
    leaves = {("data", str(number)): leaf for number, leaf in enumerate(data)}
    return model.picks.ranges({**atoms, **leaves})


def check_indices(model: Model, data: Data, ranges: Sequence[Mapping[int, Any]]) -> None:
    """Refuse indices out of bounds that some density sees.

    Args:
        ranges: values of :func:`index_ranges`.

    Raises:
        DataError: data pick entries that are not there.
        ModelError: a latent has more states than there are entries.
    """
    clamped: dict[str, np.ndarray] = {}
    params: Params = {}
    for pick, by_axis in zip(model.picks.found, ranges, strict=True):
        bad = {axis: found for axis, found in by_axis.items() if found[0] < 0 or found[1] > pick.largest[axis]}
        if not bad:
            continue
        if not clamped:
            params = jax.jit(model.trace.initial)(jax.random.key(0), data)
            clamped = _densities(model, None, params, data)
        poisoned = _densities(model, pick, params, data)
        for site, density in clamped.items():
            if not np.array_equal(density, poisoned[site], equal_nan=True):
                axis = min(bad)
                raise _refusal(model, site, pick, axis, bad[axis])


def _densities(model: Model, pick: Pick | None, params: Params, data: Data) -> dict[str, np.ndarray]:
    """Log densities of every cell that counts, with what one pick takes from out of bounds poisoned."""
    rewritten = dataclasses.replace(model, trace=model.trace.rewritten(lambda _: model.picks.poisoned(pick)))

    def densities(params: Params, data: Data) -> dict[str, jax.Array]:
        arrays = rewritten.evaluate(params, data)
        tables = rewritten.tables(arrays)
        for name, scale in rewritten.scales(arrays).items():
            if scale is not None:
                tables[name] = jnp.where(scale == 0, 0.0, tables[name] * scale)
        priors = [n for n in rewritten.free if rewritten.use_prior and rewritten.trace.sites[n].kind == "continuous"]
        return tables | {name: prior_cells(arrays[name]) for name in priors}

    return jax.device_get(jax.jit(densities)(params, data))


def _refusal(model: Model, site: str, pick: Pick, axis: int, found: Any) -> DataError | ModelError:
    size = pick.largest[axis] + 1
    least, most = (int(entry) for entry in found)
    least = least - size if least < 0 else least  # JAX has added the size to negative indices
    outside = most if most >= size else least
    atom = pick.equation.operands[0]
    shape = shape_of(atom)
    array = f"{_in_words(pick.array)}" if pick.array else "a constant array"
    index = _in_words(pick.index)
    where = (
        f"Site {model_name(site)!r} picks entry {outside} along axis {axis} of an array of shape {shape} ({array}), "
        f"which has entries 0 to {size - 1} (or {-size} to -1, from the end)."
    )
    by = f" The index is made of {index}; it runs from {least} to {most}." if index else ""
    if pick.index and all(kind == "latent" for kind, _ in pick.index):
        return ModelError(f"{where}{by} Give the array an entry for every state of the latent.")
    return DataError(
        f"{where}{by} Number groups from 0 (numpy.unique(groups, return_inverse=True)[1]) and make the array as long "
        "as there are groups. Where clamping is meant, write jnp.clip(index, 0, size - 1); rows without a group need "
        "a mask."
    )


def _in_words(labels: Labels) -> str:
    """Inputs of the computation in the words of the model."""
    words = []
    for kind, name in sorted(labels):
        if kind == "data":
            words.append(f"array {int(name) + 1} among the model's arguments")
        elif kind == "latent":
            words.append(f"latent {model_name(latent_of(name))!r}")
        elif kind == "parameter":
            words.append(f"parameter {name!r}")
    return " and ".join(dict.fromkeys(words))

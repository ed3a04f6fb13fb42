"""What a model says of discrete latents as it is written, where a latent has all its cells, and what must hold of it.

The model is evaluated with the states of a latent on an axis of their own, in front of plates of size one. That is the
same model if cell n of a site depends on ``z[n]`` and on no other cell, and if what the model puts beside each other
lies in the evaluation where it lies in the model. Both are read off an abstract run of the model as it is written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from emppl.errors import ModelError, StatesError
from emppl.jaxpr.cellwise import Apart, Cellwise, Entry, Mixed, Place
from emppl.jaxpr.prune import path_names
from emppl.jaxpr.walk import Computation, entry_of, interpret
from emppl.trace.distributions import as_numpyro_expects
from emppl.trace.handlers import Frame, Message
from emppl.trace.site_messages import plates_of, site_arrays, static_site

Written: TypeAlias = dict[tuple[str, ...], tuple[tuple[int, ...], frozenset[int]]]
"""By site and field: the shape of an array that depends on latents, and axes along which it varies beside that."""

Homes: TypeAlias = dict[str, dict[int, str]]
"""By site outside the plates of its latents, whose cells are theirs all the same: the plate of a batch dimension."""


def site_values(frame: Frame, names: Mapping[str, str], latents: Collection[str]) -> tuple[dict, dict, dict]:
    """Values of latents, log-probabilities and arrays of sites, in one run of the model or of a step.

    Args:
        frame: the run.
        names: what its sites are called in the model.
        latents: those whose values are wanted.
    """
    tables, arrays = {}, {}
    for name, public in names.items():
        arrays[public] = site_arrays(name, frame)
        tables[name] = _log_prob(name, frame)
    values = {name: frame.messages[name]["value"] for name, public in names.items() if public in latents}
    return values, tables, arrays


def _log_prob(name: str, frame: Frame) -> jax.Array:
    msg = frame.messages[name]
    try:
        with as_numpyro_expects():
            return jnp.asarray(msg["fn"].log_prob(msg["value"]))
    except (TypeError, ValueError) as error:
        static_site(name, frame, 1, None)  # says what is wrong with the shape of the data, if that is it
        raise ModelError(f"Site {name!r}: its log-probability cannot be computed: {error}") from error


def read_cells(closed: ClosedJaxpr, shapes: Any, runs: Sequence[tuple[Frame, Any]]) -> tuple[Written, Homes]:
    """How the sites of a model depend on the cells of its discrete latents.

    Args:
        closed: the abstract run of the model; its last outputs are :func:`site_values` of all runs.
        shapes: of the outputs.
        runs: of steps of the model's scans, and of the model.

    Returns:
        How arrays lie, and plates that sites of the model lie in though they do not say so.

    Raises:
        ModelError: a site whose cells are not proved to depend on their own cell of every latent only.
    """
    computation = Computation(closed)
    _, outputs = jax.tree.unflatten(jax.tree.structure(shapes), computation.outputs)
    start: dict[Any, Entry] = {}
    for (frame, _), (latents, _, _) in zip(runs, outputs, strict=False):
        for name, value in latents.items():
            cells = _cells(frame.messages[name], value.aval.shape)
            start[value] = Apart({(name, plate): place for plate, place in cells.items()})
    environment = interpret(computation, start, Cellwise(computation))
    written: Written = {}
    same = _SameCells()
    for (frame, _), (_, tables, arrays) in zip(runs, outputs, strict=False):
        for name, table in tables.items():
            _check_site(name, entry_of(environment, table), _cells(frame.messages[name], table.aval.shape), same)
        for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
            if isinstance(entry := entry_of(environment, leaf), Apart):
                written[path_names(path)] = leaf.aval.shape, entry.varies
    return written, same.homes()


def _cells(msg: Message, shape: tuple[int, ...]) -> dict[str, Place]:
    """Plates along which an array of a site varies, with its axes; batch axes in no plate go by their dimension."""
    names = {plate.dim: plate.name for plate in plates_of(msg)}
    dims = {axis: axis - len(shape) for axis, size in enumerate(shape) if size > 1}
    return {names.get(dim, str(dim)): Place(axis, 1, shape[axis]) for axis, dim in dims.items()}


class _SameCells:
    """Batch dimensions in no plate whose cells are those of a plate, or of another such dimension."""

    def __init__(self) -> None:
        self._groups: list[set[tuple[str, str]]] = []

    def join(self, name: str, own: str, latent: str, plate: str) -> bool:
        """Note that cells of a site are those of a latent; whether at most one plate is theirs."""
        both = {
            ("", cells) if not cells.startswith("-") else (site, cells)
            for site, cells in ((name, own), (latent, plate))
        }
        joined = [group for group in self._groups if group & both]
        whole = both.union(*joined)
        self._groups = [group for group in self._groups if group not in joined] + [whole]
        return sum(site == "" for site, _ in whole) <= 1

    def homes(self) -> Homes:
        """By site, the plate of every batch dimension for which it names none."""
        homes: Homes = {}
        for group in self._groups:
            for plate in (cells for site, cells in group if site == ""):
                for site, dim in group:
                    if site:
                        homes.setdefault(site, {})[int(dim)] = plate
        return homes


def _check_site(name: str, entry: Entry | None, own: Mapping[str, Place], same: _SameCells) -> None:
    if isinstance(entry, Mixed):
        latent, plate = entry.label
        raise ModelError(_refusal(name, latent, f"{_plate(plate)}: {entry.words}"))
    for (latent, plate), place in entry.axes.items() if entry else ():
        if own.get(plate) == place and not plate.startswith("-"):
            continue
        cells = next((cells for cells, at in own.items() if at == place), None)
        is_named = cells is not None and not cells.startswith("-") and not plate.startswith("-")
        if cells is None or is_named or plate in own and cells != plate or not same.join(name, cells, latent, plate):
            raise ModelError(_refusal(name, latent, f"{_plate(plate)}, which are no cells of {name!r} there"))


def _plate(plate: str) -> str:
    return f"batch axis {plate}" if plate.startswith("-") else f"plate {plate!r}"


def _refusal(name: str, latent: str, where: str) -> str:
    return (
        f"Site {name!r} reads latent {latent!r} across the cells of {where}. The states of {latent!r} are summed out "
        f"cell by cell, so cell n of a site may depend on {latent}[n] only. Use {latent!r} elementwise or as an index "
        f"(mu[{latent}], {latent} == 1, jnp.where({latent} == 1, a, b)), in sites of the same plate. Where cells "
        "depend on their neighbours, write a scan over them; where several cells share a state, give the latent a "
        "plate of its own around them, with its own dim."
    )


def check_layout(
    written: Written, shapes: Mapping[tuple[str, ...], tuple[int, ...]], ranks: Mapping[tuple[str, ...], int]
) -> None:
    """Refuse arrays that lie elsewhere when their latents are enumerated.

    Args:
        written: of the model as it is written.
        shapes: of the same arrays in the evaluation.
        ranks: how many axes some of them have there at most. States that are indices in turn (``s[z][z]``) make more.

    Raises:
        StatesError: the first such array.
    """
    with_arguments = {path[0] for path in written if path[1] == "arguments"}
    for path, (shape, varies) in sorted(written.items()):
        if path[1] == "distribution" and path[0] in with_arguments:  # NumPyro makes it of these, batch axes in front
            continue
        other = (1,) * (len(shape) - len(shapes[path])) + shapes[path]
        evaluated = other[len(other) - len(shape) :]
        sizes = enumerate(zip(shape, evaluated, strict=True))
        if len(other) > max(len(shape), ranks.get(path, len(other))) or any(
            after not in (before, 1) or (after == 1 != before and axis in varies) for axis, (before, after) in sizes
        ):
            what = f"argument {path[2]!r}" if path[1] == "arguments" else path[1]
            raise StatesError(
                f"Site {path[0]!r}: its {what} has shape {shape} as the model is written, and {shapes[path]} "
                "where latents are enumerated: there states lie on axes of their own in front of all plates, and "
                "the plates of a latent have size one. Count axes from the last one, and put new ones last: "
                "jnp.stack([1 - p[z], p[z]], axis=-1) in place of jnp.stack([1 - p[z], p[z]]), x[..., None] in "
                "place of x[:, None]; write jax.vmap(f)(z) as a function of arrays; take sizes from the data."
            )

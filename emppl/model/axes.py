"""Named axes: the one place where arrays with NumPyro's batch dimensions are aligned with each other.

Every table has one axis per latent and per plate of the model, in one common order, with size one where it
does not vary. Adding tables is then ordinary broadcasting, and an axis means the same thing everywhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp

from emppl.errors import ModelError
from emppl.trace import Site, Trace


@dataclasses.dataclass(frozen=True)
class Axes:
    """The common axes of a model.

    The last axis is the *row* axis, the largest plate: chunks are cut along it, and having it last keeps
    the inner loops over components vectorised across rows.

    Attributes:
        names: axis names, in order; the last is the row axis.
        dims: the NumPyro batch dimension of every axis.
        sizes: number of atoms or plate cells.
        latents: names that are latents; the rest are plates.
        times: plates that are the time axis of a scan.
        of_atoms: latents' axes that hold the atoms of integrated latents.
    """

    names: tuple[str, ...]
    dims: dict[str, int]
    sizes: dict[str, int]
    latents: frozenset[str]
    times: frozenset[str] = frozenset()
    of_atoms: frozenset[str] = frozenset()

    @property
    def rows(self) -> str:
        """Name of the row axis."""
        return self.names[-1]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.names)

    def shape(self, kept: Collection[str]) -> tuple[int, ...]:
        """Shape of a table that has all cells along some axes, and one along the others."""
        return tuple(self.sizes[name] if name in kept else 1 for name in self.names)

    def of_site(self, site: Site) -> dict[int, str]:
        """Axis name by batch dimension, for one site."""
        by_dim = {dim: name for name, dim in self.dims.items() if name in self.latents}
        for dim, size in zip(range(-len(site.batch_shape), 0), site.batch_shape, strict=True):
            if (implicit := _implicit(dim, size)) in self.dims:
                by_dim[dim] = implicit
        by_dim.update({plate.dim: plate.name for plate in site.plates})
        return by_dim

    def plates_of(self, site: Site, batch_shape: tuple[int, ...]) -> frozenset[str]:
        """Plates of a site: declared ones, and undeclared batch axes of its own."""
        by_dim = self.of_site(site)
        plates = {plate.name for plate in site.plates}
        for dim, size in zip(range(-len(batch_shape), 0), batch_shape, strict=True):
            name = by_dim.get(dim)
            if size > 1 and name is not None and name not in self.latents:
                plates.add(name)
        return frozenset(plates)

    def align(self, array: jax.Array, site: Site, trailing: int) -> jax.Array:
        """Give an array of a site the common axes; its last ``trailing`` axes stay as they are.

        Args:
            array: batch axes as NumPyro lays them out, then ``trailing`` more.
            site: whose array it is.
            trailing: number of axes that are no batch axes.

        Returns:
            An array of rank ``len(names) + trailing``.

        Raises:
            ModelError: a batch axis has a size that is neither one nor that of its plate or latent.
        """
        split = array.ndim - trailing
        batch, rest = array.shape[:split], array.shape[split:]
        by_dim = self.of_site(site)
        by_order = sorted(self.names, key=lambda name: (self.dims[name], name))
        target = dict.fromkeys(by_order, 1)
        for dim, size in zip(range(-split, 0), batch, strict=True):
            if size == 1:
                continue
            name = by_dim.get(dim)
            if name is None or self.sizes[name] != size:
                raise ModelError(self._mismatch(site, dim, size, name))
            target[name] = size
        aligned = jnp.reshape(array, tuple(target.values()) + rest)
        return jnp.moveaxis(aligned, by_order.index(self.rows), self.rank - 1)

    def _mismatch(self, site: Site, dim: int, size: int, name: str | None) -> str:
        problem = f"Site {site.name!r} has size {size} in batch dimension {dim}"
        if name is not None and name in self.latents:
            return (
                f"{problem}, which belongs to the {self.sizes[name]} states of latent {name!r}. A latent enumerated in "
                f"a plate cannot be indexed across that plate (as in {name}[index]); put {site.name!r} in the same "
                "plate as the latent, as an extra inner plate or as a vector event (to_event)."
            )
        if name is not None:
            return f"{problem}, but plate {name!r} has {self.sizes[name]} cells."
        return (
            f"{problem}, which no plate declares. Wrap it in numpyro.plate('rows', {size}, dim={dim}), or make it "
            "part of the event with .to_event(1)."
        )


_SINGLE = "single"


def _implicit(dim: int, size: int) -> str:
    """Name of the axis of cells that lie in no plate."""
    return f"batch dimension {dim} of size {size}"


def model_axes(trace: Trace, batch_shapes: dict[str, tuple[int, ...]], draws: Mapping[str, int] | None = None) -> Axes:
    """Axes of a traced model; batch axes in no plate get an implicit one, shared by dimension and size.

    Args:
        batch_shapes: batch shape of every site's table.
        draws: number of atoms by axis of integrated latents.

    Returns:
        The common axes, sorted by dimension.
    """
    dims = dict(trace.latent_dims)
    sizes = {name: int(atoms.size) for name, atoms in trace.atoms.items()}
    times = frozenset(plate.name for plate in trace.plates.values() if plate.is_time)
    for plate in trace.plates.values():
        if plate.name in dims:
            raise ModelError(f"Plate and latent site share the name {plate.name!r}; rename one of them.")
        dims[plate.name], sizes[plate.name] = plate.dim, plate.size
    latent_by_dim = {dim: name for name, dim in trace.latent_dims.items()}
    for name, shape in batch_shapes.items():
        declared = {plate.dim for plate in trace.sites[name].plates}
        for dim, size in zip(range(-len(shape), 0), shape, strict=True):
            if size > 1 and dim not in declared and dim not in latent_by_dim:
                dims[_implicit(dim, size)], sizes[_implicit(dim, size)] = dim, size
    if not set(dims) - set(trace.latent_dims) - times:
        dims[_SINGLE], sizes[_SINGLE] = -(len(dims) + 1), 1
    plates = [name for name in dims if name not in trace.latent_dims and name not in times]
    drawn = dict(draws or {})
    for axis, number in drawn.items():
        # No array of the model has this axis; it is put in where a function of one atom is mapped over all of them.
        dims[axis], sizes[axis] = min(dims.values(), default=0) - 1, number
    rows = max(plates, key=lambda name: (sizes[name], name))
    outer = sorted(set(dims) - {rows}, key=lambda name: (dims[name], name))
    return Axes(
        (*outer, rows), dims, sizes, frozenset({*trace.latent_dims, *(draws or {})}), times, frozenset(draws or {})
    )


def contract(natural: jax.Array, statistics: jax.Array) -> jax.Array:
    """Sum of products over features: ``table[..., row] = sum_f natural[..., row, f] * statistics[..., f, row]``.

    Axes that only one side has become the rows and columns of one matrix product, so that natural
    parameters ``(states, features)`` and statistics ``(features, rows)`` meet in the fastest kernel there is.

    Args:
        natural: shape ``(*axes, features)``; size-one axes broadcast.
        statistics: shape ``(*axes without rows, features, rows)``; size-one axes broadcast.

    Returns:
        Table with the broadcast axes.
    """
    rank = natural.ndim - 1
    sizes = statistics.shape[:-2] + statistics.shape[-1:]
    if natural.shape[-2] > 1:  # arguments that vary by row: nothing to contract but the features
        return jnp.sum(natural * jnp.moveaxis(statistics, -1, -2), -1)
    shared = [a for a in range(rank) if natural.shape[a] > 1 and sizes[a] > 1]
    left = [a for a in range(rank) if natural.shape[a] > 1 and a not in shared]
    right = [a for a in range(rank) if sizes[a] > 1 and a not in shared]
    features = natural.shape[-1]

    def pick(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape[a] for a in axes)

    matrix = jnp.transpose(natural, [*shared, *left, rank, *(a for a in range(rank) if a not in shared + left)])
    matrix = jnp.reshape(matrix, pick(natural.shape, shared) + (math.prod(pick(natural.shape, left)), features))
    last = rank  # position of the row axis in ``statistics``, whose features sit before it
    where = {a: (a if a < rank - 1 else last) for a in range(rank)}
    order = [where[a] for a in shared] + [rank - 1] + [where[a] for a in right]
    data = jnp.transpose(statistics, order + [a for a in range(rank + 1) if a not in order])
    data = jnp.reshape(data, pick(sizes, shared) + (features, math.prod(pick(sizes, right))))
    product = jnp.matmul(matrix, data)
    full = tuple(max(a, b) for a, b in zip(natural.shape[:-1], sizes, strict=True))
    order = shared + left + right
    product = jnp.reshape(product, pick(full, order))
    product = jnp.transpose(product, [order.index(a) for a in sorted(order)])
    return jnp.reshape(product, full)


def look_up(natural: jax.Array, codes: jax.Array) -> jax.Array:
    """The product of :func:`contract` for one-hot statistics, given as the positions of their ones.

    Args:
        natural: shape ``(*axes, features)``.
        codes: shape ``(*axes without rows, elements, rows)``; positions among the features, -1 for none. The entries of
            all elements are added.

    Returns:
        Table with the broadcast axes.
    """
    codes = jnp.moveaxis(codes, -1, -2)
    rank, sizes = natural.ndim - 1, natural.shape[:-1]
    shared = [a for a in range(rank) if sizes[a] > 1 and codes.shape[a] > 1]
    if shared:
        return _look_up_cells(natural, codes)
    # One row per category with the values of all states side by side; the last row, for no category, is zero. Rows
    # are gathered, and added up in the transpose, several times faster than single entries.
    rows = jnp.reshape(natural, (-1, natural.shape[-1])).T
    rows = jnp.concatenate([rows, jnp.zeros_like(rows[:1])])
    table = rows[jnp.where(codes >= 0, codes, natural.shape[-1])]
    table = jnp.reshape(jnp.sum(table, rank), (*codes.shape[:-1], *sizes))
    # Every axis is in one of the two halves; put each where it belongs.
    order = [position for a in range(rank) for position in (a, rank + a)]
    full = tuple(max(left, right) for left, right in zip(sizes, codes.shape[:-1], strict=True))
    return jnp.reshape(jnp.transpose(table, order), full)


def _look_up_cells(natural: jax.Array, codes: jax.Array) -> jax.Array:
    """The product of :func:`look_up` entry by entry, for axes along which both arguments vary."""
    sizes = natural.shape[:-1]
    grids = [
        jnp.reshape(jnp.arange(size), tuple(size if a == axis else 1 for a in range(len(sizes))) + (1,))
        for axis, size in enumerate(sizes)
    ]
    entries = natural[(*jnp.broadcast_arrays(*grids, jnp.maximum(codes, 0)),)]
    return jnp.sum(jnp.where(codes >= 0, entries, 0), -1)


def reduce_to(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sum an array over the axes along which ``shape`` has size one (the transpose of broadcasting)."""
    axes = tuple(a for a, (have, want) in enumerate(zip(array.shape, shape, strict=True)) if want == 1 and have > 1)
    return jnp.sum(array, axes, keepdims=True) if axes else array

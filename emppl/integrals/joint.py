"""The log joint density of continuous latents that are integrated together, group by group."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.jaxpr.numbering import number_cells
from emppl.model.integral import Integral
from emppl.model.log_prob_table import log_prob_table
from emppl.model.masked import cells_with_slope, masked_cells, parameters_at_random, partly_used
from emppl.model.model import Model
from emppl.names import latent_of
from emppl.numerics.guarded import safe_divide
from emppl.parameters.constraints import constrain, log_jacobian, unconstrain
from emppl.parameters.layout import group_numbers
from emppl.trace import SiteArrays
from emppl.types import Data, Params

_FEW = 6
"""Up to so many dimensions, probes are written out one after the other."""

_FIELDS = tuple(field.name for field in dataclasses.fields(SiteArrays))


class Joint:
    """Log joint density of the latents of one integral, at given parameters and data.

    Latents are seen unconstrained, as vectors ``(groups, dimensions)``; the density includes the log-Jacobian.

    Args:
        key: random numbers of ways that draw; None for those that are always the same.
        prepared: what the way of the integral computed from the data alone; None where that is yet to do.
    """

    def __init__(
        self,
        model: Model,
        integral: Integral,
        params: Params,
        data: Data,
        key: jax.Array | None = None,
        prepared: Any = None,
    ):
        self.model = model
        self.integral = integral
        self.params = params
        self.data = data
        self.key = key
        self.prepared = prepared
        self.axes = model.axes
        self.rank = model.axes.rank
        self.atom_axis = model.axes.names.index(integral.axis)
        sites = model.trace.sites
        self.constraints = {name: sites[latent_of(name)].constraint for name in model.trace.value_shapes}
        self.wanted = frozenset((name, field) for name in integral.factors for field in _FIELDS)
        self.flat: dict[str, jax.Array] = {}
        # Here and not where they are used, which may be inside a loop.
        self.numbers: dict[str, jax.Array] = {}
        if integral.is_indexed:
            layout = integral.layout
            numbers = {n: group_numbers(shape, layout.grouped.get(n)) for n, shape in layout.shapes.items()}
            self.numbers = number_cells(self.tables, numbers)

        self.flat = self._flat_cells()

    def at(self, params: Params) -> Joint:
        """This joint density at other parameters."""
        joint = copy.copy(self)
        joint.params = params
        return joint

    # --------------------------------------------------------------------------------------- the latents as vectors

    def zeros(self) -> dict[str, jax.Array]:
        """Zero everywhere, unconstrained."""
        return self.integral.zeros()

    def pack(self, values: Mapping[str, jax.Array]) -> jax.Array:
        """Values as vectors ``(groups, dimensions)``."""
        return self.integral.layout.pack(values)

    def unpack(self, vectors: jax.Array) -> dict[str, jax.Array]:
        """Inverse of :meth:`pack`."""
        return self.integral.layout.unpack(vectors)

    def constrained(self, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Values as the model has them."""
        return {name: constrain(self.constraints[name], value) for name, value in values.items()}

    def unconstrained(self, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Inverse of :meth:`constrained`."""
        return {name: unconstrain(self.constraints[name], value) for name, value in values.items()}

    # ------------------------------------------------------------------------------------------------- the density

    def tables(self, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Log-probabilities of all sites that the latents enter, at one unconstrained value of each."""
        tables = self.tables_at({name: value[None] for name, value in self.constrained(values).items()})
        return tables | {name: tables[name] + jacobian for name, jacobian in self.log_jacobians(values).items()}

    def tables_at(self, atoms: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Tables at many atoms, as the model has them, without the Jacobian."""
        arrays = self.model.evaluate(self.params, self.data, self.wanted, atoms)
        tables = {name: log_prob_table(self.model.factors[name], arrays) for name in self.integral.factors}
        return tables | {name: jnp.where(cells, 0.0, tables[name]) for name, cells in self.flat.items()}

    def _flat_cells(self) -> dict[str, jax.Array]:
        """By latent that is masked, the masked cells that other sites depend on, whose density is flat."""
        flat: dict[str, jax.Array] = {}
        for latent in self.integral.latents if self.integral.layout.shapes else ():
            sites = partly_used(self.model, latent, self.integral.factors)
            if not sites or self.model.trace.sites[latent].is_scanned:
                continue
            joint = self.at(parameters_at_random(self.model))
            joint.flat = {}
            rng = np.random.default_rng(1)
            anywhere = {name: jnp.asarray(rng.normal(size=zero.shape)) for name, zero in self.zeros().items()}
            slope = jax.grad(lambda values: sum(jnp.sum(joint.tables(values)[name]) for name in sites))  # noqa: B023
            used = cells_with_slope(self.model, latent, slope(anywhere)[latent])
            arrays = self.model.evaluate(self.params, self.data, frozenset([(latent, "mask")]))
            flat[latent] = used & masked_cells(self.model, latent, arrays)
        return flat

    def by_cell(self, tables: Mapping[str, jax.Array], once: bool = False) -> jax.Array:
        """Their sum in every cell of the integral: linear in the tables.

        Weights of cells (``handlers.scale``) count relative to the weight of the latents' own cells.

        Args:
            tables: by site.
            once: count every cell with a weight once, whatever the weight.
        """
        cells = set(self.integral.cells)
        sizes = self.axes.sizes
        total = jnp.zeros((1,) * self.rank)
        arrays = None
        if any(self.model.factors[name].latents.get("cell_weight") is not None for name in tables):
            sites = (self.integral.latents[0], *self.integral.factors)
            fields = frozenset((name, "cell_weight") for name in sites)
            arrays = self.model.evaluate(self.params, self.data, fields)
        for name, table in tables.items():
            factor = self.model.factors[name]
            if arrays is not None:
                weight = self._relative_weight(arrays, name)
                table = table * (jnp.sign(weight) if once else weight)
            plates = self.axes.plates_of(factor.site, factor.site.batch_shape)
            if name in self.integral.indexed:
                table = self._by_index(name, table, plates)
            else:
                for axis, axis_name in enumerate(self.axes.names):
                    if axis_name in cells or axis_name == self.integral.axis:
                        continue
                    if table.shape[axis] > 1:
                        table = jnp.sum(table, axis, keepdims=True)
                    elif axis_name in plates:
                        table = table * sizes[axis_name]
            total = total + table
        full = tuple(
            sizes[name] if name in cells else total.shape[axis] if name == self.integral.axis else 1
            for axis, name in enumerate(self.axes.names)
        )
        return jnp.broadcast_to(total, full)

    def total(self, values: Mapping[str, jax.Array]) -> jax.Array:
        """Log joint density of all groups together, at one unconstrained value of each latent."""
        return jnp.sum(self.by_cell(self.tables(values)))

    def by_group(self, vectors: jax.Array) -> jax.Array:
        """Log joint density of every group, ``(groups,)``."""
        return self.to_groups(self.by_cell(self.tables(self.unpack(vectors))))

    def to_groups(self, table: jax.Array) -> jax.Array:
        """A table by cell, without atoms, as one number per group."""
        names = self._group_axes()
        order = [self.axes.names.index(name) for name in names]
        rest = [axis for axis in range(self.rank) if axis not in order]
        return jnp.reshape(jnp.transpose(table, rest + order), (self.integral.groups,))

    def gradient(self, vectors: jax.Array) -> jax.Array:
        """Gradient of every group, ``(groups, dimensions)``."""
        return jax.grad(lambda vectors: self.total(self.unpack(vectors)))(vectors)

    def gradient_of_values(self, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Gradient by latent."""
        return jax.grad(self.total)(dict(values))

    def hessian(self, vectors: jax.Array) -> jax.Array:
        """Second derivatives of every group, ``(groups, dimensions, dimensions)``."""
        return self.integral.layout.hessian(self.gradient_of_values, self.unpack(vectors))

    def gradient_and_hessian(self, vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both at once: the Hessian's probes share the pass that the gradient takes."""
        if self.integral.layout.in_common or vectors.shape[-1] > _FEW:
            return self.gradient(vectors), self.hessian(vectors)
        gradient, product = jax.linearize(self.gradient, vectors)
        unit = jnp.eye(vectors.shape[-1], dtype=vectors.dtype)
        columns = [product(jnp.broadcast_to(vector, vectors.shape)) for vector in unit]
        return gradient, jnp.stack(columns, -1)

    # ------------------------------------------------------------------------------------------------ common axes

    def to_cells(self, numbers: jax.Array) -> jax.Array:
        """One number per group, with the common axes; summed over groups that need not be told apart."""
        names = self._group_axes()
        by_name = jnp.reshape(numbers, tuple(self.axes.sizes[name] for name in names))
        order = sorted(range(len(names)), key=lambda n: self.axes.names.index(names[n]))
        shape = self.axes.shape(names)
        table = jnp.reshape(jnp.transpose(by_name, order), shape)
        apart = set(self.integral.cells)
        summed = tuple(a for a, name in enumerate(self.axes.names) if name in names and name not in apart)
        return jnp.sum(table, summed, keepdims=True) if summed else table

    def over_atoms(self, tables: jax.Array) -> jax.Array:
        """Tables with the common axes, one per atom in front, as one table."""
        return jnp.squeeze(jnp.moveaxis(tables, 0, self.atom_axis + 1), self.atom_axis)

    def atoms_to_cells(self, numbers: jax.Array) -> jax.Array:
        """One number per atom and group, ``(atoms, groups)``, with the common axes."""
        return self.over_atoms(jax.vmap(self.to_cells)(numbers))

    def along_atoms(self, numbers: jax.Array) -> jax.Array:
        """One number per atom, with the common axes."""
        return jnp.reshape(numbers, tuple(-1 if axis == self.atom_axis else 1 for axis in range(self.rank)))

    def _group_axes(self) -> list[str]:
        """Names of the axes that number the groups, in that order."""
        layout = self.integral.layout
        if not layout.groups:
            return []
        name = next(iter(layout.grouped))
        site, shape = self.model.trace.sites[name], layout.shapes[name]
        rank = len(shape) - len(site.event_shape)
        by_dim = self.axes.of_site(site)
        return [by_dim[axis - rank] for axis in layout.grouped[name]]

    # ------------------------------------------------------------------------------------------------------ pieces

    def log_jacobians(self, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Log-Jacobian from unconstrained values to those of the model, for the tables of the latents that need one."""
        jacobians = {}
        for name in self.integral.bounded(self.model.trace):
            site = self.model.trace.sites[name]
            entries = log_jacobian(self.constraints[name], values[name])
            events = tuple(range(entries.ndim - len(site.event_shape), entries.ndim))
            jacobians[name] = self.axes.align(jnp.sum(entries, events), site, 0)
        return jacobians

    def _relative_weight(self, arrays: Mapping[str, SiteArrays], name: str) -> jax.Array | float:
        scale = self.model.factors[name].scale(arrays)
        own = self.model.factors[self.integral.latents[0]].scale(arrays)
        if own is None:
            return 1.0 if scale is None else scale
        ratio = jnp.ones_like(own) if scale is None else scale
        return safe_divide(*jnp.broadcast_arrays(ratio, own, jnp.ones_like(own)))

    def _by_index(self, name: str, table: jax.Array, plates: frozenset[str]) -> jax.Array:
        """Sum over the cells that an index sends to one group; those that depend on none count with the first."""
        moved = jnp.moveaxis(table, self.atom_axis, -1)
        numbers = jnp.squeeze(self.numbers[name], self.atom_axis)
        full = jnp.broadcast_shapes(
            moved.shape[:-1],
            numbers.shape,
            tuple(self.axes.sizes[n] if n in plates else 1 for n in self.axes.names if n != self.integral.axis),
        )
        flat = jnp.reshape(jnp.broadcast_to(moved, full + moved.shape[-1:]), (math.prod(full), -1))
        where = jnp.maximum(jnp.reshape(jnp.broadcast_to(numbers, full), (-1,)), 0)
        sums = jax.ops.segment_sum(flat, where, self.integral.groups)
        return self.atoms_to_cells(sums.T)

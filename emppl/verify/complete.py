"""emppl's side of the check: what its tables add up to at values of all latents.

Discrete latents mark one cell of every table. Continuous ones take two values, and every group of an integral takes its
density from one of them: groups that are told apart wrongly, or that meet, then do not add up to NumPyro's density.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.elimination.reductions import PLAIN_SUM
from emppl.estep.plain import all_scales
from emppl.estep.posterior import probed_evidence
from emppl.integrals.exact import Exact
from emppl.integrals.joint import Joint
from emppl.integrals.way import integrate
from emppl.model.integral import Integral
from emppl.model.log_prob_table import log_prob_table
from emppl.model.model import Model
from emppl.model.site import AlignedSite
from emppl.names import latent_of, model_name
from emppl.numerics.guarded import weighted
from emppl.numerics.small_matrices import half_log_det
from emppl.trace import SiteArrays
from emppl.trace.density import Values
from emppl.types import Data, Params
from emppl.verify.values import of_axis, on_axes

PRIORS = "priors"
"""In the place of a site's name: all priors of parameters together."""


@dataclasses.dataclass(frozen=True)
class CompleteData:
    """The log joint density of data and latents, as emppl adds it up.

    Attributes:
        model: the model.
        params: where, free parameters.
        data: arrays of the model's arguments.
        first: a value of every latent.
        second: another value of every continuous latent.
        taken: by integral, which of the two every group takes.
    """

    model: Model
    params: Params
    data: Data
    first: Values
    second: Values
    taken: Mapping[str, jax.Array]

    def by_site(self) -> dict[str, tuple[jax.Array, jax.Array]]:
        """By site, and for all priors together, the sum over its cells and that of absolute values, in nats."""
        found = {**self._cells(self.marks(self.first)), PRIORS: [self.model.log_prior_from(self._arrays)]}
        return {
            name: (sum(map(jnp.sum, parts), jnp.zeros(())), sum((jnp.sum(jnp.abs(p)) for p in parts), jnp.zeros(())))
            for name, parts in found.items()
        }

    def likelihood(self, marks: Mapping[str, jax.Array]) -> jax.Array:
        """The sum over all cells of all sites, without priors, where discrete latents have the marked states."""
        return sum((jnp.sum(cells) for parts in self._cells(marks).values() for cells in parts), jnp.zeros(()))

    def _cells(self, marks: Mapping[str, jax.Array]) -> dict[str, list[jax.Array]]:
        model = self.model
        found: dict[str, list[jax.Array]] = {}
        for name, table in self._tables.items():
            factor = model.factors[name]
            mark = _product(marks, factor.all_latents)
            if factor.is_presence:
                mark = mark * factor.presence(self._arrays)
            cells = _weighted(_in_all_cells(model, factor, table), mark, factor.scale(self._arrays))
            found.setdefault(model_name(name), []).append(cells)
        for integral in model.integrals:
            own = model.factors[integral.latents[0]].scale(self._arrays)
            for name, cells in self._groups[integral.axis].items():
                cells = _weighted(cells, _product(marks, integral.given), own)
                found.setdefault(model_name(name), []).append(cells)
        return found

    def summed(self, marks: Mapping[str, jax.Array]) -> jax.Array:
        """The log of the sum of its exponential over all states that are marked, by emppl's elimination."""
        model = self.model
        tables = {axis: sum(of_site.values(), jnp.zeros(())) for axis, of_site in self._groups.items()}
        probes = {}
        for name in model.latents:
            mark = marks[name]
            if model.factors[name].is_presence:  # steps that do not exist have no state
                mark = jnp.where(model.factors[name].presence(self._arrays), mark, 1)
            if (labels := model.trace.sites[name].labels) is not None:  # these say what the state is, where they are
                mark = jnp.where(_known(model.factors[labels], self._arrays), 1, mark)
            probes[name] = jnp.where(mark > 0, 0.0, -jnp.inf)
        scales, present = all_scales(model, self._arrays), model.present(self._arrays)
        return probed_evidence(
            model, {**self._tables, **tables}, probes, scales, present, lambda part, place: PLAIN_SUM
        )

    @property
    def counts_every_state(self) -> bool:
        """Whether the sum over all states is the likelihood: in cells that do not exist, a sum counts every state."""
        factors = map(self.model.factors.get, self.model.latents)
        return bool(self.model.latents) and all(factor.mask(self._arrays) is None for factor in factors if factor)

    def integrals(self) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
        """By exact integral over normal latents, its evidence in two ways: ``p(y) = p(y, b) / p(b | y)`` for any ``b``.

        Returns:
            ``(emppl's evidence, log joint density less log conditional density, sum of absolute values)``, in nats.
        """
        found = {}
        for integral in self.model.integrals:
            if not isinstance(integral.way, Exact) or integral.bounded(self.model.trace):
                continue
            joint = Joint(self.model, integral, self.params, self.data)
            outcome = integrate(joint)
            assert outcome.root is not None
            values = joint.unconstrained(self._one_atom(joint, self.first))
            deviation = joint.pack(values) - outcome.mean
            whitened = jnp.einsum("gij,gi->gj", outcome.root, deviation)
            size = deviation.shape[-1] / 2 * math.log(2 * math.pi)
            conditional = half_log_det(outcome.root) - size - jnp.sum(whitened**2, -1) / 2
            cells = joint.by_cell(joint.tables(values))
            ratio = cells - joint.to_cells(conditional)
            names = ", ".join(map(repr, integral.latents))
            sizes = jnp.sum(jnp.abs(cells)) + jnp.sum(jnp.abs(conditional))
            found[f"the integral over {names}"] = jnp.sum(outcome.evidence), jnp.sum(ratio), sizes
        return found

    def marks(self, values: Values) -> dict[str, jax.Array]:
        """By axis of a discrete latent, one at the state of every cell and zero elsewhere, with the common axes."""
        model, marks = self.model, {}
        for axis in sorted(model.axes.latents - model.axes.of_atoms):
            latent, position = latent_of(axis), model.axes.names.index(axis)
            base = model_name(latent)
            if model.trace.sites[latent].labels is not None:  # the site that holds labels where they are known
                base = base.removesuffix("_unobserved")
            states = jnp.asarray(model.trace.atoms[axis])
            states = jnp.reshape(states, [-1 if place == position else 1 for place in range(model.axes.rank)])
            cells = on_axes(model, latent, of_axis(model, axis, values[base]))
            marks[axis] = (cells == states).astype(jnp.result_type(float))
        return marks

    @functools.cached_property
    def _arrays(self) -> dict[str, Any]:
        return self.model.evaluate(self.params, self.data)

    @functools.cached_property
    def _tables(self) -> dict[str, jax.Array]:
        """Tables of the sites without continuous latents."""
        model = self.model
        return {name: _table(f, self._arrays) for name, f in model.factors.items() if name not in model.integrated}

    @functools.cached_property
    def _groups(self) -> dict[str, dict[str, jax.Array]]:
        """By integral and site, the share of the site in the density of every group, each at one of two values."""
        return {integral.axis: self._by_group(integral) for integral in self.model.integrals}

    def _by_group(self, integral: Integral) -> dict[str, jax.Array]:
        joint = Joint(self.model, integral, self.params, self.data)

        def at(values: Values) -> dict[str, jax.Array]:
            atoms = {name: value[None] for name, value in self._one_atom(joint, values).items()}
            arrays = self.model.evaluate(self.params, self.data, joint.wanted, atoms)
            sites = [name for name in integral.factors if name not in integral.way.constant_sites]
            return {name: joint.by_cell({name: _table(self.model.factors[name], arrays)}) for name in sites}

        first, second = at(self.first), at(self.second)
        return {name: jnp.where(self.taken[integral.axis], first[name], second[name]) for name in first}

    def _one_atom(self, joint: Joint, values: Values) -> dict[str, jax.Array]:
        """One atom of every latent of an integral, the same for all states of discrete latents."""
        atoms = {}
        for name, zero in joint.constrained(joint.zeros()).items():
            value = of_axis(self.model, name, values[model_name(name)])
            if self.model.trace.sites[latent_of(name)].time is not None:
                value = jnp.reshape(value, value.shape[:1] + (1,) * (zero.ndim - value.ndim) + value.shape[1:])
            atoms[name] = jnp.broadcast_to(value, zero.shape)
        return atoms


def _table(factor: AlignedSite, arrays: Mapping[str, SiteArrays]) -> jax.Array:
    """A site's table in which masked latents, which do not exist, say nothing."""
    mask = factor.mask(arrays)
    if mask is None or factor.site.kind not in ("discrete", "integrated"):
        return log_prob_table(factor, arrays)
    unmasked = {**arrays, factor.name: dataclasses.replace(arrays[factor.name], mask=None)}
    table = log_prob_table(factor, unmasked, by_element=True)
    return jnp.sum(jnp.where(mask, table, 0), tuple(range(factor.axes.rank, table.ndim)))


def _known(factor: AlignedSite, arrays: Mapping[str, SiteArrays]) -> jax.Array:
    """Where a label is known, with the common axes."""
    align = functools.partial(factor.align, depends=frozenset(), trailing=0)
    known = factor.over_time(arrays[factor.name], ("label_mask",), lambda step: align(jnp.asarray(step.label_mask)))
    mask = factor.mask(arrays)
    return known if mask is None else known & mask


def _in_all_cells(model: Model, factor: AlignedSite, table: jax.Array) -> jax.Array:
    plates = model.axes.plates_of(factor.site, factor.site.batch_shape)
    full = model.axes.shape(plates | factor.all_latents)
    return jnp.broadcast_to(table, jnp.broadcast_shapes(table.shape, full))


def _product(marks: Mapping[str, jax.Array], latents: Iterable[str]) -> Any:
    product: Any = jnp.ones(())
    for axis in latents:
        product = product * marks.get(axis, 1.0)
    return product


def _weighted(cells: jax.Array, mark: jax.Array, scale: jax.Array | None) -> jax.Array:
    return weighted(*jnp.broadcast_arrays(mark if scale is None else mark * scale, cells))

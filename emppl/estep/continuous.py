"""Posterior of integrated latents themselves: moments, and draws given the discrete latents."""

from __future__ import annotations

import string
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from emppl.estep.plain import all_scales, log_evidence
from emppl.estep.simulated import Drawn, integrated_by_draws
from emppl.integrals.joint import Joint
from emppl.integrals.way import Way, integrate_all
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.names import first
from emppl.numerics.guarded import safe_divide
from emppl.types import Data, Params, Tables


def moments(
    model: Model, params: Params, data: Data, drawn: Drawn | None = None
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Posterior mean and covariance of every integrated latent, discrete latents summed out.

    Args:
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        drawn: draws of simulated latents at these parameters; default: importance sampling.

    Returns:
        By latent ``(mean, covariance)``: ``(*plates, *event)`` and ``(*plates, *event, *event)``, time first.
    """
    if drawn is None:
        integrated = integrate_all(model, params, data)
    else:
        integrated = integrated_by_draws(model, params, drawn, None, data)
    arrays = model.evaluate(params, data)
    scales, present = counted(all_scales(model, arrays)), model.present(arrays)
    tables = model.tables(arrays, model.integrated)

    def evidence(integrals: Tables) -> jax.Array:
        return log_evidence(model, {**tables, **integrals}, scales, present)

    weights = jax.grad(evidence)({axis: integral.evidence for axis, integral in integrated.items()})
    means, covariances = {}, {}
    for integral in model.integrals:
        over = tuple(model.axes.names.index(name) for name in integral.given)
        weight = weights[integral.axis]
        total = jnp.sum(weight, over, keepdims=True)
        weight = safe_divide(*jnp.broadcast_arrays(weight, total, jnp.ones_like(weight)))
        weight = weight * integrated[integral.axis].shares
        for name in _sites(model, integral):
            atoms = integrated[integral.axis].atoms[name]
            means[name], covariances[name] = _moments(model, integral.axis, name, atoms, weight)
    means, covariances = whole_scans(model, means), whole_scans(model, covariances)
    return {name: (means[name], covariances[name]) for name in means}


def counted(scales: Mapping[str, jax.Array | None]) -> dict[str, jax.Array | None]:
    """Weights of cells; a cell of weight zero has a posterior too: it counts next to nothing instead of nothing."""
    return {name: None if scale is None else jnp.where(scale == 0, 1e-30, scale) for name, scale in scales.items()}


def whole_scans(model: Model, tables: Tables) -> dict[str, jax.Array]:
    """Join the first steps of every scanned latent with the later ones, time first."""
    scans = {name: scan for scan in model.trace.scans for name in (*scan.depths, *scan.hidden)}
    early = {first(name, step) for name, scan in scans.items() for step in range(scan.order)}
    joined = {}
    for name, array in tables.items():
        if name in early:
            continue
        if name in scans:
            firsts = [tables[first(name, step)][None] for step in range(scans[name].order)]
            array = jnp.concatenate([*firsts, array])
        joined[name] = array
    return joined


def _moments(model: Model, axis: str, name: str, atoms: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and covariance over atoms and states."""
    event = len(model.trace.sites[name].event_shape)
    weight = _beside_values(model, name, weight, axis)
    over = (0, *(1 + place for place in _axes_without_plate(model, name)))
    mean = jnp.sum(weight * atoms, over, keepdims=True)
    deviation = atoms - mean
    letters = string.ascii_lowercase
    cells, entries = letters[: atoms.ndim - event], letters[atoms.ndim - event : atoms.ndim]
    others = entries.upper()
    kept = "".join(letter for place, letter in enumerate(cells) if place not in over)
    product = f"{cells}{entries},{cells}{others}->{kept}{entries}{others}"
    covariance = jnp.einsum(product, weight * deviation, deviation)
    return jnp.squeeze(mean, over), covariance


def sample_given(model: Model, params: Params, data: Data, chosen: Tables, rng_key: jax.Array) -> dict[str, jax.Array]:
    """One joint draw of all integrated latents given the states of the discrete ones.

    Args:
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        chosen: by discrete latent, a table that is largest at the state it has, with the common axes.
        rng_key: random key.

    Returns:
        By latent ``(*plates, *event)``, time first.
    """
    integrated = integrate_all(model, params, data)
    drawn = {}
    for number, integral in enumerate(model.integrals):
        joint, way = Joint(model, integral, params, data), integral.way
        assert isinstance(way, Way)
        vectors = way.draw(joint, integrated[integral.axis], jax.random.fold_in(rng_key, number))
        values = joint.constrained(joint.unpack(vectors))
        for name in _sites(model, integral):
            value = values[name]
            for latent in integral.given:
                axis = model.axes.names.index(latent)
                best = jnp.argmax(chosen[latent], axis)
                picked = jax.nn.one_hot(best, model.axes.sizes[latent], axis=axis, dtype=value.dtype)
                value = value * _beside_values(model, name, picked)[0]
            drawn[name] = jnp.sum(value, _axes_without_plate(model, name))
    return whole_scans(model, drawn)


# ------------------------------------------------------------------------------------------------------- layouts


def _sites(model: Model, integral: Integral) -> list[str]:
    """The latents of an integral; of a scan, those of the first steps, and of the later ones."""
    return [name for name in integral.layout.shapes if name in model.trace.sites]


def _batch_rank(model: Model, name: str) -> int:
    """Number of batch axes of one value of a latent, time not counted."""
    site = model.trace.sites[name]
    return len(model.trace.value_shapes[name]) - len(site.event_shape) - (site.time is not None)


def _beside_values(model: Model, name: str, table: jax.Array, atoms: str | None = None) -> jax.Array:
    """From the common axes to those of a latent's values, with the atoms in front: of size one where it is constant."""
    site = model.trace.sites[name]
    by_dim = model.axes.of_site(site)
    wanted = [atoms, *(by_dim.get(dim) for dim in range(-_batch_rank(model, name), 0))]
    kept = [model.axes.names.index(axis) for axis in wanted if axis is not None]
    rest = [axis for axis in range(model.axes.rank) if axis not in kept]
    moved = jnp.squeeze(jnp.transpose(table, rest + kept), tuple(range(len(rest))))
    sizes = iter(moved.shape)
    shape = [1 if axis is None else next(sizes) for axis in wanted]
    time = [1] * (site.time is not None)
    return jnp.reshape(moved, (*shape[:1], *time, *shape[1:], *(1 for _ in site.event_shape)))


def _axes_without_plate(model: Model, name: str) -> tuple[int, ...]:
    """Axes of one value of a latent that run over the states of discrete latents, or over nothing."""
    site, rank = model.trace.sites[name], _batch_rank(model, name)
    by_dim, is_timed = model.axes.of_site(site), site.time is not None
    plates = model.axes.plates_of(site, model.trace.value_shapes[name][is_timed : is_timed + rank])
    return tuple(is_timed + axis for axis in range(rank) if by_dim.get(axis - rank) not in plates)

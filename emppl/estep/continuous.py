"""Posterior of integrated latents themselves: moments, and draws given the discrete latents."""

from __future__ import annotations

import string
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from emppl.estep.plain import all_scales, log_evidence
from emppl.estep.simulated import Drawn, integrated_by_draws
from emppl.integrals.importance import placed
from emppl.integrals.integration import conditional, integrate_all
from emppl.integrals.joint import Joint
from emppl.integrals.limits import find_limits
from emppl.integrals.mcmc import draw_once
from emppl.integrals.outcome import Integrated
from emppl.integrals.smoother import draw_states
from emppl.integrals.truncated import draw_inside
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.names import first, model_name
from emppl.numerics.guarded import safe_divide
from emppl.strategies import Quadrature, Simulated


def moments(model: Model, params, data, drawn: Drawn | None = None) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Posterior mean and covariance of every integrated latent, discrete latents summed out.

    Args:
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        drawn: draws of simulated latents at these parameters; default: importance sampling.

    Returns:
        By latent ``(mean, covariance)``: ``(*plates, *event)`` and ``(*plates, *event, *event)``.
    """
    if drawn is None:
        integrated = integrate_all(model, params, data)
    else:
        integrated = integrated_by_draws(model, params, drawn, None, data)
    arrays = model.evaluate(params, data)
    scales, present = counted(all_scales(model, arrays)), model.present(arrays)
    tables = model.tables(arrays, model.integrated)

    def evidence(integrals):
        return log_evidence(model, {**tables, **integrals}, scales, present)

    weights = jax.grad(evidence)({name: one.evidence for name, one in integrated.items()})
    found = {}
    for integral in model.integrals:
        if integral.chain is not None:
            found.update(_of_chain(model, integral, integrated[integral.axis]))
            continue
        over = tuple(model.axes.names.index(name) for name in integral.given)
        weight = weights[integral.axis]
        total = jnp.sum(weight, over, keepdims=True)
        weight = safe_divide(*jnp.broadcast_arrays(weight, total, jnp.ones_like(weight)))
        weight = weight * integrated[integral.axis].shares
        for name in integral.latents:
            atoms = integrated[integral.axis].atoms[name]
            found[name] = _moments(model, integral.axis, name, atoms, weight)
    return found


def _of_chain(model: Model, integral: Integral, found: Integrated):
    """Moments of every step of a chain, time first."""
    means, spreads = {}, {}
    for name in _sites_of_chain(model, integral):
        site, atoms = model.trace.sites[name], found.atoms[name]
        event = len(site.event_shape)
        batch = atoms.ndim - 1 - event - (site.time is not None)
        share = _beside_values(model, name, found.shares, batch, integral.axis)
        if site.time is not None:
            share = share[:, None]
        share = jnp.reshape(share, share.shape + (1,) * event)
        mean = jnp.sum(share * atoms, 0)
        entries, others = string.ascii_lowercase[:event], string.ascii_uppercase[:event]
        deviation = atoms - mean[None]
        spread = jnp.einsum(f"z...{entries},z...{others}->...{entries}{others}", share * deviation, deviation)
        means[name] = _tidy_step(model, name, mean, event)
        spreads[name] = _tidy_step(model, name, spread, 2 * event)
    means, spreads = whole_chains(model, integral, means), whole_chains(model, integral, spreads)
    return {name: (means[name], spreads[name]) for name in means}


def _sites_of_chain(model: Model, integral: Integral) -> list[str]:
    """Latents of the first steps, and of the later ones."""
    mine = set(integral.latents)
    sites = model.trace.sites.items()
    return [name for name, site in sites if site.kind == "integrated" and model_name(name) in mine]


def _tidy_step(model: Model, name: str, array: jax.Array, trailing: int) -> jax.Array:
    """Drop batch axes of size one that are no plates; a time axis in front stays."""
    site = model.trace.sites[name]
    plates = {plate.dim for plate in site.plates if not plate.is_time}
    lead = 0 if site.time is None else 1
    rank = array.ndim - trailing
    gone = tuple(a for a in range(lead, rank) if a - rank not in plates and array.shape[a] == 1)
    return jnp.squeeze(array, gone)


def whole_chains(model: Model, integral: Integral, found: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Join the first steps of the latents of a chain with the later ones, time first."""
    assert integral.chain is not None
    firsts = range(integral.chain.chain.order)
    return {
        name: jnp.concatenate([*(found[first(name, step)][None] for step in firsts), found[name]])
        for name in integral.latents
    }


def counted(scales: Mapping[str, jax.Array | None]) -> dict[str, jax.Array | None]:
    """Weights of cells; a cell of weight zero has a posterior too: it counts next to nothing instead of nothing."""
    return {name: None if one is None else jnp.where(one == 0, 1e-30, one) for name, one in scales.items()}


def _moments(model: Model, axis: str, name: str, atoms: jax.Array, weight: jax.Array):
    """Mean and covariance over atoms and states."""
    event = len(model.trace.sites[name].event_shape)
    weight = _beside_values(model, name, weight, atoms.ndim - 1 - event, axis)
    weight = jnp.reshape(weight, weight.shape + (1,) * event)
    over = (0, *(1 + axis for axis in _axes_without_plate(model, name)))
    mean = jnp.sum(weight * atoms, over, keepdims=True)
    deviation = atoms - mean
    letters = string.ascii_lowercase
    cells, entries = letters[: atoms.ndim - event], letters[atoms.ndim - event : atoms.ndim]
    others = entries.upper()
    kept = "".join(letter for axis, letter in enumerate(cells) if axis not in over)
    product = f"{cells}{entries},{cells}{others}->{kept}{entries}{others}"
    covariance = jnp.einsum(product, weight * deviation, deviation)
    return jnp.squeeze(mean, over), covariance


def sample_given(
    model: Model, params, data, chosen: Mapping[str, jax.Array], rng_key: jax.Array
) -> dict[str, jax.Array]:
    """One joint draw of all integrated latents given the states of the discrete ones.

    Args:
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        chosen: by discrete latent, a table that is largest at the state it has, with the common axes.
        rng_key: random key.

    Returns:
        By latent ``(*plates, *event)``.
    """
    integrated = integrate_all(model, params, data)
    drawn = {}
    for number, integral in enumerate(model.integrals):
        key = jax.random.fold_in(rng_key, number)
        joint = Joint(model, integral, params, data)
        if integral.states is not None:
            drawn.update(_steps(model, integral, draw_states(joint, key)))
            continue
        found = integrated[integral.axis]
        if integral.limits:
            free = Joint(model, integral.unlimited, params, data)
            limits = find_limits(model, integral, data)
            vectors = draw_inside(limits, *conditional(free, found.mean), key)
        else:
            if isinstance(integral.strategy, Quadrature | Simulated):
                vectors = draw_once(joint, found.mean, found.root, key)
            else:
                vectors = placed(found.mean, found.root, jax.random.normal(key, found.mean.shape, found.mean.dtype))
        values = joint.constrained(joint.unpack(vectors))
        if integral.chain is not None:
            drawn.update(_steps(model, integral, values))
            continue
        for name, value in values.items():
            event = len(model.trace.sites[name].event_shape)
            for latent in integral.given:
                axis = model.axes.names.index(latent)
                best = jnp.argmax(chosen[latent], axis)
                picked = jax.nn.one_hot(best, model.axes.sizes[latent], axis=axis, dtype=value.dtype)
                picked = _beside_values(model, name, picked, value.ndim - event)[0]
                value = value * jnp.reshape(picked, picked.shape + (1,) * event)
            drawn[name] = jnp.sum(value, _axes_without_plate(model, name))
    return drawn


def _steps(model: Model, integral: Integral, values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """One draw of a chain, time first, from values of its first steps and windows."""
    steps = {
        name: _tidy_step(model, name, values[name], len(model.trace.sites[name].event_shape))
        for name in _sites_of_chain(model, integral)
    }
    return whole_chains(model, integral, steps)


# ------------------------------------------------------------------------------------------------------- layouts


def _beside_values(model: Model, name: str, table: jax.Array, rank: int, atoms: str | None = None) -> jax.Array:
    """From the common axes to the batch axes of a latent's values, the atoms in front of them."""
    by_dim = model.axes.of_site(model.trace.sites[name])
    wanted = [atoms, *(by_dim.get(dim) for dim in range(-rank, 0))]
    kept = [model.axes.names.index(one) for one in wanted if one is not None]
    rest = [axis for axis in range(model.axes.rank) if axis not in kept]
    moved = jnp.squeeze(jnp.transpose(table, rest + kept), tuple(range(len(rest))))
    sizes = iter(moved.shape)
    return jnp.reshape(moved, tuple(1 if one is None else next(sizes) for one in wanted))


def _axes_without_plate(model: Model, name: str) -> tuple[int, ...]:
    """Batch axes of one value of a latent that run over the states of discrete latents, or over nothing."""
    site, shape = model.trace.sites[name], model.trace.value_shapes[name]
    rank = len(shape) - len(site.event_shape)
    by_dim = model.axes.of_site(site)
    plates = model.axes.plates_of(site, site.shape[: len(site.shape) - len(site.event_shape)])
    return tuple(axis for axis in range(rank) if by_dim.get(axis - rank) not in plates)

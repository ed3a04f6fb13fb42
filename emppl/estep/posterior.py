"""Posterior of the latents themselves: marginals, moments, the most probable assignment, exact joint draws.

Marginals, the assignment and draws of discrete latents are the gradient of the log normaliser with respect to a zero
table per latent; what replaces the sum over a latent decides which one it is. Chains have their own way of each: the
kernels, Viterbi's algorithm, filtering and drawing backwards; the same reduction step by step is their twin. Integrated
latents are drawn by their ways, given the discrete ones.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from emppl.elimination import reductions
from emppl.elimination.reductions import BEST, SUM, Reduction, draw
from emppl.elimination.run import log_normalizer, probe_name
from emppl.estep.plain import all_scales, log_evidence
from emppl.estep.simulated import Drawn, integrated_by_draws
from emppl.integrals.joint import Joint
from emppl.integrals.way import Way, integrate_all
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.names import first
from emppl.numerics.guarded import safe_divide
from emppl.types import Data, Params, Tables


def marginals(model: Model, params: Params, data: Data) -> dict[str, jax.Array]:
    """Posterior probabilities of every latent's states: plates in model order, then the states."""
    raw = _probe_gradient(model, params, data, lambda part, place: SUM)
    tidy = {}
    for latent, table in raw.items():
        moved = user_layout(model, latent, table)
        total = jnp.sum(moved, -1, keepdims=True)
        # A step that does not exist says nothing about its state.
        tidy[latent] = safe_divide(moved, total, jnp.full_like(moved, 1 / moved.shape[-1]))
    return whole_scans(model, tidy)


def decode(model: Model, params: Params, data: Data, twin: bool = False) -> dict[str, jax.Array]:
    """Jointly most probable state of every latent (index into its support), by max-product elimination.

    Args:
        twin: go through chains step by step, differentiated by JAX.
    """
    best = reductions.twin(BEST) if twin else BEST
    return _states(model, _probe_gradient(model, params, data, lambda part, place: best))


def sample(model: Model, params: Params, data: Data, rng_key: jax.Array, twin: bool = False) -> dict[str, jax.Array]:
    """One joint draw of all latents from their posterior: discrete ones as indices into their support.

    Args:
        twin: go through chains step by step, differentiated by JAX.
    """
    of_integrals, *keys = jax.random.split(rng_key, 1 + len(model.parts))

    def choose(part: int, place: int) -> Reduction:
        drawn = draw(jax.random.fold_in(keys[part], place))  # the probes give the tables a cell for every draw
        return reductions.twin(drawn) if twin else drawn

    raw = _probe_gradient(model, params, data, choose)
    return _states(model, raw) | _draw_integrated(model, params, data, raw, of_integrals)


def _states(model: Model, raw: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    chosen = {latent: jnp.argmax(user_layout(model, latent, table), -1) for latent, table in raw.items()}
    return whole_scans(model, chosen)


def _draw_integrated(
    model: Model, params: Params, data: Data, chosen: Tables, rng_key: jax.Array
) -> dict[str, jax.Array]:
    """One joint draw of all integrated latents given the states of the discrete ones.

    Args:
        chosen: by discrete latent, a table that is largest at the state it has, with the common axes.

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


def moments(
    model: Model, params: Params, data: Data, drawn: Drawn | None = None
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Posterior mean and covariance of every integrated latent, discrete latents summed out.

    Args:
        drawn: draws of simulated latents at these parameters; default: importance sampling.

    Returns:
        By latent ``(mean, covariance)``: ``(*plates, *event)`` and ``(*plates, *event, *event)``, time first.
    """
    if drawn is None:
        integrated = integrate_all(model, params, data)
    else:
        integrated = integrated_by_draws(model, params, drawn, None, data)
    arrays = model.evaluate(params, data)
    scales, present = _counted(all_scales(model, arrays)), model.present(arrays)
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


def moments_of_atoms(model: Model, integral: Integral, atoms: Tables) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Moments of the latents of an integral from equally weighted atoms, laid out as by :func:`moments`."""
    shares = jnp.ones((1,) * model.axes.rank) / len(next(iter(atoms.values())))
    found = {name: _moments(model, integral.axis, name, atoms[name], shares) for name in _sites(model, integral)}
    means, covariances = (whole_scans(model, {name: pair[i] for name, pair in found.items()}) for i in (0, 1))
    return {name: (means[name], covariances[name]) for name in means}


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


def _probe_gradient(
    model: Model, params: Params, data: Data, choose: Callable[[int, int], Reduction]
) -> dict[str, jax.Array]:
    """Gradient with respect to a zero table for every latent over all its plates.

    Args:
        choose: the reduction of one axis, from the numbers of its part and of the axis in its elimination.
    """
    if not model.latents:
        return {}
    arrays = model.evaluate(params, data)
    integrated = integrate_all(model, params, data)
    tables = model.tables(arrays, model.integrated) | {name: outcome.evidence for name, outcome in integrated.items()}
    scales = _counted(all_scales(model, arrays))
    present = model.present(arrays)
    probes = {}
    for latent in model.latents:
        factor = model.factors[latent]
        plates = model.axes.plates_of(factor.site, factor.site.batch_shape)
        probes[latent] = jnp.zeros(model.axes.shape(plates | {latent}), jnp.result_type(float))

    return jax.grad(lambda probes: probed_evidence(model, tables, probes, scales, present, choose))(probes)


def probed_evidence(
    model: Model,
    tables: Tables,
    probes: Tables,
    scales: Mapping[str, jax.Array | None],
    present: Tables,
    choose: Callable[[int, int], Reduction],
) -> jax.Array:
    """Log normaliser of all parts, with one more table for every discrete latent.

    Args:
        tables: those of the sites and, by their axes, of the integrals.
        probes: by discrete latent, a table over its states and plates.
        choose: the reduction of one axis, from the numbers of its part and of the axis in its elimination.
    """
    inside = {name: integral.axis for integral in model.integrals for name in integral.factors}
    in_chains = {probe for part in model.parts for probe in part.probes}
    raised = dict(tables)
    for name, probe in probes.items():
        if probe_name(name) in in_chains:  # apart from the transition, which need not vary over time
            raised[probe_name(name)] = probe
        else:
            name = inside.get(name, name)
            raised[name] = raised[name] + probe
    total = jnp.zeros((), jnp.result_type(float))
    for number, part in enumerate(model.parts):
        of_part = {name: raised[name] for name in (*part.factors, *part.probes) if name in raised}
        chosen = {axis: choose(number, place) for place, axis in enumerate(part.plan.reduced)}
        total = total + log_normalizer(part.plan, of_part, scales, chosen, present)
    return total


def _counted(scales: Mapping[str, jax.Array | None]) -> dict[str, jax.Array | None]:
    """Weights of cells; a cell of weight zero has a posterior too: it counts next to nothing instead of nothing."""
    return {name: None if scale is None else jnp.where(scale == 0, 1e-30, scale) for name, scale in scales.items()}


# ------------------------------------------------------------------------------------------------------- layouts


def user_layout(model: Model, latent: str, table: jax.Array) -> jax.Array:
    """From the common axes to ``(*plates, states)``, plates outermost first as NumPyro lays them out."""
    axes = model.axes
    site = model.trace.sites[latent]
    plates = axes.plates_of(site, site.batch_shape)
    order = sorted(plates, key=lambda name: axes.dims[name])
    kept = [axes.names.index(name) for name in [*order, latent]]
    rest = [a for a in range(axes.rank) if a not in kept]
    moved = jnp.transpose(table, rest + kept)
    return jnp.reshape(moved, moved.shape[len(rest) :])


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

"""Posterior of the latents themselves: marginals, the most probable assignment, exact joint draws.

All three are the gradient of the log normaliser with respect to a zero table per latent; what replaces the sum
over a latent decides which one it is. Chains have their own way of each: the kernels, Viterbi's algorithm, filtering
and drawing backwards; the same reduction step by step is their twin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from emppl.elimination import reductions
from emppl.elimination.reductions import BEST, SUM, Reduction, draw
from emppl.elimination.run import log_normalizer, probe_name
from emppl.estep.continuous import counted, sample_given, whole_scans
from emppl.estep.plain import all_scales
from emppl.integrals.way import integrate_all
from emppl.model.model import Model
from emppl.numerics.guarded import safe_divide
from emppl.types import Data, Params


def _gradient_of_probes(
    model: Model, params: Params, data: Data, choose: Callable[[int, int], Reduction]
) -> dict[str, jax.Array]:
    """Gradient with respect to a zero table for every latent over all its plates.

    Args:
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        choose: the reduction of one axis, from the numbers of its part and of the axis in its elimination.
    """
    if not model.latents:
        return {}
    arrays = model.evaluate(params, data)
    integrated = integrate_all(model, params, data)
    tables = model.tables(arrays, model.integrated) | {name: outcome.evidence for name, outcome in integrated.items()}
    inside = {name: integral.axis for integral in model.integrals for name in integral.factors}
    scales = counted(all_scales(model, arrays))
    present = model.present(arrays)
    in_chains = {probe for part in model.parts for probe in part.probes}
    probes = {}
    for latent in model.latents:
        factor = model.factors[latent]
        plates = model.axes.plates_of(factor.site, factor.site.batch_shape)
        sizes, kept = model.axes.sizes, plates | {latent}
        shape = tuple(sizes[name] if name in kept else 1 for name in model.axes.names)
        probes[latent] = jnp.zeros(shape, jnp.result_type(float))

    def evidence(probes: dict[str, jax.Array]) -> jax.Array:
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

    return jax.grad(evidence)(probes)


def marginals(model: Model, params: Params, data: Data) -> dict[str, jax.Array]:
    """Posterior probabilities of every latent's states: plates in model order, then the states."""
    raw = _gradient_of_probes(model, params, data, lambda part, place: SUM)
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
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        twin: go through chains step by step, differentiated by JAX.
    """
    best = reductions.twin(BEST) if twin else BEST
    return _states(model, _gradient_of_probes(model, params, data, lambda part, place: best))


def sample(model: Model, params: Params, data: Data, rng_key: jax.Array, twin: bool = False) -> dict[str, jax.Array]:
    """One joint draw of all latents from their posterior: discrete ones as indices into their support.

    Args:
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        rng_key: random key.
        twin: go through chains step by step, differentiated by JAX.
    """
    of_integrals, *keys = jax.random.split(rng_key, 1 + len(model.parts))

    def choose(part: int, place: int) -> Reduction:
        drawn = draw(jax.random.fold_in(keys[part], place))  # the probes give the tables a cell for every draw
        return reductions.twin(drawn) if twin else drawn

    raw = _gradient_of_probes(model, params, data, choose)
    return _states(model, raw) | sample_given(model, params, data, raw, of_integrals)


def _states(model: Model, raw: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    chosen = {latent: jnp.argmax(user_layout(model, latent, table), -1) for latent, table in raw.items()}
    return whole_scans(model, chosen)


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

"""Posterior of the latents themselves: marginals, the most probable assignment, exact joint draws.

All three are the gradient of the log normaliser with respect to a zero table per latent; what replaces the sum
over a latent decides which one it is. Chains have their own way of each: the kernels, Viterbi's algorithm, filtering
and drawing backwards; the same ``sum_out`` step by step is their twin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from emppl.elimination.chain import log_evidence, path_evidence
from emppl.elimination.chains import ChainTables, SumOut
from emppl.elimination.run import log_normalizer, log_sum, probe_name
from emppl.estep.continuous import counted, sample_given, whole_scans
from emppl.estep.plain import all_scales, owners_of
from emppl.integrals.way import integrate_all
from emppl.model.model import Model
from emppl.numerics.guarded import maximum_out, safe_divide, sample_out


class Reduction(NamedTuple):
    """What replaces the sum over a latent, and the sum over a whole chain (None: the former, step by step)."""

    over: SumOut
    chain: Callable[[ChainTables], jax.Array] | None


def _gradient_of_probes(model: Model, params, data, how: Callable[[int], Reduction]) -> dict[str, jax.Array]:
    """Gradient with respect to a zero table for every latent over all its plates; ``how`` is asked part by part."""
    if not model.latents:
        return {}
    arrays = model.evaluate(params, data)
    integrated = integrate_all(model, params, data)
    tables = model.tables(arrays, model.integrated) | {name: one.evidence for name, one in integrated.items()}
    inside = {name: integral.axis for integral in model.integrals for name in integral.factors}
    scales = counted(all_scales(model, arrays))
    owners = owners_of(model, scales)
    present = model.present(arrays)
    in_chains = {probe for part in model.parts for probe in part.probes}
    probes = {}
    for latent in model.latents:
        factor = model.factors[latent]
        plates = model.axes.plates_of(factor.site, factor.site.batch_shape)
        shape = tuple(s if n == latent or n in plates else 1 for n, s in _sizes(model))
        probes[latent] = jnp.zeros(shape, jnp.result_type(float))

    def evidence(probes):
        raised = dict(tables)
        for name, probe in probes.items():
            if probe_name(name) in in_chains:  # apart from the transition, which need not vary over time
                raised[probe_name(name)] = probe
            else:
                name = inside.get(name, name)
                raised[name] = raised[name] + probe
        total = jnp.zeros((), jnp.result_type(float))
        for number, part in enumerate(model.parts):
            mine = {name: raised[name] for name in (*part.factors, *part.probes) if name in raised}
            over, chain = how(number)
            total = total + log_normalizer(part.plan, mine, scales, owners, over, present, sum_chain=chain)
        return total

    return jax.grad(evidence)(probes)


def _sizes(model: Model):
    return [(name, model.axes.sizes[name]) for name in model.axes.names]


def marginals(model: Model, params, data) -> dict[str, jax.Array]:
    """Posterior probabilities of every latent's states: plates in model order, then the states."""
    kernels = Reduction(log_sum, lambda tables: log_evidence(*tables.arrays))
    raw = _gradient_of_probes(model, params, data, lambda _: kernels)
    tidy = {}
    for latent, table in raw.items():
        moved = user_layout(model, latent, table)
        total = jnp.sum(moved, -1, keepdims=True)
        # A step that does not exist says nothing about its state.
        tidy[latent] = safe_divide(moved, total, jnp.full_like(moved, 1 / moved.shape[-1]))
    return whole_scans(model, tidy)


def decode(model: Model, params, data, twin: bool = False) -> dict[str, jax.Array]:
    """Jointly most probable state of every latent (index into its support), by max-product elimination.

    Args:
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        twin: go through chains step by step, differentiated by JAX.
    """
    best = Reduction(_maximum, None if twin else lambda tables: path_evidence(None, *tables.arrays))
    return _states(model, _gradient_of_probes(model, params, data, lambda _: best))


def sample(model: Model, params, data, rng_key: jax.Array, twin: bool = False) -> dict[str, jax.Array]:
    """One joint draw of all latents from their posterior: discrete ones as indices into their support.

    Args:
        model: the model.
        params: constrained parameter values.
        data: arrays of the model's arguments.
        rng_key: random key.
        twin: go through chains step by step, differentiated by JAX.
    """
    of_integrals, *keys = jax.random.split(rng_key, 1 + len(model.parts))

    def drawer(number):
        calls = iter(range(10**6))

        def draw(table, axis, time=None):
            mine = jax.random.fold_in(keys[number], next(calls))
            mine = mine if time is None else jax.random.fold_in(mine, time)
            return sample_out(table, jax.random.gumbel(mine, table.shape, table.dtype), axis)

        def path(tables):
            return path_evidence(jax.random.fold_in(keys[number], next(calls)), *tables.arrays)

        return Reduction(draw, None if twin else path)

    raw = _gradient_of_probes(model, params, data, drawer)
    return _states(model, raw) | sample_given(model, params, data, raw, of_integrals)


def _states(model: Model, raw: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    chosen = {latent: jnp.argmax(user_layout(model, latent, table), -1) for latent, table in raw.items()}
    return whole_scans(model, chosen)


def _maximum(table: jax.Array, axis: int, time=None) -> jax.Array:
    del time
    return maximum_out(table, axis)


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

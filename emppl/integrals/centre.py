"""Where the search for a conditional mode begins: the centre of every latent's prior, given those before it.

Zero may be far away, or where the density is none: a volume in a denominator, an asymptote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from emppl.integrals.joint import Joint
from emppl.model.state_space import TrajectoryLayout
from emppl.parameters.constraints import unconstrain
from emppl.trace import as_numpyro_expects

_CENTRES = ("loc", "mean", "scale")
"""What NumPyro knows of where a distribution lies, the first that is a value of it; only heavy tails need the last."""


def starting_vectors(joint: Joint, guess: jax.Array | None) -> jax.Array:
    """The guess, and the centre of the prior where there is none (NaN).

    Args:
        joint: the log joint density.
        guess: ``(groups, dimensions)``.
    """
    joint = joint.at(jax.lax.stop_gradient(joint.params))
    if guess is None:
        return prior_centre(joint)
    # A loop and not a condition, of which `vmap` would compute both branches in every iteration.
    start, _ = jax.lax.while_loop(
        lambda carry: carry[1],
        lambda carry: (jnp.where(jnp.isnan(carry[0]), prior_centre(joint), carry[0]), jnp.zeros_like(carry[1])),
        (jax.lax.stop_gradient(guess), jnp.any(jnp.isnan(guess))),
    )
    return start


def prior_centre(joint: Joint) -> jax.Array:
    """The centre of the prior, unconstrained, ``(groups, dimensions)``; zero where it is unknown or has no density.

    Later steps of a chain begin one step after the first ones.
    """
    layout, sites = joint.integral.layout, joint.model.trace.sites
    zeros = joint.pack(joint.zeros())
    vectors, is_later = zeros, False
    for name in sorted(set(layout.shapes) & set(sites), key=list(sites).index):
        if isinstance(layout, TrajectoryLayout) and sites[name].time is not None and not is_later:
            vectors, is_later = _as_the_first_steps(layout, vectors), True
        values = joint.unpack(vectors)
        vectors = joint.pack({**values, name: _conditional_centre(joint, name, values)})
    is_possible = jnp.isfinite(joint.by_group(vectors))
    return jnp.where(is_possible[:, None], vectors, zeros)


def _as_the_first_steps(layout: TrajectoryLayout, vectors: jax.Array) -> jax.Array:
    """Trajectories that stay where their last first step is."""
    states = layout.states
    steps = jnp.reshape(vectors, (states.cells, states.steps, states.dimensions))
    first = steps[:, : states.scan.order]
    later = jnp.broadcast_to(first[:, -1:], (states.cells, states.scan.length, states.dimensions))
    return jnp.reshape(jnp.concatenate([first, later], 1), vectors.shape)


def _conditional_centre(joint: Joint, name: str, values: Mapping[str, jax.Array]) -> jax.Array:
    """The centre of one latent's prior, unconstrained, at values of the others."""
    factor, shape = joint.model.factors[name], joint.model.trace.value_shapes[name]
    atoms = {latent: value[None] for latent, value in joint.constrained(values).items()}
    arrays = joint.model.evaluate(joint.params, joint.data, frozenset([(name, "distribution")]), atoms)
    one = factor.at_one_atom(arrays[name])
    with as_numpyro_expects():
        if factor.site.time is None:
            centre = jnp.broadcast_to(_centre(one.distribution), shape)
        else:
            by_step = factor.by_step(one, lambda step: jnp.broadcast_to(_centre(step.distribution), shape[1:]))
            centre = jnp.broadcast_to(by_step, shape)
    free = unconstrain(factor.site.constraint, centre)
    return jnp.where(jnp.isfinite(free), free, 0)


def _centre(distribution: Any) -> jax.Array:
    """A value in the middle of a distribution, NaN where none is known."""
    if isinstance(distribution, dist.TransformedDistribution):
        value = _centre(distribution.base_dist)
        for transform in distribution.transforms:
            value = transform(value)
        return value
    shape = distribution.shape()
    centre = jnp.full(shape, jnp.nan)
    for name in _CENTRES:
        try:
            value = jnp.broadcast_to(getattr(distribution, name), shape)
            inside = jnp.asarray(distribution.support(value))
        except (AttributeError, ImportError, NotImplementedError, TypeError, ValueError):
            continue
        inside = jnp.reshape(inside, inside.shape + (1,) * (len(shape) - inside.ndim)) & jnp.isfinite(value)
        centre = jnp.where(jnp.isnan(centre) & inside, value, centre)
    return centre

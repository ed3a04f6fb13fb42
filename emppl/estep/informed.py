"""What the data say of a latent beside its prior: where that is next to nothing, EM hardly moves the parameters.

An M-step moves the mean of normal latents by the share of their information that is not their prior's. Near a standard
deviation of zero that share is zero: draws of the latent repeat what the parameters were, and so do parameters.

Reference:
    Meng and van Dyk (1997), The EM algorithm: an old folk-song sung to a fast new tune, JRSS B 59:511-567.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from emppl.estep.simulated import simulated
from emppl.integrals.centre import prior_centre
from emppl.integrals.joint import Joint
from emppl.integrals.modes import find_modes
from emppl.model.model import Model
from emppl.names import model_name
from emppl.types import Data, Params


def informed_shares(model: Model, params: Params, data: Data) -> dict[str, jax.Array]:
    """By drawn latent whose prior has free parameters, the share of its information that is not its prior's.

    That of the best informed cell, in the worst entry of an event: a pure function, to be jitted.
    """
    informed = {}
    for integral in simulated(model):
        joint = Joint(model, integral, params, data)
        mode = find_modes(joint, prior_centre(joint))
        whole = _diagonals(joint, mode, integral.factors)
        for latent in dict.fromkeys(map(model_name, integral.latents)):
            own = tuple(name for name in integral.latents if model_name(name) == latent)
            if not any(set(model.factors[name].all_parameters) & set(model.free) for name in own):
                continue
            prior = _diagonals(joint, mode, own)
            shares = []
            for name in own:
                events = len(model.trace.sites[name].event_shape)
                cells = 1 - prior[name] / whole[name]
                shares.append(jnp.max(cells, tuple(range(cells.ndim - events)), initial=-jnp.inf))
            informed[latent] = jnp.min(jnp.max(jnp.stack(shares), 0))
    return informed


def _diagonals(joint: Joint, at: jax.Array, names: tuple[str, ...]) -> Mapping[str, jax.Array]:
    """Second derivatives of the log density of some sites by every entry of every latent."""

    def density(values: Mapping[str, jax.Array]) -> jax.Array:
        tables = joint.tables(values)
        return jnp.sum(joint.by_cell({name: tables[name] for name in names}))

    hessian = joint.integral.layout.hessian(jax.grad(density), joint.unpack(at))
    return joint.unpack(jnp.diagonal(hessian, axis1=-2, axis2=-1))

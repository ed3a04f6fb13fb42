"""Matrix arguments that are diagonal: ``sigma2 * eye``, ``diag(v)``, tied or not. Every entry has its own closed form.

Where a covariance is diagonal, the log-density is a sum over its diagonal, in which every entry of the parameter meets
the scatter of its own places only. Whether it is diagonal is read off numbers: the argument, which depends on no data,
is evaluated at random parameters, and its derivative must consist of zeros and ones. The elementwise map before it
(``sigma**2 * eye``) is read off the trace.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import Refusal
from emppl.families import Update
from emppl.jaxpr.maps import ElementMap
from emppl.mstep.entries import Entry
from emppl.mstep.rule import RuleContext
from emppl.parameters.constraints import random_inside

_MOST_NUMBERS = 2**24
_TOLERANCE = 1e-5
"""Entries are zeros and ones up to the rounding of float32."""


def diagonal_update(context: RuleContext, entry: Entry, name: str, map: ElementMap) -> Update | Refusal:
    """The update of a parameter whose entries, after a map, stand on the diagonal of a matrix argument."""
    factor, model = entry.factor, context.model
    assert factor.family is not None
    update = factor.family.diagonals.get(entry.field)
    if update is None:
        return Refusal("it is multiplied by an array")
    if any(kind not in ("parameter", "latent") for kind, _ in model.dependence.of_output(entry.position)):
        return Refusal("it is multiplied by data")
    if factor.latents.get(entry.field, frozenset()) & model.axes.of_atoms:
        return Refusal("it is multiplied by a continuous latent")
    reason = _why_not_diagonal(context, entry, name, map)
    return update if reason is None else Refusal(reason)


def _why_not_diagonal(context: RuleContext, entry: Entry, name: str, map: ElementMap) -> str | None:
    model, sites = context.model, context.model.trace.sites
    wanted = frozenset([(entry.factor.name, "arguments")])
    with jax.ensure_compile_time_eval():
        data = [jnp.zeros(struct.shape, struct.dtype) for struct in model.shapes]
        for seed in range(2):
            rng = np.random.default_rng(seed)
            params = {n: random_inside(sites[n].constraint, sites[n].shape, rng) for n in model.trace.parameters}

            def argument(value: jax.Array, params: dict[str, jax.Array] = params) -> jax.Array:
                arrays = model.evaluate({**params, name: map.inverse(value)}, data, wanted)
                return entry.factor.argument(arrays, entry.field)

            value = map.forward(params[name])
            matrices = np.asarray(argument(value))
            if matrices.size * value.size > _MOST_NUMBERS:
                return "it is multiplied by an array, and there are too many entries to see which"
            slopes = np.asarray(jax.jacfwd(argument)(value)).reshape(*matrices.shape, -1)
            reason = _look(matrices, slopes, np.ravel(value))
            if reason is not None:
                return reason
    return None


def _look(matrices: np.ndarray, slopes: np.ndarray, value: np.ndarray) -> str | None:
    """Why the matrices in which the values stand are not all diagonal, with single values on the diagonal; or None."""
    if not np.all(np.isfinite(slopes)):
        return "it is multiplied by an array, through a map without a derivative at zero"
    near = lambda a, b: np.abs(a - b) <= _TOLERANCE * (1 + np.abs(b))  # noqa: E731
    off = ~np.eye(matrices.shape[-1], dtype=bool)
    holds = np.any(slopes != 0, (-3, -2, -1))
    if np.any((matrices[..., off] != 0)[holds]) or np.any(slopes[..., off, :]):
        return "it is multiplied by an array, and the matrix is not diagonal"
    on = np.diagonal(slopes, axis1=-3, axis2=-2)  # (..., value, diagonal)
    entries = np.diagonal(matrices, axis1=-2, axis2=-1)
    used = np.any(on != 0, -2)
    single = np.all(near(on, 0) | near(on, 1)) and np.all(np.sum(np.abs(on) > 0.5, -2) <= 1)
    if not single or not np.all(near(np.einsum("...vd,v->...d", on, value), entries)[used]):
        return "it is multiplied by an array that is not one of zeros and ones"
    return None

"""NumPyro's side of the check: the density of the model as it is written, nothing enumerated or integrated out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.infer.util import compute_log_probs
from numpyro.primitives import Messenger

from emppl.inputs.arguments import Skeleton, join_arguments
from emppl.trace.distributions import as_numpyro_expects
from emppl.types import Data, Params

Values = Mapping[str, jax.Array]
"""A value of every latent by the model's own names: ``(*plates, *event)``, time first inside a ``scan``."""

_SUBSAMPLING_KEY = 0
"""The key under which models are traced: it draws the same subsample of a plate here as there."""


class _ArraysOfJax(Messenger):
    """Values from handlers around a ``scan`` (condition, substitute) as arrays of JAX, which a step may index."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Convert what handlers left with the message of a scan."""
        stack = msg["kwargs"].get("substitute_stack", []) if msg["type"] == "control_flow" else []
        for number, (kind, values) in enumerate(stack):
            if kind != "replay" and isinstance(values, Mapping):
                stack[number] = kind, {name: jnp.asarray(value) for name, value in values.items()}


def draw_latents(function: Callable, skeleton: Skeleton, params: Params, data: Data, rng_key: jax.Array) -> Values:
    """A draw of every unobserved site from its prior at some parameters, and the value of every deterministic one."""
    with as_numpyro_expects(), _ArraysOfJax():
        substituted = numpyro.handlers.substitute(function, data=dict(params))
        args, kwargs = join_arguments(data, skeleton)
        trace = numpyro.handlers.trace(numpyro.handlers.seed(substituted, rng_key)).get_trace(*args, **kwargs)
    return {
        name: jnp.asarray(site["value"])
        for name, site in trace.items()
        if site["type"] == "deterministic" or (site["type"] == "sample" and not site["is_observed"])
    }


def log_probs(
    function: Callable, skeleton: Skeleton, params: Params, values: Values, data: Data
) -> dict[str, jax.Array]:
    """Log density of every site, summed over its cells, at some parameters and values of all latents (natural log)."""
    args, kwargs = join_arguments(data, skeleton)
    with as_numpyro_expects(), _ArraysOfJax(), numpyro.handlers.seed(rng_seed=jax.random.key(_SUBSAMPLING_KEY)):
        return compute_log_probs(function, args, kwargs, {**params, **values})[0]

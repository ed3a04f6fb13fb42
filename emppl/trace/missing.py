"""Missing cells of a multivariate normal observation become latents of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from emppl.errors import ModelError
from emppl.trace.distributions import unwrap


class Unseen(dist.Normal):
    """Density of the latent of missing cells: standard normal where the cell is observed, flat where it is missing."""


class MissingCells(Messenger):
    """Puts a latent in the place of the cells of a multivariate normal observation that are NaN.

    The latent has an entry for every cell. Where the cell is missing, its density is flat: what is known of it comes
    from the observation's own density. Where the cell is there, the entry is a standard normal that nothing else
    touches, which integrates to one.
    """

    def __init__(self, model: Callable):
        super().__init__(model)
        self.__name__ = getattr(model, "__name__", "model")

    def process_message(self, msg: dict[str, Any]) -> None:
        """Fill in one observation."""
        if msg["type"] != "sample" or not msg.get("is_observed") or msg["value"] is None:
            return
        base, reinterpreted, masks = unwrap(msg["fn"])
        if not isinstance(base, dist.MultivariateNormal):
            return
        name = msg["name"]
        if reinterpreted or masks:
            raise ModelError(
                f"Site {name!r} is a multivariate normal under to_event or a mask, and the data hold NaN. Missing "
                "cells are integrated out where rows lie in a plate: drop the mask, and put rows in a numpyro.plate."
            )
        value = jnp.asarray(msg["value"])
        absent = jnp.isnan(value)
        filler = Unseen(jnp.zeros(value.shape, value.dtype), 1.0).mask(~absent).to_event(1)
        latent = numpyro.sample(missing_name(name), filler)
        msg["value"] = jnp.where(absent, latent, value)


def missing_name(site: str) -> str:
    """Name of the latent of a site's missing cells."""
    return f"{site}_missing"

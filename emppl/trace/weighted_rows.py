"""Rows of data that stand for many: the cells of one plate count several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.primitives import Messenger


class WeightedRows(Messenger):
    """A model whose first argument weights the cells of one plate, as ``handlers.scale`` around the plate would.

    Args:
        plate: name of the plate.
    """

    def __init__(self, model: Callable, plate: str):
        super().__init__(model)
        self.plate = plate
        self.weights: jax.Array | None = None

    def __call__(self, weights: jax.Array, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Args:
            weights: how many times every cell of the plate counts.
            *args: the model's arguments.
            **kwargs: the model's keyword arguments.
        """
        self.weights = weights
        return super().__call__(*args, **kwargs)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Weight one site."""
        frame = next((one for one in msg.get("cond_indep_stack", ()) if one.name == self.plate), None)
        if msg["type"] == "sample" and frame is not None and self.weights is not None:
            weight = jnp.reshape(self.weights, (-1,) + (1,) * (-1 - frame.dim))
            msg["scale"] = weight if msg.get("scale") is None else msg["scale"] * weight

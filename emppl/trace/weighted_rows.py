"""Rows of data that stand for many: every cell of one plate counts a number of times."""

from __future__ import annotations

from collections.abc import Callable

from numpyro.primitives import Messenger


class WeightedRows(Messenger):
    """Gives all sites in a plate one weight, as ``handlers.scale`` around the plate would.

    Args:
        model: the model.
        plate: name of the plate.
        weight: how many times each of its cells counts.
    """

    def __init__(self, model: Callable, plate: str, weight: float):
        super().__init__(model)
        self.plate = plate
        self.weight = weight

    def process_message(self, msg) -> None:
        """Weight one site."""
        if msg["type"] == "sample" and any(frame.name == self.plate for frame in msg["cond_indep_stack"]):
            msg["scale"] = self.weight if msg.get("scale") is None else msg["scale"] * self.weight

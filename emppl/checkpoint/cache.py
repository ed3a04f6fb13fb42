"""What was derived before, and whether the model is still what it was then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from emppl.checkpoint.reads import first_change, lasting, read_by
from emppl.errors import ModelError
from emppl.families import registered_families
from emppl.model.options import Options
from emppl.trace.arguments import Skeleton, objects_among


class Cache(dict):
    """What was derived before. It is left behind when it is pickled, though what shared it goes on to do so.

    Attributes:
        reads: what the model and the functions among the options read when these were derived.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[str, Any] = {}

    def __reduce__(self) -> tuple:
        return Cache, ()

    def forget_if_changed(self, model: Callable, options: Options) -> None:
        """Forget everything if something changed that the model reads."""
        reads = _read_by_model(model, options)
        if reads != self.reads:
            self.clear()
            self.reads = reads

    def settle(self, model: Callable, options: Options) -> None:
        """Take note of what the user's functions wrote while they ran: that is no change that someone made."""
        self.reads = _read_by_model(model, options)


class Reads:
    """What a fit's functions read: the model, those among the options, and those among the arguments.

    Args:
        parts: by how it is reached; see :func:`~emppl.checkpoint.reads.read_by`.
    """

    def __init__(self, parts: Mapping[str, Any]):
        self._parts = parts

    @classmethod
    def of(cls, model: Callable, options: Options, skeleton: Skeleton) -> Reads:
        """What they read now."""
        return cls(_read_by_model(model, options) | read_by_arguments(skeleton))

    def __reduce__(self) -> tuple:
        return Reads, (lasting(self._parts),)

    def check(self, now: Reads) -> None:
        """Refuse to ask another model than that of the fit.

        Raises:
            ModelError: something changed.
        """
        changed = first_change(self._parts, now._parts)
        if changed is not None:
            raise ModelError(
                "In another precision or process than that of the fit, a result asks the model anew. The model of this "
                f"one has changed since: {changed}. Put back what was there, or fit again."
            )


def _read_by_model(model: Callable, options: Options) -> dict[str, Any]:
    """What the model and the user's other functions read beside their arguments, and how many families there are."""
    functions = {"m_step": options.m_step, "optimizer": options.optimizer, "latents": options.latents}
    return read_by({"model": model, **functions}) | {"families": len(registered_families())}


def read_by_arguments(skeleton: Skeleton) -> dict[str, Any]:
    """What functions and objects among the model's arguments read."""
    return read_by({f"static argument {number}": value for number, value in enumerate(objects_among(skeleton))})

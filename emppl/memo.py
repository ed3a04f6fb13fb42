"""Methods that compute an answer once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def once(method: Method) -> Method:
    """A method whose answers are kept in its object, by hashable arguments.

    ``functools.cache`` around a bound method would be a circle that keeps the object, and with it arrays of the model,
    alive until Python looks for circles. While they live JAX takes them for the constants of a later trace, though
    that may be in another precision.
    """

    @functools.wraps(method)
    def answer(self: Any, *args: Any) -> Any:
        answers = self.__dict__.setdefault("_answers", {})
        key = method.__name__, *args
        if key not in answers:
            answers[key] = method(self, *args)
        return answers[key]

    return answer  # type: ignore[return-value]


def forget(copied: Any) -> None:
    """Let a copy of an object, which is about to differ from it, compute its answers anew."""
    copied.__dict__.pop("_answers", None)

"""The effect handler under which a model runs, and what it says when the model itself fails."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions.distribution import Unit
from numpyro.primitives import Messenger

from emppl.errors import EMError, ModelError
from emppl.trace.arguments import join_arguments
from emppl.trace.distributions import as_numpyro_expects, is_discrete


@dataclasses.dataclass
class Frame:
    """What one run of a scan's step recorded."""

    messages: dict[str, dict]
    latents: dict[str, str]


class Recorder(Messenger):
    """Answers every unobserved site and records every message; the outermost handler but ``seed``.

    Args:
        model: the model.
        answer: gives every unobserved site its value.
        answer_scan: ``(recorder, message)``, gives a ``scan`` its value and adds its sites.
    """

    def __init__(
        self, model: Callable, answer: Callable[[dict], Any], answer_scan: Callable[[Recorder, dict], None] | None
    ):
        super().__init__(model)
        self.answer = answer
        self.answer_scan = answer_scan
        self.messages: dict[str, dict] = {}
        self.latents: dict[str, str] = {}
        self.plate_sizes: dict[str, int] = {}
        self.scans: list[Any] = []
        self.scanned: dict[str, Any] = {}
        self.conditions: list[list[Any]] = []
        self.timed: dict[str, frozenset[tuple[str, ...]]] = {}

    @contextlib.contextmanager
    def frame(self, answer: Callable[[dict], Any]):
        """Record the messages of one run of a scan's step apart from the others."""
        saved = self.messages, self.latents, self.answer, self.answer_scan
        frame = Frame({}, {})
        self.messages, self.latents, self.answer, self.answer_scan = frame.messages, frame.latents, answer, None
        try:
            yield frame
        finally:
            self.messages, self.latents, self.answer, self.answer_scan = saved

    def add(self, name: str, msg: dict) -> None:
        """Keep one message under a name."""
        if name in self.messages:
            raise ModelError(
                f"The site name {name!r} is used twice. Give every sample and param site a name of its own."
            )
        self.messages[name] = msg

    def process_message(self, msg) -> None:
        """Record one message; answer it if it is an unobserved site."""
        kind = msg["type"]
        if kind == "control_flow":
            if "history" not in msg["kwargs"]:
                raise ModelError(
                    "The model uses numpyro's cond, whose two branches emppl cannot look into. Compute both and choose "
                    "with jnp.where, or make the condition a Python bool in an argument of its own."
                )
            if self.answer_scan is None:
                raise ModelError(
                    "The model's scan has another scan inside its step. Write the inner one as a Python loop, or as "
                    "a plate inside the step."
                )
            self.answer_scan(self, msg)
            return
        if kind == "deterministic" and f"{msg['name']}_unobserved" in self.latents:
            msg["value"] = self.messages[f"{msg['name']}_unobserved"]["value"]
        if kind == "plate":
            self.plate_sizes[msg["name"]] = msg["args"][0]
        if kind not in ("sample", "param"):
            return
        name = msg["name"]
        if kind == "sample" and isinstance(msg["fn"], Unit):
            msg["is_observed"] = True
        if kind == "sample" and not msg.get("is_observed") and msg["kwargs"].get("sample_shape"):
            # An array of independent draws is the expanded distribution; its axes get implicit plates.
            msg["fn"] = msg["fn"].expand(tuple(msg["kwargs"]["sample_shape"]) + tuple(msg["fn"].batch_shape))
            msg["kwargs"] = {**msg["kwargs"], "sample_shape": ()}
        if not msg.get("is_observed"):
            if msg["value"] is not None:
                raise ModelError(
                    f"Site {name!r} is given a value by a handler (substitute or condition). Fix a parameter with "
                    f"EM(model, fixed={{{name!r}: value}}), and observe data with obs=."
                )
            msg["value"] = self.answer(msg)
            if kind == "sample" and is_discrete(msg["fn"]):
                self.latents[name] = name
        # A subsampled plate cuts the value of a param later, in place; what is estimated is the whole of it.
        self.add(name, dict(msg) if kind == "param" else msg)


def run_model(
    model: Callable,
    answer: Callable[[dict], Any],
    data: list,
    skeleton: Any,
    rng_key,
    answer_scan: Callable[[Recorder, dict], None] | None = None,
) -> Recorder:
    """Run the model once under the recorder.

    Args:
        model: a NumPyro model.
        answer: gives every unobserved site its value.
        data: the model's array arguments.
        skeleton: its static arguments, from :func:`~emppl.trace.arguments.split_arguments`.
        rng_key: random key, for models that draw.
        answer_scan: gives a ``scan`` its value.

    Returns:
        The recorder with every message.

    Raises:
        ModelError: the model cannot be run; the message says where it stopped and why.
    """
    args, kwargs = join_arguments(data, skeleton)
    recorder = Recorder(model, answer, answer_scan)
    try:
        with as_numpyro_expects(), numpyro.handlers.seed(rng_seed=rng_key), recorder:
            model(*args, **kwargs)
    except EMError:
        raise
    except jax.errors.ConcretizationTypeError as error:
        raise ModelError(
            "The model reads the value of an array in Python (an `if`, `int(...)` or a shape taken from data). "
            "Pass that quantity as a Python number in an argument of its own, e.g. model(x, K=int(x.max()) + 1).\n"
            + str(error).split("\n")[0]
        ) from error
    except Exception as error:
        raise ModelError(_failure(recorder, data, error)) from error
    return recorder


def _failure(recorder: Recorder, data, error: Exception) -> str:
    """What the model was doing when its own code failed."""
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in data) or "none"
    reached = f"after site {list(recorder.messages)[-1]!r}" if recorder.messages else "before its first site"
    latents = "".join(
        f"\nLatent {name!r} was enumerated with shape {jnp.shape(recorder.messages[name]['value'])} "
        "(its states, then plates)."
        for name in recorder.latents
    )
    return (
        f"The model failed {reached}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
        f"Shapes of its array arguments: {shapes}.{latents}"
    )

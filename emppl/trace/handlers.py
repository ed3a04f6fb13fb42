"""The effect handler under which a model runs, and what it says when the model itself fails."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions.distribution import Unit
from numpyro.primitives import _PYRO_STACK, Messenger

from emppl.errors import EMError, ModelError, NeedsValues, StatesError
from emppl.inputs.arguments import WITHOUT_NUMBERS, Skeleton, join_arguments
from emppl.inputs.containers import Known
from emppl.inputs.trees import ParamTree
from emppl.trace.distributions import as_numpyro_expects, is_discrete
from emppl.types import Data

Message: TypeAlias = dict[str, Any]
"""What NumPyro sends its handlers when the model reaches a primitive."""

Answer: TypeAlias = Callable[[Message], Any]
"""Gives an unobserved site its value."""


@dataclasses.dataclass
class Frame:
    """One run of the model, or of one step of its scan.

    Attributes:
        answer: gives every unobserved site its value.
        answer_scan: gives a ``scan`` its value; None inside the step of one.
        messages: by site, in the order of the model.
        latents: the discrete ones among the unobserved sites.
        trees: by site, of params that are trees of arrays, the value and what was declared; each array has a message of
            its own.
        reparametrised: by site that ``handlers.reparam`` puts in the place of another one, that one's name and value.
    """

    answer: Answer
    answer_scan: Callable[[Recorder, Message], Any] | None
    messages: dict[str, Message] = dataclasses.field(default_factory=dict)
    latents: list[str] = dataclasses.field(default_factory=list)
    trees: dict[str, Any] = dataclasses.field(default_factory=dict)
    reparametrised: dict[str, tuple[str, Any]] = dataclasses.field(default_factory=dict)

    def add(self, name: str, msg: Message) -> None:
        """Keep one message under a name."""
        if name in self.messages:
            raise ModelError(
                f"The site name {name!r} is used twice. Give every sample and param site a name of its own."
            )
        self.messages[name] = msg

    @property
    def samples(self) -> dict[str, Message]:
        """The messages of sample sites."""
        return {name: msg for name, msg in self.messages.items() if msg["type"] == "sample"}


class Recorder(Messenger):
    """Answers every unobserved site and records every message; the outermost handler but ``seed``.

    Args:
        frame: what the run is recorded in.
    """

    def __init__(self, frame: Frame):
        super().__init__()
        self.frame = frame
        self.plate_sizes: dict[str, int] = {}
        self.has_states = False  # a discrete latent was seen, in the model or in a step

    @contextlib.contextmanager
    def step(self, answer: Answer) -> Iterator[Frame]:
        """Record the messages of one run of a scan's step in a frame of its own."""
        outer, self.frame = self.frame, Frame(answer, None)
        try:
            yield self.frame
        finally:
            self.frame = outer

    def process_message(self, msg: Message) -> None:
        """Record one message; answer it if it is an unobserved site."""
        kind, frame = msg["type"], self.frame
        if kind == "control_flow":
            self._answer_control_flow(msg)
        elif kind == "deterministic" and f"{msg['name']}_unobserved" in frame.latents:
            msg["value"] = frame.messages[f"{msg['name']}_unobserved"]["value"]
        elif kind == "deterministic" and _is_reparametrised(msg["name"]):
            auxiliary = next(reversed(frame.messages), "")
            if auxiliary.startswith(f"{msg['name']}_"):
                frame.reparametrised[auxiliary] = msg["name"], msg["value"]
        elif kind == "prng_key":
            _refuse_hidden_draws()
        elif kind == "plate":
            self.plate_sizes[msg["name"]] = msg["args"][0]
        elif kind == "sample":
            if isinstance(msg["fn"], Unit) or msg["value"] is not None:
                # What a handler gives a value (substitute, replay) has its density counted, as under condition.
                msg["is_observed"] = True
            if not msg.get("is_observed"):
                if shape := msg["kwargs"].get("sample_shape"):
                    # An array of independent draws is the expanded distribution; its axes get implicit plates.
                    msg["fn"] = msg["fn"].expand(tuple(shape) + tuple(msg["fn"].batch_shape))
                    msg["kwargs"] = {**msg["kwargs"], "sample_shape": ()}
                msg["value"] = frame.answer(msg)
                if is_discrete(msg["fn"]):
                    frame.latents.append(msg["name"])
                    self.has_states = True
            frame.add(msg["name"], msg)
        elif kind == "param" and msg["value"] is None:  # with a value from a handler it is a number like any other
            msg["value"] = frame.answer(msg)
            self._record_param(msg)
        elif kind == "mutable":
            raise ModelError(
                f"Site {msg['name']!r} is the state of a module, which changes when it is called (batch statistics): "
                "the density is no function of parameters and data. Use layers without state: LayerNorm in place of "
                "BatchNorm."
            )

    def _record_param(self, msg: Message) -> None:
        """Keep the message of a param; of one that is a tree of arrays, a message for each of them."""
        frame, name = self.frame, msg["name"]
        if msg["value"] is None:  # a module asks whether its parameters are known, and declares them if they are not
            return
        tree = ParamTree.of(name, msg["value"])
        if tree is None:
            # A subsampled plate cuts the value of a param later, in place; what is estimated is the whole of it.
            frame.add(name, dict(msg))
            return
        frame.trees[name] = (msg["value"], *msg["args"])
        for leaf, value in zip(tree.names, jax.tree.leaves(msg["value"]), strict=True):
            frame.add(leaf, {**msg, "name": leaf, "value": value})

    def _answer_control_flow(self, msg: Message) -> None:
        if "history" not in msg["kwargs"]:
            raise ModelError(
                "The model uses numpyro's cond, whose two branches emppl cannot look into. Compute both and choose "
                "with jnp.where, or make the condition a Python bool in an argument of its own."
            )
        if self.frame.answer_scan is None:
            raise ModelError(
                "The model's scan has another scan inside its step. Write the inner one as a Python loop, or as "
                "a plate inside the step."
            )
        self.frame.answer_scan(self, msg)


def _is_reparametrised(name: str) -> bool:
    """Whether a ``reparam`` handler is at work on a site."""
    handlers = [handler for handler in _PYRO_STACK if isinstance(handler, numpyro.handlers.reparam)]
    return any(callable(handler.config) or name in (handler.config or ()) for handler in handlers)


def _refuse_hidden_draws() -> None:
    """Refuse a site that ``handlers.block`` hides and that has no value, when the handler asks for the key to draw it.

    Nothing else shows it: the site's own message stops at the handler, and the draw would enter as a constant.
    """
    caller = inspect.currentframe()
    while caller is not None and caller.f_code is not numpyro.handlers.block.process_message.__code__:
        caller = caller.f_back
    hidden: Message = caller.f_locals["msg"] if caller is not None else {}
    if hidden.get("type") == "sample":
        raise ModelError(
            f"Site {hidden['name']!r} is hidden by handlers.block and has no value: NumPyro would draw it at random, "
            "and the fit would take that number for a constant. Take the block away, or give the site a value inside "
            f"of it: handlers.block(handlers.substitute(model, {{{hidden['name']!r}: value}}), "
            f"hide=[{hidden['name']!r}])."
        )


def run_model(
    model: Callable,
    answer: Answer,
    answer_scan: Callable[[Recorder, Message], Any],
    data: Data,
    skeleton: Skeleton,
    rng_key: jax.Array,
) -> Recorder:
    """Run the model once under the recorder.

    Args:
        model: a NumPyro model.
        answer: gives every unobserved site its value.
        answer_scan: gives a ``scan`` its value and adds its sites.
        data: the model's array arguments.
        skeleton: its static arguments, from :func:`~emppl.inputs.arguments.split_arguments`.
        rng_key: random key, for models that draw.

    Returns:
        The recorder, whose frame holds every message.

    Raises:
        ModelError: the model cannot be run; the message says where it stopped and why.
    """
    args, kwargs = join_arguments(data, skeleton)
    frame = Frame(answer, answer_scan)
    recorder = Recorder(frame)
    try:
        with as_numpyro_expects(), numpyro.handlers.seed(rng_seed=rng_key), recorder:
            model(*args, **kwargs)
    except EMError:
        raise
    except jax.errors.JAXTypeError as error:
        raise NeedsValues(
            "The model reads the value of an array in Python (an `if`, `int(...)`, `numpy.unique(...)`, or a shape "
            "taken from it), which works for arguments whose values are at hand. This one is a latent, a parameter, "
            "an outcome of jax.numpy (write numpy.max(x) in place of jnp.max(x)), or an argument that is traced itself "
            "(in jax.jit or jax.vmap): choose with jnp.where, and pass a size as a Python number in an argument of its "
            "own, e.g. model(x, K=int(x.max()) + 1).\n" + str(error).split("\n")[0]
        ) from error
    except Exception as error:
        kind = StatesError if recorder.has_states else NeedsValues
        raise kind(_failure(frame, data, skeleton, error)) from error
    return recorder


def _failure(frame: Frame, data: Data, skeleton: Skeleton, error: Exception) -> str:
    """What the model was doing when its own code failed."""
    shapes = ", ".join(str(tuple(array.shape)) for array in data) or "none"
    reached = f"after site {list(frame.messages)[-1]!r}" if frame.messages else "before its first site"
    latents = "".join(
        f"\nLatent {name!r} was enumerated with shape {jnp.shape(frame.messages[name]['value'])} "
        "(its states, then plates): count axes from the last one, axis=-1 and x[..., None]."
        for name in frame.latents
    )
    return (
        f"The model failed {reached}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n"
        f"Shapes of its array arguments: {shapes}.{latents}{_labels(skeleton)}"
    )


def _labels(skeleton: Skeleton) -> str:
    """What to do with arguments that hold no numbers, if there are any."""
    if not any(isinstance(leaf, Known) and leaf.reason == WITHOUT_NUMBERS for leaf in skeleton[1]):
        return ""
    return (
        "\nA model argument holds no numbers, and JAX cannot use it. Code it first, for example "
        "codes = numpy.unique(labels, return_inverse=True)[1]."
    )

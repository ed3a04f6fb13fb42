"""The list of models: where each lies, small data of the right shapes, and what there is to compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from source import Definitions

Arguments = tuple[Callable, tuple, dict[str, Any]]
"""The model, and what it is called with."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of NumPyro's examples or tutorials.

    Attributes:
        file: its path in the checkout.
        name: of the function, as the table shows it.
        make: ``make(definitions, rng)``: the model, and data simulated for it (NumPyro's data sets need the network).
        latent: whether there is something to sum or to integrate.
        options: of ``emppl.EM``, for models that do not run as they are published.
        assigned: names whose assignments in the file are needed.
        marginal: its log-likelihood by hand, ``marginal(params, *args, **kwargs)``; None: NumPyro's own density,
            discrete latents enumerated by NumPyro.
        continuous: whether a latent is continuous, so that NumPyro has no density of the parameters to compare with.
    """

    file: str
    name: str
    make: Callable[[Definitions, np.random.Generator], Arguments]
    latent: bool
    options: dict[str, Any]
    assigned: tuple[str, ...]
    marginal: Callable | None
    continuous: bool

    @property
    def key(self) -> str:
        """A name for the command line."""
        return f"{self.file.split('/')[-1]}:{self.name}"


ENTRIES: list[Entry] = []


def entry(
    file: str,
    name: str,
    latent: str | None = None,
    options: dict[str, Any] | None = None,
    assigned: tuple[str, ...] = (),
    marginal: Callable | None = None,
) -> Callable:
    """Put a model on the list; decorates its ``make``. ``latent`` is "discrete", "continuous" or None."""
    is_notebook = file.endswith(".ipynb")
    path = ("notebooks/source/" if is_notebook else "examples/") + file

    def keep(make: Callable) -> Callable:
        continuous = latent == "continuous"
        ENTRIES.append(Entry(path, name, make, latent is not None, options or {}, assigned, marginal, continuous))
        return make

    return keep

"""Exceptions that name the site, what was needed, what was found and what to write instead."""

from __future__ import annotations

import dataclasses
import importlib
import numbers
from typing import Any


class EMError(Exception):
    """Base class of every error that emppl raises on purpose."""


class ModelError(EMError, ValueError):
    """The model cannot be turned into an EM algorithm as it stands."""


class NeedsValues(ModelError):
    """The model fails on arguments of which only the shape is known; their values may help.

    Args:
        message: what is wrong, if they do not.
        site: whose bounds depend on them, if that is it.
    """

    def __init__(self, message: str, site: str | None = None):
        super().__init__(message)
        self.site = site


class StatesError(NeedsValues):
    """The axes that enumerated latents have in front break the model's own code, or come to lie elsewhere."""


class DataError(EMError, ValueError):
    """The data given to the model cannot be used."""


class ParameterError(EMError, ValueError):
    """A parameter value, or a name given to ``EM``, cannot be used."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why something does not apply, in words that a message or the plan can print; an answer, not an exception."""

    reason: str


def unknown_name(option: str, name: str, known: list[str]) -> ParameterError:
    """Error for a name in ``option`` that is no site of the model."""
    listing = ", ".join(sorted(known)) or "none"
    return ParameterError(
        f"{option} names {name!r}, which is not among the sites it can refer to. The model has: {listing}."
    )


def check_whole(option: str, value: Any) -> None:
    """Raise an error unless an option is a whole number; ``num_samples=1e3`` is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ParameterError(f"{option} must be a whole number, such as 10; it is {value!r}.")


def check_number(option: str, value: Any) -> None:
    """Raise an error unless an option is a number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ParameterError(f"{option} must be a number; it is {value!r}.")


def optional_import(module: str, extra: str) -> Any:
    """Import an optional package; a failure names the extra that installs it.

    Args:
        module: the module to import.
        extra: the name of emppl's extra that brings it.

    Returns:
        The imported module.

    Raises:
        ImportError: the package is missing; the message carries the command to run.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        message = f"This needs {package}, which is not installed. Run: pip install 'emppl[{extra}]'"
        raise ImportError(message) from error

"""Names that emppl makes up: what belongs to one step of a ``scan`` is the model's own name with ``@`` and the step."""

from __future__ import annotations


def lagged(latent: str, lag: int) -> str:
    """Name of a scanned latent's axis, some steps back."""
    return latent if lag == 0 else f"{latent}@previous" if lag == 1 else f"{latent}@previous{lag}"


def first(site: str, step: int) -> str:
    """Name of a scanned site at one of the first steps."""
    return f"{site}@{step}"


def time_axis(site: str) -> str:
    """Name of the axis of the later steps, after the first site of the step."""
    return f"{site}@time"


def latent_of(axis: str) -> str:
    """The latent that an axis belongs to: the axis of a previous step belongs to the scanned latent."""
    return axis.split("@previous")[0]


def model_name(name: str) -> str:
    """A site's name in the model."""
    return name.split("@")[0]

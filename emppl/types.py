"""Types of what flows between the parts of emppl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax

Params: TypeAlias = Mapping[str, jax.Array]
"""Constrained parameter values by site name."""

Data: TypeAlias = Sequence[jax.Array]
"""The arrays among the model's arguments, in the order of the arguments."""

Tables: TypeAlias = Mapping[str, jax.Array]
"""By site, the log-probability of every cell, on the common axes (natural log)."""

Weights: TypeAlias = Mapping[str, jax.Array]
"""By site, the posterior weight of every cell of its table."""

Scales: TypeAlias = Mapping[str, jax.Array | None]
"""By site, how often its cells are counted (``handlers.scale``), on the common axes; None for once."""

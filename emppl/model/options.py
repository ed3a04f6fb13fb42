"""The options of ``EM`` that shape the derivation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of ``EM`` that shape the derivation."""

    estimate: tuple[str, ...] = ()
    latents: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    m_step: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: Any = None
    prior: bool = True
    held: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

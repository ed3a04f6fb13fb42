"""Which kernel, from sizes, precision and platform alone."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How a chain is computed; ``str`` of it is what a plan prints.

    Attributes:
        name: ``"plain"``, ``"sequential"``, ``"blocked"`` or ``"associative"``.
        chunk: steps per tile.
        blocks: for ``"blocked"``, how many blocks of ``chunk`` steps are lanes side by side in one tile.
    """

    name: str
    chunk: int = 0
    blocks: int = 1

"""Which kernel, from sizes, precision and platform alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_NAMES = ("sequential", "blocked", "associative")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How a chain is computed; ``str`` of it is what a plan prints.

    Attributes:
        name: ``"sequential"``, ``"blocked"`` or ``"associative"``.
        chunk: steps that are finished before the next ones begin; for ``"blocked"``, steps per block.
        blocks: for ``"blocked"``, how many blocks are worked on side by side.
    """

    name: str
    chunk: int = 0
    blocks: int = 1

    def __str__(self) -> str:
        if self.name == "sequential":
            return f"sequential scaled forward-backward, {self.chunk} steps at a time"
        if self.name == "blocked":
            return f"two-level forward-backward, {self.blocks} blocks of {self.chunk} steps at a time"
        return f"associative scan, {self.chunk} steps at a time"


def choose_kernel(
    num_steps: int, num_states: int, lanes: int, dtype: DTypeLike, platform: str, transition_varies: bool = False
) -> Kernel:
    """The kernel measured (CPU) or expected (accelerators) to be fastest.

    On a CPU: blocks of a long chain side by side while the K^3 work of their products is small, that is for few
    states and constant transitions; else one step after the other, all sequences side by side. On an accelerator:
    an associative scan, unless the sequences alone fill it or K^3 is large.

    Args:
        num_steps: T.
        num_states: K.
        lanes: number of sequences.
        dtype: precision.
        platform: ``"cpu"``, ``"gpu"``, ``"tpu"``, ...
        transition_varies: whether transitions vary over time.

    Returns:
        The kernel.
    """
    if platform != "cpu" and num_states <= 32 and lanes * num_states < 16384 and num_steps > 64:
        return _sized("associative", num_steps, num_states, lanes)
    has_few_states = num_states <= (5 if jnp.dtype(dtype).itemsize == 8 else 6)
    if platform == "cpu" and has_few_states and not transition_varies and lanes < 8:
        blocked = _sized("blocked", num_steps, num_states, lanes)
        if num_steps > 2 * blocked.chunk * blocked.blocks:
            return blocked
    return _sized("sequential", num_steps, num_states, lanes)


def resolve(
    kernel: Kernel | str | None,
    num_steps: int,
    num_states: int,
    lanes: int,
    dtype: DTypeLike,
    transition_varies: bool,
) -> Kernel:
    """A kernel from what the caller gave: a kernel, a name, or None.

    Raises:
        ValueError: unknown name, or a blocked kernel for transitions that vary over time.
    """
    if kernel is None:
        return choose_kernel(num_steps, num_states, lanes, dtype, jax.default_backend(), transition_varies)
    chosen = _sized(kernel, num_steps, num_states, lanes) if isinstance(kernel, str) else kernel
    if chosen.name not in _NAMES:
        raise ValueError(f"Expected kernel to be one of {', '.join(_NAMES)}; got {chosen.name!r}.")
    if chosen.name == "blocked" and transition_varies:
        raise ValueError("The blocked kernel needs transitions that are constant in time; use 'sequential'.")
    if chosen.name == "blocked" and num_steps - 1 < chosen.chunk * chosen.blocks:
        return _sized("sequential", num_steps, num_states, lanes)
    return chosen


_TILE_CELLS = 16384
"""So that a tile's tables stay in the second-level cache; larger ones are split over threads, which does not pay."""


def _sized(name: str, num_steps: int, num_states: int, lanes: int) -> Kernel:
    if name == "blocked":
        blocks = max(128 // lanes, 1)
        return Kernel(name, max(2 * _TILE_CELLS // (num_states * blocks * lanes), 8), blocks)
    if name == "associative":
        return Kernel(name, max(min(num_steps, 4_194_304 // (num_states**2 * lanes)), 1))
    chunk = min(2048, _TILE_CELLS // (num_states * lanes))
    # An inner loop of two or three turns costs more than it saves.
    return Kernel(name, chunk if chunk >= 4 else 1)

"""Latents that get one value instead of being summed out: the jointly best one, or a draw.

In the elimination the sum over such a latent is replaced by a maximum, or by a sum whose derivative points at one draw.
The gradient of the outcome, which is every factor's posterior weight elsewhere, then marks the cells of one joint
assignment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from emppl.elimination.chain import path_evidence
from emppl.numerics.guarded import maximum_out, sample_out


@dataclasses.dataclass(frozen=True)
class Picking:
    """Which latents, and how.

    Attributes:
        plates: by axis of such a latent, the plates that it sits in.
        key: random key of a draw; None for the jointly most probable values.
    """

    plates: Mapping[str, frozenset[str]]
    key: jax.Array | None = None

    def part(self, number: int | jax.Array) -> Picking:
        """For one part of a larger elimination, with random numbers of its own."""
        return self if self.key is None else dataclasses.replace(self, key=jax.random.fold_in(self.key, number))

    def of_latent(
        self, table: jax.Array, latent: str, number: int, axes: tuple[str, ...], sizes: Mapping[str, int]
    ) -> jax.Array:
        """In place of the sum of a table over one latent.

        Args:
            table: log-probabilities, with the common axes.
            latent: its axis.
            number: of the step, for random numbers of its own.
            axes: names of the common axes.
            sizes: their sizes.
        """
        if self.key is None:
            return maximum_out(table, axes.index(latent))
        table = self._every_cell(table, latent, axes, sizes)
        noise = jax.random.gumbel(jax.random.fold_in(self.key, number), table.shape, table.dtype)
        return sample_out(table, noise, axes.index(latent))

    def of_chain(self, arrays: tuple, number: int) -> jax.Array:
        """In place of the sum over all paths of a chain, one value per sequence."""
        return path_evidence(None if self.key is None else jax.random.fold_in(self.key, number), *arrays)

    def lanes(self, latent: str, axes: tuple[str, ...], sizes: Mapping[str, int], time: str) -> list[jax.Array]:
        """Tables to add to the first step of a chain, so that every sequence has a draw of its own."""
        if self.key is None:
            return []
        own = self.plates[latent] - {time}
        return [jnp.zeros([sizes[name] if name in own else 1 for name in axes], jnp.result_type(float))]

    def _every_cell(self, table, latent, axes, sizes):
        """Cells whose tables are the same share them in the elimination, but not their draws."""
        own = self.plates[latent]
        shape = [sizes[n] if n in own else size for n, size in zip(axes, table.shape, strict=True)]
        return jnp.broadcast_to(table, shape)

"""Strategies that integrate continuous latents exactly."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from emppl.strategies.base import Continuous, ObjectiveKind


@dataclasses.dataclass(frozen=True)
class Gaussian(Continuous):
    """Integrate a continuous latent exactly, where the log joint density is quadratic in it.

    The conditional distribution of the latent is then normal; ``d + 1`` sigma points of equal weights, the corners of a
    simplex, reproduce its mean and covariance, and with them the expectation of every quadratic, so that Q is exact for
    all parameters.

    The default wherever it applies.

    Reference:
        Julier (2003), The spherical simplex unscented transformation, Proc. American Control Conference: 2430-2434.
    """

    title: ClassVar[str] = "Gaussian (exact)"
    objective_kind: ClassVar[ObjectiveKind] = ObjectiveKind.EXACT

    def atoms(self, dimensions: int) -> int:
        """The corners of a simplex: one more than there are dimensions."""
        return dimensions + 1


@dataclasses.dataclass(frozen=True)
class TruncatedGaussian(Gaussian):
    """``Gaussian`` where an observed Delta restricts the latent to an interval or a point; chosen automatically.

    ``sample("y", Delta(jnp.maximum(w, 0)), obs=y)`` is a tobit model, ``Delta(w > 0)`` a probit. The conditional
    distribution of the latent is truncated normal. Two atoms reproduce its mean and variance, and with them the
    expectation of every quadratic.
    """

    title: ClassVar[str] = "truncated normal (exact)"

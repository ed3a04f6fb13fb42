"""A log joint density that is quadratic in the latents: the exact E-step, from the normal conditional distribution."""

from __future__ import annotations

import dataclasses

import jax

from emppl.errors import Refusal
from emppl.integrals.importance import placed
from emppl.integrals.integrated import Integrated, normal_integral
from emppl.integrals.joint import Joint
from emppl.integrals.modes import conditional
from emppl.integrals.way import Question, Way
from emppl.model.integral import Integral
from emppl.model.scans import ChainIntegral
from emppl.numerics.small_matrices import simplex
from emppl.strategies import Gaussian


class Exact(Way):
    """Sigma points of the normal conditional distribution, as many as there are dimensions, and one."""

    strategies = (Gaussian,)
    looks_for_modes = False

    @classmethod
    def propose(cls, question: Question) -> Way | Refusal:
        """It needs a quadratic log joint."""
        if question.not_quadratic is None:
            return cls(question.asked or Gaussian(), question.reason)
        drawn = isinstance(question.integral, ChainIntegral) or question.corners
        return Refusal(
            f"Gaussian() cannot integrate {question.names}: {question.not_quadratic.reason}. Write EM(model, latents="
            f"{{{question.integral.latents[0]!r}: {'MonteCarlo()})' if drawn else 'Quadrature(15)}), MonteCarlo()'}"
            f"{'' if question.corners else ', or Laplace(), which is approximate'}."
        )

    def arranged(self, integral: Integral) -> Integral:
        """The total is enough where an index tells cells apart, and needs no sums by index."""
        if integral.is_indexed:
            integral = dataclasses.replace(integral, cells=(), indexed=frozenset())
        return super().arranged(integral)

    def integrate(self, joint: Joint, start: jax.Array) -> Integrated:
        """From the mean, where the log joint is the log density up to its volume."""
        mean, root = conditional(joint, start)
        return normal_integral(joint, mean, root, mean, simplex(mean.shape[-1]))

    def draw(self, joint: Joint, integrated: Integrated, key: jax.Array) -> jax.Array:
        """From the normal distribution."""
        return normal_draw(integrated, key)


def normal_draw(integrated: Integrated, key: jax.Array) -> jax.Array:
    """From the normal distribution with this mean and root of the precision."""
    assert integrated.root is not None
    mean = integrated.mean
    return placed(mean, integrated.root, jax.random.normal(key, mean.shape, mean.dtype))

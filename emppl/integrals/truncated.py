"""A normal latent of which an observed Delta tells the interval or the point: the exact E-step of tobit and probit.

Without the Delta the log joint density is quadratic: a normal law. With it the evidence gains the log of the mass of
the interval under that law, and its moments there are known. Q is quadratic in the latent, so that two atoms, at mean
plus and minus one standard deviation, make it exact.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from emppl.errors import Refusal
from emppl.integrals.integrated import Integrated, atoms_of
from emppl.integrals.joint import Joint
from emppl.integrals.limits import Limits, find_limits, why_not_limits
from emppl.integrals.modes import conditional
from emppl.integrals.way import Question, Way
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.model.scans import ChainIntegral
from emppl.numerics import truncated_normal as interval
from emppl.numerics.guarded import impossible_to_infinite
from emppl.strategies import Gaussian, TruncatedGaussian
from emppl.types import Data


@dataclasses.dataclass(frozen=True)
class Truncated(Way):
    """A normal law inside an interval or at a point.

    Attributes:
        limits: the observed Delta sites that say which.
    """

    limits: tuple[str, ...]

    looks_for_modes: ClassVar[bool] = False

    @classmethod
    def propose(cls, question: Question) -> Way | Refusal:
        """It needs one normal latent, and a monotone function of it."""
        reason = _why_not(question)
        if reason is None:
            sites = ", ".join(map(repr, question.limits))
            restricted = f"normal, and restricted to an interval or a point by {sites}"
            return cls(TruncatedGaussian(), restricted, question.limits)
        site = question.limits[0]
        return Refusal(
            f"The observed Delta {site!r} restricts {question.names}. That is integrated exactly, as a truncated "
            "normal, where one normal latent alone meets it, through a monotone function of the latent and data: "
            f"{reason}. Write numpyro.sample({site!r}, dist.Delta(jnp.maximum(w, 0.0)), obs=y) for a censored value, "
            "dist.Delta(w > c) or jnp.clip, jnp.floor, jnp.digitize(w, edges) for a class. Anything else has to be "
            "summed out in the model: for a class, write its probability (jax.scipy.stats.norm.cdf) into the "
            f"distribution of {site!r}."
        )

    def prepare(self, model: Model, integral: Integral, data: Data) -> Limits:
        """What the Delta sites say."""
        return find_limits(model, dataclasses.replace(integral, factors=self.limits), data)

    def integrate(self, joint: Joint, start: jax.Array) -> Integrated:
        """Evidence and atoms of the normal law inside its limits."""
        free, limits = self._free(joint), self._limits(joint)
        mean, root = conditional(free, start)
        scale = root[:, 0, 0]
        log_mass, centre, variance = interval.moments(mean[:, 0], scale, limits.lower, limits.upper)
        centre = jnp.where(limits.is_point, limits.place, centre)
        deviation = jnp.where(limits.is_point, 0.0, jnp.sqrt(jnp.where(limits.is_point, 1.0, variance)))
        at = jnp.where(limits.is_point, limits.place, mean[:, 0])[:, None]
        volume = math.log(2 * math.pi) / 2 - jnp.log(scale) + log_mass
        inside = jnp.where(limits.is_point, 0.0, volume) + limits.measure
        inside = jnp.where(limits.is_impossible, -jnp.inf, inside)
        evidence = free.by_cell(free.tables(free.unpack(at))) + free.to_cells(inside)
        points = jnp.stack([centre + deviation, centre - deviation])[:, :, None]
        shares = jnp.full((1,) * free.rank, 1 / 2)
        atoms = atoms_of(free, points)
        return Integrated(
            impossible_to_infinite(evidence), atoms, shares, centre[:, None], 1 / deviation[:, None, None]
        )

    def draw(self, joint: Joint, integrated: Integrated, key: jax.Array) -> jax.Array:
        """From the normal law inside its limits."""
        limits = self._limits(joint)
        mean, root = conditional(self._free(joint), integrated.mean)
        drawn = interval.draw(key, mean[:, 0], root[:, 0, 0], limits.lower, limits.upper)
        return jnp.where(limits.is_point, limits.place, drawn)[:, None]

    @property
    def constant_sites(self) -> tuple[str, ...]:
        """The Delta sites are constants where they are possible; atoms may lie beyond the edge by rounding."""
        return self.limits

    def _free(self, joint: Joint) -> Joint:
        """The log joint density without the Delta sites."""
        factors = tuple(name for name in joint.integral.factors if name not in self.limits)
        return Joint(joint.model, dataclasses.replace(joint.integral, factors=factors), joint.params, joint.data)

    def _limits(self, joint: Joint) -> Limits:
        return self.prepare(joint.model, joint.integral, joint.data) if joint.prepared is None else joint.prepared


def _why_not(question: Question) -> str | None:
    if question.asked is not None and not isinstance(question.asked, Gaussian):
        return f"{question.asked!r} needs a density without jumps"
    if isinstance(question.integral, ChainIntegral):
        return "it lies inside a scan"
    if question.integral.dimensions != 1:
        return f"{question.integral.dimensions} numbers are integrated together"
    refusal = question.not_quadratic or why_not_limits(question.model, question.integral, question.limits)
    return None if refusal is None else refusal.reason

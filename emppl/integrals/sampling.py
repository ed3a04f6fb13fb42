"""Integrals by draws: evidence by importance sampling at the mode, atoms of the iterations by chains."""

from __future__ import annotations

import jax

from emppl.errors import Refusal
from emppl.integrals.importance import importance, importance_points
from emppl.integrals.integrated import Integrated
from emppl.integrals.joint import Joint
from emppl.integrals.modes import fixed_approximation
from emppl.integrals.way import Question, Way
from emppl.strategies import ImportanceSampling, MonteCarlo, Simulated


class Sampled(Way):
    """Weighted draws from a Student-t distribution at the mode, wherever no chains are at hand; it always applies."""

    strategies = (Simulated, ImportanceSampling)

    @classmethod
    def propose(cls, question: Question) -> Way | Refusal:
        """Any density that has a value."""
        return cls(question.asked or MonteCarlo(), question.reason)

    def integrate(self, joint: Joint, start: jax.Array) -> Integrated:
        """By default always by the same numbers, so that the outcome is a smooth function of the parameters."""
        mode, root = fixed_approximation(joint, start)
        key = jax.random.key(0) if joint.key is None else joint.key
        fixed = self.strategy.num_points if isinstance(self.strategy, ImportanceSampling) else None
        return importance(joint, mode, root, key, fixed or importance_points(joint.model, joint.integral))

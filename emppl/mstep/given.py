"""What the user decided about a parameter: hold it at a value, or update it with a function of one's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from emppl.estep import Posterior
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.numeric import Numeric, is_optimizer
from emppl.mstep.rule import Rule, RuleContext


@dataclasses.dataclass(frozen=True)
class Fixed(Rule):
    """Held at a given value."""

    kind: ClassVar[str] = "fixed"
    exact: ClassVar[bool] = True
    free: ClassVar[bool] = False
    reads_weights: ClassVar[bool] = False

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Nothing changes."""
        del step
        return {}


@dataclasses.dataclass(frozen=True)
class UserUpdate(Rule):
    """The user's own update.

    Attributes:
        function: ``(params, posterior) -> value``.
    """

    function: Callable

    kind: ClassVar[str] = "user"
    reads_every_site: ClassVar[bool] = True

    @property
    def order(self) -> int:
        """After the exact updates."""
        return 20

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Call the user's function."""
        (name,) = self.parameters
        found = step.expectations
        posterior = Posterior(found.log_likelihood, found.weights, found.atoms, found.centers)
        value = jnp.asarray(self.function(dict(step.params), posterior), step.params[name].dtype)
        return {name: value.reshape(step.params[name].shape)}


def propose(context: RuleContext, name: str) -> Rule | None:
    """The user's decision, or None."""
    if name in context.model.fixed:
        return Fixed((name,), "held at the given value")
    if is_optimizer(context.options.m_step.get(name)):
        what = "the optimizer given in m_step=, on the unconstrained value; kept only if Q rises"
        return Numeric((name,), what, context.options.m_step[name])
    if name in context.options.m_step:
        return UserUpdate((name,), "the update given in m_step=", context.options.m_step[name])
    return None

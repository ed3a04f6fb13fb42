"""What the user decided about a parameter: hold it at a value, or update it in one's own way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from emppl.errors import ModelError, ParameterError, Refusal
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

    @classmethod
    def propose(cls, context: RuleContext, name: str) -> Fixed | None:
        """The rule for frozen parameters."""
        return cls((name,), "held at the given value") if name in context.model.fixed else None

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

    reads_every_site: ClassVar[bool] = True
    stage: ClassVar[int] = 20

    @classmethod
    def propose(cls, context: RuleContext, name: str) -> Rule | None:
        """What the option ``m_step`` says of a parameter: a function, an optimiser, a rule, or a class of rules."""
        given = context.options.m_step.get(name)
        if given is None:
            return None
        if is_rule(given):
            return _own_rule(context, name, given)
        if is_optimizer(given):
            detail = "the optimizer given in m_step=, on the unconstrained value; kept only if Q rises"
            return Numeric((name,), detail, given)
        return cls((name,), "the update given in m_step=", given)

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Call the user's function."""
        (name,) = self.parameters
        before = step.params[name]
        value = jnp.asarray(self.function(dict(step.params), step.expectations.posterior), before.dtype)
        return {name: value.reshape(before.shape)}


def is_rule(given: object) -> bool:
    """Whether this is an M-step rule, or a class of rules."""
    return isinstance(given, Rule) or (isinstance(given, type) and issubclass(given, Rule))


def _own_rule(context: RuleContext, name: str, given: Rule | type[Rule]) -> Rule:
    rule = given if isinstance(given, Rule) else given.propose(context, name)
    if not isinstance(rule, Rule):
        reason = rule.reason if isinstance(rule, Refusal) else "it proposes nothing"
        raise ModelError(f"The rule given in m_step= does not apply to {name!r}: {reason}.")
    if name not in rule.parameters or any(context.options.m_step.get(n) is not given for n in rule.parameters):
        names = ", ".join(repr(n) for n in rule.parameters)
        raise ParameterError(f"m_step[{name!r}] is a rule for {names}: give it to each of these, and to no other.")
    return rule

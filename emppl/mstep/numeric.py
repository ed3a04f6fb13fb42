"""Whatever has no exact update: optax on the unconstrained block, never accepting a step that lowers Q."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from emppl.mstep.maximisation import Maximisation
from emppl.parameters import constrain, unconstrain
from emppl.rules import Rule, RuleContext

_INNER_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Numeric(Rule):
    """Some L-BFGS steps on all such parameters together: generalised EM."""

    kind: ClassVar[str] = "optax"

    @property
    def order(self) -> int:
        """Last, when the exact updates have been made."""
        return 30

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """L-BFGS; the outcome is kept only if Q does not fall."""
        import optax

        constraints = {name: step.program.trace.sites[name].constraint for name in self.parameters}

        def loss(free):
            return -step.q({name: constrain(constraints[name], value) for name, value in free.items()})

        before = {name: step.params[name] for name in self.parameters}
        start = {name: unconstrain(constraints[name], value) for name, value in before.items()}
        solver = optax.lbfgs()
        value_and_grad = optax.value_and_grad_from_state(loss)

        def keep_going(carry):
            _, state, number = carry
            gradient = optax.tree_utils.tree_get(state, "grad")
            value = optax.tree_utils.tree_get(state, "value")
            size = optax.tree_utils.tree_norm(gradient)
            small = jnp.finfo(value.dtype).eps ** 0.5
            return (number < _INNER_STEPS) & ((number == 0) | (size > small * (1 + jnp.abs(value))))

        def advance(carry):
            free, state, number = carry
            value, gradient = value_and_grad(free, state=state)
            updates, state = solver.update(gradient, state, free, value=value, grad=gradient, value_fn=loss)
            return optax.apply_updates(free, updates), state, number + 1

        free, _, _ = jax.lax.while_loop(keep_going, advance, (start, solver.init(start), 0))
        found = {name: constrain(constraints[name], value) for name, value in free.items()}
        better = step.q(found) >= step.q(before)
        return {name: jnp.where(better, found[name], value) for name, value in before.items()}


def propose(context: RuleContext, name: str) -> Numeric:
    """The rule of last resort always applies."""
    del context
    return Numeric((name,), "L-BFGS on the unconstrained value, accepted only if Q does not fall")


def join(context: RuleContext, rules: list[Numeric]) -> list[Numeric]:
    """All such parameters in one block."""
    del context
    return [Numeric(tuple(name for rule in rules for name in rule.parameters), rules[0].detail)]

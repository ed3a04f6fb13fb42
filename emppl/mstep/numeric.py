"""Whatever has no exact update: optax on the unconstrained block, never accepting a step that lowers Q.

The optimiser is L-BFGS with a line search, or any ``optax.GradientTransformation`` of the user's. Its state is kept
from one EM iteration to the next. An inner iteration ends when a step gains little beside what the block has gained.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from emppl.model.model import Model
from emppl.mstep.analysis import coordinates, from_block
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.rule import Rule, RuleContext
from emppl.types import Params

_INNER_STEPS = 20

_ENOUGH = 0.01
"""Part of what the block has gained below which the gain of a step ends an inner iteration."""


@dataclasses.dataclass(frozen=True)
class Numeric(Rule):
    """Some steps of an optimiser on all such parameters together: generalised EM.

    Attributes:
        solver: the user's optimiser, or None for L-BFGS.
    """

    solver: Any = None

    kind: ClassVar[str] = "optax"
    reads_weights: ClassVar[bool] = False
    stage: ClassVar[int] = 30

    @classmethod
    def propose(cls, context: RuleContext, name: str) -> Numeric:
        """The rule of last resort always applies."""
        if context.options.optimizer is None:
            return cls((name,), "L-BFGS on the unconstrained value, accepted only if Q does not fall")
        detail = "the optimizer given, on the unconstrained value; kept only if Q rises"
        return cls((name,), detail, context.options.optimizer)

    @classmethod
    def join(cls, context: RuleContext, rules: list[Numeric]) -> list[Numeric]:
        """All parameters of one optimiser in one block."""
        del context
        blocks: dict[int, list[Numeric]] = {}
        for rule in rules:
            blocks.setdefault(id(rule.solver), []).append(rule)
        return [
            dataclasses.replace(block[0], parameters=tuple(name for rule in block for name in rule.parameters))
            for block in blocks.values()
        ]

    def begin(self, model: Model, params: Params) -> Any:
        """State of the optimiser before its first step."""
        return self._solver().init(coordinates(model, params, self.parameters))

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Some steps of the optimiser; the best point is kept, which may be where they began."""
        model, before = step.model, {name: step.params[name] for name in self.parameters}
        start = coordinates(model, before, self.parameters)

        def constrained(block: Params) -> dict[str, jax.Array]:
            return {name: model.pin(name, value) for name, value in from_block(model, block).items()}

        memory = step.memory[self.name] if self.name in step.memory else self.begin(model, step.params)
        end, gain, step.memory[self.name], finished = descend(
            lambda block: -step.q(constrained(block)), self._solver(), start, memory
        )
        # Towards the edge of a support, and at corners, a line search comes to nothing far from the maximum.
        step.report(finished & (not set(model.rough) & set(self.parameters)))
        after = constrained(end)
        return {name: jnp.where(gain > 0, after[name], value) for name, value in before.items()}

    def _solver(self) -> Any:
        import optax

        return optax.lbfgs() if self.solver is None else optax.with_extra_args_support(self.solver)


def is_optimizer(given: Any) -> bool:
    """Whether this is an ``optax.GradientTransformation``, asked without importing optax."""
    return callable(getattr(given, "init", None)) and callable(getattr(given, "update", None))


def descend(
    loss: Callable[[Params], jax.Array], solver: Any, start: dict[str, jax.Array], memory: Any
) -> tuple[dict[str, jax.Array], jax.Array, Any, jax.Array]:
    """Some steps downhill.

    Args:
        loss: what to minimise.
        solver: an optimiser that takes ``value``, ``grad`` and ``value_fn``, or ignores them.
        start: where to begin.
        memory: its state.

    Returns:
        ``(point, gain, memory, finished)``: the best point seen, how much lower the loss is there, the optimiser's
        state, and whether a further step would gain little beside that.
    """
    import optax

    value_and_grad = jax.value_and_grad(loss)
    first, slope = value_and_grad(start)
    rounding = 8 * jnp.finfo(first.dtype).eps * (1 + jnp.abs(first))
    memory = _carried_over(solver, memory, start, slope)

    def keep_going(carry: tuple) -> jax.Array:
        number, finished = carry[-2:]
        return (number < _INNER_STEPS) & ~finished

    def advance(carry: tuple) -> tuple:
        point, value, slope, memory, best, lowest, number, _ = carry
        updates, memory = solver.update(slope, memory, point, value=value, grad=slope, value_fn=loss)
        promise = -sum(jax.tree.leaves(jax.tree.map(jnp.vdot, updates, slope)))
        point = optax.apply_updates(point, updates)
        new, slope = value_and_grad(point)
        step, better = value - new, (new < lowest) & jnp.isfinite(new)
        best = jax.tree.map(lambda now, old: jnp.where(better, now, old), point, best)
        lowest = jnp.where(better, new, lowest)
        small = (step >= 0) & (step <= jnp.maximum(_ENOUGH * (first - lowest), rounding))
        rests = (jnp.abs(promise) <= rounding) & (jnp.abs(step) <= rounding)
        # Nothing gained although the slope promised something is no end, but a failure to get there.
        finished = rests | (small & (first - lowest > 0))
        return point, new, slope, memory, best, lowest, number + 1, finished

    carry = (start, first, slope, memory, start, first, 0, jnp.asarray(False))
    *_, memory, best, lowest, _, finished = jax.lax.while_loop(keep_going, advance, carry)
    return best, first - lowest, memory, finished


def _carried_over(solver: Any, memory: Any, start: Params, slope: Params) -> Any:
    """State of the last M-step, made fit for this one, whose objective is another.

    L-BFGS learns curvature from differences of gradients. One between two objectives may say that the loss is concave,
    which would turn its directions uphill: then it starts afresh.
    """
    import optax

    for state in jax.tree.leaves(memory, is_leaf=lambda node: isinstance(node, optax.ScaleByLBFGSState)):
        if isinstance(state, optax.ScaleByLBFGSState):
            moved = jax.tree.map(jnp.subtract, start, state.params)
            turned = jax.tree.map(jnp.subtract, slope, state.updates)
            curvature = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, moved, turned)))
            keep = functools.partial(jnp.where, curvature > 0)
            memory = jax.tree.map(keep, memory, solver.init(start))
    return memory

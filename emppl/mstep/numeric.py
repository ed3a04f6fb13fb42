"""Whatever has no exact update: optax on the unconstrained block, never accepting a step that lowers Q.

The optimiser is L-BFGS with a line search, or any ``optax.GradientTransformation`` of the user's. Its state is kept
from one EM iteration to the next. An inner iteration ends when a step gains little beside what the block has gained.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from emppl.mstep.maximisation import Maximisation
from emppl.mstep.rule import Rule, RuleContext
from emppl.parameters.constraints import from_coordinates, to_coordinates

_INNER_STEPS = 20
_ENOUGH = 0.01


@dataclasses.dataclass(frozen=True)
class Numeric(Rule):
    """Some steps of an optimiser on all such parameters together: generalised EM.

    Attributes:
        solver: the user's optimiser, or None for L-BFGS.
    """

    solver: Any = None

    kind: ClassVar[str] = "optax"
    reads_weights: ClassVar[bool] = False

    @property
    def order(self) -> int:
        """Last, when the exact updates have been made."""
        return 30

    def begin(self, model, params) -> Any:
        """State of the optimiser before its first step."""
        return self._solver().init(_free(model, params, self.parameters))

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Some steps of the optimiser; the best point is kept, which may be where they began."""
        constraints = {name: step.model.trace.sites[name].constraint for name in self.parameters}
        before = {name: step.params[name] for name in self.parameters}
        start = _free(step.model, before, self.parameters)

        def constrained(free):
            return {
                name: step.model.pin(name, from_coordinates(constraints[name], value)) for name, value in free.items()
            }

        memory = step.memory[self.name] if self.name in step.memory else self.begin(step.model, step.params)
        found, gain, step.memory[self.name], finished = descend(
            lambda free: -step.q(constrained(free)), self._solver(), start, memory
        )
        # Towards the edge of a support, and at corners, a line search comes to nothing far from the maximum.
        step.report(finished & (not set(step.model.rough) & set(self.parameters)))
        after = constrained(found)
        return {name: jnp.where(gain > 0, after[name], value) for name, value in before.items()}

    def _solver(self):
        import optax

        return optax.lbfgs() if self.solver is None else optax.with_extra_args_support(self.solver)


def propose(context: RuleContext, name: str) -> Numeric:
    """The rule of last resort always applies."""
    if context.options.optimizer is not None:
        return Numeric(
            (name,), "the optimizer given, on the unconstrained value; kept only if Q rises", context.options.optimizer
        )
    return Numeric((name,), "L-BFGS on the unconstrained value, accepted only if Q does not fall")


def join(context: RuleContext, rules: list[Numeric]) -> list[Numeric]:
    """All parameters of one optimiser in one block."""
    del context
    blocks: dict[int, list[Numeric]] = {}
    for rule in rules:
        blocks.setdefault(id(rule.solver), []).append(rule)
    return [
        Numeric(tuple(name for rule in block for name in rule.parameters), block[0].detail, block[0].solver)
        for block in blocks.values()
    ]


def is_optimizer(given: Any) -> bool:
    """Is this an ``optax.GradientTransformation``, asked without importing optax?"""
    return callable(getattr(given, "init", None)) and callable(getattr(given, "update", None))


def _free(model, params, names) -> dict[str, jax.Array]:
    return {name: to_coordinates(model.trace.sites[name].constraint, params[name]) for name in names}


def descend(loss, solver, start, memory):
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

    def keep_going(carry):
        number, finished = carry[-2:]
        return (number < _INNER_STEPS) & ~finished

    def advance(carry):
        point, value, slope, memory, best, lowest, number, _ = carry
        updates, memory = solver.update(slope, memory, point, value=value, grad=slope, value_fn=loss)
        promise = -sum(jnp.vdot(u, g) for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(slope), strict=True))
        point = optax.apply_updates(point, updates)
        new, slope = value_and_grad(point)
        step, better = value - new, new < lowest
        best = jax.tree.map(lambda now, old: jnp.where(better, now, old), point, best)
        lowest = jnp.where(better, new, lowest)
        small = (step >= 0) & (step <= jnp.maximum(_ENOUGH * (first - lowest), rounding))
        nothing = (jnp.abs(promise) <= rounding) & (jnp.abs(step) <= rounding)
        # Nothing gained although the slope promised something is no end, but a failure to get there.
        finished = nothing | (small & (first - lowest > 0))
        return point, new, slope, memory, best, lowest, number + 1, finished

    carry = (start, first, slope, memory, start, first, 0, jnp.asarray(False))
    *_, memory, best, lowest, _, finished = jax.lax.while_loop(keep_going, advance, carry)
    return best, first - lowest, memory, finished


def _carried_over(solver, memory, start, slope):
    """State of the last M-step, made fit for this one, whose objective is another.

    L-BFGS learns curvature from differences of gradients. One between two objectives may say that the loss is concave,
    which would turn its directions uphill: then it starts afresh.
    """
    import optax

    is_lbfgs = lambda node: isinstance(node, optax.ScaleByLBFGSState)  # noqa: E731
    for state in jax.tree.leaves(memory, is_leaf=is_lbfgs):
        if is_lbfgs(state):
            moved = jax.tree.map(jnp.subtract, start, state.params)
            turned = jax.tree.map(jnp.subtract, slope, state.updates)
            curvature = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, moved, turned)))
            keep = functools.partial(jnp.where, curvature > 0)
            memory = jax.tree.map(keep, memory, solver.init(start))
    return memory

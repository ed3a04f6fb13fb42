"""A quadratic block: Q is quadratic in the parameters jointly, so that one exact linear solve maximises it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from emppl.errors import Refusal
from emppl.model.model import Model
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.rule import Rule, RuleContext
from emppl.numerics.guarded import matrix_transpose, symmetrize
from emppl.parameters.constraints import constraint_name
from emppl.parameters.layout import Block, Layout

MOST_ENTRIES = 500
"""Order of the largest matrix that is factorised."""

_REFINEMENTS = 2


@dataclasses.dataclass(frozen=True)
class Quadratic(Rule):
    """One Newton step, exact because Q is quadratic.

    Attributes:
        layout: how the entries fall into groups that never meet.
    """

    layout: Layout

    kind: ClassVar[str] = "quadratic"
    exact: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = False

    @classmethod
    def propose(cls, context: RuleContext, name: str) -> Quadratic | Refusal:
        """The rule, or the reason why it does not apply."""
        constraint = constraint_name(context.model.trace.sites[name].constraint)
        if not constraint.startswith("real"):
            return Refusal(f"its constraint {constraint!r} may bind")
        reason = context.analysis.why_not_quadratic((name,))
        return cls._of_block(context, (name,)) if reason is None else Refusal(reason)

    @classmethod
    def join(cls, context: RuleContext, rules: list[Quadratic]) -> list[Quadratic]:
        """Put parameters together that meet in a site and in which Q is jointly quadratic.

        What cannot be put together is updated in turn, each exactly (a conditional maximisation).
        """
        analysis = context.analysis

        def fits(names: tuple[str, ...]) -> bool:
            return analysis.why_not_quadratic(names) is None and analysis.layout(names).entries <= MOST_ENTRIES

        blocks = analysis.blocks((rule.name for rule in rules), fits)
        return [cls._of_block(context, block) for block in blocks]

    @classmethod
    def _of_block(cls, context: RuleContext, names: tuple[str, ...]) -> Quadratic:
        layout = context.analysis.layout(names)
        block = f"{', '.join(names)} jointly" if len(names) > 1 else "it"
        return cls(names, f"Q is quadratic in {block}: one exact linear solve{describe(layout)}", layout)

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """Solve for the stationary point."""
        at = {name: step.params[name] for name in self.parameters}
        return stationary_point(step.q, self.layout, at, free_entries(step.model, self.layout))


def describe(layout: Layout) -> str:
    """The structure of the Hessian in words."""
    if not layout.groups:
        return f" of order {layout.entries}"
    bordered = f", bordered by {layout.in_common}" if layout.in_common else ""
    return f" ({layout.groups} groups of {layout.per_group}{bordered})"


def free_entries(model: Model, layout: Layout) -> jax.Array:
    """One for every entry of a block that is free, zero for those that are fixed, as vectors of the layout."""
    free = {
        name: jnp.asarray(np.isnan(model.held[name]) if name in model.held else np.ones(shape), jnp.result_type(float))
        for name, shape in layout.shapes.items()
    }
    return layout.pack(free)


def stationary_point(
    objective: Callable[[Block], jax.Array], layout: Layout, at: Block, free: jax.Array
) -> dict[str, jax.Array]:
    """Exact maximiser of a quadratic: a Newton step, refined, with a minimum-norm step in flat directions.

    The gradient is a sum of residuals, and knows many more digits than the Hessian of a near-collinear design: after
    the first solve the same factors are applied to the gradient at the new point, which recovers them.

    A quadratic without a maximum (convex, or sloping along a flat direction) gives NaN, which the loop reports.
    """
    gradient = jax.grad(objective)
    point = layout.pack(at)
    # Fixed entries are a flat direction without any slope.
    inverse = scaled_eigen(-layout.hessian(gradient, at) * (free[..., :, None] * free[..., None, :]))
    tolerance = jnp.finfo(point.dtype).eps * point.shape[-1]
    used = inverse.values > tolerance * jnp.max(inverse.values, -1, keepdims=True, initial=0)
    first = slope = inverse.rotated(layout.pack(gradient(at)) * free)
    for number in range(1 + _REFINEMENTS):
        point = point + inverse.back(jnp.where(used, slope / jnp.where(used, inverse.values, 1), 0))
        if number < _REFINEMENTS:
            slope = inverse.rotated(layout.pack(gradient(layout.unpack(point))) * free)
    slack = jnp.finfo(point.dtype).eps ** 0.5
    # Along a flat direction there must be nothing to climb.
    level = jnp.linalg.norm(jnp.where(used, 0, first)) <= slack * (1 + jnp.linalg.norm(first))
    concave = jnp.all(inverse.values >= -slack * point.shape[-1])
    return layout.unpack(jnp.where(level & concave, point, jnp.nan))


@dataclasses.dataclass(frozen=True)
class ScaledEigen:
    """Eigenvalues of symmetric matrices after their entries are brought to a common scale.

    Attributes:
        unit: the scale of every entry, ``(matrices, entries)``.
        values: eigenvalues of the scaled matrices.
        vectors: their eigenvectors, as columns.
    """

    unit: jax.Array
    values: jax.Array
    vectors: jax.Array

    def rotated(self, gradient: jax.Array) -> jax.Array:
        """A gradient in the eigenvectors' coordinates."""
        return jnp.squeeze(matrix_transpose(self.vectors) @ (gradient / self.unit)[..., None], -1)

    def back(self, step: jax.Array) -> jax.Array:
        """A step from the eigenvectors' coordinates to the entries'."""
        return jnp.squeeze(self.vectors @ step[..., None], -1) / self.unit


def scaled_eigen(matrices: jax.Array) -> ScaledEigen:
    """Scale symmetric matrices to a unit diagonal and diagonalise them."""
    diagonal = jnp.abs(jnp.diagonal(matrices, axis1=-2, axis2=-1))
    unit = jnp.where(diagonal > 0, jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 1)
    # NaN would make the eigenvalue routine fail slowly; the caller sees it in the gradient.
    scaled = symmetrize(matrices / (unit[..., :, None] * unit[..., None, :]))
    values, vectors = jnp.linalg.eigh(scaled, symmetrize_input=False)
    return ScaledEigen(unit, values, vectors)

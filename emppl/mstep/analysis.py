"""How Q depends on a block of parameters, asked without data: is it quadratic, twice differentiable, separable?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from emppl.jaxpr.jumps import only_jumps, why_not_quadratic
from emppl.jaxpr.layout import Layout, find_layout
from emppl.model.model import Model, prior_cells
from emppl.numerics.guarded import weighted
from emppl.parameters.constraints import from_coordinates, to_coordinates


class Analysis:
    """Answers about blocks of one model, each found once.

    Args:
        model: the model.
    """

    def __init__(self, model: Model):
        self.model = model
        sites = model.trace.sites
        self.params = model.trace.parameter_shapes
        self.priors = [
            n for n in self.params if sites[n].kind == "continuous" and n not in model.fixed and model.use_prior
        ]
        self.why_not_quadratic = functools.cache(self._why_not_quadratic)
        self.why_not_smooth = functools.cache(self._why_not_smooth)
        self.layout = functools.cache(self._layout)

    def blocks(self, rules, fits) -> list[tuple[str, ...]]:
        """Parameters of single rules put together where they meet in a site.

        Args:
            rules: rules of one parameter each.
            fits: says of some parameters whether they may form one block.

        Returns:
            The blocks, every parameter in one of them.
        """
        blocks: list[tuple[str, ...]] = []
        for rule in rules:
            (name,) = rule.parameters
            for number, block in enumerate(blocks):
                meet = set(self.touched(block)) & set(self.touched((name,)))
                if meet and fits((*block, name)):
                    blocks[number] = (*block, name)
                    break
            else:
                blocks.append((name,))
        return blocks

    def touched(self, names: tuple[str, ...]) -> list[str]:
        """Likelihood sites that depend on any of these parameters."""
        return [name for name, factor in self.model.factors.items() if factor.all_parameters & set(names)]

    def cells(self, names: tuple[str, ...], by_element: bool = False) -> Callable:
        """``(block, params, data) -> (tables, prior log-densities)`` of everything that the block enters."""
        touched = self.touched(names)

        def cells(block, params, data):
            arrays = self.model.evaluate({**params, **block}, data)
            tables = {name: self.model.factors[name].table(arrays, by_element) for name in touched}
            return tables, [prior_cells(arrays[name]) for name in self.priors]

        return cells

    def free_cells(
        self, names: tuple[str, ...], by_element: bool = False
    ) -> tuple[Callable, dict[str, tuple[int, ...]]]:
        """The same as a function of unconstrained values, and their shapes."""
        sites = self.model.trace.sites
        constraints = {name: sites[name].constraint for name in names}
        cells = self.cells(names, by_element)

        def free(block, params, data):
            return cells(
                {name: from_coordinates(constraints[name], value) for name, value in block.items()}, params, data
            )

        shapes = {
            name: jax.eval_shape(functools.partial(to_coordinates, constraints[name]), self.params[name]).shape
            for name in names
        }
        return free, shapes

    # --------------------------------------------------------------------------------------------- the answers

    def _why_not_quadratic(self, names: tuple[str, ...]) -> str | None:
        """The reason why Q is not quadratic in a block jointly, or None if it is."""
        objective, block = self._objective(self.cells(names), {name: self.params[name] for name in names})
        reason = why_not_quadratic(objective, block)
        return None if reason is None else f"the gradient of Q is not affine in it ({reason})"

    def only_jumps(self, name: str) -> str | None:
        """The operation through which Q sees a parameter, if all that it sees are steps."""
        return only_jumps(*self._objective(self.cells((name,)), {name: self.params[name]}))

    def _why_not_smooth(self, names: tuple[str, ...]) -> str | None:
        """The reason why Q has no second derivatives on the unconstrained space, or None if it has."""
        cells, shapes = self.free_cells(names)
        objective, block = self._objective(cells, _structs(shapes))
        gradient = jax.grad(objective)
        try:
            jax.eval_shape(lambda block: jax.jvp(gradient, (block,), (block,)), block)
        except Exception as error:  # noqa: BLE001  jax raises many kinds, all meaning "no such derivative"
            return f"it has no second derivatives ({str(error).split(chr(10))[0][:80]})"
        return None

    def _layout(self, names: tuple[str, ...]) -> Layout:
        """How a block falls into groups, on the unconstrained space."""
        # Elements of a to_event are added up: entries that meet only in that sum do not meet.
        cells, shapes = self.free_cells(names, by_element=True)
        return find_layout(lambda *a: jax.tree.leaves(cells(*a)), shapes, self.params, self.model.shapes)

    def _objective(self, cells: Callable, block: Mapping):
        """Q as a function of the block, everything else abstract, and the block's shapes."""

        def objective(block):
            # Zeros stand for the other parameters, the data and the weights: no arithmetic is ever done with them.
            params, data = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), (self.params, self.model.shapes))
            tables, priors = cells(block, params, data)
            total = sum((jnp.sum(one) for one in priors), jnp.zeros((), jnp.result_type(float)))
            for table in tables.values():
                total = total + jnp.sum(weighted(jax.lax.stop_gradient(jnp.ones_like(table)), table))
            return total

        return objective, dict(block)


def _structs(shapes: Mapping[str, tuple[int, ...]]):
    return {name: jax.ShapeDtypeStruct(shape, jnp.result_type(float)) for name, shape in shapes.items()}

"""How Q depends on a block of parameters, asked without data: is it quadratic, twice differentiable, separable?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp

from emppl.estep.q import touched
from emppl.jaxpr.jumps import only_jumps, why_not_quadratic
from emppl.memo import once
from emppl.model.log_prob_table import log_prob_table
from emppl.model.model import Model, prior_cells
from emppl.numerics.guarded import weighted
from emppl.parameters.constraints import from_coordinates, to_coordinates
from emppl.parameters.layout import Block, Layout, find_layout
from emppl.types import Data, Params

Cells: TypeAlias = Callable[[Block, Params, Data], tuple[dict[str, jax.Array], list[jax.Array]]]
"""``(block, params, data) -> (tables, prior log-densities)`` of everything that a block enters."""

Names: TypeAlias = tuple[str, ...]


class Analysis:
    """Answers about blocks of one model, each found once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.params = model.trace.parameter_shapes

    def blocks(self, parameters: Iterable[str], fits: Callable[[Names], bool]) -> list[Names]:
        """Parameters put together where they meet in a site.

        Args:
            parameters: their names.
            fits: whether some of them may form one block.

        Returns:
            The blocks, every parameter in one of them.
        """
        blocks: list[Names] = []
        for name in parameters:
            sites = set(touched(self.model, [name]))
            for number, block in enumerate(blocks):
                if sites & set(touched(self.model, block)) and fits((*block, name)):
                    blocks[number] = (*block, name)
                    break
            else:
                blocks.append((name,))
        return blocks

    def only_jumps(self, name: str) -> str | None:
        """The operation through which alone Q depends on a parameter, if it makes steps; None if some slope is seen."""
        return only_jumps(self._objective(self._cells((name,))), self._shapes((name,)))

    @once
    def why_not_quadratic(self, names: Names) -> str | None:
        """The reason why Q is not quadratic in a block jointly, or None if it is."""
        reason = why_not_quadratic(self._objective(self._cells(names)), self._shapes(names))
        return None if reason is None else f"the gradient of Q is not affine in it ({reason})"

    @once
    def why_not_smooth(self, names: Names) -> str | None:
        """The reason why Q has no second derivatives in the coordinates of a block, or None if it has."""
        gradient = jax.grad(self._objective(self._free_cells(names)))
        try:
            jax.eval_shape(lambda block: jax.jvp(gradient, (block,), (block,)), self._free_shapes(names))
        except Exception as error:  # noqa: BLE001  jax raises many kinds, all meaning "no such derivative"
            return f"it has no second derivatives ({str(error).split(chr(10))[0][:80]})"
        return None

    @once
    def layout(self, names: Names) -> Layout:
        """How a block falls into groups, in its coordinates."""
        # Elements of a to_event are added up: entries that meet only in that sum do not meet.
        cells = self._free_cells(names, by_element=True)
        shapes = {name: struct.shape for name, struct in self._free_shapes(names).items()}
        return find_layout(lambda *args: jax.tree.leaves(cells(*args)), shapes, self.params, self.model.shapes)

    # ------------------------------------------------------------------------------------------- what is asked about

    def _shapes(self, names: Names) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: self.params[name] for name in names}

    def _free_shapes(self, names: Names) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = jax.eval_shape(lambda params: coordinates(self.model, params, names), self.params)
        return {name: shapes[name] for name in names}  # JAX sorts the keys; a block is laid out in its own order

    def _cells(self, names: Names, by_element: bool = False) -> Cells:
        model, sites = self.model, touched(self.model, names)
        priors = [n for n in model.free if model.use_prior and model.trace.sites[n].kind == "continuous"]

        def cells(block: Block, params: Params, data: Data) -> tuple[dict[str, jax.Array], list[jax.Array]]:
            arrays = model.evaluate({**params, **block}, data)
            tables = {name: log_prob_table(model.factors[name], arrays, by_element) for name in sites}
            return tables, [prior_cells(arrays[name]) for name in priors]

        return cells

    def _free_cells(self, names: Names, by_element: bool = False) -> Cells:
        """Tables and prior log-densities as a function of the block's coordinates."""
        cells = self._cells(names, by_element)
        return lambda block, params, data: cells(from_block(self.model, block), params, data)

    def _objective(self, cells: Cells) -> Callable[[Mapping[str, jax.Array]], jax.Array]:
        """Q plus the log prior as a function of the block, everything else abstract."""

        def objective(block: Mapping[str, jax.Array]) -> jax.Array:
            # Zeros stand for the other parameters, the data and the weights: no arithmetic is ever done with them.
            shapes = (self.params, self.model.shapes)
            tables, priors = cells(block, *jax.tree.map(lambda struct: jnp.zeros(struct.shape, struct.dtype), shapes))
            total = sum((jnp.sum(prior) for prior in priors), jnp.zeros((), jnp.result_type(float)))
            for table in tables.values():
                total = total + jnp.sum(weighted(jax.lax.stop_gradient(jnp.ones_like(table)), table))
            return total

        return objective


def coordinates(model: Model, params: Params, names: Iterable[str]) -> dict[str, jax.Array]:
    """Some parameters in the unconstrained coordinates in which iterative rules climb."""
    return {name: to_coordinates(model.trace.sites[name].constraint, params[name]) for name in names}


def from_block(model: Model, block: Params) -> dict[str, jax.Array]:
    """Constrained values of a block in coordinates."""
    return {name: from_coordinates(model.trace.sites[name].constraint, free) for name, free in block.items()}

"""Which normal sites have a linear predictor, and so a natural form in its coefficients."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpyro.distributions as dist

from emppl.jaxpr.groups import Grouped
from emppl.jaxpr.separation import Separation
from emppl.model.model import Model
from emppl.model.regression import LinearPredictor, RegressionForm
from emppl.mstep.quadratic import Quadratic
from emppl.mstep.rule import Rule
from emppl.parameters.layout import Block, find_layout, group_numbers
from emppl.types import Data

_MOST_COLUMNS = 30

_MOST_NUMBERS = 2**27
"""Statistics of all rows take eight bytes times this at most (1 GiB)."""


def find_regressions(model: Model, rules: Mapping[str, Rule]) -> dict[str, RegressionForm]:
    """Regression forms of the normal sites whose location is one linear function of coefficients for all latents."""
    regressions = {}
    for name, factor in model.factors.items():
        if model.trace.distributions.get(name) is dist.Normal and factor.has_natural_form:
            predictor = _predictor(model, name, rules)
            if predictor is not None:
                regressions[name] = RegressionForm.of(factor, predictor)
    return regressions


def _predictor(model: Model, name: str, rules: Mapping[str, Rule]) -> LinearPredictor | None:
    factor, axes = model.factors[name], model.axes
    sizes = model.argument_shapes.get(name, {})
    coefficients = sorted(n for n in factor.parameters["loc"] if rules[n].free)
    blocks = {id(rules[n]): rules[n] for n in coefficients}
    rows = axes.rank - 1
    if (
        factor.labels_of is not None
        or factor.site.reinterpreted
        or factor.site.time is not None
        or axes.plates_of(factor.site, factor.site.batch_shape) != {axes.rows}
        or sizes["loc"][rows] == 1
        or sizes["scale"][rows] > 1
        or len(blocks) != 1
        or not all(isinstance(rule, Quadratic) for rule in blocks.values())
        or set(coefficients) & factor.parameters["scale"]
    ):
        return None

    def location(block: Block, data: Data) -> jax.Array:
        wanted = frozenset([(name, "arguments")])
        return factor.argument(model.evaluate({**model.placeholders(), **block}, data, wanted), "loc")

    block = {n: model.trace.sites[n].shape for n in coefficients}
    layout = find_layout(location, block, model.shapes)
    features = (layout.probes + 1) * (layout.probes + 2) // 2
    if layout.probes > _MOST_COLUMNS or features * axes.sizes[axes.rows] > _MOST_NUMBERS:
        return None
    numbers = {n: group_numbers(block[n], layout.grouped.get(n)) for n in block}
    (cells,) = Separation(location, block, model.shapes).groups(numbers)
    alike = (
        isinstance(cells, Grouped)
        and cells.numbers.shape[rows] == 1
        and not any(cells.varies[:rows])
        and (not layout.groups or bool((cells.numbers >= 0).all()))
    )
    return LinearPredictor(layout, cells.numbers, location) if alike and isinstance(cells, Grouped) else None

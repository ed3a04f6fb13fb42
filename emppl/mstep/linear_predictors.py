"""Which normal sites have a linear predictor, and so a natural form in its coefficients."""

from __future__ import annotations

import numpyro.distributions as dist

from emppl.jaxpr.groups import Grouped
from emppl.jaxpr.layout import find_layout, group_numbers
from emppl.jaxpr.separation import Separation
from emppl.model.regression import LinearPredictor, RegressionFactor
from emppl.mstep.quadratic import Quadratic
from emppl.program import Program

_MOST_COLUMNS = 30
_MOST_NUMBERS = 2**27
"""Statistics of all rows take eight bytes times this at most (1 GiB)."""


def find_regressions(program: Program, shapes) -> dict[str, RegressionFactor]:
    """Normal sites whose location is one and the same linear function of coefficients in every cell of the latents.

    Args:
        program: the derived algorithm, rules included.
        shapes: shapes of the data.

    Returns:
        Their regression forms by site.
    """
    found = {}
    for name, factor in program.factors.items():
        if program.trace.distributions.get(name) is dist.Normal and factor.has_natural_form:
            predictor = _predictor(program, name, shapes)
            if predictor is not None:
                found[name] = RegressionFactor.of(factor, predictor)
    return found


def _predictor(program: Program, name: str, shapes) -> LinearPredictor | None:
    factor, axes = program.factors[name], program.axes
    sizes = program.argument_shapes.get(name, {})
    coefficients = sorted(n for n in factor.parameters["loc"] if program.rules[n].free)
    rules = {id(program.rules[n]): program.rules[n] for n in coefficients}
    rows = axes.rank - 1
    if (
        factor.labels_of is not None
        or factor.site.reinterpreted
        or factor.site.time is not None
        or axes.plates_of(factor.site, factor.site.batch_shape) != {axes.rows}
        or sizes["loc"][rows] == 1
        or sizes["scale"][rows] > 1
        or len(rules) != 1
        or not all(isinstance(rule, Quadratic) for rule in rules.values())
        or set(coefficients) & factor.parameters["scale"]
    ):
        return None

    def location(block, data):
        wanted = frozenset([(name, "arguments")])
        return factor.argument(program.evaluate({**program.placeholders(), **block}, data, wanted), "loc")

    block = {n: program.trace.sites[n].shape for n in coefficients}
    layout = find_layout(location, block, shapes)
    features = (layout.probes + 1) * (layout.probes + 2) // 2
    if layout.probes > _MOST_COLUMNS or features * axes.sizes[axes.rows] > _MOST_NUMBERS:
        return None
    numbers = {n: group_numbers(block[n], layout.grouped.get(n)) for n in block}
    (cells,) = Separation(location, block, shapes).groups(numbers)
    alike = (
        isinstance(cells, Grouped)
        and cells.numbers.shape[rows] == 1
        and not any(cells.varies[:rows])
        and (not layout.groups or bool((cells.numbers >= 0).all()))
    )
    return LinearPredictor(layout, cells.numbers, location) if alike and isinstance(cells, Grouped) else None

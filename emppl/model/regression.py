"""The natural form of a normal site with a linear predictor: an iteration of a mixture of regressions is two products.

With ``loc = design @ coefficients`` the log-density is quadratic in the coefficients, and its statistics are the
products of the response and the columns of the design::

    log_prob = -(y - d.c)^2 / (2 scale^2) - log(scale)  =  natural(c, scale) . (y^2, y d, d d')

The design is found by linearity, not by recognising ``X @ beta``: it is the derivative of the traced location with
respect to the coefficients of one cell, computed once per fit. The response and the design are orthogonalised over
all rows first, so that nearly collinear columns and responses far from zero keep their digits.

The plain twin is the site's log-probability table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from emppl.families import Family
from emppl.model.natural import NaturalForm, Prepared
from emppl.model.site import AlignedSite
from emppl.numerics.guarded import matrix_transpose
from emppl.parameters.layout import Layout
from emppl.trace import SiteArrays
from emppl.types import Data

COEFFICIENTS = "coefficients"
"""Name under which the coefficients of a linear predictor stand among a site's arguments."""

_LOG_TWO_PI = float(np.log(2 * np.pi))


@dataclasses.dataclass(frozen=True)
class LinearPredictor:
    """How the location of a site depends on a block of parameters.

    Attributes:
        layout: the block's entries, by group.
        numbers: the group on which every cell depends, with the common axes.
        location: ``(block, data) -> loc``, affine in the block, with the common axes.
    """

    layout: Layout
    numbers: np.ndarray
    location: Callable

    @property
    def columns(self) -> int:
        """Number of coefficients that one cell depends on."""
        return self.layout.probes

    def coefficients(self, params: Mapping[str, jax.Array]) -> jax.Array:
        """Coefficients of every cell, ``(*axes, columns)``."""
        rows, common = self.layout.split({name: params[name] for name in self.layout.shapes})
        common = jnp.broadcast_to(common, self.numbers.shape + common.shape)
        return jnp.concatenate([rows[self.numbers], common], -1) if self.layout.groups else common

    def design(self, data: Data) -> tuple[jax.Array, jax.Array]:
        """The design ``(rows, columns)`` and the known part of the location ``(rows,)``."""
        layout = self.layout
        dtype = jnp.result_type(float)
        zero = {name: jnp.zeros(shape, dtype) for name, shape in layout.shapes.items()}
        known, derivative = jax.linearize(lambda block: self.location(block, data), zero)

        def column(unit: jax.Array) -> jax.Array:
            rows = jnp.broadcast_to(unit[None, : layout.per_group], (layout.groups, layout.per_group))
            return _first_cell(derivative(layout.join(rows, unit[layout.per_group :])))

        return jax.vmap(column, out_axes=-1)(jnp.eye(layout.probes, dtype=dtype)), _first_cell(known)


def _first_cell(array: jax.Array) -> jax.Array:
    """One copy along all axes but the rows; the others are known to be alike."""
    return array[(0,) * (array.ndim - 1)]


@dataclasses.dataclass(frozen=True)
class RegressionForm:
    """A normal site seen as a family over rows ``(design, response)``, with coefficients as its argument.

    Attributes:
        form: the site as statistics of these rows times natural parameters.
        predictor: how its location depends on the coefficients.
    """

    form: NaturalForm
    predictor: LinearPredictor

    @classmethod
    def of(cls, aligned: AlignedSite, predictor: LinearPredictor) -> RegressionForm:
        """The regression form of a normal site."""
        return cls(NaturalForm(aligned, REGRESSION), predictor)

    def prepare(self, arrays: Mapping[str, SiteArrays], data: Data) -> Prepared:
        """Statistics of the rows, the response last.

        Args:
            arrays: the evaluated model, with :data:`COEFFICIENTS` among the arguments.
        """
        response = self.form.aligned.value(arrays)
        design, known = self.predictor.design(data)
        rows = jnp.concatenate([design, (response.reshape(-1) - known)[:, None]], -1)
        rows = jnp.reshape(rows, response.shape[:-1] + rows.shape)
        return self.form.prepare_value(rows, self.arguments(arrays), arrays)

    def arguments(self, arrays: Mapping[str, SiteArrays]) -> dict[str, jax.Array]:
        """Coefficients and scale of every cell."""
        aligned = self.form.aligned
        coefficients = arrays[aligned.name].arguments[COEFFICIENTS]
        return {COEFFICIENTS: coefficients, "scale": aligned.argument(arrays, "scale")}

    def natural(self, arguments: Mapping[str, jax.Array], reference: Any) -> jax.Array:
        """Natural parameters with the offset as coefficient of the count: ``(*axes, features)``."""
        return self.form.natural(arguments, reference)

    def residuals(self, sums: jax.Array, coefficients: jax.Array, reference: Any) -> dict[str, jax.Array]:
        """Expected statistics of the residuals, a normal sample about zero, for the closed forms of the scale."""
        moments = self.form.moments(sums, reference)
        columns = coefficients.shape[-1]
        standard = _standardised(coefficients, reference)
        linear = moments["sums"][..., 1 : 1 + columns]
        rows, across, twice = _pairs(columns)
        products = standard[..., rows] * standard[..., across] * _like(twice, standard)
        square = moments["sums"][..., 0] - 2 * jnp.sum(linear * standard, -1)
        square = square + jnp.sum(moments["sums"][..., 1 + columns :] * products, -1)
        zero = jnp.zeros_like(square)
        return {
            "count": moments["count"],
            "first": zero,  # always multiplied by the location, which is zero
            "second": jnp.maximum(square, 0),
            "centre": jnp.zeros_like(reference["unit"]),
            "unit": reference["unit"],
        }


def _pairs(columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, across = np.triu_indices(columns)
    return rows, across, np.where(rows == across, 1.0, 2.0)


def _like(vector: np.ndarray, array: jax.Array) -> jax.Array:
    return jnp.asarray(vector, array.dtype).reshape((1,) * (array.ndim - 1) + (-1,))


def _reference(value: jax.Array, mean: Callable[[jax.Array], jax.Array]) -> dict[str, jax.Array]:
    """Factors that orthogonalise the design over all rows, and the overall regression that centres the response."""
    design, response = value[..., :-1], value[..., -1]
    columns = design.shape[-1]
    size = jnp.sqrt(mean(design**2))
    size = jnp.where(size > 0, size, 1)
    scaled = design / size
    gram = mean(scaled[..., :, None] * scaled[..., None, :])
    # The floor keeps exactly collinear columns finite; it matters only in directions in which the rows do not vary.
    floor = 10 * columns * jnp.finfo(value.dtype).eps
    factor = jnp.linalg.cholesky(gram + floor * _identity(gram))
    slope = mean(scaled * response[..., None])
    half = solve_triangular(factor, slope[..., None], lower=True)
    centre = jnp.squeeze(solve_triangular(factor, half, lower=True, trans=1), -1) / size
    residual = response - jnp.sum(design * centre, -1)
    spread = jnp.sqrt(mean(residual**2))
    return {"size": size, "factor": factor, "centre": centre, "unit": jnp.where(spread > 0, spread, 1)}


def _identity(matrices: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)


def _statistics(value: jax.Array, fixed: Mapping[str, Any], reference: Mapping[str, jax.Array]) -> jax.Array:
    del fixed
    design, response = value[..., :-1], value[..., -1]
    residual = (response - jnp.sum(design * reference["centre"], -1)) / reference["unit"]
    lead, columns = design.shape[:-1], design.shape[-1]
    # One triangular solve for all rows: they are the columns of its right-hand side.
    factor = jnp.reshape(reference["factor"], (columns, columns))
    flat = jnp.reshape(design / reference["size"], (-1, columns))
    basis = jnp.reshape(solve_triangular(factor, flat.T, lower=True).T, lead + (columns,))
    rows, across, _ = _pairs(columns)
    return jnp.concatenate(
        [residual[..., None] ** 2, residual[..., None] * basis, basis[..., rows] * basis[..., across]], -1
    )


def _standardised(coefficients: jax.Array, reference: Mapping[str, jax.Array]) -> jax.Array:
    """Coefficients of the orthogonalised design, for the standardised response."""
    moved = (coefficients - reference["centre"]) * reference["size"]
    turned = jnp.squeeze(matrix_transpose(reference["factor"]) @ moved[..., None], -1)
    return turned / reference["unit"][..., None]


def _natural(arguments: Mapping[str, jax.Array], reference: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    scale, standard = arguments["scale"], _standardised(arguments["coefficients"], reference)
    precision = ((reference["unit"] / scale) ** 2)[..., None]
    rows, across, twice = _pairs(standard.shape[-1])
    quadratic = standard[..., rows] * standard[..., across] * _like(twice, standard)
    parts = [-0.5 * precision, precision * standard, -0.5 * precision * quadratic]
    lead = jnp.broadcast_shapes(*(part.shape[:-1] for part in parts))
    eta = jnp.concatenate([jnp.broadcast_to(part, lead + part.shape[-1:]) for part in parts], -1)
    return eta, -jnp.log(scale) - 0.5 * _LOG_TWO_PI


REGRESSION = Family(
    "Normal with a linear predictor",
    (dist.Normal,),
    1,
    {"coefficients": 1, "scale": 0},
    reference=_reference,
    statistics=_statistics,
    natural=_natural,
    base_measure=lambda value, fixed: jnp.zeros_like(value[..., 0]),
    moments=lambda sums, count, reference: {"count": count, "sums": sums},
)
"""Not in the registry: a site gets it when its location turns out to be a linear predictor."""

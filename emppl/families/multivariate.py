"""Multivariate Gaussian families, in every parameterisation: full, diagonal, low-rank plus diagonal.

Statistics are taken of ``(value - centre) / unit``, so that data far from the origin keep their digits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve, solve_triangular

from emppl.families.family import Arrays, Family, Quantities, Update
from emppl.families.gaussian import LOG_TWO_PI, SCALE, centre_and_unit
from emppl.families.registry import add
from emppl.families.updates import NONNEGATIVE, ratio
from emppl.numerics.guarded import matrix_transpose, safe_divide, symmetrize


def _pairs(dimension: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of every entry on or above the diagonal, and how often it occurs in the full matrix."""
    rows, columns = np.triu_indices(dimension)
    return rows, columns, np.where(rows == columns, 1.0, 2.0)


def scale_tril_of(arguments: Arrays) -> jax.Array:
    """Cholesky factor of the covariance, whichever way it was given."""
    if "scale_tril" in arguments:
        return arguments["scale_tril"]
    if "covariance_matrix" in arguments:
        return jnp.linalg.cholesky(arguments["covariance_matrix"])
    if "cov_factor" in arguments:
        factor, diagonal = arguments["cov_factor"], arguments["cov_diag"]
        covariance = factor @ matrix_transpose(factor) + _identity(diagonal) * _as_row(diagonal)
        return jnp.linalg.cholesky(covariance)
    return _tril_of_inverse(arguments["precision_matrix"])


def _tril_of_inverse(precision: jax.Array) -> jax.Array:
    """Lower Cholesky factor of the inverse of a positive definite matrix."""
    flipped = jnp.linalg.cholesky(precision[..., ::-1, ::-1])
    return _inverse(matrix_transpose(flipped[..., ::-1, ::-1]))


def _inverse(scale_tril: jax.Array) -> jax.Array:
    return solve_triangular(scale_tril, _identity(scale_tril[..., 0]), lower=True)


def _precision(scale_tril: jax.Array) -> jax.Array:
    inverse = _inverse(scale_tril)
    return matrix_transpose(inverse) @ inverse


def _identity(vectors: jax.Array) -> jax.Array:
    """Identity matrices, one per vector."""
    return jnp.broadcast_to(jnp.eye(vectors.shape[-1], dtype=vectors.dtype), vectors.shape + vectors.shape[-1:])


def _apply(matrices: jax.Array, vectors: jax.Array) -> jax.Array:
    return jnp.squeeze(matrices @ vectors[..., None], -1)


def _vector_statistics(value: jax.Array, fixed: Arrays, reference: Arrays) -> jax.Array:
    standard = (value - reference["centre"]) / reference["unit"]
    rows, columns, _ = _pairs(value.shape[-1])
    return jnp.concatenate([standard, standard[..., rows] * standard[..., columns]], -1)


def _vector_natural(arguments: Arrays, reference: Arrays) -> tuple[jax.Array, jax.Array]:
    loc = (arguments["loc"] - reference["centre"]) / reference["unit"]
    scale_tril = scale_tril_of(arguments)
    dimension = scale_tril.shape[-1]
    log_det = jnp.sum(jnp.log(jnp.diagonal(scale_tril, axis1=-2, axis2=-1)), -1)
    whitener = _inverse(scale_tril / jnp.swapaxes(_as_row(reference["unit"]), -1, -2))
    precision = matrix_transpose(whitener) @ whitener
    white_loc, linear = _apply(whitener, loc), _apply(precision, loc)
    rows, columns, multiplicity = _pairs(dimension)
    repeats = jnp.asarray(multiplicity, loc.dtype).reshape((1,) * (precision.ndim - 2) + (-1,))
    quadratic = -0.5 * repeats * precision[..., rows, columns]
    batch = jnp.broadcast_shapes(linear.shape[:-1], quadratic.shape[:-1])
    eta = [jnp.broadcast_to(part, batch + part.shape[-1:]) for part in (linear, quadratic)]
    offset = -0.5 * jnp.sum(white_loc**2, -1) - log_det - 0.5 * dimension * LOG_TWO_PI
    return jnp.concatenate(eta, -1), offset


def _as_row(vector: jax.Array) -> jax.Array:
    return vector[..., None, :]


def _vector_moments(sums: jax.Array, count: jax.Array, reference: Arrays) -> Quantities:
    dimension = reference["centre"].shape[-1]
    rows, columns, _ = _pairs(dimension)
    position = np.zeros((dimension, dimension), int)
    position[rows, columns] = position[columns, rows] = np.arange(len(rows))
    second = sums[..., dimension:][..., position]
    return {"count": count, "first": sums[..., :dimension], "second": second, **reference}


def _vector_total(moments: Arrays, arguments: Arrays, current: jax.Array) -> Quantities:
    count = jnp.broadcast_to(moments["count"][..., None], jnp.broadcast_shapes(moments["first"].shape, current.shape))
    return {"count": count, "total": moments["centre"] * count + moments["unit"] * moments["first"]}


def _vector_weighted_residual(moments: Arrays, arguments: Arrays, current: jax.Array) -> Quantities:
    precision = _precision(scale_tril_of(arguments))
    count = moments["count"][..., None]
    shifted = (current - moments["centre"]) / moments["unit"]
    residual = moments["unit"] * (moments["first"] - shifted * count)
    return {
        "precision": jnp.moveaxis(precision * count[..., None], -1, 0),
        "residual": _apply(precision, residual),
    }


def _solve_vector_location(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    if stage == 0:
        return safe_divide(pooled["total"], pooled["count"], previous)
    precision = jnp.moveaxis(pooled["precision"], 0, -1)
    residual = pooled["residual"]
    if "prior_precision" in pooled:
        precision = precision + pooled["prior_precision"]
        residual = residual + _apply(pooled["prior_precision"], pooled["prior_loc"] - previous)
    used = jnp.diagonal(precision, axis1=-2, axis2=-1)[..., :1, None] > 0
    factor = jnp.linalg.cholesky(jnp.where(used, precision, _identity(precision[..., 0])))
    step = jnp.squeeze(cho_solve((factor, True), residual[..., None]), -1)
    return previous + jnp.where(jnp.squeeze(used, -1), step, 0)


def _normal_on_vector(pooled: Quantities, prior: Any) -> Quantities:
    shape = pooled["residual"].shape if "residual" in pooled else pooled["total"].shape
    variance = jnp.broadcast_to(prior.scale**2, shape)
    precision = _identity(variance) / _as_row(variance)
    return pooled | {"prior_precision": precision, "prior_loc": jnp.broadcast_to(prior.loc, shape)}


def _multivariate_normal_on_vector(pooled: Quantities, prior: Any) -> Quantities:
    return pooled | {"prior_precision": _precision(prior.scale_tril), "prior_loc": prior.loc}


VECTOR_LOCATION = Update(
    "weighted mean",
    1,
    ("real", "real_vector"),
    (_vector_total, _vector_weighted_residual),
    _solve_vector_location,
    {dist.Normal: _normal_on_vector, dist.MultivariateNormal: _multivariate_normal_on_vector},
)


def _scatter(moments: Arrays, arguments: Arrays, current: jax.Array) -> Quantities:
    unit, count = moments["unit"], moments["count"][..., None, None]
    shifted = ((arguments["loc"] - moments["centre"]) / unit)[..., None]
    cross = shifted @ _as_row(moments["first"])
    scatter = moments["second"] - cross - matrix_transpose(cross) + count * (shifted @ matrix_transpose(shifted))
    scatter = scatter * unit[..., None] * _as_row(unit)
    return {"count": jnp.broadcast_to(count, scatter.shape), "scatter": symmetrize(scatter)}


def _solve_scale_tril(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    return jnp.linalg.cholesky(COVARIANCE.solve(pooled, previous @ matrix_transpose(previous), stage))


def _solve_precision(pooled: Arrays, previous: jax.Array, stage: int) -> jax.Array:
    used = pooled["count"] > 0
    mean_scatter = pooled["scatter"] / jnp.where(used, pooled["count"], 1)
    covariance = jnp.where(used, mean_scatter, _identity(previous[..., 0]))
    return jnp.where(used, _precision(jnp.linalg.cholesky(covariance)), previous)


def _inverse_wishart_on_covariance(pooled: Quantities, prior: Any) -> Quantities:
    dimension = pooled["scatter"].shape[-1]
    return pooled | {
        "count": pooled["count"] + (jnp.asarray(prior.concentration) + dimension + 1)[..., None, None],
        "scatter": pooled["scatter"] + prior.scale_matrix,
    }


def _wishart_on_precision(pooled: Quantities, prior: Any) -> Quantities:
    dimension = pooled["scatter"].shape[-1]
    return pooled | {
        "count": pooled["count"] + (jnp.asarray(prior.concentration) - dimension - 1)[..., None, None],
        "scatter": pooled["scatter"] + prior.rate_matrix,
    }


_MATRIX_SUPPORT = ("positive_definite", "real", "real_matrix")
COVARIANCE = Update(
    "weighted scatter",
    2,
    _MATRIX_SUPPORT,
    (_scatter,),
    ratio("scatter", "count"),
    {dist.InverseWishart: _inverse_wishart_on_covariance},
    order=1,
)
PRECISION = Update(
    "inverse of the weighted scatter",
    2,
    _MATRIX_SUPPORT,
    (_scatter,),
    _solve_precision,
    {dist.Wishart: _wishart_on_precision},
    order=1,
)
SCALE_TRIL = Update(
    "Cholesky factor of the weighted scatter",
    2,
    ("lower_cholesky", "softplus_lower_cholesky", "scaled_unit_lower_cholesky", "real", "real_matrix"),
    (_scatter,),
    _solve_scale_tril,
    order=1,
)


# Diagonal matrices: quantities have the matrix's shape; pulled back to the parameter, only the diagonal is left.


def _squares(moments: Arrays, arguments: Arrays, current: jax.Array) -> Quantities:
    pooled = _scatter(moments, arguments, current)
    return {"count": pooled["count"], "square": jnp.maximum(pooled["scatter"], 0)}


def _inverse_gamma_on_variance(pooled: Quantities, prior: Any) -> Quantities:
    return {"count": pooled["count"] + 2 * (prior.concentration + 1), "square": pooled["square"] + 2 * prior.rate}


def _gamma_on_precision(pooled: Quantities, prior: Any) -> Quantities:
    return {"count": pooled["count"] + 2 * (prior.concentration - 1), "square": pooled["square"] + 2 * prior.rate}


VARIANCES = Update(
    "mean squared residual on the diagonal",
    0,
    NONNEGATIVE,
    (_squares,),
    ratio("square", "count"),
    {dist.InverseGamma: _inverse_gamma_on_variance},
    order=1,
    within=jnp.clip,
)
PRECISIONS = Update(
    "inverse mean squared residual on the diagonal",
    0,
    NONNEGATIVE,
    (_squares,),
    ratio("count", "square"),
    {dist.Gamma: _gamma_on_precision},
    order=1,
    within=jnp.clip,
)
SCALES = dataclasses.replace(
    SCALE, title="root mean squared residual on the diagonal", contributions=(_squares,), degrees=None
)


def _vector_local_reference(arguments: Arrays) -> Arrays:
    scale_tril = scale_tril_of(arguments)
    return {"centre": arguments["loc"], "unit": jnp.sqrt(jnp.sum(scale_tril**2, -1))}


def _vector_floor(arguments: Arrays, reference: Arrays) -> jax.Array:
    scale_tril = scale_tril_of(arguments) / jnp.swapaxes(_as_row(reference["unit"]), -1, -2)
    return jnp.min(jnp.diagonal(scale_tril, axis1=-2, axis2=-1), -1)


def _vector_start(argument: str, seed: jax.Array, mean: jax.Array, spread: jax.Array) -> jax.Array | None:
    if argument == "loc":
        return seed
    power = {"covariance_matrix": 2.0, "scale_tril": 1.0, "precision_matrix": -2.0}.get(argument)
    if power is None:
        return None
    return _identity(spread) * _as_row(spread) ** power


MULTIVARIATE_NORMAL = add(
    Family(
        "MultivariateNormal",
        (dist.MultivariateNormal,),
        1,
        {"loc": 1, "covariance_matrix": 2, "scale_tril": 2, "precision_matrix": 2},
        reference=centre_and_unit,
        statistics=_vector_statistics,
        natural=_vector_natural,
        base_measure=lambda value, fixed: jnp.zeros_like(value[..., 0]),
        moments=_vector_moments,
        updates={
            "loc": VECTOR_LOCATION,
            "covariance_matrix": COVARIANCE,
            "scale_tril": SCALE_TRIL,
            "precision_matrix": PRECISION,
        },
        diagonals={"covariance_matrix": VARIANCES, "scale_tril": SCALES, "precision_matrix": PRECISIONS},
        local_reference=_vector_local_reference,
        scale_floor=_vector_floor,
        start=_vector_start,
    )
)

# A low-rank covariance plus a diagonal (factor analysis, the factors integrated out) has no closed form; Newton steps
# go on the same sums of products.
LOW_RANK_MULTIVARIATE_NORMAL = add(
    dataclasses.replace(
        MULTIVARIATE_NORMAL,
        name="LowRankMultivariateNormal",
        distributions=(dist.LowRankMultivariateNormal,),
        argument_ranks={"loc": 1, "cov_factor": 2, "cov_diag": 1},
        updates={"loc": VECTOR_LOCATION},
        diagonals={},
        joint=("cov_factor", "cov_diag"),
    )
)

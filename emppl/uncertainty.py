"""Standard errors from the exact Hessian of the marginal log-likelihood.

The observed information is differentiated out of the log evidence itself (not out of Q, whose weights are
held fixed), in local coordinates around the estimate; entries on the boundary of the parameter space are held
there and named.

Reference:
    Efron and Hinkley (1978), Assessing the accuracy of the maximum likelihood estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl import estep
from emppl.parameters import Chart, chart
from emppl.program import Program

EDGE = 1e-5
"""How close to its bound a probability (or, relatively, a scale) counts as being on it."""


class Covariance(NamedTuple):
    """Covariance matrix of the estimates.

    Attributes:
        labels: ``"mu[0, 1]"`` and so on, one per row.
        matrix: ``(parameters, parameters)``; NaN for entries on the boundary.
    """

    labels: list[str]
    matrix: np.ndarray


def charts(program: Program, params: Mapping[str, Any]) -> dict[str, Chart]:
    """Local coordinates of every free parameter around an estimate."""
    return {name: chart(program.trace.sites[name].constraint, np.asarray(params[name]), EDGE) for name in program.free}


def boundary_labels(program: Program, params: Mapping[str, Any]) -> list[str]:
    """Names of the entries that lie on the boundary of the parameter space."""
    found = []
    for name, one in charts(program, params).items():
        found += [label(name, index) for index in np.argwhere(one.boundary)]
    return found


def label(name: str, index) -> str:
    """``mu[0, 1]``, or ``mu`` for a scalar."""
    return f"{name}[{', '.join(str(int(i)) for i in index)}]" if len(index) else name


def log_posterior_at(program: Program, leaves, local: dict[str, Chart]):
    """Log-likelihood plus log prior as a function of all local coordinates, stacked in one vector."""

    def objective(step):
        params, position = {}, 0
        for name, one in local.items():
            params[name] = one.map(step[position : position + one.size])
            position += one.size
        return estep.log_likelihood(program, params, leaves) + program.log_prior(params, leaves)

    return objective


def observed_information(program: Program, params: Mapping[str, Any], leaves) -> tuple[np.ndarray, np.ndarray]:
    """Observed information and score in local coordinates.

    Args:
        program: the derived algorithm.
        params: the estimate.
        leaves: the data.

    Returns:
        ``(information, score)``: minus the Hessian of the objective, and its gradient.
    """
    local = charts(program, params)
    size = sum(one.size for one in local.values())
    objective = log_posterior_at(program, leaves, local)
    zero = jnp.zeros(size, jnp.result_type(float))

    def column(direction):
        return jax.jvp(jax.grad(objective), (zero,), (direction,))[1]

    # One column at a time: memory stays that of one gradient.
    compute = jax.jit(lambda: (jax.lax.map(column, jnp.eye(size)), jax.grad(objective)(zero)))
    hessian, score = compute()
    hessian = np.asarray(hessian)
    return -(hessian + hessian.T) / 2, np.asarray(score)


def covariance(program: Program, params: Mapping[str, Any], leaves) -> Covariance:
    """Covariance of all entries of all free parameters, by the delta method from local coordinates.

    Raises:
        ValueError: the information matrix is not positive definite, so the estimate is no interior maximum.
    """
    local = charts(program, params)
    information, _ = observed_information(program, params, leaves)
    inverse = _inverse(information, local)
    labels, blocks, position = [], [], 0
    total = information.shape[0]
    for name, one in local.items():
        estimate = np.asarray(params[name])
        jacobian = np.asarray(jax.jacfwd(one.map)(jnp.zeros(one.size))).reshape(estimate.size, one.size)
        wide = np.zeros((estimate.size, total))
        wide[:, position : position + one.size] = jacobian
        wide[one.boundary.ravel()] = np.nan
        blocks.append(wide)
        labels += [label(name, index) for index in np.ndindex(estimate.shape)]
        position += one.size
    stacked = np.concatenate(blocks)
    missing = np.isnan(stacked).any(axis=1)
    matrix = np.nan_to_num(stacked) @ inverse @ np.nan_to_num(stacked).T
    matrix[missing, :], matrix[:, missing] = np.nan, np.nan
    return Covariance(labels, matrix)


def _inverse(information, local) -> np.ndarray:
    if information.size == 0:
        return information
    unit = np.sqrt(np.maximum(np.abs(np.diagonal(information)), np.finfo(information.dtype).tiny))
    scaled = information / np.outer(unit, unit)
    values, vectors = np.linalg.eigh(scaled)
    if values[0] <= 1e-10 * max(values[-1], 1):
        names = [name for name, one in local.items() for _ in range(one.size)]
        worst = sorted({names[i] for i in np.argsort(-np.abs(vectors[:, 0]))[:3]})
        raise ValueError(
            "The observed information is not positive definite (smallest relative eigenvalue "
            f"{values[0]:.2g}, mostly in {', '.join(worst)}): the likelihood is flat or the estimate is not an "
            "interior maximum, so it has no standard errors. Run to convergence, or fix or constrain these parameters."
        )
    return (vectors / values) @ vectors.T / np.outer(unit, unit)

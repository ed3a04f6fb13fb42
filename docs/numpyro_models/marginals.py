"""Log-likelihoods by hand, in NumPy and SciPy, of models whose continuous latents NumPyro cannot sum out."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import integrate, special, stats

Params = dict[str, Any]


def _log_integral(log_density: Any, low: float, high: float) -> float:
    """Logarithm of an integral over an interval, scaled by its largest value there."""
    top = max(log_density(value) for value in np.linspace(low, high, 2001))
    at = max(np.linspace(low, high, 2001), key=log_density)

    def scaled(value: float) -> float:
        return np.exp(log_density(value) - top)

    halves = [integrate.quad(scaled, *ends, epsabs=0, epsrel=1e-11, limit=500)[0] for ends in ((low, at), (at, high))]
    return float(np.log(sum(halves)) + top)


def beta_binomial(params: Params, at_bats: np.ndarray, hits: np.ndarray) -> float:
    """Binomial counts, their probabilities Beta."""
    m, kappa = params["m"], params["kappa"]
    return float(stats.betabinom(at_bats, m * kappa, (1 - m) * kappa).logpmf(hits).sum())


def logit_normal_binomial(params: Params, at_bats: np.ndarray, hits: np.ndarray) -> float:
    """Binomial counts, their logits normal: one integral for each player."""
    loc, scale = float(params["loc"]), float(params["scale"])

    def cell(n: int, k: int) -> float:
        def log_density(z: float) -> float:
            return stats.norm.logpdf(z) + stats.binom.logpmf(k, n, special.expit(loc + scale * z))

        return _log_integral(log_density, -12, 12)

    return sum(cell(int(n), int(k)) for n, k in zip(at_bats, hits, strict=True))


def admissions(
    params: Params, dept: np.ndarray, male: np.ndarray, applications: np.ndarray, admit: np.ndarray
) -> float:
    """Two normal latents for each department: a product rule of 60 by 60 nodes, centred at zero."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(160)
    z = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    log_weights = np.log(np.outer(weights, weights).ravel() / (2 * np.pi))
    v = z @ (np.asarray(params["sigma"])[:, None] * np.asarray(params["L_Rho"])).T
    mean, total = np.asarray(params["v_mu"]), 0.0
    for group in np.unique(dept):
        rows = dept == group
        logits = mean[0] + v[:, :1] + (mean[1] + v[:, 1:]) * male[rows]
        terms = stats.binom.logpmf(admit[rows], applications[rows], special.expit(logits)).sum(-1)
        total += special.logsumexp(terms + log_weights)
    return float(total)


def lungs(params: Params, patient: np.ndarray, weeks: np.ndarray, capacity: np.ndarray) -> float:
    """A normal intercept and slope for each patient."""
    same = patient[:, None] == patient
    covariance = same * (params["σ_α"] ** 2 + params["σ_β"] ** 2 * np.outer(weeks, weeks))
    mean = params["μ_α"] + params["μ_β"] * weeks
    return _normal(capacity, mean, covariance + params["σ"] ** 2 * np.eye(len(weeks)))


def lungs_of_smokers(
    params: Params, patient: np.ndarray, weeks: np.ndarray, status: np.ndarray, capacity: np.ndarray
) -> float:
    """Patients within groups: both levels normal, with the same scales."""
    same = (patient[:, None] == patient) + 1.0 * (status[patient][:, None] == status[patient])
    line = params["σ_α_global"] ** 2 + params["σ_β_global"] ** 2 * np.outer(weeks, weeks)
    mean = params["μ_α_global"] + params["μ_β_global"] * weeks
    return _normal(capacity, mean, same * line + params["σ"] ** 2 * np.eye(len(weeks)))


def measurement_error(params: Params, marriage: np.ndarray, age: np.ndarray, sd: np.ndarray, y: np.ndarray) -> float:
    """The true outcome normal around a line, measured with known errors."""
    mean = params["a"] + params["bM"] * marriage + params["bA"] * age
    return float(stats.norm(mean, np.sqrt(params["sigma"] ** 2 + sd**2)).logpdf(y).sum())


def one_normal(params: Params, x: np.ndarray) -> float:
    """One normal location for all data."""
    return _normal(np.asarray(x), np.zeros(len(x)), np.eye(len(x)) + params["s"] ** 2)


def eight_schools(params: Params, count: int, sigma: np.ndarray, y: np.ndarray) -> float:
    """Normal effects, measured with known errors."""
    return float(stats.norm(params["mu"], np.sqrt(params["tau"] ** 2 + np.asarray(sigma) ** 2)).logpdf(y).sum())


def lognormal_exponential(params: Params, data: np.ndarray) -> float:
    """One log-normal rate for all data."""
    count, total = len(data), float(np.sum(data))

    def log_density(z: float) -> float:
        log_rate = float(params["m"]) + float(params["sd"]) * z
        return stats.norm.logpdf(z) + count * log_rate - total * np.exp(log_rate)

    return _log_integral(log_density, -12, 12)


def network_of_a_latent(params: Params, data: np.ndarray) -> float:
    """An affine map of one normal latent is the logarithm of the rate of all data."""
    net = params["affine_net$params"]
    slope, shift = float(np.squeeze(net["kernel"])), float(np.squeeze(net["bias"]))
    return lognormal_exponential({"m": shift, "sd": slope}, data)


def sums_of_effects(params: Params) -> float:
    """Three zeros, each normal around the sum of two effects that share the rows' means."""
    return _normal(np.zeros(3), np.zeros(3), 2.0 * np.ones((3, 3)) + 3.0 * np.eye(3))


def _normal(y: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    return float(stats.multivariate_normal(mean, covariance).logpdf(y))

"""A logistic regression with 10,000 random intercepts: EM beside direct maximisation of the same quadrature.

``python -m benchmarks.glmm [--groups 10000] [--rows 10] [--nodes 7]``. The direct maximiser is written for this one model:
adaptive Gauss-Hermite quadrature in NumPy, the gradient by Fisher's identity, modes warm from the evaluation before,
L-BFGS from scipy. Both start from the same parameters and are timed warm, one after the other; emppl is compiled before.
"""

from __future__ import annotations

import argparse
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import optimize, special

import emppl


def model(y, covariates, group, groups):
    """Yes and no with a normal intercept of every group."""
    beta = numpyro.param("beta", jnp.zeros(covariates.shape[1]))
    sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("groups", groups):
        u = numpyro.sample("u", dist.Normal(0, sd))
    with numpyro.plate("rows", y.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=covariates @ beta + u[group]), obs=y)


def simulate(groups: int, rows: int):
    """Data with intercept -0.5, slope 1 and standard deviation 1.5."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(groups), rows)
    covariates = np.column_stack([np.ones(groups * rows), rng.standard_normal(groups * rows)])
    logits = covariates @ [-0.5, 1.0] + rng.normal(0, 1.5, groups)[group]
    return (rng.random(groups * rows) < special.expit(logits)).astype(int), covariates, group, groups


class Direct:
    """Minus the log-likelihood and its gradient in (coefficients, log of the standard deviation)."""

    def __init__(self, y, covariates, group, groups, nodes: int):
        self.y, self.covariates = y.reshape(groups, -1), covariates.reshape(groups, y.size // groups, -1)
        self.grid, weights = np.polynomial.hermite.hermgauss(nodes)
        self.log_weights = np.log(weights) + self.grid**2 + 0.5 * math.log(2)
        self.modes, self.calls = np.zeros(groups), 0

    def __call__(self, v):
        self.calls += 1
        sd, predictor = math.exp(v[-1]), self.covariates @ v[:-1]
        for _ in range(50):
            p = special.expit(predictor + self.modes[:, None])
            curvature = np.sum(p * (1 - p), 1) + sd**-2
            step = (np.sum(self.y - p, 1) - self.modes * sd**-2) / curvature
            self.modes += step
            if np.max(np.abs(step)) < 1e-6:
                break
        points = self.modes[:, None] + math.sqrt(2) * self.grid / np.sqrt(curvature)[:, None]
        eta = predictor[:, None, :] + points[:, :, None]
        heights = np.einsum("gr,gsr->gs", self.y, eta) - np.logaddexp(0, eta).sum(-1)
        heights += self.log_weights - 0.5 * np.log(curvature)[:, None]
        heights -= 0.5 * (points / sd) ** 2 + v[-1] + 0.5 * math.log(2 * math.pi)
        value = special.logsumexp(heights, axis=1)
        shares = np.exp(heights - value[:, None])
        residual = self.y - np.einsum("gs,gsr->gr", shares, special.expit(eta))
        slope = np.einsum("gr,grp->p", residual, self.covariates)
        return -value.sum(), -np.append(slope, np.sum(shares * ((points / sd) ** 2 - 1)))


def main() -> None:
    """Time both and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=7)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    data = simulate(options.groups, options.rows)
    for accelerate in (None, "squarem"):
        latents = {"u": emppl.Quadrature(options.nodes)}
        em = emppl.EM(model, latents=latents, accelerate=accelerate, progress_bar=False)
        em.run(jax.random.key(0), *data)
        began, worked = time.perf_counter(), time.process_time()
        result = em.run(jax.random.key(0), *data)
        seconds, work = time.perf_counter() - began, time.process_time() - worked
        found = np.append(result.params["beta"], result.params["sd"])
        print(
            f"emppl, accelerate={accelerate}: {seconds:.2f} s ({work:.2f} s of processor time), "
            f"{result.num_iterations} iterations, {result.stop_reason.name.lower()}, log-likelihood "
            f"{result.log_likelihood:.7f} at {found.round(6)}"
        )
    direct = Direct(*data, options.nodes)
    began, worked = time.perf_counter(), time.process_time()
    best = optimize.minimize(direct, np.zeros(3), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-5})
    seconds, work = time.perf_counter() - began, time.process_time() - worked
    found = np.append(best.x[:-1], math.exp(best.x[-1]))
    print(
        f"scipy, L-BFGS: {seconds:.2f} s ({work:.2f} s of processor time), {direct.calls} evaluations, log-likelihood "
        f"{-best.fun:.7f} at {found.round(6)}"
    )


if __name__ == "__main__":
    main()

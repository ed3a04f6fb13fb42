"""Normal latents beside the packages written for them: ``python -m benchmarks.gaussian [--only K1,F1,M1] [--growth]``.

K1 a linear dynamical system (T=5,000, 4 states, 8 observations), F1 factor analysis (N=100,000, D=50, 5 factors), M1 random
intercepts and slopes (2,000 groups of 20). Everything in one process, round-robin, from the same parameters, in float64;
peers that are not installed (dynamax, pykalman, statsmodels) are left out. The time of an iteration is that of a warm
fit minus that of a shorter one. ``--growth`` prints time and memory against the number of rows, groups and steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl

SYSTEM = {"states": 4, "observed": 8}
COLUMNS, FACTORS, PER_GROUP = 50, 5, 20


def system(y, start):
    """A linear dynamical system, all parameters free."""
    positive = constraints.positive_definite
    first, spread = (
        numpyro.param("first", start["first"]),
        numpyro.param("spread", start["spread"], constraint=positive),
    )
    move = numpyro.param("move", start["move"])
    drift = numpyro.param("drift", start["drift"], constraint=positive)
    see = numpyro.param("see", start["see"])
    noise = numpyro.param("noise", start["noise"], constraint=positive)

    def step(carry, y):
        state, t = carry
        mean, covariance = jnp.where(t == 0, first, move @ state), jnp.where(t == 0, spread, drift)
        state = numpyro.sample("state", dist.MultivariateNormal(mean, covariance))
        numpyro.sample("y", dist.MultivariateNormal(see @ state, noise), obs=y)
        return (state, t + 1), None

    scan(step, (jnp.zeros(len(first)), 0), y)


def factors(x, start):
    """Factor analysis."""
    mean = numpyro.param("mean", start["mean"])
    loadings = numpyro.param("loadings", start["loadings"])
    variance = numpyro.param("variance", start["variance"], constraint=constraints.positive)
    with numpyro.plate("rows", len(x)):
        f = numpyro.sample("f", dist.Normal(0, 1).expand([loadings.shape[1]]).to_event(1))
        numpyro.sample("x", dist.Normal(mean + f @ loadings.T, jnp.sqrt(variance)).to_event(1), obs=x)


def slopes(y, x, group, groups):
    """Random intercepts and slopes."""
    line = numpyro.param("line", jnp.zeros(2))
    spread = numpyro.param("spread", jnp.eye(2), constraint=constraints.positive_definite)
    noise = numpyro.param("noise", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", groups):
        b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), spread))
    with numpyro.plate("rows", len(y)):
        own = line + b[group]
        numpyro.sample("y", dist.Normal(own[:, 0] + own[:, 1] * x, noise), obs=y)


def draw_system(steps: int):
    rng = np.random.default_rng(1)
    states, observed = SYSTEM["states"], SYSTEM["observed"]
    move = 0.97 * np.linalg.qr(rng.normal(size=(states, states)))[0]
    see = rng.normal(size=(observed, states))
    noise = np.sqrt(rng.uniform(0.5, 1.5, observed))
    y, state = np.empty((steps, observed)), np.zeros(states)
    for t in range(steps):
        state = move @ state + np.sqrt(0.3) * rng.normal(size=states)
        y[t] = see @ state + noise * rng.normal(size=observed)
    start = {
        "first": np.zeros(states),
        "spread": np.eye(states),
        "move": 0.9 * np.eye(states) + 0.05 * rng.normal(size=(states, states)),
        "drift": np.eye(states),
        "see": see + 0.5 * rng.normal(size=see.shape),
        "noise": 2.0 * np.eye(observed),
    }
    return y, start


def draw_factors(rows: int):
    rng = np.random.default_rng(2)
    loadings, spread = rng.normal(size=(COLUMNS, FACTORS)), np.sqrt(rng.uniform(0.3, 2.0, COLUMNS))
    x = rng.normal(size=(rows, FACTORS)) @ loadings.T + rng.normal(size=(rows, COLUMNS)) * spread
    x += rng.normal(size=COLUMNS)
    start = {"mean": x.mean(0), "loadings": 0.5 * rng.normal(size=loadings.shape), "variance": x.var(0)}
    return x, start


def draw_slopes(groups: int):
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(groups), PER_GROUP)
    x = rng.normal(size=groups * PER_GROUP)
    b = rng.normal(size=(groups, 2)) @ np.linalg.cholesky([[1.0, 0.3], [0.3, 0.5]]).T
    y = 1 + 0.5 * x + b[group, 0] + b[group, 1] * x + rng.normal(size=len(x))
    return y, x, group, groups


def ours(model, *data, **options) -> Callable[[int], float]:
    """emppl for a number of iterations; returns the log-likelihood."""
    em = emppl.EM(model, tolerance=0.0, progress_bar=False, **options)

    def fit(iterations):
        em.max_iterations = iterations
        return em.run(jax.random.key(0), *data).log_likelihood

    return fit


def dynamax(y, start) -> Callable[[int], float]:
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    model = LinearGaussianSSM(SYSTEM["states"], SYSTEM["observed"], has_dynamics_bias=False, has_emissions_bias=False)
    begin, properties = model.initialize(
        initial_mean=jnp.asarray(start["first"]),
        initial_covariance=jnp.asarray(start["spread"]),
        dynamics_weights=jnp.asarray(start["move"]),
        dynamics_covariance=jnp.asarray(start["drift"]),
        emission_weights=jnp.asarray(start["see"]),
        emission_covariance=jnp.asarray(start["noise"]),
    )

    @jax.jit
    def iterate(params, state):
        sums, values = jax.vmap(lambda one: model.e_step(params, one))(jnp.asarray(y)[None])
        params, state = model.m_step(params, properties, sums, state)
        return params, state, values[0]

    def fit(iterations):
        params, state = begin, model.initialize_m_step_state(begin, properties)
        for _ in range(iterations):
            params, state, _ = iterate(params, state)
        return float(iterate(params, state)[2])

    return fit


def pykalman(y, start) -> Callable[[int], float]:
    from pykalman import KalmanFilter

    def fit(iterations):
        model = KalmanFilter(
            transition_matrices=start["move"],
            observation_matrices=start["see"],
            transition_covariance=start["drift"],
            observation_covariance=start["noise"],
            initial_state_mean=start["first"],
            initial_state_covariance=start["spread"],
            em_vars=[
                *("transition_matrices", "observation_matrices", "transition_covariance", "observation_covariance"),
                *("initial_state_mean", "initial_state_covariance"),
            ],
        )
        return float(model.em(y, n_iter=iterations).loglikelihood(y))

    return fit


def scikit_learn(x, method: str) -> Callable[[int], float]:
    from sklearn.decomposition import FactorAnalysis

    def fit(iterations):
        model = FactorAnalysis(FACTORS, tol=0.0, max_iter=iterations, svd_method=method, random_state=0).fit(x)
        return float(model.loglike_[-1])

    return fit


def per_iteration(fits: dict[str, Callable[[int], float]], few: dict[str, tuple[int, int]], rounds: int) -> None:
    """Print seconds per iteration, first fit and log-likelihood of every implementation."""
    first, found, values = {}, {name: [] for name in fits}, {}
    for name, fit in fits.items():
        began = time.perf_counter()
        values[name] = fit(few[name][1])
        first[name] = time.perf_counter() - began
        fit(few[name][0])
    for _ in range(rounds):
        for name, fit in fits.items():
            seconds = []
            for iterations in few[name]:
                began = time.perf_counter()
                fit(iterations)
                seconds.append(time.perf_counter() - began)
            found[name].append((seconds[1] - seconds[0]) / (few[name][1] - few[name][0]))
    ours_ = min(found["emppl"])
    for name, seconds in found.items():
        print(
            f"  {name:32s} {1e3 * min(seconds):9.3f} ms an iteration (median {1e3 * statistics.median(seconds):.3f}), "
            f"{min(seconds) / ours_:7.2f} times emppl; first fit of {few[name][1]} {first[name]:.2f} s; "
            f"log-likelihood after it {values[name]:.6f}"
        )


def has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def k1(rounds: int) -> None:
    y, start = draw_system(5000)
    fits, few = {"emppl": ours(system, jnp.asarray(y), {n: jnp.asarray(v) for n, v in start.items()})}, {}
    few["emppl"] = (5, 105)
    if has("dynamax"):
        fits["dynamax"], few["dynamax"] = dynamax(y, start), (5, 25)
    if has("pykalman"):
        fits["pykalman"], few["pykalman"] = pykalman(y, start), (1, 3)
    per_iteration(fits, few, rounds)


def f1(rounds: int) -> None:
    x, start = draw_factors(100_000)
    data = jnp.asarray(x), {n: jnp.asarray(v) for n, v in start.items()}
    fits = {"emppl": ours(factors, *data), "emppl, compress=False": ours(factors, *data, compress=False)}
    fits |= {f"scikit-learn, {method}": scikit_learn(x, method) for method in ("randomized", "lapack")}
    few = {"emppl": (50, 1050), "emppl, compress=False": (2, 12)} | dict.fromkeys(list(fits)[2:], (1, 4))
    per_iteration(fits, few, rounds)


def m1(rounds: int) -> None:
    data = draw_slopes(2000)
    for accelerate in (None, "squarem"):
        em = emppl.EM(slopes, latents={"b": emppl.Gaussian()}, accelerate=accelerate, progress_bar=False)
        seconds = []
        for _ in range(1 + rounds):
            began = time.perf_counter()
            result = em.run(jax.random.key(0), *data)
            seconds.append(time.perf_counter() - began)
        print(
            f"  emppl, accelerate={accelerate}: {min(seconds[1:]):.3f} s to the end (median "
            f"{statistics.median(seconds[1:]):.3f}), {seconds[0]:.2f} s with compilation; {result.num_iterations} "
            f"iterations, {result.stop_reason.name.lower()}, log-likelihood {result.log_likelihood:.6f}"
        )
    if has("statsmodels"):
        from statsmodels.regression.mixed_linear_model import MixedLM

        y, x, group, _ = data
        design = np.column_stack([np.ones(len(x)), x])
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            fit = MixedLM(y, design, group, exog_re=design).fit(reml=False)
            seconds.append(time.perf_counter() - began)
        print(f"  statsmodels MixedLM: {min(seconds):.3f} s, log-likelihood {fit.llf:.6f}")


def growth(what: str, size: int) -> None:
    """One line of the table of growth, in this process."""
    import resource

    if what == "rows":
        x, start = draw_factors(size)
        fit = ours(factors, jnp.asarray(x), {n: jnp.asarray(v) for n, v in start.items()}, compress=False)
    elif what == "groups":
        fit = ours(slopes, *draw_slopes(size), latents={"b": emppl.Gaussian()}, compress=False)
    else:
        y, start = draw_system(size)
        fit = ours(system, jnp.asarray(y), {n: jnp.asarray(v) for n, v in start.items()})
    fit(2)
    seconds = []
    for iterations in (2, 7):
        began = time.perf_counter()
        fit(iterations)
        seconds.append(time.perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"| {what} | {size:,} | {1e3 * (seconds[1] - seconds[0]) / 5:.1f} ms | {memory:,.0f} MiB |", flush=True)


def main() -> None:
    """Time everything that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="K1,F1,M1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--line", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    if options.line:
        growth(options.line[0], int(options.line[1]))
        return
    if options.growth:
        print("| | | an iteration | peak memory |\n|---|---|---|---|", flush=True)
        largest = {"rows": 1_000_000, "groups": 100_000, "steps": 1_000_000}
        for what, most in largest.items():
            for share in (100, 10, 1):
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.gaussian", "--line", what, str(most // share)], check=True
                )
        return
    for name in options.only.split(","):
        print(name, flush=True)
        {"K1": k1, "F1": f1, "M1": m1}[name](options.rounds)


if __name__ == "__main__":
    main()

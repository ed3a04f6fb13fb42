"""Data and one common starting point per workload, generated from fixed seeds and cached in the temporary folder."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile

import numpy as np

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Workload:
    """``iterations`` is how many M-steps every implementation makes from the common start.

    ``compared`` says which time the ratios are of: the whole fit where an iteration is too short for the clock.
    """

    kind: str
    rows: int
    columns: int
    components: int
    iterations: int
    title: str
    compared: str = "seconds_per_iteration"


WORKLOADS = {
    "G1": Workload("full", 100_000, 10, 10, 20, "Gaussian mixture, full covariances, N=100,000, D=10, K=10"),
    "G2": Workload("diagonal", 1_000_000, 8, 16, 12, "Gaussian mixture, diagonal covariances, N=1,000,000, D=8, K=16"),
    "L1": Workload("classes", 50_000, 20, 6, 24, "latent classes, N=50,000, 20 binary items, K=6"),
    "R1": Workload("regressions", 100_000, 11, 4, 20, "mixture of linear regressions, N=100,000, 10 covariates, K=4"),
    "H1": Workload("chain", 100_000, 2, 5, 20, "hidden Markov model, T=100,000, two normal features, K=5"),
    "H2": Workload("symbols", 100, 1000, 10, 20, "hidden Markov models, 1000 sequences of 100, 50 symbols, K=10"),
    "H3": Workload("chain", 1_000_000, 2, 3, 12, "hidden Markov model, T=1,000,000, two normal features, K=3"),
    "OF": Workload(
        "full", 272, 2, 2, 10, "Old Faithful: Gaussian mixture, full covariances, N=272, D=2, K=2", "warm_fit_seconds"
    ),
}


def load(name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Data ``(rows, columns)`` and starting values, both float64."""
    path = pathlib.Path(tempfile.gettempdir()) / f"emppl-benchmark-{name}-{_VERSION}.npz"
    if not path.exists():
        data, start = _generate(name)
        half_written = path.with_suffix(".part.npz")
        np.savez(half_written, data=data, **start)
        half_written.rename(path)
    with np.load(path) as file:
        start = {key: file[key] for key in file.files}
    return start.pop("data"), start


def _generate(name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    work = WORKLOADS[name]
    rng = np.random.default_rng([_VERSION, *name.encode()])
    rows, columns, components = work.rows, work.columns, work.components
    shares = rng.dirichlet(np.full(components, 5.0))
    label = rng.choice(components, size=rows, p=shares)
    uniform = np.full(components, 1 / components)
    if work.kind in ("chain", "symbols"):
        return _chains(rng, work)
    if work.kind == "classes":
        probability = np.clip(rng.beta(0.8, 0.8, (components, columns)), 0.05, 0.95)
        data = (rng.random((rows, columns)) < probability[label]).astype(float)
        return data, {"weights": uniform, "probabilities": rng.uniform(0.25, 0.75, (components, columns))}
    if work.kind == "regressions":
        # The last column is the response.
        covariates = rng.normal(size=(rows, columns - 1))
        slope, intercept = rng.normal(size=(components, columns - 1)), 2 * rng.normal(size=components)
        spread = rng.uniform(0.4, 1.0, components)
        response = intercept[label] + (covariates * slope[label]).sum(1) + spread[label] * rng.normal(size=rows)
        start = {
            "weights": uniform,
            "intercept": intercept,
            "slope": slope + 0.3 * rng.normal(size=slope.shape),
            "sigma": np.ones(components),
        }
        return np.concatenate([covariates, response[:, None]], 1), start
    if name == "OF":
        source = pathlib.Path(__file__).parents[1] / "models" / "data" / "faithful.csv"
        data = np.loadtxt(source, delimiter=",", skiprows=1)
    else:
        # Every component stretches white noise by a matrix of its own: diagonal, or triangular.
        factor = 0.7 * rng.normal(size=(components, columns, columns)) / np.sqrt(columns)
        factor = np.tril(factor, -1) if work.kind == "full" else np.zeros_like(factor)
        factor += rng.uniform(0.5, 1.4, (components, columns, 1)) * np.eye(columns)
        data = 2.2 * rng.normal(size=(components, columns))[label]
        noise = rng.normal(size=(rows, columns))
        for k in range(components):
            data[label == k] += noise[label == k] @ factor[k].T
    variance = data.var(axis=0)
    spread = np.diag(variance) if work.kind == "full" else variance
    # The shortest and the longest eruption, or any rows.
    chosen = [data[:, 0].argmin(), data[:, 0].argmax()] if name == "OF" else rng.choice(rows, components, replace=False)
    means = data[chosen]
    return data, {"weights": uniform, "means": means, "spread": np.tile(spread, (components,) + (1,) * spread.ndim)}


SYMBOLS = 50


def _chains(rng, work: Workload) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sequences of hidden states, time first, and what they emit."""
    steps, states = work.rows, work.components
    sequences = 1 if work.kind == "chain" else work.columns
    transition = 0.7 * np.eye(states) + 0.3 * rng.dirichlet(np.ones(states), states)
    steep, uniform = transition.cumsum(1), rng.random((steps, sequences, 1))
    state = np.zeros((steps, sequences), int)
    for t in range(1, steps):
        state[t] = np.minimum((uniform[t] > steep[state[t - 1]]).sum(1), states - 1)
    start = {"initial": np.full(states, 1 / states), "transition": np.full((states, states), 0.5 / states)}
    start["transition"] += 0.5 * np.eye(states)
    if work.kind == "symbols":
        emission = rng.dirichlet(np.full(SYMBOLS, 0.3), states).cumsum(1)
        data = np.minimum((rng.random((steps, sequences, 1)) > emission[state]).sum(-1), SYMBOLS - 1)
        return data, start | {"emission": rng.dirichlet(np.full(SYMBOLS, 5.0), states)}
    data = 2.2 * rng.normal(size=(states, work.columns))[state[:, 0]] + rng.normal(size=(steps, work.columns))
    means = data[rng.choice(steps, states, replace=False)]
    return data, start | {"means": means, "scale": np.ones((states, work.columns))}

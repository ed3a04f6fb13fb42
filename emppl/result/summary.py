"""A fit as a table, as text, as draws for ArviZ and as a plot."""

from __future__ import annotations

import inspect
import statistics
import warnings
from typing import Any

import jax
import numpy as np

from emppl.errors import optional_import
from emppl.fit.outcome import StopReason
from emppl.fit.restarts import distinct_optima
from emppl.result.accuracy import MOST_DIMENSIONS
from emppl.result.fitted import Fitted

NOT_COMPUTED = (
    f"Standard errors are not computed unasked for more than {MOST_DIMENSIONS} free dimensions. Call "
    "result.standard_errors() to compute them; summaries printed afterwards show them."
)


_SHORT = {"mc_error": "mc_error", "std_error_mc_error": "of std_err"}
"""Monte Carlo columns in print: the error of the estimate, and that of its standard error."""


def quiet_standard_errors(result: Fitted) -> dict[str, np.ndarray]:
    """Standard errors for display: empty where there are none, or where they would take long."""
    if not result.accuracy.is_cheap:
        return {}
    try:
        return result.accuracy.standard_errors()
    except ValueError:
        return {}


def rows(result: Fitted, prob: float) -> list[tuple[str, float, float, float, float]]:
    """Label, estimate, standard error and interval of every entry."""
    z = statistics.NormalDist().inv_cdf(0.5 + prob / 2)
    errors = quiet_standard_errors(result)
    entries = []
    for name, value in result.params.items():
        error = errors.get(name, np.full(value.shape, np.nan))
        for index in np.ndindex(value.shape):
            estimate, deviation = float(value[index]), float(error[index])
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            entries.append((label, estimate, deviation, estimate - z * deviation, estimate + z * deviation))
    return entries


def monte_carlo_columns(result: Fitted) -> dict[str, list[float]]:
    """Where latents were drawn: Monte Carlo errors of estimates and of their standard errors, entry by entry."""
    if result.simulation is None:
        return {}
    columns = {}
    for title, errors in (
        ("mc_error", result.accuracy.monte_carlo_errors),
        ("std_error_mc_error", result.accuracy.standard_error_errors),
    ):
        column = [errors.get(n, np.full(value.shape, np.nan)) for n, value in result.params.items()]
        flat = np.concatenate([np.ravel(part) for part in column])
        if np.any(np.isfinite(flat)):
            columns[title] = flat.tolist()
    return columns


def data_frame(result: Fitted, prob: float) -> Any:
    """Estimates, standard errors and Wald intervals as a pandas DataFrame."""
    pandas = optional_import("pandas", "table")
    if not result.accuracy.is_cheap and result.classification is None:
        warnings.warn(NOT_COMPUTED, stacklevel=3)
    table = rows(result, prob)
    columns = ["estimate", "std_error", "lower", "upper"]
    frame = pandas.DataFrame([row[1:] for row in table], index=[row[0] for row in table], columns=columns)
    return frame.assign(**monte_carlo_columns(result))


def text(result: Fitted, prob: float) -> str:
    """The table, and how the fit ended, as text."""
    table = rows(result, prob)
    width = max([len(row[0]) for row in table], default=0)
    percent = f"{100 * prob:g}%"
    lines = [f"{'':{width}}  {'estimate':>12}  {'std_error':>10}  {'lower ' + percent:>12}  {'upper ' + percent:>12}"]
    noise = monte_carlo_columns(result)
    lines[0] += "".join(f"  {_SHORT[title]:>10}" for title in noise)
    for position, (label, *numbers) in enumerate(table):
        cells = [f"{number:>{size}.5g}" for number, size in zip(numbers, (12, 10, 12, 12), strict=True)]
        cells += [f"{column[position]:>10.2g}" for column in noise.values()]
        lines.append(f"{label:{width}}  {'  '.join(cells)}")
    lines += [
        "",
        f"log-likelihood {result.log_likelihood:.6f}, {result.criteria.num_parameters} free parameters, "
        f"AIC {result.criteria.aic:.2f}, BIC {result.criteria.bic:.2f}",
        f"{result.stop_reason.name.lower()} after {result.num_iterations} iterations. {result.stop_message}",
    ]
    finals = result.history["final_objectives"]
    if len(finals) > 1:
        ended = finals[result.history["final_status"] == StopReason.CONVERGED.name]
        distinct, at_best = distinct_optima(ended, result.objective)
        optima = f"; there were {distinct} distinct optima" if distinct > 1 else ""
        lines.append(f"{at_best} of {len(finals)} restarts reached the best optimum{optima}.")
    if result.accuracy.boundary:
        lines.append(f"On the boundary (no standard error): {shortened(result.accuracy.boundary)}.")
    lines += [only_differences(name, result.params[name].shape) for name in result.criteria.only_differences]
    if not result.accuracy.is_cheap and result.classification is None:
        lines.append(NOT_COMPUTED)
    return "\n".join([*lines, *result.remarks])


def only_differences(name: str, shape: tuple[int, ...]) -> str:
    """Why logits have no standard errors, and what to write to get some."""
    cells = "".join(f"{size}, " for size in shape[:-1])
    return (
        f"No standard error for {name!r}: it enters only as logits, which a common shift along the last axis leaves "
        f"without effect. Fix the last entry at zero: {name} = jnp.concatenate([numpyro.param({name!r}, "
        f"jnp.zeros(({cells}{shape[-1] - 1},))), jnp.zeros(({cells}1,))], -1). Or, for a plain table of "
        f"logits, estimate probabilities: {name} = numpyro.param({name!r}, jnp.full({shape}, 1 / {shape[-1]}), "
        "constraint=dist.constraints.simplex), passed as probs=."
    )


def to_arviz(result: Fitted, num_samples: int, rng_key: jax.Array | None) -> Any:
    """Draws from the large-sample normal distribution of the estimate, as ArviZ data."""
    arviz = optional_import("arviz", "arviz")
    free = [name for name in result.params if name not in result.fit.model.fixed]
    matrix = np.nan_to_num(result.accuracy.covariance.matrix)
    centre = np.concatenate([result.params[name].ravel() for name in free])
    values, vectors = np.linalg.eigh(matrix)
    key = jax.random.key(0) if rng_key is None else rng_key
    noise = np.asarray(jax.random.normal(key, (num_samples, len(centre))))
    draws = centre + noise @ (vectors * np.sqrt(np.maximum(values, 0))).T
    posterior, position = {}, 0
    for name in free:
        shape, size = result.params[name].shape, result.params[name].size
        posterior[name] = draws[:, position : position + size].reshape((1, num_samples, *shape))
        position += size
    if "posterior" in inspect.signature(arviz.from_dict).parameters:  # before ArviZ 1.0
        return arviz.from_dict(posterior=posterior)
    return arviz.from_dict({"posterior": posterior})


def plot_history(result: Fitted, ax: Any) -> Any:
    """The objective against iterations."""
    pyplot = optional_import("matplotlib.pyplot", "plot")
    if ax is None:
        _, ax = pyplot.subplots()
    ax.plot(result.history["objective"])
    ax.set_xlabel("iteration")
    ax.set_ylabel("objective (nats)")
    return ax


def shortened(labels: list[str], most: int = 8) -> str:
    """The first few labels, and how many more there are."""
    rest = len(labels) - most
    return ", ".join(labels[:most]) + (f" and {rest} more" if rest > 0 else "")

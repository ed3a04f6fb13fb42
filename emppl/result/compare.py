"""EM beside NUTS: one table, mixture components aligned draw by draw.

A posterior over a mixture does not care how its components are numbered, and chains may number them
differently. Each draw is matched to the EM estimate by the assignment that brings its components closest.

Reference:
    Kuhn (1955), The Hungarian method for the assignment problem; Stephens (2000), Dealing with label switching.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from emppl.errors import ParameterError, optional_import
from emppl.result.result import EMResult


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Estimates beside posterior summaries.

    Attributes:
        labels: parameter entries.
        estimate: EM estimate of each.
        std_error: its standard error (NaN where there is none).
        mean: posterior mean over all aligned draws.
        sd: posterior standard deviation.
        relabelled: share of draws whose components had to be renumbered, by latent.
        missing: parameters of the model that the posterior samples lack.
    """

    labels: list[str]
    estimate: np.ndarray
    std_error: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    relabelled: dict[str, float]
    missing: list[str]

    @property
    def difference_in_sd(self) -> np.ndarray:
        """``(estimate - mean) / sd``."""
        return (self.estimate - self.mean) / np.where(self.sd > 0, self.sd, np.nan)

    def to_dataframe(self) -> Any:
        """The table as a pandas DataFrame (needs pandas)."""
        pandas = optional_import("pandas", "table")
        columns = {
            "EM": self.estimate,
            "EM std_error": self.std_error,
            "NUTS mean": self.mean,
            "NUTS sd": self.sd,
            "difference / sd": self.difference_in_sd,
        }
        return pandas.DataFrame(columns, index=self.labels)

    def __str__(self) -> str:
        width = max([len(label) for label in self.labels], default=0)
        lines = [f"{'':{width}}  {'EM':>12}  {'std_error':>10}  {'NUTS mean':>12}  {'NUTS sd':>10}  {'diff / sd':>9}"]
        columns = (self.estimate, self.std_error, self.mean, self.sd, self.difference_in_sd)
        for row, label in enumerate(self.labels):
            numbers = zip((column[row] for column in columns), (12, 10, 12, 10, 9), strict=True)
            lines.append(f"{label:{width}}  " + "  ".join(f"{number:>{size}.4g}" for number, size in numbers))
        for latent, share in self.relabelled.items():
            lines.append(f"Components of {latent!r}: {100 * share:.0f}% of the draws were renumbered to match EM.")
        if self.missing:
            lines.append(f"Not among the posterior samples: {', '.join(self.missing)}.")
        return "\n".join(lines)

    __repr__ = __str__


def compare(result: EMResult, mcmc: Any) -> Comparison:
    """Put an EM fit beside a NUTS posterior of the same model.

    Args:
        result: the fit.
        mcmc: a ``numpyro.infer.MCMC`` that has run, or a dict of posterior samples by site, shaped
            ``(draws, *site shape)``.

    Returns:
        The comparison; print it, or take ``.to_dataframe()``. Standard errors are left out (NaN) for models of more
        than 500 free dimensions, unless ``result.standard_errors()`` was called before.

    Raises:
        ParameterError: no parameter of the fit is among the samples, or shapes differ.
    """
    samples = mcmc if isinstance(mcmc, Mapping) else mcmc.get_samples()
    names = [name for name in result.params if name in samples]
    if not names:
        raise ParameterError(
            f"The posterior samples {sorted(samples)} hold none of the parameters {sorted(result.params)}. For a model "
            "written with numpyro.param, attach priors with numpyro.handlers.lift before running NUTS."
        )
    draws = {name: np.asarray(samples[name], float) for name in names}
    for name in names:
        if draws[name].shape[1:] != result.params[name].shape:
            raise ParameterError(
                f"Samples of {name!r} have shape {draws[name].shape[1:]}; the estimate has {result.params[name].shape}."
            )
    relabelled = {}
    for latent, axes in result.component_axes().items():
        matched = {name: places for name, places in axes.items() if name in names}
        if matched:
            relabelled[latent] = _align(draws, {n: result.params[n] for n in names}, matched)
    try:
        errors = result.standard_errors() if result.uncertainty_is_cheap else {}
    except ValueError:
        errors = {}
    blank = {name: np.full(result.params[name].shape, math.nan) for name in names}
    columns = {
        "estimate": [result.params[name] for name in names],
        "std_error": [errors.get(name, blank[name]) for name in names],
        "mean": [draws[name].mean(0) for name in names],
        "sd": [draws[name].std(0, ddof=1) for name in names],
    }
    labels = [
        f"{name}[{', '.join(map(str, index))}]" if index else name
        for name in names
        for index in np.ndindex(result.params[name].shape)
    ]
    flat = {key: np.concatenate([np.ravel(part) for part in parts]) for key, parts in columns.items()}
    missing = [name for name in result.params if name not in samples]
    return Comparison(labels, relabelled=relabelled, missing=missing, **flat)


def _align(
    draws: dict[str, np.ndarray], estimate: Mapping[str, np.ndarray], axes: Mapping[str, tuple[int, ...]]
) -> float:
    """Renumber the components of every draw in place; returns the share of draws that changed."""
    from scipy.optimize import linear_sum_assignment

    single = {name: where[0] for name, where in axes.items() if len(where) == 1}
    if not single:
        return 0.0
    cost: Any = 0.0
    for name, axis in single.items():
        ours = np.moveaxis(estimate[name], axis, 0)
        theirs = np.moveaxis(draws[name], axis + 1, 1)
        spread = theirs.std(axis=(0, 1)) + np.finfo(float).tiny
        scaled_ours = (ours / spread).reshape(len(ours), -1)
        scaled_theirs = (theirs / spread).reshape(theirs.shape[0], theirs.shape[1], -1)
        cost = cost + ((scaled_ours[None, :, None] - scaled_theirs[:, None]) ** 2).sum(-1)
    changed = 0
    for number, matrix in enumerate(cost):
        order = linear_sum_assignment(matrix)[1]
        if np.array_equal(order, np.arange(len(order))):
            continue
        changed += 1
        for name, where in axes.items():
            for axis in where:
                draws[name][number] = np.take(draws[name][number], order, axis)
    return changed / len(cost)

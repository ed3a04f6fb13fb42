"""EM beside NUTS: one table, mixture components aligned draw by draw.

A posterior over a mixture does not care how its components are numbered, and chains may number them differently. Where
exchanging two numbers leaves the joint density alone, draws are renumbered to match the EM estimate.

Reference:
    Stephens (2000), Dealing with label switching; Vehtari et al. (2021), Rank-normalization, folding, and localization.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from emppl.errors import ParameterError, optional_import
from emppl.result.labels import best_orders, exchangeable_groups, renumbered
from emppl.result.result import EMResult
from emppl.result.summary import quiet_standard_errors


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Estimates beside posterior summaries.

    Attributes:
        labels: parameter entries.
        estimate: EM estimate of each.
        std_error: its standard error (NaN where there is none).
        mean: posterior mean over all aligned draws.
        sd: posterior standard deviation.
        r_hat: split R-hat of the aligned draws; NaN for a single short chain.
        effective_draws: effective sample size of the aligned draws.
        relabelled: share of draws whose components had to be renumbered, by latent.
        relabelled_by_chain: the same for every chain.
        distinct: latents whose components cannot all be exchanged, with those that can: these alone were renumbered.
        missing: parameters of the model that the posterior samples lack.
    """

    labels: list[str]
    estimate: np.ndarray
    std_error: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    r_hat: np.ndarray
    effective_draws: np.ndarray
    relabelled: dict[str, float]
    relabelled_by_chain: dict[str, np.ndarray]
    distinct: dict[str, list[list[int]]]
    missing: list[str]

    @property
    def difference_in_sd(self) -> np.ndarray:
        """``(estimate - mean) / sd``."""
        return (self.estimate - self.mean) / np.where(self.sd > 0, self.sd, np.nan)

    @property
    def difference_error(self) -> np.ndarray:
        """Monte Carlo standard error of the difference, in the same unit."""
        return 1 / np.sqrt(self.effective_draws)

    def to_dataframe(self) -> Any:
        """The table as a pandas DataFrame (needs pandas)."""
        pandas = optional_import("pandas", "table")
        columns = {
            "EM": self.estimate,
            "EM std_error": self.std_error,
            "NUTS mean": self.mean,
            "NUTS sd": self.sd,
            "difference / sd": self.difference_in_sd,
            "MC error": self.difference_error,
            "R-hat": self.r_hat,
            "effective draws": self.effective_draws,
        }
        return pandas.DataFrame(columns, index=self.labels)

    def __str__(self) -> str:
        width = max([len(label) for label in self.labels], default=0)
        titles = ("EM", "std_error", "NUTS mean", "NUTS sd", "diff / sd", "MC error", "R-hat", "eff. draws")
        sizes = (12, 10, 12, 10, 9, 8, 7, 10)
        lines = [f"{'':{width}}  " + "  ".join(f"{title:>{size}}" for title, size in zip(titles, sizes, strict=True))]
        columns = (self.estimate, self.std_error, self.mean, self.sd, self.difference_in_sd, self.difference_error)
        for row, label in enumerate(self.labels):
            cells = [f"{column[row]:>{size}.4g}" for column, size in zip(columns, sizes, strict=False)]
            cells += [f"{self.r_hat[row]:>7.3f}", f"{self.effective_draws[row]:>10.0f}"]
            lines.append(f"{label:{width}}  " + "  ".join(cells))
        for latent, share in self.relabelled.items():
            words = f"Components of {latent!r}: {100 * share:.0f}% of the draws were renumbered to match EM"
            chains = ", ".join(f"{100 * chain:.0f}%" for chain in self.relabelled_by_chain[latent])
            lines.append(f"{words} (by chain: {chains})." if share and "," in chains else f"{words}.")
        for latent, groups in self.distinct.items():
            some = f" but for {', '.join(map(str, groups))}" if groups else ""
            lines.append(
                f"Components of {latent!r} have numbers that mean something{some}: exchanging them changes the joint "
                "density. Those keep the numbers that they have in the draws."
            )
        if self.missing:
            lines.append(f"Not among the posterior samples: {', '.join(self.missing)}.")
        return "\n".join(lines)

    __repr__ = __str__


def compare(result: EMResult, mcmc: Any) -> Comparison:
    """Put an EM fit beside a NUTS posterior of the same model.

    Args:
        result: the fit.
        mcmc: a ``numpyro.infer.MCMC`` that has run, ArviZ data with a posterior, or a dict of posterior samples by
            site, shaped ``(draws, *site shape)`` or ``(chains, draws, *site shape)``. What is passed is left as it is.

    Returns:
        The comparison; print it, or take ``.to_dataframe()``. Standard errors are left out (NaN) for models of more
        than 500 free dimensions, unless ``result.standard_errors()`` was called before.

    Raises:
        ParameterError: no parameter of the fit is among the samples, or shapes differ.
    """
    samples = _samples(mcmc)
    names = [name for name in result.params if name in samples]
    if not names:
        raise ParameterError(
            f"The posterior samples {sorted(samples)} hold none of the parameters {sorted(result.params)}. For a model "
            "written with numpyro.param, attach priors with numpyro.handlers.lift before running NUTS."
        )
    by_chain = {name: _by_chain(name, samples[name], result.params[name].shape) for name in names}
    chains, length = next(iter(by_chain.values())).shape[:2]
    draws = {name: draw.reshape(chains * length, *draw.shape[2:]) for name, draw in by_chain.items()}
    relabelled, distinct = {}, {}
    for latent, axes in result.component_axes().items():
        matched = {name: places for name, places in axes.items() if name in names}
        if not matched:
            continue
        draws, changed, groups = _aligned(result, draws, axes)
        relabelled[latent] = changed.reshape(chains, length).mean(1)
        if [len(group) for group in groups] != [result.fit.model.trace.sites[latent].states]:
            distinct[latent] = groups
    errors = quiet_standard_errors(result)
    blank = {name: np.full(result.params[name].shape, math.nan) for name in names}
    chained = {name: draw.reshape(chains, length, *draw.shape[1:]) for name, draw in draws.items()}
    columns = {
        "estimate": [result.params[name] for name in names],
        "std_error": [errors.get(name, blank[name]) for name in names],
        "mean": [draws[name].mean(0) for name in names],
        "sd": [draws[name].std(0, ddof=1) for name in names],
        "r_hat": [split_gelman_rubin(chained[n]) if length > 3 else blank[n] for n in names],
        "effective_draws": [effective_sample_size(chained[n]) if length > 3 else blank[n] for n in names],
    }
    labels = [
        f"{name}[{', '.join(map(str, index))}]" if index else name
        for name in names
        for index in np.ndindex(result.params[name].shape)
    ]
    flat = {key: np.concatenate([np.ravel(part) for part in parts]) for key, parts in columns.items()}
    missing = [name for name in result.params if name not in samples]
    shares = {latent: float(np.mean(share)) for latent, share in relabelled.items()}
    return Comparison(
        labels, relabelled=shares, relabelled_by_chain=relabelled, distinct=distinct, missing=missing, **flat
    )


def _samples(mcmc: Any) -> Mapping[str, Any]:
    """Posterior samples by site: of ``MCMC`` and ArviZ by chain."""
    if isinstance(mcmc, Mapping) and not hasattr(mcmc, "posterior"):
        return mcmc
    if hasattr(mcmc, "get_samples"):
        return mcmc.get_samples(group_by_chain=True)
    if hasattr(mcmc, "posterior"):
        return {str(name): np.asarray(values) for name, values in mcmc.posterior.data_vars.items()}
    raise ParameterError(
        "compare(result, mcmc) takes a numpyro.infer.MCMC that has run, ArviZ data with a posterior, or a dict of "
        f"arrays, not {type(mcmc).__name__}."
    )


def _by_chain(name: str, samples: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A copy of the samples of a site, ``(chains, draws, *shape)``."""
    draws = np.array(samples, float)
    for lead in (1, 2):
        if draws.shape[lead:] == shape and draws.ndim == lead + len(shape):
            return draws[None] if lead == 1 else draws
    raise ParameterError(f"Samples of {name!r} have shape {draws.shape[1:]}; the estimate has {shape}.")


def _aligned(
    result: EMResult, draws: dict[str, np.ndarray], axes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], np.ndarray, list[list[int]]]:
    """Draws whose exchangeable components are numbered as those of the estimate.

    Returns:
        The draws, which of them changed, and the groups of exchangeable components.
    """
    count = len(next(iter(draws.values())))
    points = [{**result.params, **{n: draw[row] for n, draw in draws.items()}} for row in {0, count // 2, count - 1}]
    groups = exchangeable_groups(result.fit.objective, points, axes)
    axes = {name: places for name, places in axes.items() if name in draws}
    changed = np.zeros(count, bool)
    for group in groups:
        orders = best_orders(draws, result.params, axes, group)
        moved = np.any(orders != np.arange(orders.shape[1]), 1)
        changed |= moved
        for row in np.flatnonzero(moved):
            one = renumbered({name: draws[name][row] for name in axes}, orders[row], axes)
            for name, value in one.items():
                draws[name][row] = value
    return draws, changed, groups

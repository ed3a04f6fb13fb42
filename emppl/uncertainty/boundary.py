"""Variances that go to zero: a latent that does not vary (a singular fit), or data that a latent explains wholly.

EM approaches such a point ever more slowly and does not reach it. It is recognised by the Newton step from where EM
stopped, which ends at zero and gains next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emppl.model.model import Model
from emppl.names import model_name
from emppl.parameters.constraints import bounds, constraint_name
from emppl.uncertainty.charts import Chart, Information

_SHARE_OF_WAY = 0.9
"""Share of the way to zero that a Newton step has to go."""

_MOST_GAIN = 0.05
"""Gain, in nats, below which going to zero changes next to nothing."""


def scales(model: Model) -> dict[str, list[str]]:
    """Free parameters bounded by zero in sites that depend on an integrated latent, and these sites."""
    bounded: dict[str, list[str]] = {}
    for name in model.free:
        lower, _ = bounds(model.trace.sites[name].constraint) or (None, None)
        sites = [site for site in model.integrated if name in model.factors[site].all_parameters]
        if sites and lower == 0:
            bounded[name] = sorted(sites)
    return bounded


def vanishing(chart: Chart, newton: np.ndarray, score: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Coordinates that a Newton step takes to zero, with next to nothing to gain.

    Args:
        chart: chart of a parameter above zero.
        newton: ``(coordinates,)``, the Newton step; NaN where held.
        score: ``(coordinates,)``, gradient of the objective.
        curvature: ``(coordinates,)``, minus its second derivative.

    Returns:
        Boolean ``(coordinates,)``.
    """
    # Near zero the log-likelihood is a parabola around zero in a standard deviation, so that the Newton step of all
    # parameters together ends there; in a variance it is a falling line.
    room = np.ravel(chart.frame.base)
    falls = (newton <= -_SHARE_OF_WAY * room) | (-score > curvature * room)
    # At a minimum the Newton step ends at zero too, but the way up leads away from there.
    minimum = (score > 0) & (curvature <= 0)
    return falls & ~minimum & (np.abs(score) * room < _MOST_GAIN)


def newton_step(matrix: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Solve with an information matrix that may be nearly singular."""
    if not np.all(np.isfinite(matrix)) or not len(matrix):
        return np.full(score.shape, np.nan)
    unit = np.sqrt(np.maximum(np.abs(np.diagonal(matrix)), np.finfo(float).tiny))
    return np.linalg.lstsq(matrix / np.outer(unit, unit), score / unit, rcond=1e-10)[0] / unit


def remarks(
    model: Model, boundary: list[str], local: Mapping[str, Chart], information: Information | None
) -> list[str]:
    """What vanishing variances mean, by parameter.

    Args:
        boundary: labels of the entries on the boundary.
        local: charts of every free parameter.
        information: observed information and score in them, if known.
    """
    sentences = []
    for name, sites in scales(model).items():
        labels = [label for label in boundary if label.split("[")[0] == name]
        if not labels:
            continue
        which = ", ".join(labels)
        own = [model_name(site) for site in sites if _is_latent(model, site)]
        slowly = "and EM approaches that ever more slowly"
        prior = f"give {name!r} a prior that is zero at zero, such as dist.Gamma(2.0, rate)"
        if own:
            sentences.append(
                f"{which} goes to zero: latent {own[0]!r} does not vary there (a singular fit), {slowly}. Leave it "
                f"out, or {prior}."
            )
        else:
            sentences.append(
                f"{which} goes to zero: the latent explains these data of site {model_name(sites[0])!r} wholly (a "
                f"Heywood case), {slowly}. Use fewer latents, or {prior}."
            )
    if information is None:
        return sentences
    position = 0
    covariances = _covariances(model)
    for name, chart in local.items():
        block = slice(position, position + int(chart.active.sum()))
        position = block.stop
        if name in covariances and chart.active.all() and _singular(chart, information, block):
            sentences.append(
                f"Covariance matrix {name!r} goes to a singular one: a combination of the latents does not vary there "
                "(a singular fit), and EM approaches that ever more slowly. Use fewer latents, or give the matrix a "
                "prior."
            )
    return sentences


def _singular(chart: Chart, information: Information, block: slice) -> bool:
    """Whether the log-likelihood would rise, by next to nothing, if the least variance of a covariance matrix fell."""
    matrices = np.asarray(chart.frame.base)
    size = matrices.shape[-1]
    rows, columns = np.tril_indices(size)
    for number, matrix in enumerate(matrices.reshape(-1, size, size)):
        unit = np.sqrt(np.diagonal(matrix))
        values, vectors = np.linalg.eigh(matrix / np.outer(unit, unit))
        least = unit * vectors[:, 0] * np.sqrt(values[0])
        count = len(rows)
        cell = slice(block.start + number * count, block.start + (number + 1) * count)
        move = -np.outer(least, least)[rows, columns]
        slope = float(move @ information.score[cell])
        if 0 < slope < _MOST_GAIN and slope > move @ information.matrix[cell, cell] @ move:
            return True
    return False


def _is_latent(model: Model, site: str) -> bool:
    return model.factors[site].site.kind == "integrated"


def _covariances(model: Model) -> list[str]:
    """Free covariance matrices of integrated latents."""
    return [
        name
        for name in model.free
        if constraint_name(model.trace.sites[name].constraint) == "positive_definite"
        and any(name in model.factors[site].all_parameters for site in model.integrated if _is_latent(model, site))
    ]

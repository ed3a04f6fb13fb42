"""Parameters in which the log-likelihood has corners or jumps at data values, so that no information matrix exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from emppl.families.registry import family_of
from emppl.model.model import Model
from emppl.names import model_name
from emppl.parameters.constraints import constraint_name
from emppl.types import Data
from emppl.uncertainty.charts import Chart


def integrated_corners(model: Model) -> dict[str, str]:
    """Parameters whose corners are all integrated over, with the site that has them: their likelihood is smooth.

    It has a curvature, but derivatives of the density, one value of the latent at a time, leave out what a corner adds.
    """
    smooth = {}
    for name in model.rough:
        sites = [site for site, factor in model.factors.items() if name in factor.rough]
        if all(site in model.integrated for site in sites):
            smooth[name] = sites[0]
    return smooth


def without_corners(model: Model) -> str:
    """How to rewrite a model whose corners are integrated over so that none is left; empty without such corners."""
    words = []
    for name, site in integrated_corners(model).items():
        integral = next(integral for integral in model.integrals if site in integral.factors)
        latent = model_name(site if site in integral.latents else integral.latents[0])
        factor = model.factors[site]
        ends = factor.family is not None and any(name in factor.parameters.get(f, ()) for f in factor.family.edges)
        whose = f"site {model_name(site)!r}, which latent {latent!r} enters,"
        if site in integral.latents:
            whose = f"latent {latent!r}"
        if ends:
            rewritten = f"scale and shift a latent with fixed bounds by what depends on {name}"
        elif site in integral.latents:
            rewritten = f"give {latent!r} the location 0 and add {name} to it in the sites that it enters"
        else:
            rewritten = f"put {name} into the prior of {latent!r}, such as {latent} ~ Normal({name}, tau)"
        words.append(
            f"The density of {whose} has {'jumps' if ends else 'corners'} in {name}. The likelihood, its integral, has "
            f"none, but derivatives of the density miss what they add: {rewritten}, where that is the same model."
        )
    return " ".join(words)


def no_standard_errors(model: Model) -> str:
    """Why corners leave no standard errors, and what to do; empty without corners."""
    names = model.rough
    if not names:
        return ""
    fixed = ", ".join(f"{name!r}: result.params[{name!r}]" for name in names)
    smooth = integrated_corners(model)
    sharp = [name for name in names if name not in smooth]
    words = ["No standard errors and no score:"]
    if sharp:
        words.append(
            f"the log density of the data has corners or jumps in {', '.join(sharp)}, and no second derivative there."
        )
    if smooth:
        words.append(f"second derivatives in {', '.join(smooth)} are not known. {without_corners(model)}")
    words.append(
        "For errors that include theirs, fit resampled rows (bootstrap); for those of "
        f"the other parameters given these, fit EM(model, fixed={{{fixed}}})."
    )
    return " ".join(words)


def at_corners_of_priors(model: Model, params: Mapping[str, Any], data: Data) -> dict[str, np.ndarray]:
    """Entries at a corner of the log density of their prior, such as a coefficient that a Laplace prior makes zero.

    Returns:
        Boolean arrays like the parameters, for those with such a prior.
    """
    names = [name for name in model.free if prior_has_corners(model, name)]
    if not names:
        return {}
    arrays = model.evaluate({name: params[name] for name in model.free}, data)
    at_corner = {}
    for name in names:
        value, prior = np.asarray(params[name]), arrays[name].distribution
        near = np.abs(value - np.asarray(prior.loc)) <= _CORNER_WIDTH * np.asarray(prior.scale)
        at_corner[name] = np.broadcast_to(near, value.shape)
    return at_corner


def hold_corners(model: Model, local: Mapping[str, Chart], params: Mapping[str, Any], data: Data) -> dict[str, Chart]:
    """Charts in which entries at a corner of their prior are on the boundary."""
    charts = dict(local)
    for name, corner in at_corners_of_priors(model, params, data).items():
        boundary = charts[name].boundary | corner
        active = charts[name].active & ~boundary.ravel()
        charts[name] = dataclasses.replace(charts[name], boundary=boundary, active=active)
    return charts


_CORNER_WIDTH = 1e-6
"""Distance from a corner, in scales of the prior, within which an entry lies at it."""


def with_corners(model: Model) -> list[str]:
    """Free parameters in which the log density of the data, of a latent or of the prior has corners or jumps."""
    return list(dict.fromkeys([*model.rough, *(name for name in model.free if prior_has_corners(model, name))]))


def prior_has_corners(model: Model, name: str) -> bool:
    """Whether the prior of a free parameter has corners, as a Laplace has one."""
    site = model.trace.sites[name]
    family = family_of(model.trace.distributions[name]) if site.kind == "continuous" and model.use_prior else None
    return family is not None and "loc" in family.kinks and constraint_name(site.constraint).startswith("real")

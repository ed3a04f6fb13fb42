"""Parameters in which the log-likelihood has corners or jumps at data values, so that no information matrix exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from emppl.factors import SiteFactor
from emppl.families.registry import family_of
from emppl.information.charts import Chart
from emppl.parameters import constraint_name
from emppl.program import Program
from emppl.trace.naming import model_name


def without_curvature(program: Program) -> list[str]:
    """Free parameters of which no derivative of a density gives the curvature: locations with corners, bounds.

    The integral of a density with corners has none (:func:`integrated_corners`), but what derivatives see of it, one
    value of the latent at a time, leaves out what the corner adds.
    """
    found = {name for factor in program.factors.values() for name in _rough(factor)}
    return [name for name in program.free if name in found]


def integrated_corners(program: Program) -> dict[str, str]:
    """Those of which every corner is integrated over, with the site that has it: their likelihood is smooth."""
    found = {}
    for name in without_curvature(program):
        sites = [site for site, factor in program.factors.items() if name in _rough(factor)]
        if all(site in program.integrated for site in sites):
            found[name] = sites[0]
    return found


def without_corners(program: Program) -> str:
    """What to write, where corners are integrated over, so that none is left; empty where none is."""
    words = []
    for name, site in integrated_corners(program).items():
        integral = next(one for one in program.integrals if site in one.factors)
        latent = model_name(site if site in integral.latents else integral.latents[0])
        if site in integral.latents:
            whose = f"latent {latent!r}"
            rewritten = f"give {latent!r} the location 0 and add {name} to it in the sites that it enters"
        else:
            whose = f"site {model_name(site)!r}, which latent {latent!r} enters,"
            rewritten = f"put {name} into the prior of {latent!r}, such as {latent} ~ Normal({name}, tau)"
        words.append(
            f"The density of {whose} has corners in {name}. The likelihood, its integral, has none, but derivatives of "
            f"the density miss what they add: {rewritten}, where that is the same model."
        )
    return " ".join(words)


def no_standard_errors(program: Program) -> str:
    """What follows from corners, and what to do; empty where there are none."""
    names = without_curvature(program)
    if not names:
        return ""
    fixed = ", ".join(f"{name!r}: result.params[{name!r}]" for name in names)
    smooth = integrated_corners(program)
    sharp = [name for name in names if name not in smooth]
    words = ["No standard errors and no score:"]
    if sharp:
        words.append(
            f"the log density of the data has corners or jumps in {', '.join(sharp)}, and no second derivative there."
        )
    if smooth:
        words.append(f"second derivatives in {', '.join(smooth)} are not known. {without_corners(program)}")
    words.append(
        "For errors that include theirs, fit resampled rows (bootstrap); for those of "
        f"the other parameters given these, fit EM(model, fixed={{{fixed}}})."
    )
    return " ".join(words)


def _rough(factor: SiteFactor) -> frozenset[str]:
    """Parameters in arguments in which a density is not smooth."""
    fields = (*factor.family.kinks, *factor.family.edges) if factor.family is not None else ()
    return frozenset().union(*(factor.parameters.get(field, ()) for field in fields))


def at_corners_of_priors(program: Program, params: Mapping[str, Any], leaves) -> dict[str, np.ndarray]:
    """Entries at a corner of the log density of their prior, such as a coefficient that a Laplace prior makes zero.

    Args:
        program: the derived algorithm.
        params: the estimate.
        leaves: the data.

    Returns:
        Boolean arrays like the parameters, for those with such a prior.
    """
    names = [name for name in program.free if prior_has_corners(program, name)]
    if not names:
        return {}
    arrays = program.evaluate({name: params[name] for name in program.free}, leaves)
    found = {}
    for name in names:
        value, prior = np.asarray(params[name]), arrays[name].distribution
        near = np.abs(value - np.asarray(prior.loc)) <= _NEAR * np.asarray(prior.scale)
        found[name] = np.broadcast_to(near, value.shape)
    return found


def hold_corners(program: Program, local: Mapping[str, Chart], params: Mapping[str, Any], leaves) -> dict[str, Chart]:
    """Charts in which entries at a corner of their prior are on the boundary."""
    found = dict(local)
    for name, corner in at_corners_of_priors(program, params, leaves).items():
        boundary = found[name].boundary | corner
        active = found[name].active & ~boundary.ravel()
        found[name] = dataclasses.replace(found[name], boundary=boundary, active=active)
    return found


_NEAR = 1e-6


def prior_has_corners(program: Program, name: str) -> bool:
    """Has the prior of a free parameter corners, as a Laplace has one?"""
    site = program.trace.sites[name]
    family = family_of(program.trace.distributions[name]) if site.kind == "continuous" and program.use_prior else None
    return family is not None and "loc" in family.kinks and constraint_name(site.constraint).startswith("real")

"""Parameters in which the log-likelihood has corners or jumps at data values, so that no information matrix exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from emppl.families.registry import family_of
from emppl.parameters import constraint_name
from emppl.program import Program


def without_curvature(program: Program) -> list[str]:
    """Free parameters that are locations with corners, or bounds of a support."""
    found = {
        name
        for factor in program.factors.values()
        if factor.family is not None
        for field in (*factor.family.kinks, *factor.family.edges)
        for name in factor.parameters.get(field, ())
    }
    return [name for name in program.free if name in found]


def no_standard_errors(names: list[str]) -> str:
    """What follows from corners, and what to do.

    Args:
        names: the parameters.
    """
    fixed = ", ".join(f"{name!r}: result.params[{name!r}]" for name in names)
    return (
        f"No standard errors and no score: the log density of the data has corners or jumps in {', '.join(names)}, "
        "and no second derivative there. For errors that include theirs, fit resampled rows (bootstrap); for those of "
        f"the other parameters given these, fit EM(model, fixed={{{fixed}}})."
    )


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


_NEAR = 1e-6


def prior_has_corners(program: Program, name: str) -> bool:
    """Has the prior of a free parameter corners, as a Laplace has one?"""
    site = program.trace.sites[name]
    family = family_of(program.trace.distributions[name]) if site.kind == "continuous" and program.use_prior else None
    return family is not None and "loc" in family.kinks and constraint_name(site.constraint).startswith("real")

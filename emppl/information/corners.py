"""Parameters in which the log-likelihood has corners or jumps at data values, so that no information matrix exists."""

from __future__ import annotations

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

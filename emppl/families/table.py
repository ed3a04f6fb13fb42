"""The table of registered families for the documentation: ``python -m emppl.families.table`` prints it."""

from __future__ import annotations

from emppl.families.family import Family
from emppl.families.registry import registered_families


def family_table() -> str:
    """One row per argument of every registered family: update, conjugate priors, where it is described."""
    rows: list[tuple[str, ...]] = [("family", "argument", "update", "conjugate priors", "E-step", "described in")]
    rows += [("---",) * len(rows[0])]
    for family in sorted(registered_families(), key=lambda family: family.name):
        for argument in family.argument_ranks:
            rows.append(_row(family, argument))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(family: Family, argument: str) -> tuple[str, ...]:
    update = family.updates.get(argument)
    if argument in family.edges:
        words = f"the {'largest' if family.edges[argument] > 0 else 'smallest'} value with weight"
    elif argument in family.fixed:
        words = "belongs to the data"
    elif argument in family.kinks:
        words = "weighted median (quantile), by bisection"
    elif argument in family.joint:
        others = " and ".join(f"`{name}`" for name in family.joint if name != argument)
        words = f"Newton steps, together with {others}"
        words += f"; alone: {update.title}" if update is not None else ""
    else:
        words = update.title if update is not None else "Newton steps"
    priors = ", ".join(kind.__name__ for kind in update.priors) if update is not None else ""
    diagonal = family.diagonals.get(argument)
    if diagonal is not None:
        words += f"; of a diagonal matrix: {diagonal.title}"
        priors = ", ".join(filter(None, [priors, *(f"{kind.__name__} (diagonal)" for kind in diagonal.priors)]))
    classes = ", ".join(kind.__name__ for kind in family.distributions)
    name = family.name if classes == family.name else f"{family.name} ({classes})"
    form = "statistics x natural parameters" if family.is_exponential else "`log_prob`"
    source = family.statistics if family.statistics is not None else family.start
    module = getattr(source, "__module__", "")
    return (name, f"`{argument}`", words, priors, form, f"`{module.removeprefix('emppl.')}`")


if __name__ == "__main__":
    print(family_table())

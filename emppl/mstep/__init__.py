"""The M-step: which rule each parameter gets, and every rule carried out, blocks in turn (ECM).

The order of ``_RULES`` is the policy; the first rule that applies is taken, and the plan prints why earlier ones did
not apply:

1. given: the value stays, or the user's own update.
2. closed form: a registered update on additive sufficient statistics.
3. weighted median: Q is piecewise linear in the parameter.
4. quadratic: the expected log-likelihood is quadratic in the parameter, so one linear solve is exact.
5. Newton by cell: Q falls apart into small smooth problems, one per component, solved to full precision.
6. numeric: optax, on the unconstrained block, never accepting a step that lowers Q.

Each block maximises Q plus the log prior with the others held at their newest values, so the objective never
falls.

Reference:
    Meng and Rubin (1993), Maximum likelihood estimation via the ECM algorithm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from emppl.estep import Expectations
from emppl.factors import Prepared
from emppl.mstep import cell_newton, closed_form, given, median, numeric, quadratic
from emppl.mstep.cell_newton import CellNewton
from emppl.mstep.closed_form import ClosedForm
from emppl.mstep.given import UserUpdate
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.numeric import Numeric
from emppl.program import Program
from emppl.rules import Rule, RuleContext

_RULES = (given, closed_form, median, quadratic, cell_newton, numeric)


def choose_rules(context: RuleContext) -> dict[str, Rule]:
    """A rule for every parameter.

    Args:
        context: the traced model and the user's options.

    Returns:
        Rules by parameter name, in model order; parameters that are updated together share one rule.
    """
    rules = cell_newton.merge({name: _choose(context, name) for name in context.trace.parameters})
    together = [rule for rule in rules.values() if isinstance(rule, Numeric)]
    if together:
        block = Numeric(
            tuple(name for rule in together for name in rule.parameters),
            together[0].detail,
            rejected={name: reasons for rule in together for name, reasons in rule.rejected.items()},
        )
        rules.update(dict.fromkeys(block.parameters, block))
    return rules


def _choose(context: RuleContext, name: str) -> Rule:
    rejected: tuple[tuple[str, str], ...] = ()
    for module in _RULES:
        found = module.propose(context, name)
        if isinstance(found, Rule):
            return dataclasses.replace(found, rejected={name: rejected})
        if found is not None:
            if module is not median or found != median.SMOOTH:
                rejected += ((_TITLES[module.__name__], found),)
    raise AssertionError("the numeric rule always applies")


_TITLES = {
    closed_form.__name__: ClosedForm.kind,
    quadratic.__name__: quadratic.Quadratic.kind,
    median.__name__: median.Median.kind,
    cell_newton.__name__: CellNewton.kind,
}


def m_step(program: Program, params, expectations: Expectations, leaves, prepared: Mapping[str, Prepared]) -> dict:
    """New parameters from expectations.

    Args:
        program: the derived algorithm.
        params: current constrained values (blocks that are updated later see the new ones).
        expectations: from the E-step.
        leaves: the data.
        prepared: statistics and their references, by site.

    Returns:
        New constrained values of the free parameters.
    """
    step = Maximisation(program, params, expectations, leaves, prepared)
    for rule in sorted(program.blocks, key=lambda rule: rule.order):
        step.params.update(rule.update(step))
    return step.params


__all__ = ["CellNewton", "ClosedForm", "Maximisation", "UserUpdate", "choose_rules", "m_step"]

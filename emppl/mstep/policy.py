"""The M-step: which rule each parameter gets, and every rule carried out, blocks in turn (ECM).

The order of ``RULES`` is the policy; the first rule that applies is taken, and the plan prints why earlier ones did
not apply:

1. given: the value stays, or what ``m_step`` says: the user's own update, optimiser or rule.
2. closed form: a registered update on additive sufficient statistics.
3. constrained: that update as long as it lies inside a constraint that it does not imply.
4. weighted median: Q is piecewise linear in the parameter.
5. edge of the support: Q jumps to minus infinity where the parameter passes a data value.
6. quadratic: the expected log-likelihood is quadratic in the parameter, so one linear solve is exact.
7. Newton: it has second derivatives and the block is of moderate size.
8. numeric: optax, on the unconstrained block, never accepting a step that lowers Q.

Parameters under rules 6 to 8 that meet in a site are then put together into blocks. Each block maximises Q plus the
log prior with the others held at their newest values, so the objective never falls.

Reference:
    Meng and Rubin (1993), Maximum likelihood estimation via the ECM algorithm.
"""

from __future__ import annotations

import dataclasses

from emppl.errors import ModelError
from emppl.mstep.closed_form import ClosedForm
from emppl.mstep.constrained import Constrained, probabilities_without_a_sum
from emppl.mstep.edge import Edge
from emppl.mstep.given import Fixed, UserUpdate
from emppl.mstep.median import Median
from emppl.mstep.newton import Newton
from emppl.mstep.numeric import Numeric, is_optimizer
from emppl.mstep.quadratic import Quadratic
from emppl.mstep.rule import Rule, RuleContext

RULES: tuple[type[Rule], ...]
RULES = (Fixed, UserUpdate, ClosedForm, Constrained, Median, Edge, Quadratic, Newton, Numeric)


def choose_rules(context: RuleContext) -> dict[str, Rule]:
    """The rule of every parameter, in model order; parameters that are updated together share one."""
    rules: dict[str, Rule] = {}
    rejected: dict[str, tuple[tuple[str, str], ...]] = {}
    for name in context.model.trace.parameters:
        rules[name], rejected[name] = _choose(context, name)
    kinds: dict[type[Rule], dict[int, Rule]] = {}
    for rule in rules.values():
        kinds.setdefault(type(rule), {})[id(rule)] = rule
    for kind, of_kind in kinds.items():
        for block in kind.join(context, list(of_kind.values())):
            reasons = {name: rejected[name] for name in block.parameters}
            rules.update(dict.fromkeys(block.parameters, dataclasses.replace(block, rejected=reasons)))
    return rules


def _choose(context: RuleContext, name: str) -> tuple[Rule, tuple[tuple[str, str], ...]]:
    """The first rule that applies to one parameter, and the rules before it with the reasons why they do not."""
    rejected: list[tuple[str, str]] = []
    for kind in RULES:
        proposal = kind.propose(context, name)
        if isinstance(proposal, Rule):
            _check(context, name, proposal)
            return proposal, tuple(rejected)
        if proposal is not None:
            rejected.append((kind.kind, proposal.reason))
    raise AssertionError("the numeric rule always applies")


def _check(context: RuleContext, name: str, rule: Rule) -> None:
    """Refuse what no rule of emppl's can estimate: steps without a slope, and probabilities that need not add up."""
    steps = context.analysis.only_jumps(name) if isinstance(rule, (Newton, Numeric)) else None
    if steps is not None:
        raise ModelError(
            f"Parameter {name!r} enters only through a comparison (`{steps}`), so the likelihood is piecewise constant "
            "in it and has no gradient. Make it a discrete latent, numpyro.sample with dist.Categorical over its "
            f"values, or fit with EM(model, fixed={{{name!r}: value}}) for several values and compare log_likelihood."
        )
    given = context.options.m_step.get(name)
    is_own = given is not None and not is_optimizer(given)
    site = None if is_own or not rule.free else probabilities_without_a_sum(context, name)
    if site is not None:
        raise ModelError(
            f"Parameter {name!r} holds the probabilities of site {site!r}, but nothing makes them add up to "
            f"one. Write numpyro.param({name!r}, ..., constraint=constraints.simplex), or sample it from "
            "dist.Dirichlet; unconstrained values are log-odds: dist.Categorical(logits=...)."
        )

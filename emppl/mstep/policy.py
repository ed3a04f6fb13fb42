"""The M-step: which rule each parameter gets, and every rule carried out, blocks in turn (ECM).

The order of ``_RULES`` is the policy; the first rule that applies is taken, and the plan prints why earlier ones did
not apply:

1. given: the value stays, or the user's own update.
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
from emppl.mstep import closed_form, constrained, edge, given, median, newton, numeric, quadratic
from emppl.mstep.closed_form import ClosedForm
from emppl.mstep.given import UserUpdate
from emppl.mstep.newton import Newton
from emppl.mstep.numeric import Numeric
from emppl.mstep.quadratic import Quadratic
from emppl.mstep.rule import Rule, RuleContext

_RULES = (given, closed_form, constrained, median, edge, quadratic, newton, numeric)
_JOINED = {Quadratic: quadratic, Newton: newton, Numeric: numeric}
_TITLES = {
    closed_form.__name__: ClosedForm.kind,
    median.__name__: median.Median.kind,
    edge.__name__: edge.Edge.kind,
    quadratic.__name__: Quadratic.kind,
    newton.__name__: Newton.kind,
}


def choose_rules(context: RuleContext) -> dict[str, Rule]:
    """A rule for every parameter.

    Args:
        context: the traced model and the user's options.

    Returns:
        Rules by parameter name, in model order; parameters that are updated together share one rule.
    """
    rules = {name: _choose(context, name) for name in context.model.trace.parameters}
    for kind, module in _JOINED.items():
        alone = [rule for rule in rules.values() if type(rule) is kind]
        for block in module.join(context, alone) if alone else ():
            rejected = {name: rules[name].rejected[name] for name in block.parameters}
            rules.update(dict.fromkeys(block.parameters, dataclasses.replace(block, rejected=rejected)))
    return rules


def _choose(context: RuleContext, name: str) -> Rule:
    rejected: tuple[tuple[str, str], ...] = ()
    for module in _RULES:
        found = module.propose(context, name)
        if isinstance(found, Rule):
            steps = context.analysis.only_jumps(name) if isinstance(found, (Newton, Numeric)) else None
            if steps is not None:
                raise ModelError(
                    f"Q sees parameter {name!r} through steps only (`{steps}`): it is constant between them, and no "
                    "slope says where to go. Make it a discrete latent, numpyro.sample with dist.Categorical over its "
                    f"values, or fit with EM(model, fixed={{{name!r}: value}}) for several values and compare "
                    "log_likelihood."
                )
            mine = found.free and not isinstance(found, UserUpdate)
            site = constrained.probabilities_without_a_sum(context, name) if mine else None
            if site is not None:
                raise ModelError(
                    f"Parameter {name!r} holds the probabilities of site {site!r}, but nothing makes them add up to "
                    f"one. Write numpyro.param({name!r}, ..., constraint=constraints.simplex), or sample it from "
                    "dist.Dirichlet; unconstrained values are log-odds: dist.Categorical(logits=...)."
                )
            return dataclasses.replace(found, rejected={name: rejected})
        if found is not None:
            rejected += ((_TITLES[module.__name__], found),)
    raise AssertionError("the numeric rule always applies")

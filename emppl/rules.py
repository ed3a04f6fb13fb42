"""Which M-step rule each parameter gets: the first that applies, with the reasons why earlier ones did not.

The order is the policy:

1. fixed: the value stays.
2. the user's own update.
3. a registered closed form, on additive sufficient statistics.
4. a quadratic block: the expected log-likelihood is quadratic in it, so one linear solve is exact.
5. optax, on the unconstrained block, never accepting a step that lowers Q.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.dependence import Dependence, Selection
from emppl.factors import SiteFactor
from emppl.families import Update
from emppl.parameters import constraint_name
from emppl.trace import Trace


@dataclasses.dataclass(frozen=True)
class Target:
    """One argument of one site through which a parameter enters."""

    site: str
    argument: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the M-step updates one parameter.

    Attributes:
        parameter: its name.
        kind: ``"fixed"``, ``"user"``, ``"closed form"``, ``"quadratic"`` or ``"optax"``.
        detail: the update in words.
        rejected: for every earlier rule, why it did not apply.
        targets: where the parameter enters (closed forms).
        update: the closed form.
        prior: name of the prior that enters the update, or None.
        indexed: latents that index each axis of the parameter.
        user: the user's function, for ``"user"``.
    """

    parameter: str
    kind: str
    detail: str
    rejected: tuple[tuple[str, str], ...] = ()
    targets: tuple[Target, ...] = ()
    update: Update | None = None
    prior: str | None = None
    indexed: tuple[frozenset[str], ...] = ()
    user: Callable | None = None


@dataclasses.dataclass(frozen=True)
class RuleContext:
    """What the choice of a rule may look at."""

    trace: Trace
    dependence: Dependence
    factors: Mapping[str, SiteFactor]
    use_prior: bool
    fixed: Mapping[str, Any]
    user_rules: Mapping[str, Callable]
    is_quadratic: Callable[[str], str | None]


def choose_rules(context: RuleContext) -> dict[str, Rule]:
    """A rule for every parameter.

    Args:
        context: the traced model and the user's options.

    Returns:
        Rules by parameter name, in model order.
    """
    return {name: _choose(context, name) for name in context.trace.parameters}


def _choose(context: RuleContext, name: str) -> Rule:
    if name in context.fixed:
        return Rule(name, "fixed", "held at the given value")
    if name in context.user_rules:
        return Rule(
            name, "user", "the update given in m_step=", user=context.user_rules[name], indexed=_indexed(context, name)
        )
    found = _closed_form(context, name)
    if isinstance(found, Rule):
        return found
    rejected: tuple[tuple[str, str], ...] = (("closed form", found),)
    reason = _not_quadratic(context, name)
    if reason is None:
        detail = "Q is quadratic in it: one exact linear solve"
        return Rule(name, "quadratic", detail, rejected, indexed=_indexed(context, name))
    rejected += (("quadratic", reason),)
    detail = "L-BFGS on the unconstrained value, accepted only if Q does not fall"
    return Rule(name, "optax", detail, rejected, indexed=_indexed(context, name))


def _not_quadratic(context: RuleContext, name: str) -> str | None:
    constraint = constraint_name(context.trace.sites[name].constraint)
    if not constraint.startswith("real"):
        return f"its constraint {constraint!r} may bind"
    return context.is_quadratic(name)


def _closed_form(context: RuleContext, name: str) -> Rule | str:
    """The closed-form rule, or the reason why there is none."""
    trace = context.trace
    rank = len(trace.sites[name].shape)
    targets: list[Target] = []
    update: Update | None = None
    indexed: list[frozenset[str]] = [frozenset()] * rank
    entries = _entries(context, name)
    if not entries:
        return "no likelihood site depends on it"
    for factor, field, position in entries:
        if field in ("value", "mask", "cell_weight") or factor.labels_of or factor.site.kind == "factor":
            return f"it enters the {'log factor' if factor.site.kind == 'factor' else field} of site {factor.name!r}"
        if factor.family is None:
            return f"site {factor.name!r} is {factor.site.distribution}, which has no registered closed form"
        if any(factor.parameters.get(other) for other in ("value", "mask", *factor.family.fixed)):
            return f"the value of site {factor.name!r} depends on a parameter"
        candidate = factor.family.updates.get(field)
        if candidate is None:
            return f"{factor.family.name}.{field} of site {factor.name!r} has no closed-form update"
        if update is not None and candidate is not update:
            return f"it enters as {update.title!r} and as {candidate.title!r}, which have no common closed form"
        update = candidate
        if any(
            factor.parameters.get(other, frozenset()) & {name}
            for other in factor.family.argument_ranks
            if other != field
        ):
            return f"it enters more than one argument of site {factor.name!r}"
        selection = context.dependence.selection(name, position)
        if isinstance(selection, str):
            return f"{field} of site {factor.name!r} is not a plain selection of it: {selection}"
        if not _keeps_cells_whole(context, selection, rank, update.event_rank, position):
            return f"{field} of site {factor.name!r} cuts through its last {update.event_rank} axes"
        targets.append(Target(factor.name, field))
        indexed = [known | new for known, new in zip(indexed, _latents_of(selection), strict=True)]
    assert update is not None
    for other in context.trace.parameters:
        if context.use_prior and other != name and _prior_depends_on(context, other, name):
            return f"the prior of {other!r} depends on it"
    refusal = _constraint_binds(context, name, update)
    if refusal is not None:
        return refusal
    prior = _conjugate_prior(context, name, update)
    if isinstance(prior, _Refusal):
        return prior.reason
    return Rule(name, "closed form", update.title, (), tuple(targets), update, prior, tuple(indexed))


def _entries(context: RuleContext, name: str):
    """Every output of a likelihood site that depends on the parameter: ``(factor, field, position)``."""
    found = []
    for path, position in context.trace.outputs.items():
        factor = context.factors.get(path[0])
        if factor is None or ("parameter", name) not in context.dependence.of_output(position):
            continue
        if factor.labels_of is not None and path[1] not in ("value", "mask", "label_mask"):
            continue
        if path[1] == "distribution":
            if factor.family is None or factor.site.kind == "factor":
                found.append((factor, "distribution", position))
            continue
        found.append((factor, path[2] if path[1] == "arguments" else path[1], position))
    return found


def _prior_depends_on(context: RuleContext, other: str, name: str) -> bool:
    return any(
        path[0] == other and path[1] != "value" and ("parameter", name) in context.dependence.of_output(position)
        for path, position in context.trace.outputs.items()
    )


def _keeps_cells_whole(context, selection: Selection, rank: int, event_rank: int, position: int) -> bool:
    out_rank = len(context.dependence.jaxpr.outvars[position].aval.shape)
    return rank >= event_rank and all(
        selection.position[rank - back] == out_rank - back for back in range(1, event_rank + 1)
    )


def _latents_of(selection: Selection) -> list[frozenset[str]]:
    return [frozenset(name for kind, name in labels if kind == "latent") for labels in selection.indexed]


def _indexed(context: RuleContext, name: str) -> tuple[frozenset[str], ...]:
    indexed: list[frozenset[str]] = [frozenset()] * len(context.trace.sites[name].shape)
    for _, _, position in _entries(context, name):
        selection = context.dependence.selection(name, position)
        if isinstance(selection, Selection):
            indexed = [known | new for known, new in zip(indexed, _latents_of(selection), strict=True)]
    return tuple(indexed)


def _constraint_binds(context: RuleContext, name: str, update: Update) -> str | None:
    constraint = constraint_name(context.trace.sites[name].constraint)
    if constraint in update.support:
        return None
    return (
        f"its constraint {constraint!r} is not implied by the update (which needs one of {', '.join(update.support)})"
    )


@dataclasses.dataclass(frozen=True)
class _Refusal:
    reason: str


def prior_of(trace: Trace, name: str) -> str | None:
    """Class name of a parameter's prior, or None for a ``numpyro.param``."""
    site = trace.sites[name]
    return site.distribution if site.kind == "continuous" else None


def _conjugate_prior(context: RuleContext, name: str, update: Update) -> str | None | _Refusal:
    prior = prior_of(context.trace, name)
    if prior is None or not context.use_prior:
        return None
    if prior in ("ImproperUniform", "Uniform", "Unit"):
        return "flat"
    if any(path[0] == name and path[1] in ("mask", "cell_weight") for path in context.trace.outputs):
        return _Refusal(f"its prior {prior} is masked or scaled")
    for distribution in update.priors:
        if distribution.__name__ == prior:
            return prior
    known = ", ".join(sorted(d.__name__ for d in update.priors)) or "none"
    return _Refusal(f"its prior {prior} is not conjugate to the update {update.title!r} (closed forms have: {known})")


def affine_gradient(gradient: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], dtype) -> str | None:
    """Is a function's gradient affine, so that the function is quadratic? Answered without arithmetic.

    Args:
        gradient: the gradient as a function of the parameter.
        shape: shape of the parameter.
        dtype: its dtype.

    Returns:
        None if it is, else the reason.
    """
    struct = jax.ShapeDtypeStruct(shape, dtype)
    try:
        jax.eval_shape(lambda cotangent: jax.linear_transpose(gradient, struct)(cotangent), struct)
    except Exception as error:  # noqa: BLE001  jax raises many kinds, all meaning "not linear"
        words = str(error).split("\n")[0]
        primitive = words.split("'")[1] if "'" in words else "a non-linear operation"
        return f"the gradient of Q is not affine in it ({primitive})"
    return None


@dataclasses.dataclass(frozen=True)
class PriorArguments:
    """A prior distribution's arguments, shaped to broadcast against the parameter without rank promotion."""

    values: Mapping[str, Any]

    def __getattr__(self, name: str):
        return self.values[name]


def prior_arguments(base: Any, parameter_rank: int) -> PriorArguments:
    """Arguments of a prior, each with leading axes of size one up to the parameter's rank."""
    values = {}
    for name, constraint in type(base).arg_constraints.items():
        try:
            array = jnp.asarray(getattr(base, name))
        except (AttributeError, TypeError):
            continue
        event = getattr(constraint, "event_dim", 0)
        rank = parameter_rank - len(base.event_shape) + event
        values[name] = jnp.reshape(array, (1,) * (rank - array.ndim) + array.shape)
    return PriorArguments(values)

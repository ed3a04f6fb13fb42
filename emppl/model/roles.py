"""Which unobserved sites are parameters and which are latents. Ambiguity is an error, never a guess."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from numpyro.distributions import constraints

from emppl.errors import ModelError, ParameterError, unknown_name
from emppl.jaxpr.depends import Dependence
from emppl.model.site import field_dependences
from emppl.strategies import Strategy
from emppl.trace import Trace

_REAL = (constraints.real, constraints.real_vector)
"""Supports of states that a chain can have."""


@dataclasses.dataclass(frozen=True)
class Role:
    """Role of one site and the reason for it.

    Attributes:
        name: the site.
        role: ``"parameter"``, ``"latent"`` or ``"data"``.
        reason: one clause, for the plan.
    """

    name: str
    role: str
    reason: str


def assign_roles(
    trace: Trace,
    dependence: Dependence,
    estimate: tuple[str, ...],
    latents: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> dict[str, Role]:
    """Give every site its role.

    ``numpyro.param`` is estimated; a discrete unobserved site is a latent; an observed site is data. A continuous
    unobserved site is a latent when it shares a plate with data or its prior depends on a parameter or on a latent (a
    random effect), unless a discrete latent indexes it; a parameter when its prior depends on nothing and it lies in
    no plate or is indexed by a discrete latent (the mean of a component); and otherwise ambiguous.

    Args:
        dependence: what depends on what.
        estimate: sites that the user wants maximised.
        latents: strategies by site, from the user; None is a latent whose strategy is chosen here.
        fixed: values by parameter, from the user.

    Returns:
        A role by site name, in model order.

    Raises:
        ModelError: an ambiguous site, or nothing to do.
        ParameterError: an option names a site that it cannot refer to.
    """
    _check_options(trace, estimate, latents, fixed)
    sites = trace.sites
    roles: dict[str, Role] = {}
    begins = _begin_chains(trace, dependence)
    for name, site in sites.items():
        if name in fixed:
            roles[name] = Role(name, "parameter", "fixed at a given value")
        elif site.kind == "param":
            roles[name] = Role(name, "parameter", "numpyro.param")
        elif site.kind == "discrete":
            roles[name] = Role(name, "latent", "discrete and unobserved")
        elif site.kind == "integrated":
            roles[name] = Role(name, "latent", "continuous and unobserved, inside a scan")
        elif site.kind == "factor":
            roles[name] = Role(name, "data", "numpyro.factor")
        elif site.kind == "observed":
            roles[name] = Role(name, "data", "observed")
        elif name in estimate:
            roles[name] = Role(name, "parameter", "listed in estimate=")
        elif name in begins:
            raise _first_state(name, begins[name])
        elif name in latents:
            roles[name] = Role(name, "latent", "listed in latents=")
        else:
            roles[name] = _continuous_role(trace, dependence, name, roles)
    for name in [name for name, site in sites.items() if site.kind == "continuous"]:
        _check_prior(trace, dependence, name, roles[name])
    _check_complete(roles)
    return roles


def _check_options(
    trace: Trace, estimate: tuple[str, ...], latents: Mapping[str, Any], fixed: Mapping[str, Any]
) -> None:
    """Refuse options that name sites which they cannot refer to."""
    sites = trace.sites
    continuous = [name for name, site in sites.items() if site.kind == "continuous"]
    discrete = [name for name, site in sites.items() if site.kind == "discrete"]
    scanned = [name for name, site in sites.items() if site.kind == "integrated"]
    for name in estimate:
        if name not in trace.parameters:
            raise unknown_name("estimate", name, trace.parameters)
    for name in fixed:
        if name not in trace.parameters:
            raise unknown_name("fixed", name, trace.parameters)
    for name, strategy in latents.items():
        if name not in continuous + discrete + scanned:
            raise unknown_name("latents", name, continuous + discrete + scanned)
        if strategy is None:
            continue
        if not isinstance(strategy, Strategy):
            raise ParameterError(
                f"latents[{name!r}] must be a strategy such as emppl.Enumerate(), which sums over a discrete latent; "
                f"it is {strategy!r}."
            )
        refusal = strategy.why_not(name, sites[name].kind)
        if refusal is not None:
            raise ParameterError(f"latents[{name!r}]={strategy!r}: {refusal}")


def without_missing_cells(trace: Trace, dependence: Dependence) -> Trace:
    """Leave out the missing cells of partly observed continuous sites: a density integrates to one over them.

    ``obs_mask`` splits such a site into ``x_observed`` and ``x_unobserved``. If nothing else depends on the second
    half, integrating it out changes nothing.

    Args:
        dependence: what depends on what.

    Returns:
        The trace without those sites.
    """
    missing = []
    for name, site in trace.sites.items():
        twin = f"{name.removesuffix('_unobserved')}_observed"
        if site.kind == "continuous" and name.endswith("_unobserved") and twin in trace.sites:
            users = [path[0] for path, at in trace.outputs.items() if ("parameter", name) in dependence.of_output(at)]
            if set(users) <= {name}:
                missing.append(name)
    return trace.without(missing) if missing else trace


def _check_prior(trace: Trace, dependence: Dependence, name: str, role: Role) -> None:
    if trace.sites[name].distribution == "Delta":
        raise ModelError(
            f"Site {name!r} is an unobserved Delta, which is no random variable. Write "
            f"numpyro.deterministic({name!r}, value) instead."
        )
    if role.role == "latent":
        return
    in_latents, _ = field_dependences(trace, dependence, name)
    causes = sorted(frozenset().union(*(latents for field, latents in in_latents.items() if field != "value")))
    if causes:
        raise ModelError(
            f"The prior of {name!r} depends on the discrete latent {causes[0]!r}. A parameter's prior cannot: EM would "
            f"have to integrate {name!r} together with {causes[0]!r}. Give every state a parameter of its own and "
            f"select it: numpyro.plate('states', K) around {name!r}, then {name}[{causes[0]}] in the likelihood."
        )


def _continuous_role(trace: Trace, dependence: Dependence, name: str, roles: Mapping[str, Role]) -> Role:
    """The role of a continuous unobserved site of which the user said nothing; those before it have theirs."""
    site = trace.sites[name]
    data_plates = {plate.name for data in trace.sites.values() if data.kind == "observed" for plate in data.plates}
    shared = sorted({plate.name for plate in site.plates} & data_plates)
    indexing = sorted(dependence.indexing_latents(name))
    if shared and indexing:
        raise _ambiguous(name, f"it shares plate {shared[0]!r} with data but is indexed by latent {indexing[0]!r}")
    if shared:
        return Role(name, "latent", f"continuous and unobserved, in plate {shared[0]!r} with data")
    _, parameters = field_dependences(trace, dependence, name)
    _, as_written = trace.reparametrised.get(name, ("", frozenset()))  # what it was before does not change its role
    above = sorted(as_written.union(*parameters.values()) - {name})  # held at a value or not: a random effect is one
    if above and indexing:
        raise _ambiguous(
            name, f"its prior depends on {', '.join(map(repr, above))}, but it is indexed by latent {indexing[0]!r}"
        )
    if above:
        words = ", ".join(f"{roles[n].role} {n!r}" if n in roles else repr(n) for n in above)
        return Role(name, "latent", f"continuous and unobserved, and its prior depends on {words}")
    if not site.plates:
        return Role(name, "parameter", "sampled in no plate, with a prior")
    if indexing:
        return Role(name, "parameter", f"indexed by latent {indexing[0]!r}, with a prior")
    plates = ", ".join(repr(plate.name) for plate in site.plates)
    raise _ambiguous(name, f"its plate {plates} holds no data and no discrete latent indexes it")


def _begin_chains(trace: Trace, dependence: Dependence) -> dict[str, str]:
    """Continuous sites that a chain of continuous latents starts from, and that no later step reads, with a latent."""
    found = {}
    for scan, starts in zip(trace.scans, trace.starts, strict=True):
        if not scan.hidden:
            continue
        steps = [name for name, site in trace.sites.items() if site.is_scanned and site.time is not None]
        read = frozenset().union(
            *(names for step in steps for names in field_dependences(trace, dependence, step)[1].values())
        )
        for name in sorted(starts - read):
            if trace.sites[name].kind == "continuous" and trace.sites[name].constraint in _REAL:
                found[name] = next(iter(scan.hidden))
    return found


def _first_state(name: str, latent: str) -> ModelError:
    return ModelError(
        f"The chain of {latent!r} starts from {name!r}, which is sampled before the scan: its first state is a latent "
        "of the chain, and emppl integrates the steps of a scan only. Sample the first state in the first step, with "
        f"the prior of {name!r}, and count the steps in the carry:\n"
        "  def step(carry, y):\n"
        "      before, t = carry\n"
        f"      {latent} = numpyro.sample({latent!r}, dist.Normal(jnp.where(t == 0, prior_mean, before), "
        "jnp.where(t == 0, prior_scale, scale)))\n"
        "      ...  # the observation\n"
        f"      return ({latent}, t + 1), None\n"
        "  scan(step, (0.0, 0), y)\n"
        f"where the observations see {latent!r} of their own step. To maximise over {name!r} instead, write "
        f"EM(model, estimate=[{name!r}])."
    )


def _ambiguous(name: str, why: str) -> ModelError:
    return ModelError(
        f"The role of site {name!r} is ambiguous: {why}. Say which one you mean:\n"
        f"  a parameter to estimate:  EM(model, estimate=[{name!r}])\n"
        f"  a latent to integrate:    EM(model, latents=[{name!r}])\n"
        f"                            or with a strategy of your own, EM(model, latents={{{name!r}: Quadrature(15)}})"
    )


def _check_complete(roles: Mapping[str, Role]) -> None:
    present = {role.role for role in roles.values()}
    if "data" not in present:
        raise ModelError(
            "The model observes nothing. Give at least one site its data: numpyro.sample('x', ..., obs=x) "
            "(and check that the data argument is not None)."
        )
    if "parameter" not in present:
        raise ModelError(
            "The model has no parameter to estimate. Declare one: numpyro.param('mu', 0.0), or "
            "numpyro.sample('mu', dist.Normal(0, 10)) outside the plate of the data."
        )

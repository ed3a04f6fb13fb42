"""``derive``: from a model and the shapes of its data to a :class:`~emppl.program.Program`.

Trace, roles, axes, factors, order of elimination, M-step rules: one call each, in this order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from emppl.errors import ModelError, NeedsValues, StatesError, unknown_name
from emppl.estep import check_memory
from emppl.families import family_of
from emppl.integrals.settle import settle_integrals
from emppl.jaxpr.depends import Dependence
from emppl.model.axes import Axes, model_axes
from emppl.model.compatible import check_components, check_simulated, discrete_strategies
from emppl.model.integral import Integral, find_integrals
from emppl.model.model import Model
from emppl.model.options import Options
from emppl.model.roles import Role, assign_roles, without_missing_cells
from emppl.model.scans import find_chains
from emppl.model.site import AlignedSite, field_dependences
from emppl.model.states import check_states
from emppl.model.weights import check_weights
from emppl.mstep import choose_rules
from emppl.mstep.analysis import Analysis
from emppl.mstep.linear_predictors import find_regressions
from emppl.mstep.rule import RuleContext
from emppl.names import latent_of
from emppl.parameters.held import check_held
from emppl.program import Program
from emppl.strategies import Enumerate, Strategy
from emppl.trace import Trace, trace_model


def derive(function: Callable, data: Sequence, skeleton: Any, options: Options) -> Program:
    """Derive the EM algorithm of a model for data of given shapes.

    Args:
        function: the NumPyro model.
        data: array arguments; only shapes and dtypes are used.
        skeleton: static arguments.
        options: the user's options.

    Returns:
        The program.

    Raises:
        ModelError: the model cannot be handled; the message names the site and the remedy.
    """
    try:
        return _derive(function, data, skeleton, options, by_state=False)
    except StatesError as error:  # the axes of states break the model's own code, in its own shapes it may do
        try:
            return _derive(function, data, skeleton, options, by_state=True)
        except ModelError:
            raise error from None


def _derive(function: Callable, data: Sequence, skeleton: Any, options: Options, by_state: bool) -> Program:
    trace, dependence, roles, integrals, options = _see(function, data, skeleton, options, by_state)
    _check_bounds(trace, roles)
    for name, value in options.held.items():
        if name not in trace.parameters:
            raise unknown_name("fixed", name, trace.parameters)
        check_held(name, value, trace.sites[name].shape, trace.sites[name].constraint)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in data]
    likelihood = [name for name, site in trace.sites.items() if site.kind in LIKELIHOOD]
    batch_shapes = {name: trace.sites[name].batch_shape for name in likelihood}
    axes = model_axes(trace, batch_shapes, {integral.axis: 1 for integral in integrals})
    factors = _factors(trace, dependence, axes, likelihood)
    strategies: dict[str, Strategy] = {n: Enumerate() for n, role in roles.items() if role.role == "latent"}
    strategies |= discrete_strategies(trace, options.latents)
    fixed, held = dict(options.fixed), dict(options.held)
    model = Model(
        trace, dependence, axes, factors, roles, strategies, tuple(integrals), shapes, fixed, held, options.prior
    )
    model = settle_integrals(model, options.latents)
    check_components(model)
    check_simulated(model, options.latents)
    check_states(model)
    _check_fields(model)
    check_weights(trace, dependence, axes, factors, model.integrals)
    rules = choose_rules(RuleContext(model, options, Analysis(model)))
    program = Program(dataclasses.replace(model, regressions=find_regressions(model, rules)), rules)
    check_memory(program.model, program.fused)
    return program


LIKELIHOOD = ("observed", "factor", "discrete", "integrated")
"""Kinds of sites that are factors of the likelihood."""


def _check_bounds(trace: Trace, roles: Mapping[str, Any]) -> None:
    """Refuse bounds that JAX computes inside the model: constraints outlive the trace and must hold numbers."""
    for name in trace.parameters:
        site = trace.sites[name]
        inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(site.constraint))
        if inside and (name not in roles or roles[name].role != "latent"):
            raise NeedsValues(
                f"Parameter {name!r}: the bounds of its {'constraint' if site.kind == 'param' else 'prior'} must be "
                "known before the model runs, but JAX computes them inside it. Write numpy.array in place of jnp.array "
                "for bounds, and numpy.max(x) in place of jnp.max(x), where they depend on data.",
                name,
            )


def _see(
    function: Callable, data: Sequence, skeleton: Any, options: Options, by_state: bool
) -> tuple[Trace, Dependence, dict[str, Role], list[Integral], Options]:
    """Trace a model and settle the roles of its sites; traced again if some of them are continuous latents.

    Returns:
        Beside these, the options with the names that sites have now: a reparametrised one also goes by its former name.
    """
    trace = trace_model(function, list(data), skeleton, by_state=by_state)
    now = {former: name for name, (former, _) in trace.reparametrised.items() if former not in trace.sites}
    options = dataclasses.replace(
        options,
        estimate=tuple(now.get(name, name) for name in options.estimate),
        latents={now.get(name, name): strategy for name, strategy in options.latents.items()},
    )
    dependence = Dependence(trace.jaxpr, trace.inputs)
    trace = without_missing_cells(trace, dependence)
    roles = assign_roles(trace, dependence, options.estimate, options.latents, options.fixed)
    wishes = {name: strategy for name, strategy in options.latents.items() if strategy is not None}
    options = dataclasses.replace(options, latents=wishes)
    hidden = [n for n, role in roles.items() if role.role == "latent" and trace.sites[n].kind == "continuous"]
    integrals = find_integrals(trace, dependence, hidden) + find_chains(trace, dependence, hidden)
    atom_axes = {name: integral.atom_axis for integral in integrals for name in integral.latents}
    if all(trace.atom_axes.get(name) == atom_axis for name, atom_axis in atom_axes.items()):
        return trace, dependence, roles, integrals, options
    trace = trace_model(function, list(data), skeleton, atom_axes, by_state)
    dependence = Dependence(trace.jaxpr, trace.inputs)
    return without_missing_cells(trace, dependence), dependence, roles, integrals, options


def _factors(trace: Trace, dependence: Dependence, axes: Axes, likelihood: list[str]) -> dict[str, AlignedSite]:
    labels = {site.labels: name for name, site in trace.sites.items() if site.labels}
    given = {atom_axis.axis: frozenset(atom_axis.given) for atom_axis in trace.atom_axes.values()}
    factors = {}
    for name in likelihood:
        in_latents, in_parameters = field_dependences(trace, dependence, name)
        # An atom is drawn for each state of the discrete latents it is given.
        in_latents = {
            field: latents.union(*(given.get(latent, frozenset()) for latent in latents))
            for field, latents in in_latents.items()
        }
        site = trace.sites[name]
        if site.kind == "discrete":
            in_latents["value"] = frozenset([name])
        family = family_of(trace.distributions[name])
        if name in labels:
            # Labels only say which states are possible: their distribution belongs to the latent.
            family = None
            in_latents, in_parameters = (
                {field: names[field] for field in ("value", "mask", "label_mask") if field in names}
                for names in (in_latents, in_parameters)
            )
        is_presence = _says_which_steps_exist(trace, name, in_latents, in_parameters)
        if is_presence:
            in_latents, in_parameters = (
                {field: names[field] for field in names if field != "mask"} for names in (in_latents, in_parameters)
            )
        factors[name] = AlignedSite(
            site,
            axes,
            family,
            in_latents,
            in_parameters,
            labels.get(name),
            _categories(trace, name),
            trace.timed.get(name, frozenset()),
            is_presence,
            trace.over_atoms.get(name),
        )
    return factors


def _categories(trace: Trace, name: str) -> int:
    """Length of a site's vector of probabilities, or zero."""
    for argument in ("probs", "logits"):
        position = trace.outputs.get((name, "arguments", argument))
        if position is not None:
            return (1, *trace.jaxpr.out_avals[position].shape)[-1]
    return 0


def _says_which_steps_exist(
    trace: Trace, name: str, in_latents: Mapping[str, frozenset[str]], in_parameters: Mapping[str, frozenset[str]]
) -> bool:
    """Whether a site's mask says which steps of a chain exist: one of data alone, on a latent that later steps see."""
    site = trace.sites[name]
    if site.kind != "discrete" or site.time is None or "mask" not in in_latents:
        return False
    depth = max(chain.depths.get(name, 0) for chain in trace.scans)
    return depth > 0 and not in_latents["mask"] and not in_parameters["mask"]


def _check_fields(model: Model) -> None:
    """Refuse weights that are not data, and tables that lost the axis of a latent they depend on."""
    for name, factor in model.factors.items():
        moving = sorted(factor.all_parameters - set(model.fixed))
        if factor.site.kind == "observed" and factor.site.distribution == "Delta" and moving:
            raise ModelError(
                f"Site {name!r} is an observed Delta whose value depends on {', '.join(map(repr, moving))}, which is "
                "estimated. It is a hard constraint, which latents can meet and an estimate cannot: put what it "
                f"restricts into a plate with the data, so that it is a latent, or write EM(model, latents="
                f"{{{moving[0]!r}: Gaussian()}})."
            )
        depends = factor.latents.get("cell_weight", frozenset()) | factor.parameters.get("cell_weight", frozenset())
        if depends:
            raise ModelError(
                f"The weight (handlers.scale) of site {name!r} depends on {sorted(depends)}. Weights count data "
                "and must be data; put a term that depends on latents or parameters in numpyro.factor."
            )
        if ("cell_weight",) in factor.timed and factor.all_latents & _scanned(model):
            raise ModelError(
                f"The weight (handlers.scale) of site {name!r} varies over the steps of its scan. A weight counts a "
                "whole sequence that many times; put one weight per sequence around the scan."
            )
        for latent in sorted(factor.all_latents - model.axes.of_atoms):
            if model.table_shapes[name].shape[model.axes.names.index(latent)] == 1 and model.axes.sizes[latent] > 1:
                raise ModelError(
                    f"Site {name!r} depends on latent {latent!r} through a sum, mean or similar over its array. "
                    f"That array holds the states of {latent!r}, not its plate cells, so the model would be another "
                    "one. Use the latent elementwise or as an index."
                )


def _scanned(model: Model) -> frozenset[str]:
    return frozenset(n for n in model.axes.latents - model.axes.of_atoms if model.trace.sites[latent_of(n)].is_scanned)

"""A derived EM algorithm for one model and one shape of data: everything static, and the pure functions.

``derive`` puts the pieces together: trace, roles, factors, elimination, rules. The result is a
:class:`Program`, whose methods are pure functions of ``(params, leaves)``; ``estep`` and ``mstep`` build on them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from emppl.axes import Axes, model_axes
from emppl.dependence import Dependence
from emppl.elimination import EliminationPlan, Factor, plan_elimination
from emppl.errors import ModelError
from emppl.factors import SiteFactor, field_dependences
from emppl.families import family_of
from emppl.numerics import weighted
from emppl.roles import Role, assign_roles
from emppl.rules import Rule, RuleContext, affine_gradient, choose_rules
from emppl.trace import Trace, as_numpyro_expects, trace_model

MEMORY_LIMIT = 4 * 2**30
"""Bytes that the largest table of an E-step may take before the model is refused."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of ``EM`` that shape the derivation."""

    estimate: tuple[str, ...] = ()
    latents: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    m_step: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
    prior: bool = True


@dataclasses.dataclass(frozen=True)
class Part:
    """Factors that are eliminated together.

    Attributes:
        factors: their names.
        plan: the order of elimination.
        by_rows: every latent lies inside the row plate, so rows can be cut into chunks.
    """

    factors: tuple[str, ...]
    plan: EliminationPlan
    by_rows: bool


@dataclasses.dataclass(frozen=True)
class Program:
    """The derived algorithm.

    Attributes:
        trace: the traced model.
        axes: the common axes.
        factors: likelihood sites.
        parts: independent groups of factors; at most one is by rows.
        roles: role of every site.
        rules: M-step rule of every parameter.
        fixed: frozen values.
        use_prior: are priors part of the objective?
        argument_shapes: by site with a registered family, the aligned shape of every argument.
    """

    trace: Trace
    axes: Axes
    factors: Mapping[str, SiteFactor]
    parts: tuple[Part, ...]
    roles: Mapping[str, Role]
    rules: Mapping[str, Rule]
    fixed: Mapping[str, Any]
    use_prior: bool
    argument_shapes: Mapping[str, Mapping[str, tuple[int, ...]]] = dataclasses.field(default_factory=dict)

    def complete(self, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Add the frozen parameters."""
        return {**params, **{name: jnp.asarray(value) for name, value in self.fixed.items()}}

    def evaluate(self, params, leaves, wanted: frozenset[tuple[str, str]] | None = None) -> dict[str, Any]:
        """Arrays of every site at these parameters, or only those of some ``(site, field)`` pairs."""
        return self.trace.evaluate(self.complete(params), self.trace.atoms, leaves, wanted)

    @property
    def free(self) -> list[str]:
        """Parameters that are estimated, in model order."""
        return [name for name, rule in self.rules.items() if rule.kind != "fixed"]

    @property
    def latents(self) -> list[str]:
        """Latent sites, in model order."""
        return [name for name, site in self.trace.sites.items() if site.kind == "discrete"]

    def tables(self, arrays) -> dict[str, jax.Array]:
        """Log-probability tables of all likelihood sites, by the plain path."""
        return {name: factor.table(arrays) for name, factor in self.factors.items()}

    def scales(self, arrays) -> dict[str, jax.Array | None]:
        """Weights of every factor's cells."""
        return {name: factor.scale(arrays) for name, factor in self.factors.items()}

    def log_prior(self, params, leaves) -> jax.Array:
        """Log prior density of the estimated parameters (natural log); zero without priors."""
        if not self.use_prior:
            return jnp.zeros((), jnp.result_type(float))
        fields = ("distribution", "value", "mask", "cell_weight")
        priors = frozenset((name, field) for name in self.free for field in fields)
        return self.log_prior_from(self.evaluate(params, leaves, priors))

    def log_prior_from(self, arrays) -> jax.Array:
        """The same, from evaluated arrays."""
        total = jnp.zeros((), jnp.result_type(float))
        if not self.use_prior:
            return total
        for name in self.free:
            if self.trace.sites[name].kind == "continuous":
                total = total + prior_log_prob(arrays[name])
        return total


def prior_log_prob(mine) -> jax.Array:
    """Log density of one prior at the parameter's value, summed over its cells."""
    with as_numpyro_expects():
        log_prob = mine.distribution.log_prob(mine.value)
    if mine.mask is not None:
        mask = jnp.reshape(mine.mask, (1,) * (log_prob.ndim - mine.mask.ndim) + mine.mask.shape)
        log_prob = jnp.where(mask, log_prob, 0)
    if mine.cell_weight is not None:
        log_prob = log_prob * jnp.reshape(
            mine.cell_weight, (1,) * (log_prob.ndim - mine.cell_weight.ndim) + mine.cell_weight.shape
        )
    return jnp.sum(log_prob)


def derive(model: Callable, leaves: list, skeleton: Any, options: Options) -> Program:
    """Derive the EM algorithm of a model for data of given shapes.

    Args:
        model: the NumPyro model.
        leaves: array arguments; only shapes and dtypes are used.
        skeleton: static arguments.
        options: the user's options.

    Returns:
        The program.

    Raises:
        ModelError: the model cannot be handled; the message names the site and the remedy.
    """
    trace = trace_model(model, leaves, skeleton)
    dependence = Dependence(trace.jaxpr, trace.inputs)
    roles = assign_roles(trace, dependence, options.estimate, options.latents, options.fixed)
    likelihood = [name for name, site in trace.sites.items() if site.kind in ("observed", "factor", "discrete")]
    axes = model_axes(trace, {name: trace.sites[name].batch_shape for name in likelihood})
    labels = {site.labels: name for name, site in trace.sites.items() if site.labels}
    factors = {}
    for name in likelihood:
        in_latents, in_parameters = field_dependences(trace, dependence, name)
        site = trace.sites[name]
        if site.kind == "discrete":
            in_latents["value"] = frozenset([name])
        family = family_of(trace.distributions[name])
        if name in labels:
            # Labels only say which states are possible: their distribution belongs to the latent.
            family = None
            in_latents, in_parameters = (
                {field: found[field] for field in ("value", "mask", "label_mask") if field in found}
                for found in (in_latents, in_parameters)
            )
        factors[name] = SiteFactor(
            site, axes, family, in_latents, in_parameters, labels.get(name), _categories(trace, name)
        )
    shapes = [jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves]
    program = Program(trace, axes, factors, (), roles, {}, dict(options.fixed), options.prior)
    parts = _parts(program)
    _check_fields(program, shapes)
    shapes_of = _shapes(program, shapes)
    program = dataclasses.replace(program, parts=parts, argument_shapes=shapes_of)
    _check_memory(program)
    context = RuleContext(
        trace,
        dependence,
        factors,
        options.prior,
        options.fixed,
        options.m_step,
        functools.partial(_is_quadratic, program, shapes),
    )
    rules = choose_rules(context)
    return dataclasses.replace(program, rules=rules)


def _categories(trace: Trace, name: str) -> int:
    """Length of a site's vector of probabilities, or zero."""
    for argument in ("probs", "logits"):
        position = trace.outputs.get((name, "arguments", argument))
        if position is not None:
            return (1, *trace.jaxpr.out_avals[position].shape)[-1]
    return 0


def _parts(program: Program) -> tuple[Part, ...]:
    axes, trace = program.axes, program.trace
    plates_of_latent = {}
    for name in program.latents:
        site = trace.sites[name]
        plates_of_latent[name] = axes.plates_of(site, site.batch_shape)
    named = {}
    for name, factor in program.factors.items():
        batch = factor.site.batch_shape
        named[name] = Factor(name, factor.all_latents, axes.plates_of(factor.site, batch))
    inside = [f for f in named.values() if axes.rows in f.plates]
    outside = [f for f in named.values() if axes.rows not in f.plates]
    touched = frozenset().union(*(f.latents for f in inside)) if inside else frozenset()
    if any(axes.rows not in plates_of_latent[latent] for latent in touched):
        plan = plan_elimination(list(named.values()), plates_of_latent, axes.sizes, axes.names)
        return (Part(tuple(named), plan, False),)
    parts = []
    for group, by_rows in ((inside, True), (outside, False)):
        if group:
            plan = plan_elimination(group, plates_of_latent, axes.sizes, axes.names)
            parts.append(Part(tuple(f.name for f in group), plan, by_rows))
    return tuple(parts)


def _check_fields(program: Program, leaves) -> None:
    """Refuse weights that are not data, and tables that lost the axis of a latent they depend on."""
    sites = program.trace.sites
    params = {n: jax.ShapeDtypeStruct(sites[n].shape, sites[n].dtype) for n in program.trace.parameters}
    tables = jax.eval_shape(
        lambda params, leaves: program.tables(program.trace.evaluate(params, program.trace.atoms, leaves)),
        params,
        leaves,
    )
    for name, factor in program.factors.items():
        depends = factor.latents.get("cell_weight", frozenset()) | factor.parameters.get("cell_weight", frozenset())
        if depends:
            raise ModelError(
                f"The weight (handlers.scale) of site {name!r} depends on {sorted(depends)}. Weights count data "
                "and must be data; put a term that depends on latents or parameters in numpyro.factor."
            )
        for latent in sorted(factor.all_latents):
            if tables[name].shape[program.axes.names.index(latent)] == 1 and sites[latent].states > 1:
                raise ModelError(
                    f"Site {name!r} depends on latent {latent!r} through a sum, mean or similar over its array. "
                    f"That array holds the states of {latent!r}, not its plate cells, so the model would be another "
                    "one. Use the latent elementwise or as an index."
                )


def _shapes(program: Program, leaves) -> dict[str, dict[str, tuple[int, ...]]]:
    """Aligned shape of every argument of the sites with a registered family, abstractly."""
    sites = program.trace.sites
    params = {n: jax.ShapeDtypeStruct(sites[n].shape, sites[n].dtype) for n in program.trace.parameters}

    def arguments(params, leaves):
        arrays = program.trace.evaluate(params, program.trace.atoms, leaves)
        return {
            name: factor.arguments(arrays)
            for name, factor in program.factors.items()
            if factor.family is not None and factor.site.kind != "factor" and factor.labels_of is None
        }

    shaped = jax.eval_shape(arguments, params, leaves)
    return {name: {n: a.shape for n, a in found.items()} for name, found in shaped.items()}


def _check_memory(program: Program) -> None:
    itemsize = jnp.dtype(jnp.result_type(float)).itemsize
    for part in program.parts:
        cells = part.plan.largest
        if part.by_rows:
            cells = math.ceil(cells / program.axes.sizes[program.axes.rows])
        if cells * itemsize > MEMORY_LIMIT:
            step = max(part.plan.steps, key=lambda one: one.cells)
            sizes = {name: program.axes.sizes[name] for name in program.latents}
            raise ModelError(
                f"Exact enumeration needs a table of {cells:.3g} cells ({cells * itemsize / 2**30:.3g} GiB) "
                f"when summing out latent {step.latent!r}: too many latents meet in one factor. "
                f"States by latent: {sizes}. Reduce the number of states, or break the dependence between these "
                "latents."
            )


def _is_quadratic(program: Program, shapes, name: str) -> str | None:
    site = program.trace.sites[name]
    others = {
        n: jnp.zeros(program.trace.sites[n].shape, program.trace.sites[n].dtype) for n in program.trace.parameters
    }

    def gradient(value, leaves, weights):
        def objective(value):
            arrays = program.evaluate({**others, name: value}, leaves)
            total = program.log_prior_from(arrays)
            for factor_name, factor in program.factors.items():
                if name in factor.all_parameters:
                    total = total + jnp.sum(weighted(weights[factor_name], factor.table(arrays)))
            return total

        return jax.grad(objective)(value)

    tables = jax.eval_shape(lambda leaves: program.tables(program.evaluate(others, leaves)), shapes)
    found: list[str | None] = []

    def probe(leaves, weights):
        found.append(affine_gradient(lambda value: gradient(value, leaves, weights), site.shape, site.dtype))
        return 0

    jax.eval_shape(probe, shapes, tables)
    return found[0]


__all__ = ["MEMORY_LIMIT", "Options", "Part", "Program", "derive", "prior_log_prob"]

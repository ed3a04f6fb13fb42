"""The static facts of a model and the shapes of its data, and pure functions of ``(params, data)`` on them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.elimination.order import EliminationPlan
from emppl.elimination.reductions import BEST, Reduction, draws
from emppl.jaxpr.depends import Dependence
from emppl.jaxpr.picks import Picks
from emppl.model.axes import Axes
from emppl.model.integral import Integral
from emppl.model.log_prob_table import log_prob_table
from emppl.model.natural import NaturalForm
from emppl.model.parts import Part, find_parts
from emppl.model.regression import COEFFICIENTS, RegressionForm
from emppl.model.roles import Role
from emppl.model.site import AlignedSite, with_equal_ranks
from emppl.names import latent_of, model_name
from emppl.parameters.constraints import constrain, free_dimensions, unconstrained_shape
from emppl.parameters.held import pin
from emppl.strategies import Enumerate, Hard, ObjectiveKind, StochasticEM, Strategy
from emppl.trace import SiteArrays, Trace, as_numpyro_expects, log_density
from emppl.types import Data, Params


@dataclasses.dataclass(frozen=True)
class Model:
    """A traced model with the roles of its sites and the ways in which its latents are summed out.

    Attributes:
        trace: the traced model.
        dependence: what every traced quantity depends on.
        axes: the common axes.
        factors: likelihood sites.
        roles: role of every site.
        strategies: how the E-step treats every latent.
        integrals: continuous latents, those that are integrated out together in one entry.
        shapes: shapes of the data.
        fixed: frozen values.
        held: parameters of which some entries are fixed, NaN where they are free.
        use_prior: whether priors are part of the objective.
        regressions: normal sites whose location is a linear predictor, in that form.
    """

    trace: Trace
    dependence: Dependence
    axes: Axes
    factors: Mapping[str, AlignedSite]
    roles: Mapping[str, Role]
    strategies: Mapping[str, Strategy]
    integrals: tuple[Integral, ...]
    shapes: Sequence[jax.ShapeDtypeStruct]
    fixed: Mapping[str, Any]
    held: Mapping[str, np.ndarray]
    use_prior: bool
    regressions: Mapping[str, RegressionForm] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def table_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the log-probability tables of all likelihood sites."""
        return jax.eval_shape(
            lambda params, data: self.tables(self.evaluate(params, data)), self.trace.parameter_shapes, self.shapes
        )

    @functools.cached_property
    def argument_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """By site with a registered family, the aligned shape of every argument."""

        def arguments(params: Params, data: Data) -> dict[str, dict[str, jax.Array]]:
            arrays = self.evaluate(params, data)
            return {
                name: factor.arguments(arrays)
                for name, factor in self.factors.items()
                if factor.family is not None and factor.site.kind != "factor" and factor.labels_of is None
            }

        shapes = jax.eval_shape(arguments, self.trace.parameter_shapes, self.shapes)
        return {
            name: {argument: array.shape for argument, array in of_site.items()} for name, of_site in shapes.items()
        }

    @functools.cached_property
    def picks(self) -> Picks:
        """Where the model picks entries of arrays by its data or by discrete latents."""
        labels = self.trace.inputs
        known = [label for label in labels if label[0] == "data" or label[1] in self.trace.atoms]
        return Picks(self.trace.jaxpr, labels, frozenset(known))

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """Independent groups of factors, each with its order of elimination; at most one is by rows."""
        return find_parts(self.trace, self.dependence, self.axes, self.factors, self.integrals, self.table_shapes)

    @property
    def free(self) -> list[str]:
        """Parameters that are estimated, in model order."""
        return [name for name in self.trace.parameters if name not in self.fixed]

    @property
    def softened(self) -> Model:
        """The model with every discrete latent summed over."""
        return dataclasses.replace(self, strategies={**self.strategies, **dict.fromkeys(self.latents, Enumerate())})

    def complete(self, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Add the frozen parameters."""
        return {**params, **{name: jnp.asarray(value) for name, value in self.fixed.items()}}

    def pin(self, name: str, value: Any) -> Any:
        """A value with the fixed entries in their places."""
        return pin(self.trace.sites[name].constraint, self.held[name], value) if name in self.held else value

    def placeholders(self) -> dict[str, jax.Array]:
        """Ones for every parameter, for quantities that depend on none."""
        sites = self.trace.sites
        return {name: jnp.ones(sites[name].shape, sites[name].dtype) for name in self.trace.parameters}

    def evaluate(
        self,
        params: Params,
        data: Data,
        wanted: frozenset[tuple[str, str]] | None = None,
        atoms: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Arrays of every site at these parameters, or only those of some ``(site, field)`` pairs.

        Args:
            wanted: which fields; None for all.
            atoms: of the integrated latents; a single atom each where nothing depends on what it is.
        """
        params = self.complete(params)
        arrays = self.trace.evaluate(params, {**self.trace.atoms, **self.any_atoms, **(atoms or {})}, data, wanted)
        for name, form in self.regressions.items():
            if wanted is None or (name, "arguments") in wanted:
                arguments = {**arrays[name].arguments, COEFFICIENTS: form.predictor.coefficients(params)}
                arrays[name] = dataclasses.replace(arrays[name], arguments=arguments)
        return arrays

    @property
    def any_atoms(self) -> dict[str, jax.Array]:
        """One atom of every integrated latent, inside its support."""
        shapes = self.trace.value_shapes
        constraints = {name: self.trace.sites[latent_of(name)].constraint for name in shapes}
        return {
            name: constrain(constraint, jnp.zeros(unconstrained_shape(constraint, shapes[name])))[None]
            for name, constraint in constraints.items()
        }

    @property
    def integrated(self) -> frozenset[str]:
        """Sites that depend on an integrated latent."""
        return frozenset().union(*(integral.factors for integral in self.integrals))

    def cells(self, name: str) -> int:
        """Cells of a site's table."""
        factor = self.factors[name]
        plates = self.axes.plates_of(factor.site, factor.site.batch_shape)
        return math.prod(self.axes.sizes[n] for n in self.axes.names if n in plates or n in factor.all_latents)

    @property
    def cost(self) -> int:
        """Table cells visited by one E-step: those of the elimination, and those at the atoms of integrals."""
        return sum(part.plan.cost for part in self.parts) + sum(self.cells(name) for name in self.integrated)

    def natural_form(self, name: str) -> NaturalForm | RegressionForm:
        """The natural form of a site: that of its linear predictor if it has one."""
        return self.regressions[name] if name in self.regressions else NaturalForm.of(self.factors[name])

    @property
    def rough(self) -> list[str]:
        """Free parameters in which the density of some site has corners or jumps."""
        rough = frozenset().union(*(factor.rough for factor in self.factors.values()))
        return [name for name in self.free if name in rough]

    @property
    def free_dimensions(self) -> int:
        """Number of unconstrained dimensions of the free parameters."""
        sites = self.trace.sites
        return sum(free_dimensions(sites[n].constraint, sites[n].shape) for n in self.free)

    @property
    def objective_kind(self) -> ObjectiveKind:
        """The kind of the objective: that of the least exact strategy."""
        kinds = (strategy.objective_kind for strategy in self.strategies.values())
        return max(kinds, key=lambda kind: kind.value, default=ObjectiveKind.EXACT)

    @property
    def picked(self) -> dict[str, frozenset[str]]:
        """By axis of every discrete latent that is not summed over, the plates that it sits in."""
        plates = {}
        for axis in sorted(self.axes.latents - self.axes.of_atoms):
            if not isinstance(self.strategies[latent_of(axis)], Enumerate):
                site = self.trace.sites[latent_of(axis)]
                plates[axis] = self.axes.plates_of(site, site.batch_shape)
        return plates

    @property
    def hard(self) -> list[str]:
        """Latents that get their best values, by the model's own names."""
        return [name for name in self.model_latents if isinstance(self.strategies[name], Hard)]

    @property
    def drawn(self) -> list[str]:
        """Discrete latents that are drawn, by the model's own names."""
        return [name for name in self.model_latents if isinstance(self.strategies[name], StochasticEM)]

    def reductions(
        self, plan: EliminationPlan, summed: Reduction, key: jax.Array | None = None
    ) -> dict[str, Reduction]:
        """How an E-step reduces the axis of every latent.

        Args:
            plan: the elimination.
            summed: how latents are summed over.
            key: random key of those that are drawn; without one the hard ones get their best values.

        Returns:
            By axis that is reduced.
        """
        chosen = dict.fromkeys(plan.reduced, summed)
        if key is not None:
            chosen |= draws(plan, self.picked, key)
        elif self.hard:
            chosen |= dict.fromkeys(self.picked, BEST)
        return chosen

    @property
    def latents(self) -> list[str]:
        """Discrete latent sites, in model order."""
        return [name for name, site in self.trace.sites.items() if site.kind == "discrete"]

    @property
    def model_latents(self) -> list[str]:
        """Latents by the model's own names, all steps of a scan counting as one."""
        return list(dict.fromkeys(map(model_name, self.latents)))

    @property
    def continuous_latents(self) -> list[str]:
        """Integrated latents by the model's own names, in model order."""
        names = (model_name(name) for name, site in self.trace.sites.items() if site.kind == "integrated")
        return list(dict.fromkeys(names))

    def tables(self, arrays: Mapping[str, Any], without: frozenset[str] = frozenset()) -> dict[str, jax.Array]:
        """Log-probability tables of all likelihood sites, or of all but some, by the plain path."""
        return {name: log_prob_table(factor, arrays) for name, factor in self.factors.items() if name not in without}

    def scales(self, arrays: Mapping[str, Any]) -> dict[str, jax.Array | None]:
        """Weights of every factor's cells."""
        return {name: factor.scale(arrays) for name, factor in self.factors.items()}

    def present(self, arrays: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Which steps exist, by scanned latent with a mask."""
        return {name: factor.presence(arrays) for name, factor in self.factors.items() if factor.is_presence}

    def fault(self, arrays: Mapping[str, Any]) -> jax.Array:
        """NaN if the masks inside a scan describe no chain, else zero (see :meth:`step_faults`)."""
        is_faulty = jnp.zeros((), bool)
        for faults in self.step_faults(arrays).values():
            for fault in faults.values():
                is_faulty = is_faulty | fault
        return jnp.where(is_faulty, jnp.nan, 0.0)

    def step_faults(self, arrays: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
        """What is wrong with the masks that say which steps of a chain exist.

        Returns:
            By scanned latent: ``"gap"``, a step exists after one that does not; ``"observed"``, a step that does not
            exist has data; ``"unlike"``, latents of one chain disagree.
        """
        faults_of: dict[str, dict[str, jax.Array]] = {}
        for name, present in self.present(arrays).items():
            site = self.factors[name].site
            assert site.time is not None
            axis = self.axes.names.index(site.time.name)
            before, after = (
                jax.lax.slice_in_dim(present, start, present.shape[axis] + start - 1, axis=axis) for start in (0, 1)
            )
            faults = {"gap": jnp.any(after & ~before), "observed": jnp.zeros((), bool), "unlike": jnp.zeros((), bool)}
            chain = next(chain for chain in self.trace.scans if name in chain.depths)
            for neighbour, factor in self.factors.items():
                if factor.site.time != site.time:
                    continue
                if factor.site.kind in ("observed", "factor") and name in factor.all_latents:
                    mask = factor.mask(arrays)
                    if mask is None:
                        seen = jnp.ones((), bool)
                    else:
                        seen = jnp.any(mask, tuple(range(self.axes.rank, mask.ndim)))
                    faults["observed"] = faults["observed"] | jnp.any(seen & ~present)
                if factor.site.kind == "discrete" and chain.depths.get(neighbour, 0):
                    same = jnp.all(factor.presence(arrays) == present) if factor.is_presence else jnp.zeros((), bool)
                    faults["unlike"] = faults["unlike"] | ~same
            faults_of[name] = faults
        return faults_of

    def log_prior(self, params: Params, data: Data) -> jax.Array:
        """Log prior density of the estimated parameters (natural log); zero without priors."""
        if not self.use_prior:
            return jnp.zeros((), jnp.result_type(float))
        fields = ("distribution", "value", "mask", "cell_weight")
        priors = frozenset((name, field) for name in self.free for field in fields)
        return self.log_prior_from(self.evaluate(params, data, priors))

    def log_prior_from(self, arrays: Mapping[str, Any]) -> jax.Array:
        """Log prior density of the estimated parameters, from evaluated arrays."""
        total = jnp.zeros((), jnp.result_type(float))
        if not self.use_prior:
            return total
        for name in self.free:
            if self.trace.sites[name].kind == "continuous":
                total = total + jnp.sum(prior_cells(arrays[name]))
        return total


def prior_cells(prior: SiteArrays) -> jax.Array:
    """Log density of one prior at the parameter's value, cell by cell."""
    with as_numpyro_expects():
        log_prob = log_density(prior.distribution, prior.value)
    if prior.mask is not None:
        log_prob, mask = with_equal_ranks(log_prob, prior.mask)
        log_prob = jnp.where(mask, log_prob, 0)
    if prior.cell_weight is not None:
        log_prob, weight = with_equal_ranks(log_prob, prior.cell_weight)
        log_prob = log_prob * weight
    return log_prob

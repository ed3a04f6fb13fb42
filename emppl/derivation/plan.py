"""The plan: what was derived, as frozen data. Printing it is rendering, never a second logic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from emppl.elimination.chain import choose_kernel
from emppl.elimination.order import EliminationStep
from emppl.estep import FusedPlan, largest_table
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.model.scans import ChainIntegral
from emppl.names import latent_of, model_name
from emppl.program import Program
from emppl.strategies import StochasticEM
from emppl.trace import Site


@dataclasses.dataclass(frozen=True)
class SitePlan:
    """Role of one site."""

    name: str
    distribution: str
    role: str
    reason: str
    plates: tuple[str, ...]
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LatentPlan:
    """Strategy of one latent.

    Attributes:
        name: the latent.
        strategy: how it is treated.
        states: values of a discrete latent; zero for a continuous one.
        cells: cells of its own table: plates x states, or plates x atoms.
        dimensions: of a continuous latent, how many numbers are integrated together.
        groups: how many such integrals there are.
        together: continuous latents that are in them.
        atoms: points that stand for the conditional distribution of a group.
        reason: why this strategy.
        steps: steps of a chain, of which there are ``groups``; zero without one.
    """

    name: str
    strategy: str
    states: int
    cells: int
    dimensions: int = 0
    groups: int = 0
    together: tuple[str, ...] = ()
    atoms: int = 0
    reason: str = ""
    steps: int = 0

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of its row in a printed plan."""
        if self.states:
            return self.name, self.strategy, f"{self.states} states", f"{self.cells:,} cells"
        companions = [name for name in self.together if name != self.name]
        size = _counted(self.dimensions, "dimension") + (f" (with {', '.join(companions)})" if companions else "")
        if self.steps:
            extent = f"{_counted(self.groups, 'chain')} of {_counted(self.steps, 'step')} of {size}"
        else:
            extent = f"{_counted(self.groups, 'group')} of {size}"
        return self.name, self.strategy, extent, f"{self.atoms:,} atoms"


@dataclasses.dataclass(frozen=True)
class ParameterPlan:
    """Rule of one parameter, with the reasons why earlier rules did not apply."""

    name: str
    shape: tuple[int, ...]
    rule: str
    update: str
    prior: str | None
    rejected: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class FactorPlan:
    """How a site's log-probabilities are computed in the loop."""

    name: str
    form: str
    axes: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The derived algorithm, for reading.

    Attributes:
        objective: what is maximised, and whether exactly.
        sites: role of every site.
        latents: strategy of every latent.
        factors: form of every likelihood factor.
        parameters: M-step rule of every parameter.
        integrals: continuous latents that are integrated out together, given what, and what draws them if any.
        elimination: order in which latents are summed out.
        cost: table cells visited by one E-step.
        memory: bytes of the largest table that exists at once.
        chunks: ``(number of chunks, rows per chunk)``.
        dtype: floating-point type of the fit.
        compression: what a fit does with the rows of the data, in words; empty where the question does not arise.
        verification: how the first fit is compared with NumPyro's own density, in words; empty if it is not.
        data: what is special about the data, in words: what is known by its values, what is missing.
    """

    objective: str
    sites: tuple[SitePlan, ...]
    latents: tuple[LatentPlan, ...]
    factors: tuple[FactorPlan, ...]
    parameters: tuple[ParameterPlan, ...]
    integrals: tuple[str, ...]
    elimination: tuple[str, ...]
    cost: int
    memory: int
    chunks: tuple[int, int]
    dtype: str
    compression: str = ""
    verification: str = ""
    data: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"EM plan: {self.objective}, {self.dtype}"]
        lines += ["", "Data", *(f"  {words}" for words in self.data)] if self.data else []
        lines += ["", "Sites"]
        lines += _table([(s.name, s.distribution, s.role, _in(s.plates), s.reason) for s in self.sites])
        lines += ["", "Latents"] + ([] if self.latents else ["  none: Q is the log-likelihood itself"])
        for kind in (True, False):
            some = [latent for latent in self.latents if bool(latent.states) == kind]
            for latent, line in zip(some, _table([latent.row for latent in some]), strict=True):
                lines += [line, f"      {latent.reason}"] if latent.reason else [line]
        lines += ["", "E-step"]
        lines += _table(
            [(f.name, f.form, " x ".join(f"{n}={s:,}" for n, s in f.axes) or "one cell") for f in self.factors]
        )
        lines += [f"  integrates out {names}" for names in self.integrals]
        if self.elimination:
            lines.append(f"  sums out {', then '.join(self.elimination)}")
        number, rows = self.chunks
        lines.append(
            f"  {self.cost:,} table cells per iteration; "
            + (f"{number:,} chunks of {rows:,} rows; " if number > 1 else "")
            + f"largest table {_bytes(self.memory)}"
        )
        lines += [f"  {self.compression}"] if self.compression else []
        lines += ["", "M-step"]
        for parameter in self.parameters:
            prior = f", prior {parameter.prior}" if parameter.prior else ""
            lines += _table([(parameter.name, str(parameter.shape), parameter.rule, parameter.update + prior)])
            lines += [f"      not {rule}: {reason}" for rule, reason in parameter.rejected]
        lines += ["", "Check", f"  {self.verification}"] if self.verification else []
        return "\n".join(lines)

    __repr__ = __str__


def build_plan(program: Program, compression: str = "", verification: str = "", data: tuple[str, ...] = ()) -> Plan:
    """Describe a derived algorithm.

    Args:
        fused: static choices of the fused path.
        compression: what a fit does with the rows of the data, in words.
        verification: how a fit is compared with NumPyro's own density, in words.
        data: what is special about the data, in words.

    Returns:
        The plan.
    """
    model, fused = program.model, program.fused
    trace, axes = model.trace, model.axes
    sites = tuple(
        SitePlan(
            n,
            _distribution(s),
            model.roles[n].role,
            model.roles[n].reason,
            tuple(p.name for p in s.plates),
            s.shape,
        )
        for n, s in trace.sites.items()
        if model_name(n) == n  # the first steps of a scan are no sites of their own
    )
    cells_of: dict[str, int] = {}
    factors = []
    for name, factor in model.factors.items():
        plates = axes.plates_of(factor.site, factor.site.batch_shape)
        present = [(n, axes.sizes[n]) for n in axes.names if n in plates or n in factor.all_latents]
        form = "statistics x natural parameters" if name in fused.natural else "log-probability table"
        form += ", step by step" if name in fused.by_step else ""
        factors.append(FactorPlan(name, form, tuple(present)))
        if factor.site.kind == "discrete":
            cells = math.prod(size for _, size in present)
            cells_of[model_name(name)] = cells_of.get(model_name(name), 0) + cells
    latents = [
        LatentPlan(name, model.strategies[name].title, trace.sites[name].states, cells)
        for name, cells in cells_of.items()
    ] + _integrated(model)
    parameters = tuple(
        ParameterPlan(name, trace.sites[name].shape, rule.kind, rule.detail, rule.prior, rule.rejected[name])
        for name, rule in program.rules.items()
    )
    steps = [step for part in model.parts for step in part.plan.steps if step.latent is not None or step.chain]
    largest, _ = largest_table(model, fused)
    dtype = jnp.dtype(jnp.result_type(float))
    return Plan(
        objective_in_words(model),
        sites,
        tuple(latents),
        tuple(factors),
        parameters,
        tuple(_integration(model, integral) for integral in model.integrals),
        tuple(_summed(model, fused, step) for step in steps),
        model.cost,
        max([largest, *(model.cells(name) for name in model.integrated)]) * dtype.itemsize,
        (fused.chunking.count, fused.chunking.size),
        str(dtype),
        compression,
        verification,
        data,
    )


def _integrated(model: Model) -> list[LatentPlan]:
    plans = []
    for integral in model.integrals:
        for name in integral.latents:
            steps = integral.states.steps if isinstance(integral, ChainIntegral) and integral.way.is_by_step else 0
            numbers = integral.dimensions // max(steps, 1), integral.groups, integral.latents, integral.atoms
            title, reason = integral.strategy.title, integral.way.reason
            plans.append(LatentPlan(name, title, 0, model.cells(name), *numbers, reason, steps))
    return plans


def _integration(model: Model, integral: Integral) -> str:
    """What is integrated out together, and given what; where that takes draws, what makes them."""
    given = f" given {', '.join(map(repr, integral.given))}" if integral.given else ""
    apart = ", told apart by an index among the data" if integral.is_indexed else ""
    words = integral.strategy.words(integral.dimensions)
    return ", ".join(map(repr, integral.latents)) + given + apart + (f", {words}" if words else "")


def _summed(model: Model, fused: FusedPlan, step: EliminationStep) -> str:
    """What one step of the elimination sums out, or does instead."""
    summed = f"{step.latent!r}" if step.chain is None else _chain(model, fused, step)
    if step.reduced not in model.picked:
        return summed
    return f"{summed} (its {'best value' if model.hard else 'draw'} in place of the sum)"


def _chain(model: Model, fused: FusedPlan, step: EliminationStep) -> str:
    """How a chain is summed out: its joint state, its length, and the kernel."""
    sizes, chain = model.axes.sizes, step.chain
    assert chain is not None
    states, length, lanes = step.chain_sizes(sizes)
    if fused.chunking.count > 1:
        lanes = lanes * fused.chunking.size // sizes[model.axes.rows]
    dtype = jnp.dtype(jnp.result_type(float))
    kernel: str
    if chain.current[0] in model.picked:
        kernel = "Viterbi" if model.hard else "forward filtering, backward sampling"
    else:
        kernel = str(choose_kernel(length, states, lanes, dtype, jax.default_backend(), step.varies))
    names = ", ".join(repr(name) for name in dict.fromkeys(latent_of(axis) for axis in chain.current))
    return f"the chain of {names} ({states} joint states, {length:,} steps: {kernel})"


def objective_in_words(model: Model) -> str:
    """What is maximised, and on what data if not on all."""
    subsampled = ", ".join(repr(plate.name) for plate in model.trace.plates.values() if plate.size < plate.full_size)
    where = f", on one fixed subsample of plate {subsampled}" if subsampled else ""
    return _criterion(model) + where


def _distribution(site: Site) -> str:
    """Name of a site's distribution, inside the transforms that are observed."""
    name = site.distribution
    for transform in reversed(site.transforms):
        name = f"{transform}({name})"
    return name


def _criterion(model: Model) -> str:
    priors = [n for n in model.free if model.trace.sites[n].kind == "continuous"]
    how = model.objective_kind.words if model.strategies else "no latent: direct maximisation"
    if any(isinstance(strategy, StochasticEM) for strategy in model.strategies.values()):
        objective = "posterior density" if priors and model.use_prior else "likelihood"
        return f"average of stochastic EM, close to the maximum of the {objective} ({model.objective_kind.words})"
    if model.hard:
        names = ", ".join(model.hard)
        added = ", plus the log prior" if priors and model.use_prior else ""
        return (
            f"classification likelihood: the largest over {names} of log p(data, {names}){added} "
            f"({model.objective_kind.words}); another objective than the likelihood"
        )
    if priors and model.use_prior:
        return f"maximum a posteriori ({how})"
    return f"maximum likelihood ({how})" + (", priors dropped" if priors else "")


def _in(plates: Sequence[str]) -> str:
    return f"in {' x '.join(plates)}" if plates else ""


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _bytes(number: int) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number = number / 1024  # type: ignore[assignment]
    return f"{number:.1f} GiB"

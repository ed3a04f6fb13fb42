"""The order of a plated variable elimination, and what it will cost, from sizes alone.

Factors are log-probability tables with named axes: latents (summed in the log semiring) and plates (conditionally
independent copies, whose logs add up). Nothing here sees a number of them.

Reference:
    Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from emppl.elimination.chains import ChainAxes
from emppl.errors import ModelError
from emppl.names import first, lagged
from emppl.trace import Scan


@dataclasses.dataclass(frozen=True)
class Factor:
    """A factor's named axes: the latents and the plates its table has.

    ``is_timed`` says whether its table varies along the time axis of its scan.
    """

    name: str
    latents: frozenset[str]
    plates: frozenset[str]
    is_timed: bool = True


@dataclasses.dataclass(frozen=True)
class Step:
    """Multiply ``inputs`` together, sum out ``latent`` (or nothing), then sum the log over ``plates``.

    ``owner`` is the latent whose weight (``handlers.scale``) the inputs are measured against. With ``chain``, the step
    sums out all latents of a chain: ``inputs`` are the tables of its first steps, ``later`` those of the others.
    ``cells`` is the size of the largest table, ``work`` the number of cells visited; ``varies`` says whether the
    transitions of a chain vary over time.
    """

    inputs: tuple[str, ...]
    output: str
    latent: str | None
    plates: tuple[str, ...]
    owner: str | None
    cells: int
    chain: ChainAxes | None = None
    later: tuple[str, ...] = ()
    work: int = 0
    varies: bool = False

    def chain_sizes(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        """Joint states of a chain, its steps, and how many chains there are side by side."""
        assert self.chain is not None
        states, length = math.prod(sizes[name] for name in self.chain.current), sizes[self.chain.time] + 1
        return states, length, self.work // (2 * length * states * (states + 1))


@dataclasses.dataclass(frozen=True)
class EliminationPlan:
    """Order of elimination with its predicted cost.

    Attributes:
        axes: every axis name, latents first, in the order that tables are laid out.
        sizes: number of atoms or cells by axis name.
        steps: what to do, in order.
        cost: table cells visited in total.
        largest: cells of the largest table.
    """

    axes: tuple[str, ...]
    sizes: Mapping[str, int]
    steps: tuple[Step, ...]
    cost: int
    largest: int


def plan_elimination(
    factors: list[Factor],
    latents: Mapping[str, frozenset[str]],
    sizes: Mapping[str, int],
    axes: tuple[str, ...],
    chains: tuple[Scan, ...] = (),
    presence: frozenset[str] = frozenset(),
) -> EliminationPlan:
    """Choose the order of elimination.

    Works from the innermost plates outwards; inside a connected group of factors the latent whose
    elimination makes the smallest table goes first. The latents of a chain are summed out together, when
    everything else inside its plates is done.

    Args:
        factors: the factors.
        latents: for every latent the plates it sits in.
        sizes: number of atoms or cells by axis name.
        axes: the common order of axes.
        chains: latents of scans.
        presence: scanned latents whose mask says which steps exist.

    Returns:
        The plan.

    Raises:
        ModelError: a site outside a plate uses a latent inside it, or latents of crossing plates meet, so
            that the sum does not factorise.
    """
    pending = list(factors)
    for factor in pending:
        for latent in sorted(factor.latents):
            outside = latents[latent] - factor.plates
            if outside:
                raise ModelError(
                    f"Site {factor.name!r} depends on latent {latent!r} but sits outside its plate "
                    f"{', '.join(map(repr, sorted(outside)))}. Put {factor.name!r} in that plate too, or move "
                    f"{latent!r} out of it."
                )
    steps: list[Step] = []
    times = {chain.time for chain in chains}
    kept = _kept_for_chains(chains)
    waiting: list[_Waiting] = []
    remaining = dict(latents)
    counter = 0

    def emit(inputs, latent, plates, owner, result_latents, result_plates, run: _Waiting | None = None) -> Factor:
        nonlocal counter
        counter += 1
        later = () if run is None else run.factors
        is_timed = any(factor.is_timed for factor in inputs)
        output = Factor(f"*{counter}", frozenset(result_latents), frozenset(result_plates), is_timed)
        names = tuple(factor.name for factor in inputs)
        chain = None if run is None else run.axes
        varies = chain is not None and any(f.is_timed for f in later if f.latents & chain.before)
        if chain is None:
            involved = frozenset().union(*(f.latents | f.plates for f in inputs))
            cells = work = math.prod(sizes[axis] for axis in involved)
        else:
            cells, work = _chain_cells(chain, inputs, later, sizes)
        later_names = tuple(factor.name for factor in later)
        steps.append(
            Step(names, output.name, latent, tuple(sorted(plates)), owner, cells, chain, later_names, work, varies)
        )
        return output

    while pending:
        ordinals = {factor.plates for factor in pending}
        # A time axis goes after the plates inside its steps, and just before the plates around it.
        leaf = max(ordinals, key=lambda plates: (len(plates - times), len(plates), sorted(plates)))
        group = [factor for factor in pending if factor.plates == leaf]
        pending = [factor for factor in pending if factor.plates != leaf]
        local = {name for name, plates in remaining.items() if plates == leaf} - kept
        while True:
            for run in [run for run in waiting if run.plates == leaf]:
                if not any(
                    f.latents & (local - run.latents - kept) for f in group if f.latents & set(run.axes.initial)
                ):
                    touching = [factor for factor in group if factor.latents & set(run.axes.initial)]
                    merged = frozenset().union(*(f.latents for f in (*touching, *run.factors)))
                    merged -= {*run.axes.initial, *run.axes.current, *run.axes.previous}
                    result = emit(touching, None, (), run.axes.current[0], merged, leaf, run)
                    group = [factor for factor in group if factor not in touching] + [result]
                    waiting.remove(run)
            held = frozenset().union(*(run.latents for run in waiting if run.plates == leaf))
            if not any(factor.latents & (local - held) for factor in group):
                break
            present = sorted((local - held) & frozenset().union(*(factor.latents for factor in group)))

            def table_size(name, group=group):
                axes_touched = frozenset().union(*(f.latents for f in group if name in f.latents))
                return math.prod(sizes[axis] for axis in axes_touched)

            latent = min(present, key=lambda name: (table_size(name), name))
            touching = [factor for factor in group if latent in factor.latents]
            merged_latents = frozenset().union(*(f.latents for f in touching)) - {latent}
            result = emit(touching, latent, (), latent, merged_latents, leaf)
            group = [factor for factor in group if factor not in touching] + [result]
            remaining.pop(latent)
        for time in leaf & times:
            home = {name for name in kept if latents[name] == leaf}
            mine = [factor for factor in group if factor.latents & home]
            group = [factor for factor in group if factor not in mine]
            chain = next(chain for chain in chains if chain.time == time)
            waiting += _components(chain, mine, leaf - {time}, latents, presence)
        for factor in group:
            target = frozenset().union(*(latents[name] for name in factor.latents))
            if target == leaf and leaf:
                raise ModelError(_crossing_message(factor, latents, leaf))
            owner = max(factor.latents, key=lambda name: (len(latents[name]), name), default=None)
            if leaf:
                pending.append(emit([factor], None, leaf - target, owner, factor.latents, target))
            else:
                steps.append(Step((factor.name,), "total", None, (), None, 1, work=1))
    cost = sum(step.work for step in steps)
    largest = max((step.cells for step in steps), default=1)
    return EliminationPlan(tuple(axes), dict(sizes), tuple(steps), cost, largest)


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A chain whose later steps are ready, and which waits for its first steps."""

    axes: ChainAxes
    plates: frozenset[str]
    factors: tuple[Factor, ...]

    @property
    def latents(self) -> frozenset[str]:
        """Latents that must not be summed out before the chain."""
        return frozenset(self.axes.initial).union(*(factor.latents for factor in self.factors))


def _kept_for_chains(chains: tuple[Scan, ...]) -> frozenset[str]:
    """Axes that only a chain step sums out."""
    kept: set[str] = set()
    for chain in chains:
        for latent, depth in chain.depths.items():
            if depth:
                kept |= {lagged(latent, lag) for lag in range(depth + 1)}
                kept |= {first(latent, chain.order - 1 - lag) for lag in range(depth)}
    return frozenset(kept)


def _components(chain: Scan, factors: list[Factor], plates, latents, presence) -> list[_Waiting]:
    """Independent chains of one scan: latents that no factor connects are summed out apart."""
    names = [name for name, depth in chain.depths.items() if depth]
    names = [name for name in names if latents[name] == plates | {chain.time}]
    groups = [{name} for name in names]
    for factor in factors:
        linked = [group for group in groups if any(_of(name, chain) & factor.latents for name in group)]
        if len(linked) > 1:
            groups = [group for group in groups if group not in linked] + [set().union(*linked)]
    found = []
    for group in groups:
        slots = [(name, lag) for name, lag in chain.slots if name in group]
        axes = ChainAxes(
            chain.time,
            tuple(first(name, chain.order - 1 - lag) for name, lag in slots),
            tuple(lagged(name, lag) for name, lag in slots),
            tuple(lagged(name, lag + 1) for name, lag in slots),
            tuple(sorted(group & presence)),
        )
        mine = tuple(f for f in factors if any(_of(name, chain) & f.latents for name in group))
        own = {*axes.current, *axes.previous}
        for factor in mine:
            foreign = sorted(name for name in factor.latents - own if not latents[name] <= plates)
            if foreign or any(latents[name] != plates | {chain.time} for name in own):
                raise ModelError(
                    f"Scanned latents in different plates depend on each other ({sorted(group)} and {foreign}): given "
                    "the outer chain the inner ones are independent only as whole paths, so the sum does not "
                    "factorise. Put them in the same plates, or make one of them a parameter or data."
                )
        found.append(_Waiting(axes, frozenset(plates), mine))
    return found


def _of(name: str, chain: Scan) -> frozenset[str]:
    return frozenset(lagged(name, lag) for lag in range(chain.depths[name] + 1))


def _chain_cells(chain: ChainAxes, initial, later, sizes) -> tuple[int, int]:
    """Cells of the largest table, and cells visited."""
    own = {chain.time, *chain.initial, *chain.current, *chain.previous}
    outer = frozenset().union(*(f.latents | f.plates for f in (*initial, *later))) - own
    moving = [factor for factor in later if factor.latents & chain.before]
    across = frozenset().union(*(f.latents | (f.plates if f.is_timed else frozenset()) for f in moving)) - own
    states = math.prod(sizes[name] for name in chain.current)
    steps, batch = sizes[chain.time] + 1, math.prod(sizes[name] for name in outer)
    kept = states**2 * math.prod(sizes[name] for name in across)
    if any(factor.is_timed for factor in moving):
        kept *= steps
    return max(kept, steps * states * batch), 2 * steps * states * (states + 1) * batch


def _crossing_message(factor: Factor, latents, leaf) -> str:
    involved = sorted(factor.latents)
    where = "; ".join(f"{name!r} in plates {sorted(latents[name])}" for name in involved)
    return (
        f"Latents of crossing plates meet in one factor ({where}; the factor lies in plates {sorted(leaf)}): the sum "
        "over their joint states does not factorise, so exact enumeration is exponential in the plate sizes. "
        "Make one of them a parameter (EM(model, estimate=[...])), or declare the smaller plate as a Python loop."
    )

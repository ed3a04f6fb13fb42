"""The order of a plated variable elimination, and what it will cost, from sizes alone.

Factors are log-probability tables with named axes: latents (summed in the log semiring) and plates (conditionally
independent copies, whose logs add up). Nothing here sees a number of them.

Reference:
    Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

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
class EliminationStep:
    """Multiply ``inputs`` together, reduce ``latent`` (or nothing), then sum the log over ``plates``.

    ``owner`` is the latent whose weight (``handlers.scale``) the inputs are measured against. With ``chain``, the step
    reduces all latents of a chain: ``inputs`` are the tables of its first steps, ``later`` those of the others.
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

    @property
    def reduced(self) -> str | None:
        """The axis whose reduction this is, the first of a chain's; None for a sum over plates."""
        return self.latent if self.chain is None else self.chain.current[0]

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
    steps: tuple[EliminationStep, ...]
    cost: int
    largest: int

    @property
    def reduced(self) -> tuple[str, ...]:
        """The axes that are reduced, one of every chain's, in order."""
        return tuple(step.reduced for step in self.steps if step.reduced is not None)


def plan_elimination(
    factors: list[Factor],
    latents: Mapping[str, frozenset[str]],
    sizes: Mapping[str, int],
    axes: tuple[str, ...],
    chains: tuple[Scan, ...] = (),
    presence: frozenset[str] = frozenset(),
    before: Mapping[str, frozenset[str]] | None = None,
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
        before: by latent, those in the same plates that must be summed out before it.

    Returns:
        The plan.

    Raises:
        ModelError: a site outside a plate uses a latent inside it, or latents of crossing plates meet, so
            that the sum does not factorise.
    """
    for factor in factors:
        _check_plates(factor, latents)
    order = _Order(latents, sizes, chains, presence, before or {})
    times = {chain.time for chain in chains}
    pending = list(factors)
    while pending:
        # A time axis goes after the plates inside its steps, and just before the plates around it.
        ordinals = {factor.plates for factor in pending}
        leaf = max(ordinals, key=lambda plates: (len(plates - times), len(plates), sorted(plates)))
        inside = [factor for factor in pending if factor.plates == leaf]
        pending = [factor for factor in pending if factor.plates != leaf] + order.leave(leaf, inside)
    steps = tuple(order.steps)
    largest = max((step.cells for step in steps), default=1)
    return EliminationPlan(tuple(axes), dict(sizes), steps, sum(step.work for step in steps), largest)


def _check_plates(factor: Factor, latents: Mapping[str, frozenset[str]]) -> None:
    for latent in sorted(factor.latents):
        outside = latents[latent] - factor.plates
        if outside:
            raise ModelError(
                f"Site {factor.name!r} depends on latent {latent!r} but sits outside its plate "
                f"{', '.join(map(repr, sorted(outside)))}. Put {factor.name!r} in that plate too, or move "
                f"{latent!r} out of it."
            )


@dataclasses.dataclass
class _Order:
    """The steps so far, and the chains that wait for their first steps; see :func:`plan_elimination`."""

    latents: Mapping[str, frozenset[str]]
    sizes: Mapping[str, int]
    chains: tuple[Scan, ...]
    presence: frozenset[str]
    before: Mapping[str, frozenset[str]]
    steps: list[EliminationStep] = dataclasses.field(default_factory=list)
    waiting: list[_Waiting] = dataclasses.field(default_factory=list)

    def leave(self, leaf: frozenset[str], factors: list[Factor]) -> list[Factor]:
        """Reduce the latents of some plates and sum over these; what remains are factors in fewer plates."""
        factors = self._reduce_latents(leaf, factors)
        for chain in self.chains:
            if chain.time in leaf:
                scanned = {name for name in _kept_for_chains(self.chains) if self.latents[name] == leaf}
                inside = [factor for factor in factors if factor.latents & scanned]
                factors = [factor for factor in factors if factor not in inside]
                self.waiting += _components(chain, inside, leaf - {chain.time}, self.latents, self.presence)
        outer = []
        for factor in factors:
            target = _union(self.latents[name] for name in factor.latents)
            if target == leaf and leaf:
                raise ModelError(_crossing_message(factor, self.latents, leaf))
            owner = max(factor.latents, key=lambda name: (len(self.latents[name]), name), default=None)
            if leaf:
                outer.append(self._table(leaf, [factor], owner, plates=leaf - target))
            else:
                self.steps.append(EliminationStep((factor.name,), "total", None, (), None, 1, work=1))
        return outer

    def _reduce_latents(self, leaf: frozenset[str], group: list[Factor]) -> list[Factor]:
        """Reduce all latents of these plates but those of chains, and the chains that have waited for that."""
        local = {name for name, plates in self.latents.items() if plates == leaf} - _kept_for_chains(self.chains)
        while True:
            group = self._reduce_chains(leaf, group, local)
            held = _union(run.latents for run in self.waiting if run.plates == leaf)
            free = (local - held) & _union(factor.latents for factor in group)
            if not free:
                return group

            def table_size(name: str, group: list[Factor] = group) -> int:
                touched = _union(factor.latents for factor in group if name in factor.latents)
                return math.prod(self.sizes[axis] for axis in touched)

            free = {name for name in free if not self.before.get(name, frozenset()) & free}
            latent = min(free, key=lambda name: (table_size(name), name))
            touching = [factor for factor in group if latent in factor.latents]
            result = self._table(leaf, touching, latent, latent=latent)
            group = [factor for factor in group if factor not in touching] + [result]

    def _reduce_chains(self, leaf: frozenset[str], group: list[Factor], local: set[str]) -> list[Factor]:
        """Reduce the chains whose first steps depend on no other latent that is still to be reduced here."""
        for run in [run for run in self.waiting if run.plates == leaf]:
            touching = [factor for factor in group if factor.latents & set(run.axes.initial)]
            if any(factor.latents & (local - run.latents) for factor in touching):
                continue
            result = self._table(leaf, touching, run.axes.current[0], run=run)
            group = [factor for factor in group if factor not in touching] + [result]
            self.waiting.remove(run)
        return group

    def _table(
        self,
        leaf: frozenset[str],
        inputs: list[Factor],
        owner: str | None,
        *,
        latent: str | None = None,
        run: _Waiting | None = None,
        plates: frozenset[str] = frozenset(),
    ) -> Factor:
        """One more step, which makes a table from others: reduces a latent or a chain, or sums over plates."""
        chain, later = (None, ()) if run is None else (run.axes, run.factors)
        reduced = frozenset([latent] if latent is not None else [] if chain is None else chain.own)
        latents = _union(factor.latents for factor in (*inputs, *later)) - reduced
        is_timed = any(factor.is_timed for factor in inputs)
        output = Factor(f"*{len(self.steps) + 1}", latents, leaf - plates, is_timed)
        varies = chain is not None and any(f.is_timed for f in later if f.latents & chain.before)
        if chain is None:
            cells = work = math.prod(self.sizes[axis] for axis in _union(f.latents | f.plates for f in inputs))
        else:
            cells, work = _chain_cells(chain, inputs, later, self.sizes)
        names, later_names = (tuple(factor.name for factor in factors) for factors in (inputs, later))
        over = tuple(sorted(plates))
        self.steps.append(
            EliminationStep(names, output.name, latent, over, owner, cells, chain, later_names, work, varies)
        )
        return output


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A chain whose later steps are ready, and which waits for its first steps."""

    axes: ChainAxes
    plates: frozenset[str]
    factors: tuple[Factor, ...]

    @property
    def latents(self) -> frozenset[str]:
        """Latents that must not be summed out before the chain."""
        return _union([frozenset(self.axes.initial), *(factor.latents for factor in self.factors)])


def _kept_for_chains(chains: tuple[Scan, ...]) -> frozenset[str]:
    """Axes that only a chain step sums out."""
    kept: set[str] = set()
    for chain in chains:
        for latent, depth in chain.depths.items():
            if depth:
                kept |= {lagged(latent, lag) for lag in range(depth + 1)}
                kept |= {first(latent, chain.order - 1 - lag) for lag in range(depth)}
    return frozenset(kept)


def _components(
    chain: Scan,
    factors: list[Factor],
    plates: frozenset[str],
    latents: Mapping[str, frozenset[str]],
    presence: frozenset[str],
) -> list[_Waiting]:
    """Independent chains of one scan: latents that no factor connects are reduced apart."""
    names = [name for name, depth in chain.depths.items() if depth]
    groups = [{name} for name in names if latents[name] == plates | {chain.time}]
    for factor in factors:
        linked = [group for group in groups if _lags(group, chain) & factor.latents]
        if len(linked) > 1:
            groups = [group for group in groups if group not in linked] + [set().union(*linked)]
    components = []
    for group in groups:
        slots = [(name, lag) for name, lag in chain.slots if name in group]
        axes = ChainAxes(
            chain.time,
            tuple(first(name, chain.order - 1 - lag) for name, lag in slots),
            tuple(lagged(name, lag) for name, lag in slots),
            tuple(lagged(name, lag + 1) for name, lag in slots),
            tuple(sorted(group & presence)),
        )
        members = tuple(factor for factor in factors if _lags(group, chain) & factor.latents)
        states = {*axes.current, *axes.previous}
        for factor in members:
            foreign = sorted(name for name in factor.latents - states if not latents[name] <= plates)
            if foreign or any(latents[name] != plates | {chain.time} for name in states):
                raise ModelError(
                    f"Scanned latents in different plates depend on each other ({sorted(group)} and {foreign}): given "
                    "the outer chain the inner ones are independent only as whole paths, so the sum does not "
                    "factorise. Put them in the same plates, or make one of them a parameter or data."
                )
        components.append(_Waiting(axes, plates, members))
    return components


def _lags(names: Iterable[str], chain: Scan) -> frozenset[str]:
    """Axes of some latents at the present step and the steps before that it refers to."""
    return frozenset(lagged(name, lag) for name in names for lag in range(chain.depths[name] + 1))


def _chain_cells(
    chain: ChainAxes, initial: Sequence[Factor], later: Sequence[Factor], sizes: Mapping[str, int]
) -> tuple[int, int]:
    """Cells of the largest table, and cells visited."""
    outer = _union(factor.latents | factor.plates for factor in (*initial, *later)) - chain.own
    moving = [factor for factor in later if factor.latents & chain.before]
    across = _union(f.latents | (f.plates if f.is_timed else frozenset()) for f in moving) - chain.own
    states = math.prod(sizes[name] for name in chain.current)
    steps, batch = sizes[chain.time] + 1, math.prod(sizes[name] for name in outer)
    kept = states**2 * math.prod(sizes[name] for name in across)
    if any(factor.is_timed for factor in moving):
        kept *= steps
    return max(kept, steps * states * batch), 2 * steps * states * (states + 1) * batch


def _crossing_message(factor: Factor, latents: Mapping[str, frozenset[str]], leaf: frozenset[str]) -> str:
    involved = sorted(factor.latents)
    where = "; ".join(f"{name!r} in plates {sorted(latents[name])}" for name in involved)
    return (
        f"Latents of crossing plates meet in one factor ({where}; the factor lies in plates {sorted(leaf)}): the sum "
        "over their joint states does not factorise, so exact enumeration is exponential in the plate sizes. "
        "Make one of them a parameter (EM(model, estimate=[...])), or declare the smaller plate as a Python loop."
    )

"""A stochastic fit in progress: its state, its record, and the draws it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.checkpoint.file import flattened, key_data, key_like, restored
from emppl.estep.simulated import Drawn
from emppl.fit.outcome import StopReason
from emppl.montecarlo.looks import Looks
from emppl.montecarlo.simulator import Simulator
from emppl.montecarlo.trail import Trail
from emppl.montecarlo.window import Window

_DRAWS = 1000
"""Draws of one chain for the moments of a posterior."""

_NUMBERS = 2**24
"""Most numbers that these may be, of all chains together."""


@dataclasses.dataclass
class Path:
    """A stochastic fit in progress: what would be kept if it were interrupted now.

    Attributes:
        params: newest accepted values.
        chains: where the chains are.
        memory: what M-step rules remember.
        key: random key of everything to come.
        status: how it ended.
        iteration: accepted M-steps.
        number: draws of every chain in the next E-step.
        objective: estimate at the newest parameters that were evaluated.
        log_likelihood: the same without priors.
        total_draws: of one chain, so far.
        rows: one entry per M-step on draws, accepted or not.
        phase: where estimates are averaged, whether they are yet.
        trail: estimates of that phase.
        spread: of single estimates in the phase before, None in the first one.
        window: past draws that Q remembers, where it does.
        errors: Monte Carlo standard errors of averaged estimates, where there is no closing phase.
        looks: what the closing phase has seen, once it began.
        unaided: does the ascent go on to the tolerance because the closing phase found nothing?
    """

    params: Any
    chains: Any
    memory: Any
    key: jax.Array
    number: int
    status: StopReason = StopReason.RUNNING
    iteration: int = 0
    objective: float = -np.inf
    log_likelihood: float = -np.inf
    total_draws: int = 0
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    phase: str = "burn-in"
    trail: Trail = dataclasses.field(default_factory=Trail)
    spread: np.ndarray | None = None
    window: Window | None = None
    errors: dict[str, np.ndarray] | None = None
    looks: Looks | None = None
    unaided: bool = False

    def state(self) -> dict[str, Any]:
        """All that it takes to go on, as arrays by name."""
        scalars = ("status", "iteration", "number", "objective", "log_likelihood", "total_draws", "phase", "unaided")
        values = {name: getattr(self, name) for name in scalars} | {"status": self.status.value}
        trees = {name: getattr(self, name) for name in ("params", "chains", "memory")}
        found = {name: np.asarray(value) for name, value in values.items()} | {"key": key_data(self.key)}
        for name, tree in trees.items():
            found |= flattened(name, tree)
        for name in self.rows[0] if self.rows else ():
            found[f"rows.{name}"] = np.array([row[name] for row in self.rows])
        if self.trail.values:
            found["trail"] = np.array(self.trail.values)
        if self.spread is not None:
            found["spread"] = self.spread
        for name, kept in (("window", self.window), ("looks", self.looks)):
            found |= {} if kept is None else flattened(name, kept.arrays)
        return found

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Go on from a state.

        Args:
            saved: that of a path that began as this one did.
        """
        for name in ("iteration", "number", "objective", "log_likelihood", "total_draws", "phase", "unaided"):
            setattr(self, name, saved[name].item())
        self.status = StopReason(saved["status"].item())
        self.key = key_like(saved["key"], self.key)
        for name in ("params", "chains", "memory"):
            setattr(self, name, jax.tree.map(jnp.asarray, restored(name, saved, getattr(self, name))))
        columns = {name.removeprefix("rows."): one.tolist() for name, one in saved.items() if name.startswith("rows.")}
        self.rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        self.trail = Trail(list(saved["trail"]) if "trail" in saved else None)
        self.spread = saved.get("spread")
        if "window['shares']" in saved:
            like = {"draws": dict.fromkeys(self.chains, 0), "shares": 0}
            self.window = Window(**restored("window", saved, like))
        if any(name.startswith("looks[") for name in saved):
            self.looks = Looks.of(restored("looks", saved, Looks.like()))

    def iterations(self, max_iterations: int, keep: Callable[[], None]) -> Iterator[None]:
        """As long as it runs: before each of them the fit may be taken up again."""
        while self.status is StopReason.RUNNING:
            keep()
            if self.iteration >= max_iterations:
                self.status = StopReason.MAX_ITERATIONS
                return
            yield

    def begin(self, phase: str) -> None:
        """Go on to another phase."""
        self.phase, self.spread, self.trail = phase, self.trail.spread, Trail()
        self.count_divergences_afresh()

    def count_divergences_afresh(self) -> None:
        """From here on."""
        self.chains = {axis: one.counted_afresh() for axis, one in self.chains.items()}

    def split(self) -> jax.Array:
        """A fresh key."""
        self.key, key = jax.random.split(self.key)
        return key

    def record(
        self,
        draws: int,
        decision: str,
        unfinished: bool = False,
        gain: float = np.nan,
        gain_error: float = np.nan,
    ) -> None:
        """One entry of the history, at the objective that was just seen.

        Args:
            draws: of all chains.
            decision: what was made of them.
            unfinished: did an inner iteration of the M-step stop short?
            gain: in nats.
            gain_error: its Monte Carlo standard error.
        """
        self.rows.append(
            {
                "iteration": self.iteration,
                "draws": draws,
                "gain": gain,
                "gain_error": gain_error,
                "decision": decision,
                "unfinished": unfinished,
                "objective": self.objective,
                "log_likelihood": self.log_likelihood,
            }
        )

    @property
    def settled(self) -> StopReason:
        """How an averaging phase ends: unfinished, where most of its M-steps did not come to their end."""
        short = [row["unfinished"] for row in self.rows[-len(self.trail.values) :]]
        return StopReason.UNFINISHED if 2 * sum(short) > len(short) else StopReason.CONVERGED


def draw(simulator: Simulator, path: Path, data, number: int, block: int | None = None) -> Drawn:
    """Move the chains of a fit, in blocks of one size, so that more draws need no other program."""
    block = simulator.strategy.num_samples if block is None else block
    found: list[Drawn] = []
    path.count_divergences_afresh()
    while len(found) * block < number:
        if path.total_draws == 0:  # chains that start anywhere
            path.chains = simulator.draw(path.params, path.chains, path.split(), data, number=block).chains
            path.count_divergences_afresh()
        found.append(simulator.draw(path.params, path.chains, path.split(), data, number=block))
        path.chains = found[-1].chains
        path.total_draws += block
    return joined(found)


def posterior_draws(simulator: Simulator, params, data) -> Drawn:
    """Draws at an estimate, by chains of their own, always with the same random numbers."""
    chains = simulator.begin()
    number = int(np.clip(_NUMBERS // sum(one.position.size for one in chains.values()), 1, _DRAWS))
    block = min(simulator.strategy.block, number)
    return draw(simulator, Path(params, chains, None, jax.random.key(0), block), data, number, block)


def joined(found: list[Drawn]) -> Drawn:
    """Draws at one and the same parameters, put together."""
    if len(found) == 1:
        return found[0]
    draws: dict[str, Any] = {axis: np.concatenate([one.draws[axis] for one in found], 1) for axis in found[0].draws}
    sizes = np.array([one.draws[axis].shape[1] for one in found for axis in list(one.draws)[:1]], float)
    evidence: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for axis in found[0].evidence:
        each = np.stack([np.asarray(one.evidence[axis]) for one in found])
        peak = np.max(each, 0)
        shares = (sizes / sizes.sum()).reshape(-1, *[1] * (each.ndim - 1))
        with np.errstate(divide="ignore"):  # of states that are impossible
            evidence[axis] = peak + np.log(np.sum(shares * np.exp(each - np.where(np.isfinite(peak), peak, 0)), 0))
        if axis in found[0].parts:
            every = [np.asarray(one.parts[axis]) for one in found]
            along = next(a for a, size in enumerate(every[0].shape) if size > 1 and each.shape[a + 1] == 1)
            parts[axis] = np.concatenate(
                [
                    part * share * np.exp(one - np.where(np.isfinite(evidence[axis]), evidence[axis], 0))
                    for part, one, share in zip(every, each, shares, strict=True)
                ],
                along,
            )
    return Drawn(draws, evidence, found[-1].chains, parts)

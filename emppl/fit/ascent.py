"""Monte Carlo EM with as many draws as the ascent needs.

An M-step on draws is accepted if the lower confidence bound of its gain in Q is positive. If not, the draws are
doubled, and the M-step is done again on all of them. The iterations end when the upper bound of the gain is below the
tolerance.

The paper takes the step as given. But an M-step maximises on the very draws that judge it, and in p dimensions noise
alone makes a gain: if the noise of the score is ``S`` and ``S`` is proportional to the curvature of Q, the gain of a
step of noise is ``sqrt(chi2_p) / 2`` of its own standard errors. With eight parameters that is 1.4 on average, and
nearly every such step would pass as an ascent. The bound is therefore at least the one that steps of noise pass no
more often than the paper's allows, ``sqrt(chi2_p quantile) / 2`` standard errors.

Reference:
    Caffo, Jank and Jones (2005), Ascent-based Monte Carlo expectation-maximization, JRSS B 67:235-251;
    Wilson and Hilferty (1931), The distribution of chi-square, PNAS 17:684-688 (the quantile).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep.simulated import Drawn
from emppl.fit.checkpoint import flattened, key_data, key_like, restored
from emppl.fit.outcome import StopReason
from emppl.fit.simulator import Simulator, batch_error
from emppl.fit.trail import Trail
from emppl.fit.window import Window
from emppl.parameters import free_dimensions
from emppl.strategies import MonteCarlo

_CONFIDENCE = statistics.NormalDist().inv_cdf(0.75)
"""Of the lower bound: a step is accepted in error with probability 1/4 at most, as in the paper."""

_POWER = statistics.NormalDist().inv_cdf(0.75)
"""Draws of the next iteration: enough to see a gain like the last one with this probability."""

_STOP = statistics.NormalDist().inv_cdf(0.95)
"""Of the upper bound."""


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
        window: past draws that Q remembers, where it does.
        errors: Monte Carlo standard errors of averaged estimates, where there is no closing phase.
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
    window: Window | None = None
    errors: dict[str, np.ndarray] | None = None

    def state(self) -> dict[str, Any]:
        """All that it takes to go on, as arrays by name."""
        scalars = ("status", "iteration", "number", "objective", "log_likelihood", "total_draws", "phase")
        values = {name: getattr(self, name) for name in scalars} | {"status": self.status.value}
        trees = {name: getattr(self, name) for name in ("params", "chains", "memory")}
        found = {name: np.asarray(value) for name, value in values.items()} | {"key": key_data(self.key)}
        for name, tree in trees.items():
            found |= flattened(name, tree)
        for name in self.rows[0] if self.rows else ():
            found[f"rows.{name}"] = np.array([row[name] for row in self.rows])
        if self.trail.values:
            found["trail"] = np.array(self.trail.values)
        return found | (flattened("window", self.window.arrays) if self.window is not None else {})

    def restore(self, saved: Mapping[str, np.ndarray]) -> None:
        """Go on from a state.

        Args:
            saved: that of a path that began as this one did.
        """
        for name in ("iteration", "number", "objective", "log_likelihood", "total_draws", "phase"):
            setattr(self, name, saved[name].item())
        self.status = StopReason(saved["status"].item())
        self.key = key_like(saved["key"], self.key)
        for name in ("params", "chains", "memory"):
            setattr(self, name, jax.tree.map(jnp.asarray, restored(name, saved, getattr(self, name))))
        columns = {name.removeprefix("rows."): one.tolist() for name, one in saved.items() if name.startswith("rows.")}
        self.rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        self.trail = Trail(list(saved["trail"]) if "trail" in saved else None)
        if "window['shares']" in saved:
            like = {"draws": dict.fromkeys(self.chains, 0), "shares": 0}
            self.window = Window(**restored("window", saved, like))

    def begin(self, phase: str) -> None:
        """Go on to another phase."""
        self.phase, self.trail = phase, Trail()

    def split(self) -> jax.Array:
        """A fresh key."""
        self.key, key = jax.random.split(self.key)
        return key


def climb(
    simulator: Simulator,
    path: Path,
    leaves,
    prepared,
    tolerance: float,
    max_iterations: int,
    report: Callable[[Path], None],
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Iterate until the gain cannot be told from less than the tolerance; ``path`` holds everything at every moment.

    Args:
        simulator: compiled steps.
        path: the fit, changed in place.
        leaves: the data.
        prepared: their statistics.
        tolerance: in nats, on the gain of one iteration.
        max_iterations: most M-steps that are accepted.
        report: called after every M-step.
        keep: called where the fit may be taken up again.
    """
    strategy = simulator.strategy
    assert isinstance(strategy, MonteCarlo)
    sites = simulator.program.trace.sites
    bound = lower_bound(sum(free_dimensions(sites[n].constraint, sites[n].shape) for n in simulator.program.free))
    while path.status is StopReason.RUNNING:
        keep()
        if path.iteration >= max_iterations:
            path.status = StopReason.MAX_ITERATIONS
            return
        drawn = draw(simulator, path, leaves, path.number)
        number = path.number
        while True:
            improved = simulator.improve(path.params, drawn, None, leaves, prepared, path.memory)
            gains = np.asarray(improved.gains).reshape(strategy.num_chains, number, 1)
            gain, error = float(gains.mean()), float(np.sqrt(batch_error(gains)[0, 0]))
            decision = _decide(strategy, gain, error, bound, tolerance, number)
            if not np.isfinite(gain) or not np.isfinite(improved.log_likelihood):
                decision = "not finite"
            path.log_likelihood = float(improved.log_likelihood)
            path.objective = path.log_likelihood + float(improved.log_prior)
            path.rows.append(
                {
                    "iteration": path.iteration,
                    "draws": number * strategy.num_chains,
                    "gain": gain,
                    "gain_error": error,
                    "decision": decision,
                    "objective": path.objective,
                    "log_likelihood": path.log_likelihood,
                }
            )
            report(path)
            if decision != "enlarged":
                break
            drawn = joined([drawn, draw(simulator, path, leaves, number)])
            number *= 2
        if decision == "not finite":
            path.status = StopReason.NOT_FINITE
            return
        path.params, path.memory = improved.params, improved.memory
        path.iteration += 1
        if decision in ("converged", "too noisy"):
            path.status = StopReason.CONVERGED if decision == "converged" else StopReason.NOISY
            return
        if strategy.ascent:
            needed = number * (error * (bound + _POWER) / max(gain, 1e-300)) ** 2
            while path.number < min(needed, number) and 2 * path.number <= strategy.max_samples:
                path.number *= 2


def draw(simulator: Simulator, path: Path, leaves, number: int, block: int | None = None) -> Drawn:
    """Move the chains of a fit, in blocks of one size, so that more draws need no other program."""
    block = simulator.strategy.num_samples if block is None else block
    found: list[Drawn] = []
    while len(found) * block < number:
        if path.total_draws == 0:  # chains that start anywhere
            path.chains = simulator.draw(path.params, path.chains, path.split(), leaves, number=block).chains
        found.append(simulator.draw(path.params, path.chains, path.split(), leaves, number=block))
        path.chains = found[-1].chains
        path.total_draws += block
    return joined(found)


def joined(found: list[Drawn]) -> Drawn:
    """Draws at one and the same parameters, put together."""
    if len(found) == 1:
        return found[0]
    draws: dict[str, Any] = {axis: np.concatenate([one.draws[axis] for one in found], 1) for axis in found[0].draws}
    sizes = np.array([one.draws[axis].shape[1] for one in found for axis in list(one.draws)[:1]], float)
    evidence: dict[str, Any] = {}
    for axis in found[0].evidence:
        each = np.stack([np.asarray(one.evidence[axis]) for one in found])
        peak = np.max(each, 0)
        shares = (sizes / sizes.sum()).reshape(-1, *[1] * (each.ndim - 1))
        evidence[axis] = peak + np.log(np.sum(shares * np.exp(each - np.where(np.isfinite(peak), peak, 0)), 0))
    return Drawn(draws, evidence, found[-1].chains)


def lower_bound(dimensions: int) -> float:
    """Standard errors that a gain must exceed to be believed, of a step in so many dimensions."""
    share = 2 / (9 * max(dimensions, 1))
    quantile = dimensions * (1 - share + _CONFIDENCE * math.sqrt(share)) ** 3
    return max(_CONFIDENCE, math.sqrt(quantile) / 2)


def _decide(strategy: MonteCarlo, gain: float, error: float, bound: float, tolerance: float, number: int) -> str:
    if gain + _STOP * error < tolerance:
        return "converged"
    if not strategy.ascent or gain - bound * error > 0:
        return "accepted"
    return "enlarged" if 2 * number <= strategy.max_samples else "too noisy"

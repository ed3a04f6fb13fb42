"""The state of a stochastic fit, and the draws that move it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emppl.checkpoint.file import flattened, key_data, key_like, restored
from emppl.estep.simulated import Drawn
from emppl.fit.outcome import StopReason
from emppl.integrals.mcmc import Walkers
from emppl.montecarlo.looks import Looks, Precision
from emppl.montecarlo.simulator import Simulator
from emppl.montecarlo.trail import Trail
from emppl.montecarlo.window import Window
from emppl.types import Data, Params

_POSTERIOR_DRAWS = 1000
"""Draws of one chain for the moments of a posterior."""

_POSTERIOR_NUMBERS = 2**24
"""Most numbers that these may be, of all chains together."""

_COLUMNS = {
    "iteration": int,
    "draws": int,
    "gain": float,
    "gain_error": float,
    "decision": str,
    "unfinished": bool,
    "objective": float,
    "log_likelihood": float,
}
"""Columns of the history: the draws are those of all chains, gains are in nats with their Monte Carlo standard error;
unfinished is an M-step of which an inner iteration stopped short."""


class Path(NamedTuple):
    """A stochastic fit in progress: what it takes to go on, which is what a checkpoint saves.

    Attributes:
        params: newest accepted values.
        walkers: by integral, where the chains are.
        memory: what M-step rules remember.
        key: random key of everything to come.
        number: draws of every chain in the next E-step.
        history: by column, one entry per M-step on draws, accepted or not.
        trail: estimates of the phase, where it averages them.
        window: past draws that Q remembers, where it does.
        spread: of single estimates in the phase before, where that watched them.
        looks: what the closing phase has seen.
        phase: position among the phases of the fit.
        status: how it ended.
        iteration: accepted M-steps.
        objective: estimate at the newest parameters that were evaluated.
        log_likelihood: the same without priors.
        total_draws: of one chain, so far.
        closing: what the closing phase found. It is not saved: of a finished one the last step is made again.
    """

    params: Params
    walkers: Mapping[str, Walkers]
    memory: Any
    key: jax.Array
    number: int
    history: Mapping[str, np.ndarray]
    trail: Trail
    window: Window
    spread: np.ndarray
    looks: Looks
    phase: int = 0
    status: StopReason = StopReason.RUNNING
    iteration: int = 0
    objective: float = -np.inf
    log_likelihood: float = -np.inf
    total_draws: int = 0
    closing: Precision | None = None

    @classmethod
    def starting(cls, simulator: Simulator, params: Params, memory: Any, key: jax.Array, number: int) -> Path:
        """Before the first draw.

        Args:
            params: starting values.
            memory: what M-step rules remember.
            key: random key of all that comes.
            number: draws of every chain in the first E-step.
        """
        walkers, trail = simulator.begin(), Trail.empty(params)
        history: dict[str, np.ndarray] = {name: np.zeros(0, kind) for name, kind in _COLUMNS.items()}
        return cls(params, walkers, memory, key, number, history, trail, Window.empty(walkers), np.zeros(0), Looks(0))

    def arrays(self, mark: str) -> dict[str, Any]:
        """All that is saved, by names that begin with a mark."""
        return flattened(mark, self._plain)

    def resumed(self, mark: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """The path that was saved, of a fit that began as this one did."""
        saved = jax.tree.map(_of_the_kind, self._plain, restored(mark, arrays, self._plain))
        return saved._replace(key=key_like(saved.key, self.key), status=StopReason(saved.status))

    @property
    def _plain(self) -> Any:
        """Nothing but arrays and numbers."""
        plain: dict[str, Any] = {"key": key_data(self.key), "status": self.status.value, "closing": None}
        return self._replace(**plain)

    def counted_afresh(self) -> Path:
        """This path, with divergences counted from here on."""
        return self._replace(walkers={axis: walkers.counted_afresh() for axis, walkers in self.walkers.items()})

    def split(self) -> tuple[Path, jax.Array]:
        """The path after a key was taken from it, and that."""
        after, key = jax.random.split(self.key)
        return self._replace(key=after), key

    def evaluated(self, log_likelihood: float, log_prior: float) -> Path:
        """With an estimate of the objective."""
        return self._replace(log_likelihood=log_likelihood, objective=log_likelihood + log_prior)

    def recorded(self, draws: int, decision: str, **columns: Any) -> Path:
        """With entries at the end of the history, one unless columns have more.

        Args:
            draws: of all chains.
            decision: what was made of them.
            **columns: others of the history, where they are not NaN, no, or what the path says.
        """
        entry: dict[str, Any] = {name: np.nan if kind is float else False for name, kind in _COLUMNS.items()}
        entry |= {name: getattr(self, name) for name in ("iteration", "objective", "log_likelihood")}
        entry |= {"draws": draws, "decision": decision, **columns}
        rows = np.broadcast_arrays(*map(np.atleast_1d, entry.values()))
        seen = self.history
        return self._replace(history={name: np.append(seen[name], row) for name, row in zip(entry, rows, strict=True)})


def _of_the_kind(like: Any, saved: np.ndarray) -> Any:
    """An array from a file as the kind of array, or number, that another is."""
    if isinstance(like, jax.Array):
        return jnp.asarray(saved)
    return saved if isinstance(like, np.ndarray) else saved.item()


def draw(simulator: Simulator, path: Path, data: Data, number: int, block: int | None = None) -> tuple[Path, Drawn]:
    """Move the chains of a fit, in blocks of one size, so that more draws need no other program."""
    block = simulator.strategy.num_samples if block is None else block
    pieces: list[Drawn] = []
    path = path.counted_afresh()
    while len(pieces) * block < number:
        if path.total_draws == 0:  # chains that start anywhere
            path = _moved(simulator, path, data, block)[0].counted_afresh()
        path, drawn = _moved(simulator, path, data, block)
        path = path._replace(total_draws=path.total_draws + block)
        pieces.append(drawn)
    return path, joined(pieces)


def _moved(simulator: Simulator, path: Path, data: Data, number: int) -> tuple[Path, Drawn]:
    path, key = path.split()
    drawn = simulator.draw(path.params, path.walkers, key, data, number=number)
    return path._replace(walkers=drawn.walkers), drawn


def posterior_draws(simulator: Simulator, params: Params, data: Data) -> Drawn:
    """Draws at an estimate, by chains of their own, always with the same random numbers."""
    path = Path.starting(simulator, params, None, jax.random.key(0), 0)
    numbers = sum(walkers.position.size for walkers in path.walkers.values())
    number = int(np.clip(_POSTERIOR_NUMBERS // numbers, 1, _POSTERIOR_DRAWS))
    return draw(simulator, path, data, number, min(simulator.strategy.block, number))[1]


def joined(pieces: list[Drawn]) -> Drawn:
    """Draws at one and the same parameters, put together."""
    if len(pieces) == 1:
        return pieces[0]
    axes = list(pieces[0].draws)
    draws: dict[str, Any] = {axis: np.concatenate([piece.draws[axis] for piece in pieces], 1) for axis in axes}
    sizes = np.array([piece.draws[axes[0]].shape[1] for piece in pieces], float)
    evidence: dict[str, Any] = {}
    evidence_shares: dict[str, Any] = {}
    for axis in pieces[0].evidence:
        each = np.stack([np.asarray(piece.evidence[axis]) for piece in pieces])
        peak = np.max(each, 0)
        weights = (sizes / sizes.sum()).reshape(-1, *[1] * (each.ndim - 1))
        with np.errstate(divide="ignore"):  # of states that are impossible
            evidence[axis] = peak + np.log(np.sum(weights * np.exp(each - np.where(np.isfinite(peak), peak, 0)), 0))
        if axis in pieces[0].evidence_shares:
            shares = [np.asarray(piece.evidence_shares[axis]) for piece in pieces]
            atom_axis = next(a for a, size in enumerate(shares[0].shape) if size > 1 and each.shape[a + 1] == 1)
            whole = np.where(np.isfinite(evidence[axis]), evidence[axis], 0)
            ratios = np.exp(each - whole)
            scaled = [part * weight * ratio for part, weight, ratio in zip(shares, weights, ratios, strict=True)]
            evidence_shares[axis] = np.concatenate(scaled, atom_axis)
    return Drawn(draws, evidence, pieces[-1].walkers, evidence_shares)

"""Draws of an earlier E-step that serve again, with importance weights, while enough of them are effective.

Such draws have already been maximised over, and the M-step finds what noise they have: its steps on them become short
whether or not the maximum is near, and their spread says nothing about that. So they may show an ascent, and nothing
else. Whatever they leave open, and every end, fresh draws decide.

How much of a gain is their noise? Near ``theta`` let that of their score be ``e ~ N(0, S)``, the same at every step. A
step ``d`` that only seems to climb has ``e . d >= gain``, and what is accepted has ``gain > bound sqrt(d . S d)``: by
Cauchy and Schwarz ``e . S^-1 e > bound^2``, a chi-squared variable that no choice of steps can raise. With its 3/4
quantile as the squared bound, with probability 3/4 no step on one set of draws is a descent, however many are made.

Reference:
    Levine and Casella (2001), Implementations of the Monte Carlo EM algorithm, JCGS 10:422-439.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from emppl.estep.simulated import Drawn
from emppl.montecarlo.reweighting import Reweighted, reweighted
from emppl.montecarlo.simulator import Simulator
from emppl.strategies import MonteCarlo

if TYPE_CHECKING:
    from emppl.montecarlo.path import Path


@dataclasses.dataclass
class OldDraws:
    """Draws of an earlier E-step.

    Attributes:
        params: where they were made.
        draws: by integral, ``(chains, draws, groups, dimensions)``.
        evidence: by integral, log evidence there.
        heights: their log densities there, once they were needed.
    """

    params: dict[str, Any]
    draws: dict[str, Any]
    evidence: dict[str, Any]
    heights: dict[str, np.ndarray] | None = None

    @property
    def number(self) -> int:
        """Draws of one chain."""
        return next(iter(self.draws.values())).shape[1]

    @property
    def arrays(self) -> dict[str, Any]:
        """What cannot be computed again, by name."""
        return {"params": self.params, "draws": self.draws, "evidence": self.evidence}

    @classmethod
    def like(cls, params: Mapping[str, Any], axes) -> dict[str, Any]:
        """Names of :attr:`arrays`, for integrals with these axes."""
        nothing = dict.fromkeys(axes, 0)
        return {"params": dict.fromkeys(params, 0), "draws": nothing, "evidence": nothing}

    def weigh(self, simulator: Simulator, params, data) -> tuple[Reweighted, float]:
        """Weights at other parameters, and the share of effective draws in the worst group."""
        if self.heights is None:
            self.heights = self._log_densities(simulator, self.params, data)
        return reweighted(self._log_densities(simulator, params, data), self.heights)

    def at(self, chains) -> Drawn:
        """As the outcome of moving chains, which have not moved since."""
        return Drawn(self.draws, self.evidence, chains)

    def _log_densities(self, simulator: Simulator, params, data) -> dict[str, np.ndarray]:
        """In blocks of one size, so that more draws need no other program."""
        size = simulator.strategy.num_samples
        blocks = []
        for first in range(0, self.number, size):
            some = {axis: jnp.asarray(one[:, first : first + size]) for axis, one in self.draws.items()}
            blocks.append(jax.device_get(simulator.log_densities(params, some, data)))
        return {axis: np.concatenate([one[axis] for one in blocks], 1) for axis in self.draws}


def look_back(simulator: Simulator, path: Path, data, bound: float) -> tuple[Reweighted | None, float]:
    """Weights of the old draws of a fit at its newest parameters, if they may show an ascent.

    Args:
        simulator: compiled steps.
        path: the fit.
        data: arrays of the model's arguments.
        bound: standard errors that a gain on old draws must exceed.

    Returns:
        ``(weights, effective)``: None where fresh draws are needed; the share of effective draws, NaN where nobody
        looked.
    """
    old, strategy = path.old, simulator.strategy
    assert isinstance(strategy, MonteCarlo) and strategy.reweight is not None
    if old is None or old.number < path.number:
        return None, np.nan
    last = path.rows[-1]
    # Gains become smaller; one that could not be seen any more is not worth an M-step.
    if last["gain"] <= bound * last["gain_error"]:
        return None, np.nan
    weights, effective = old.weigh(simulator, path.params, data)
    return (weights if effective >= strategy.reweight else None), effective

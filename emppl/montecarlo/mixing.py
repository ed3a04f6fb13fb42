"""Whether the chains of an E-step agree and go everywhere: R-hat, effective sample size, divergences.

Reference:
    Gelman, Carlin, Stern, Dunson, Vehtari and Rubin (2013), Bayesian Data Analysis, 3rd edition, section 11.4-11.5.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from emppl.estep.simulated import simulated
from emppl.integrals.mcmc import Walkers
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.model.scans import ChainIntegral
from emppl.names import first, model_name
from emppl.uncertainty.charts import label

LARGEST_R_HAT = 1.05
_MOST_NUMBERS = 2**22
"""So many numbers are looked at; of more groups only some are, evenly spaced."""


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How the chains of one E-step mixed.

    Attributes:
        r_hat: by latent, the largest split R-hat of any of its entries.
        effective_draws: by latent, the smallest effective sample size, all chains together.
        draws: draws of all chains together.
        chain_draws: draws of one chain.
        worst: the entry with the largest R-hat, such as ``"b[3]"``.
    """

    r_hat: Mapping[str, float]
    effective_draws: Mapping[str, float]
    draws: int
    chain_draws: int
    worst: str

    @property
    def is_poor(self) -> bool:
        """Whether some chain does not mix; of few draws R-hat varies by more than its usual limit."""
        limit = max(LARGEST_R_HAT, 1 + 5 / max(self.chain_draws // 2, 1))
        return bool(max(self.r_hat.values(), default=1.0) > limit)

    @property
    def words(self) -> str:
        """For the certificate."""
        largest = max(self.r_hat.values(), default=1.0)
        fewest = min(self.effective_draws.values(), default=float(self.draws))
        return (
            f"Last E-step: {self.draws:,} draws; largest R-hat {largest:.3f} ({self.worst}), smallest effective sample "
            f"size {fewest:,.0f}."
        )


def mixing(model: Model, draws: Mapping[str, Any]) -> Mixing:
    """Compare the chains of an E-step.

    Args:
        draws: by integral, ``(chains, draws, groups, dimensions)``.

    Returns:
        Diagnostics by latent.
    """
    r_hat: dict[str, float] = {}
    effective: dict[str, float] = {}
    worst, highest, number, length = "", 0.0, 0, 0
    for integral in simulated(model):
        vectors = np.asarray(draws[integral.axis])
        number, length = vectors.shape[0] * vectors.shape[1], vectors.shape[1]
        every = max(1, vectors.size // _MOST_NUMBERS)
        vectors = vectors[:, :, ::every]
        ratios, sizes = split_r_hat(vectors), effective_draws(vectors)
        owners, entries = (numbers[::every] for numbers in _owners(integral))
        for position, name in enumerate(integral.latents):
            is_own = owners == position
            r_hat[name] = float(np.max(ratios[is_own], initial=1.0))
            effective[name] = float(np.min(sizes[is_own], initial=number))
            if r_hat[name] > highest:
                highest = r_hat[name]
                flat = entries[is_own][np.argmax(ratios[is_own])]
                worst = label(name, np.unravel_index(flat, _whole_shape(integral, name)))
    return Mixing(r_hat, effective, number, length, worst)


@dataclasses.dataclass(frozen=True)
class Divergences:
    """Hamiltonian trajectories that lost their energy: somewhere the density bends too sharply for the steps.

    Attributes:
        numbers: by latent; latents that are drawn together have theirs in common.
        counted: by latent, the draws of all chains and groups that were counted.
        strategy: name of the class of the strategy.
    """

    numbers: Mapping[str, int]
    counted: Mapping[str, int]
    strategy: str

    @property
    def words(self) -> str | None:
        """For the certificate; None where there are none."""
        numbers = {name: number for name, number in self.numbers.items() if number}
        if not numbers:
            return None
        each = ", ".join(f"{number:,} of {self.counted[name]:,} for {name!r}" for name, number in numbers.items())
        name = next(iter(numbers))
        return (
            f"Trajectories diverged: {each}. The conditional density of the latents bends too sharply there for steps "
            "that serve elsewhere, and the draws may lack such places, whatever R-hat says. Write the model in "
            f"coordinates that are nearer to normal ({name} = scale * z with z ~ Normal(0, 1) in place of "
            f"{name} ~ Normal(0, scale), a logarithm of what is positive), or compare with "
            f"latents={{{name!r}: {self.strategy}(kernel='metropolis')}}, which follows no slope."
        )


def divergences(model: Model, walkers: Mapping[str, Walkers]) -> Divergences:
    """Count the divergences of the newest draws.

    Args:
        walkers: by integral, where the chains are.

    Returns:
        Counts by latent.
    """
    numbers, counted, strategy = {}, {}, ""
    for integral in simulated(model):
        now, strategy = walkers[integral.axis], type(integral.strategy).__name__
        for name in integral.latents:
            numbers[name], counted[name] = int(now.divergences), int(now.counted)
    return Divergences(numbers, counted, strategy)


def _owners(integral: Integral) -> tuple[np.ndarray, np.ndarray]:
    """Of every entry of the vectors of an integral, the latent it belongs to, and its flat position there."""
    shapes = integral.layout.shapes
    owners = {n: np.full(shape, integral.latents.index(model_name(n)), float) for n, shape in shapes.items()}
    entries = {name: np.arange(math.prod(shape), dtype=float).reshape(shape) for name, shape in shapes.items()}
    if isinstance(integral, ChainIntegral):  # positions among all steps; of windows only the newest step counts
        order = integral.scan.order
        for name in integral.latents:
            size = math.prod(shapes[first(name, 0)])
            for step in range(order):
                entries[first(name, step)] += step * size
            entries[name] += order * size
    owner, entry = (integral.layout.pack(jax.tree.map(jnp.asarray, arrays)) for arrays in (owners, entries))
    return np.asarray(owner).astype(int), np.asarray(entry).astype(int)


def _whole_shape(integral: Integral, name: str) -> tuple[int, ...]:
    """Shape of a latent, time first if it is scanned."""
    shapes = integral.layout.shapes
    if isinstance(integral, ChainIntegral):
        return integral.states.steps, *shapes[first(name, 0)]
    return shapes[name]


def split_r_hat(draws: np.ndarray) -> np.ndarray:
    """Potential scale reduction of halved chains: NaN of fewer than four draws, infinite where nothing moves.

    Args:
        draws: ``(chains, draws, ...)``.
    """
    if draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan)
    r_hat = split_gelman_rubin(draws)
    return np.where(np.isnan(r_hat), np.inf, r_hat)


def effective_draws(draws: np.ndarray) -> np.ndarray:
    """Effective sample size of all chains together, by Geyer's initial positive sequence; 0 where nothing moves.

    Args:
        draws: ``(chains, draws, ...)``.
    """
    number = draws.shape[0] * draws.shape[1]
    if draws.shape[1] < 4:
        return np.full(draws.shape[2:], float(number))
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = effective_sample_size(draws)
    # Of draws that alternate the sum of all correlations is nearly zero, and its estimate may be below.
    most = number * np.log10(max(number, 11))
    effective = np.where((effective > 0) & (effective < most), effective, most)
    return np.where(np.ptp(draws, (0, 1)) > 0, effective, 0.0)

"""Do the chains of an E-step agree, and do they go everywhere? R-hat, effective sample size, divergences.

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

from emppl.estep.simulated import simulated
from emppl.integrals.mcmc import Chains
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.names import first, model_name
from emppl.uncertainty.information import label

LARGEST_R_HAT = 1.05
_LARGEST = 2**22
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
        """Does some chain not mix? Of few draws R-hat varies by more than its usual limit."""
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
        model: the model.
        draws: by integral, ``(chains, draws, groups, dimensions)``.

    Returns:
        Diagnostics by latent.
    """
    r_hat: dict[str, float] = {}
    effective: dict[str, float] = {}
    worst, highest, number, length = "", 0.0, 0, 0
    for integral in simulated(model):
        found = np.asarray(draws[integral.axis])
        number, length = found.shape[0] * found.shape[1], found.shape[1]
        every = max(1, found.size // _LARGEST)
        found = found[:, :, ::every]
        there, sizes = split_r_hat(found), effective_draws(found)
        owners, entries = (one[::every] for one in _owners(integral))
        for position, name in enumerate(integral.latents):
            mine = owners == position
            r_hat[name] = float(np.max(there[mine], initial=1.0))
            effective[name] = float(np.min(sizes[mine], initial=number))
            if r_hat[name] > highest:
                highest = r_hat[name]
                flat = entries[mine][np.argmax(there[mine])]
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
        there = {name: number for name, number in self.numbers.items() if number}
        if not there:
            return None
        each = ", ".join(f"{number:,} of {self.counted[name]:,} for {name!r}" for name, number in there.items())
        name = next(iter(there))
        return (
            f"Trajectories diverged: {each}. The conditional density of the latents bends too sharply there for steps "
            "that serve elsewhere, and the draws may lack such places, whatever R-hat says. Write the model in "
            f"coordinates that are nearer to normal ({name} = scale * z with z ~ Normal(0, 1) in place of "
            f"{name} ~ Normal(0, scale), a logarithm of what is positive), or compare with "
            f"latents={{{name!r}: {self.strategy}(kernel='metropolis')}}, which follows no slope."
        )


def divergences(model: Model, chains: Mapping[str, Chains]) -> Divergences:
    """Count the divergences of the newest draws.

    Args:
        model: the model.
        chains: by integral.

    Returns:
        Counts by latent.
    """
    numbers, counted, strategy = {}, {}, ""
    for integral in simulated(model):
        now, strategy = chains[integral.axis], type(integral.strategy).__name__
        for name in integral.latents:
            numbers[name], counted[name] = int(now.divergences), int(now.counted)
    return Divergences(numbers, counted, strategy)


def _owners(integral: Integral) -> tuple[np.ndarray, np.ndarray]:
    """Of every entry of the vectors of an integral, the latent it belongs to, and its flat position there."""
    shapes = integral.layout.shapes
    owners = {n: np.full(shape, integral.latents.index(model_name(n)), float) for n, shape in shapes.items()}
    entries = {name: np.arange(math.prod(shape), dtype=float).reshape(shape) for name, shape in shapes.items()}
    if integral.chain is not None:  # positions among all steps; of windows only the newest step counts
        order = integral.chain.chain.order
        for name in integral.latents:
            size = math.prod(shapes[first(name, 0)])
            for step in range(order):
                entries[first(name, step)] += step * size
            entries[name] += order * size
    owner, entry = (integral.layout.pack(jax.tree.map(jnp.asarray, one)) for one in (owners, entries))
    return np.asarray(owner).astype(int), np.asarray(entry).astype(int)


def _whole_shape(integral: Integral, name: str) -> tuple[int, ...]:
    """Shape of a latent, time first if it is scanned."""
    shapes = integral.layout.shapes
    return shapes[name] if integral.chain is None else (integral.chain.steps, *shapes[first(name, 0)])


def split_r_hat(draws: np.ndarray) -> np.ndarray:
    """Potential scale reduction of halved chains; one where nothing moves is infinite.

    Args:
        draws: ``(chains, draws, ...)``.
    """
    number = draws.shape[1] // 2
    if number < 2:
        return np.full(draws.shape[2:], np.nan)
    halves = np.concatenate([draws[:, :number], draws[:, -number:]])
    within = halves.var(1, ddof=1).mean(0)
    between = halves.mean(1).var(0, ddof=1)
    total = (number - 1) / number * within + between
    return np.sqrt(np.where(within > 0, total / np.where(within > 0, within, 1), np.inf))


def effective_draws(draws: np.ndarray) -> np.ndarray:
    """Effective sample size of all chains together, by Geyer's initial positive sequence.

    Args:
        draws: ``(chains, draws, ...)``.
    """
    chains, number = draws.shape[:2]
    if number < 4:
        return np.full(draws.shape[2:], float(chains * number))
    centred = draws - draws.mean(1, keepdims=True)
    length = 2 ** int(np.ceil(np.log2(2 * number)))
    power = np.abs(np.fft.rfft(centred, length, axis=1)) ** 2
    covariance = np.fft.irfft(power, length, axis=1)[:, :number].mean(0) / number
    within = covariance[0] * number / (number - 1)
    total = (number - 1) / number * within + draws.mean(1).var(0, ddof=1)
    safe = np.where(total > 0, total, 1)
    rho = 1 - (within - covariance) / safe
    pairs = rho[: number // 2 * 2].reshape(-1, 2, *rho.shape[1:]).sum(1)
    positive = np.cumprod(pairs > 0, axis=0)
    pairs = np.minimum.accumulate(np.where(positive, pairs, 0), axis=0)
    time = np.maximum(2 * pairs.sum(0) - 1, 1 / np.log10(max(chains * number, 11)))
    return np.where(total > 0, chains * number / time, 0.0)

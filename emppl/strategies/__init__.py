"""What a user may say of a latent: how the E-step sums over it or integrates it, and what objective that leaves."""

from emppl.strategies.base import Continuous, ObjectiveKind, Strategy
from emppl.strategies.discrete import Enumerate, Hard
from emppl.strategies.exact import Gaussian, TruncatedGaussian
from emppl.strategies.quadrature import DEFAULT_NODES, NODES_WITHIN_BOUNDS, Laplace, Quadrature
from emppl.strategies.sampling import SAEM, ImportanceSampling, MCMCKernel, MonteCarlo, Simulated, StochasticEM

__all__ = [
    "DEFAULT_NODES",
    "NODES_WITHIN_BOUNDS",
    "SAEM",
    "Continuous",
    "Enumerate",
    "Gaussian",
    "Hard",
    "ImportanceSampling",
    "Laplace",
    "MCMCKernel",
    "MonteCarlo",
    "ObjectiveKind",
    "Quadrature",
    "Simulated",
    "StochasticEM",
    "Strategy",
    "TruncatedGaussian",
]

"""How the E-step treats a latent, and what kind of evidence that leaves the loop with."""

from emppl.strategies.base import Continuous, ObjectiveKind, Strategy
from emppl.strategies.discrete import Enumerate, Hard
from emppl.strategies.integrated import (
    DEFAULT_NODES,
    NODES_WITHIN_BOUNDS,
    Gaussian,
    ImportanceSampling,
    Laplace,
    Quadrature,
    TruncatedGaussian,
)
from emppl.strategies.simulated import SAEM, Kernel, MonteCarlo, Simulated, StochasticEM

__all__ = [
    "DEFAULT_NODES",
    "NODES_WITHIN_BOUNDS",
    "SAEM",
    "Continuous",
    "Enumerate",
    "ObjectiveKind",
    "Gaussian",
    "Hard",
    "ImportanceSampling",
    "Kernel",
    "Laplace",
    "MonteCarlo",
    "Quadrature",
    "Simulated",
    "StochasticEM",
    "Strategy",
    "TruncatedGaussian",
]

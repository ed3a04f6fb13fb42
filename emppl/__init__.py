"""emppl: write a latent-variable model in NumPyro; get its EM algorithm derived, compiled and explained."""

from emppl.derivation.plan import Plan
from emppl.em import EM
from emppl.errors import DataError, EMError, ModelError, ParameterError
from emppl.estep import Posterior
from emppl.families import Family, Update, register
from emppl.fit.outcome import StopReason
from emppl.result.compare import Comparison, compare
from emppl.result.result import Certificate, EMResult
from emppl.strategies import SAEM, Enumerate, Gaussian, Hard, Laplace, MonteCarlo, Quadrature, StochasticEM
from emppl.uncertainty.information import Covariance

__version__ = "0.1.0"

__all__ = [
    "Certificate",
    "Comparison",
    "Covariance",
    "DataError",
    "EM",
    "EMError",
    "EMResult",
    "Enumerate",
    "Family",
    "Gaussian",
    "Hard",
    "Laplace",
    "ModelError",
    "MonteCarlo",
    "ParameterError",
    "Plan",
    "Posterior",
    "Quadrature",
    "SAEM",
    "StochasticEM",
    "StopReason",
    "Update",
    "compare",
    "register",
]

"""emppl: write a latent-variable model in NumPyro; get its EM algorithm derived, compiled and explained."""

from emppl.compare import Comparison, compare
from emppl.em import EM
from emppl.errors import DataError, EMError, ModelError, ParameterError
from emppl.estep import Posterior
from emppl.families import Family, Update, register
from emppl.outcome import StopReason
from emppl.plan import Plan
from emppl.result import Certificate, EMResult
from emppl.strategies import Enumerate
from emppl.uncertainty import Covariance

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
    "ModelError",
    "ParameterError",
    "Plan",
    "Posterior",
    "StopReason",
    "Update",
    "compare",
    "register",
]

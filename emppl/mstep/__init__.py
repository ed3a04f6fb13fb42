"""The M-step: which rule each parameter gets, and every rule carried out (``policy``)."""

from emppl.mstep.closed_form import ClosedForm
from emppl.mstep.given import UserUpdate
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.newton import Newton
from emppl.mstep.numeric import Numeric, is_optimizer
from emppl.mstep.policy import begin, choose_rules, m_step, maximise
from emppl.mstep.quadratic import Quadratic

__all__ = [
    "ClosedForm",
    "Maximisation",
    "Newton",
    "Numeric",
    "Quadratic",
    "UserUpdate",
    "begin",
    "choose_rules",
    "is_optimizer",
    "m_step",
    "maximise",
]

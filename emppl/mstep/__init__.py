"""The M-step: which rule each parameter gets (``policy``), and one file per rule."""

from emppl.mstep.closed_form import ClosedForm
from emppl.mstep.given import UserUpdate
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.newton import Newton
from emppl.mstep.numeric import Numeric, is_optimizer
from emppl.mstep.policy import choose_rules
from emppl.mstep.quadratic import Quadratic

__all__ = [
    "ClosedForm",
    "Maximisation",
    "Newton",
    "Numeric",
    "Quadratic",
    "UserUpdate",
    "choose_rules",
    "is_optimizer",
]

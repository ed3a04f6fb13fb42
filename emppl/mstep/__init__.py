"""The M-step: which rule each parameter gets (``policy``), and one file per rule (``rule`` says what one is)."""

from emppl.mstep.closed_form import ClosedForm
from emppl.mstep.given import UserUpdate, is_rule
from emppl.mstep.maximisation import Maximisation
from emppl.mstep.newton import Newton
from emppl.mstep.numeric import Numeric, is_optimizer
from emppl.mstep.policy import choose_rules
from emppl.mstep.quadratic import Quadratic
from emppl.mstep.rule import Rule, RuleContext

__all__ = [
    "ClosedForm",
    "Maximisation",
    "Newton",
    "Numeric",
    "Quadratic",
    "Rule",
    "RuleContext",
    "UserUpdate",
    "choose_rules",
    "is_optimizer",
    "is_rule",
]

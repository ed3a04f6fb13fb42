"""What an M-step rule is: a block of parameters, how the block is updated, and why no earlier rule applied."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax

from emppl.errors import Refusal
from emppl.model.model import Model
from emppl.model.options import Options
from emppl.mstep.analysis import Analysis
from emppl.mstep.maximisation import Maximisation
from emppl.types import Params


@dataclasses.dataclass(frozen=True)
class RuleContext:
    """What the choice of a rule may look at.

    Attributes:
        model: the model.
        options: the user's options.
        analysis: how Q depends on a block: quadratic, smooth, separable?
    """

    model: Model
    options: Options
    analysis: Analysis


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
    """How the M-step updates one block of parameters.

    A rule maximises ``Q + log prior`` over its block, the other parameters held at their newest values, or at least
    never lowers it. A rule of one's own needs :meth:`update` alone, and is given as ``EM(m_step={"mu": rule})``: an
    object of the class, or the class, whose :meth:`propose` is then asked.

    Attributes:
        parameters: the block.
        detail: the update in words, for the plan.
        rejected: for every parameter of the block, the earlier rules with the reasons why they did not apply.
        prior: name of the prior that enters the update, or None.
        kind: how the plan calls the rule.
        free: whether the parameters are estimated.
        reads_weights: whether it needs the posterior weight of every cell, not only sums of statistics.
        reads_every_site: whether it needs them for sites that do not depend on its parameters, too.
        exact: whether the outcome is the maximiser up to rounding.
        stage: its place in the M-step; exact rules come first.
    """

    parameters: tuple[str, ...]
    detail: str
    rejected: Mapping[str, tuple[tuple[str, str], ...]] = dataclasses.field(default_factory=dict, kw_only=True)
    prior: str | None = dataclasses.field(default=None, kw_only=True)

    kind: ClassVar[str] = "user"
    free: ClassVar[bool] = True
    reads_weights: ClassVar[bool] = True
    reads_every_site: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    stage: ClassVar[int] = 0

    @property
    def order(self) -> int:
        """Rules with a lower number come first in one M-step."""
        return self.stage

    @property
    def name(self) -> str:
        """Names the block."""
        return ", ".join(self.parameters)

    @classmethod
    def propose(cls, context: RuleContext, name: str) -> Rule | Refusal | None:
        """The rule for one parameter, the reason why it does not apply, or None where nothing suggests it."""
        del context
        return cls((name,), (cls.__doc__ or cls.__name__).split("\n")[0].rstrip("."))

    @classmethod
    def join(cls, context: RuleContext, rules: list[Self]) -> list[Self]:
        """Rules of this class, some of them put together into rules of larger blocks."""
        del context
        return rules

    def begin(self, model: Model, params: Params) -> Any:
        """Arrays that the rule remembers before its first M-step, in ``step.memory[rule.name]``; None for nothing.

        Args:
            params: constrained starting values.
        """
        del model, params
        return None

    @abc.abstractmethod
    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        """New values of the block.

        Args:
            step: the M-step in progress: expectations, and the newest value of every parameter.

        Returns:
            Constrained values by parameter.
        """

"""A derived EM algorithm: the model, and the M-step rule of every parameter."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from emppl.estep import Expectations, FusedPlan, QFunction, plan_fused
from emppl.model.model import Model
from emppl.model.natural import Prepared
from emppl.mstep import Maximisation
from emppl.mstep.rule import Rule
from emppl.types import Data, Params


@dataclasses.dataclass(frozen=True)
class Program:
    """The derived algorithm.

    Attributes:
        model: the static facts of the model.
        rules: M-step rule of every parameter; parameters that are updated together share one.
    """

    model: Model
    rules: Mapping[str, Rule]

    @property
    def blocks(self) -> list[Rule]:
        """Every rule once, in model order."""
        return list({id(rule): rule for rule in self.rules.values()}.values())

    @property
    def weighted(self) -> frozenset[str]:
        """Sites of which some rule reads the weight of every cell."""
        everywhere = any(rule.reads_every_site for rule in self.blocks)
        return frozenset(
            name
            for name, factor in self.model.factors.items()
            if everywhere or any(self.rules[parameter].reads_weights for parameter in factor.all_parameters)
        )

    @functools.cached_property
    def fused(self) -> FusedPlan:
        """Static choices of the fused E-step: sites whose weights a rule reads keep their tables."""
        return plan_fused(self.model, self.weighted)

    def begin(self, params: Params) -> dict[str, Any]:
        """State of every rule before the first M-step; rules without any are left out."""
        memories = {rule.name: rule.begin(self.model, params) for rule in self.blocks}
        return {name: memory for name, memory in memories.items() if memory is not None}

    def maximise(
        self,
        params: Params,
        expectations: Expectations,
        data: Data,
        prepared: Mapping[str, Prepared],
        memory: Mapping[str, Any] | None = None,
    ) -> Maximisation:
        """Carry out every rule, blocks in turn.

        Args:
            params: current constrained values (blocks that are updated later see the new ones).
            expectations: from the E-step.
            prepared: statistics and their references, by site.
            memory: what rules kept from the M-step before; None for the first.

        Returns:
            The finished M-step: ``.params`` are the new constrained values, ``.memory`` is for the next one,
            ``.unfinished`` tells whether an inner iteration stopped short.
        """
        objective = QFunction(self.model, expectations, data, {**prepared, **expectations.prepared})
        step = Maximisation(objective, params, memory or {})
        for rule in sorted(self.blocks, key=lambda rule: rule.order):
            step.params.update({name: self.model.pin(name, value) for name, value in rule.update(step).items()})
        return step

    def m_step(
        self, params: Params, expectations: Expectations, data: Data, prepared: Mapping[str, Prepared]
    ) -> dict[str, jax.Array]:
        """New constrained values of the free parameters from expectations; see :meth:`maximise`."""
        return self.maximise(params, expectations, data, prepared).params

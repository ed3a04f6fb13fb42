"""How accurate the estimates of a fit are: standard errors, entries on the boundary, Monte Carlo errors."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from emppl.compiled import Fit
from emppl.montecarlo.simulation import Simulation
from emppl.result.criteria import Criteria
from emppl.uncertainty.boundary import remarks, scales
from emppl.uncertainty.charts import Chart, Information
from emppl.uncertainty.corners import hold_corners, no_standard_errors
from emppl.uncertainty.differences import information_by_differences
from emppl.uncertainty.information import (
    Covariance,
    boundary_labels,
    charts,
    covariance,
    hold_pressed,
    observed_information,
    optimised_within_bounds,
    spread_over_entries,
)
from emppl.uncertainty.second_order import SecondOrder, after_step, in_words, second_order

MOST_DIMENSIONS = 500
"""Most free dimensions for which a summary computes standard errors unasked: a second derivative for each of them."""

_MOST_NAMED = 3
"""Most flat directions that are named."""

_WEAK = 1e-3
"""Curvature, in units of that of a coordinate by itself, below which a direction is weak."""

_MOST_POLISHED = 1e-3
"""Nats that a Newton step to where the information is measured may promise: a twentieth of a standard error."""

_MOST_POLISHING = 3
"""Most Newton steps to where the information is measured."""

_MOST_CELLS_UNASKED = 2**21
"""Cells times dimensions up to which every fit ends with a look at its information."""

_MOST_CELLS_OF_SCORES = 2**19
"""Cells times dimensions up to which second derivatives are differences of the score."""


class Accuracy:
    """Information and standard errors of the estimates of a fit; what takes second derivatives is computed once.

    Args:
        params: the estimates.
        criteria: counts of the same fit.
        simulation: the Monte Carlo error of a stochastic fit, or None.
        why_none: why there are no standard errors whatever the information is, or None.
        is_at_rest: whether the iterations stopped by themselves.
    """

    def __init__(
        self,
        fit: Fit,
        params: Mapping[str, np.ndarray],
        criteria: Criteria,
        simulation: Simulation | None,
        why_none: str | None,
        is_at_rest: bool,
    ):
        self._fit = fit
        self._params = params
        self._criteria = criteria
        self._simulation = simulation
        self._closing = None if simulation is None or simulation.closing is None else simulation.closing
        if self._closing is not None and self._closing.note is not None:  # the phase did not come about
            self._closing = None
        self._why_none = why_none
        self._is_at_rest = is_at_rest

    # ------------------------------------------------------------------------------------------ information

    @functools.cached_property
    def measured(self) -> tuple[dict[str, Chart], Information]:
        """Local coordinates in which nothing presses against a bound, and the observed information in them."""
        if self._closing is not None:
            return hold_pressed(self._fit.program, dict(self._closing.charts), self._closing.information)
        local = self.charts_by_position
        held = hold_pressed(self._fit.program, local, self._information(local))
        # Where directions are weak or flat, their curvature is lost in what the slope, however small, adds to it.
        for _ in range(_MOST_POLISHING):
            verdict = second_order(held[1])
            if not (-_WEAK < verdict.weakest < _WEAK and verdict.promised < _MOST_POLISHED):
                break
            nearer = after_step(self._fit.model, held[0], verdict.newton)
            local = self._charts_at({**self._params, **nearer})
            after = hold_pressed(self._fit.program, local, self._information(local))
            if not second_order(after[1]).promised < verdict.promised / 4:
                break
            held = after
        return held

    def _information(self, local: dict[str, Chart]) -> Information:
        model, compiled = self._fit.model, self._fit.compiled
        # Compiling second derivatives takes longer than many scores of few cells, and second derivatives of a chain
        # take longer than any number of scores.
        has_chain = any(step.chain is not None for part in model.parts for step in part.plan.steps)
        if model.rough or (self._effort(local) > _MOST_CELLS_OF_SCORES and not has_chain):
            return observed_information(local, compiled.hessian_columns, self._fit.data)
        constraints = {name: model.trace.sites[name].constraint for name in local}
        return information_by_differences(constraints, local, compiled.scores, self._fit.data)

    @functools.cached_property
    def second_order(self) -> SecondOrder:
        """Directions in which the objective rises away from the estimate, and in which it is flat."""
        return second_order(self.measured[1])

    @property
    def flat(self) -> list[str]:
        """Combinations of entries that the data say nothing about, as far as the information is known or cheap."""
        known = self._closing is None and self._why_none is None and not self._fit.model.rough
        if not known or not (self.is_measured or self.is_quick):
            return []
        return [in_words(self.measured[0], direction) for direction in self.second_order.flat]

    @property
    def is_quick(self) -> bool:
        """Whether the information takes no longer than a fit."""
        return self.is_cheap and self._effort(self.charts_by_position) <= _MOST_CELLS_UNASKED

    def _effort(self, local: Mapping[str, Chart]) -> int:
        """Cells times dimensions."""
        return self._fit.model.cost * sum(int(chart.active.sum()) for chart in local.values())

    @property
    def is_measured(self) -> bool:
        """Whether the information has been computed."""
        return "measured" in self.__dict__

    @functools.cached_property
    def charts_by_position(self) -> dict[str, Chart]:
        """Local coordinates; held are entries that lie on a bound or a corner by their value alone."""
        return self._charts_at(self._params)

    def _charts_at(self, params: Mapping[str, np.ndarray]) -> dict[str, Chart]:
        local = charts(self._fit.model, params, self.held_differences)
        return hold_corners(self._fit.model, local, params, self._fit.data)

    @property
    def _charts(self) -> dict[str, Chart]:
        approached = bool(optimised_within_bounds(self._fit.program)) or bool(scales(self._fit.model))
        return self.measured[0] if (self.is_cheap and approached) or self.is_measured else self.charts_by_position

    @property
    def is_cheap(self) -> bool:
        """Whether a summary may compute standard errors unasked; under ``Hard()`` there are none."""
        return not self._fit.model.hard and (self._criteria.dimensions <= MOST_DIMENSIONS or self.is_measured)

    @property
    def held_differences(self) -> list[str]:
        """Logits whose level nothing identifies; a proper prior does."""
        model = self._fit.model
        return [
            name
            for name in self._criteria.only_differences
            if not model.use_prior or model.trace.sites[name].distribution in ("param", "ImproperUniform")
        ]

    @property
    def boundary(self) -> list[str]:
        """Entries on the boundary of the parameter space."""
        return boundary_labels(self._charts)

    @property
    def remarks(self) -> list[str]:
        """Why there are no standard errors, and what it means that variances go to zero."""
        model, boundary, local = self._fit.model, self.boundary, self._charts
        known = model.integrals and (self.is_cheap or self.is_measured)
        information = self.measured[1] if known else None
        corners = no_standard_errors(model)
        at_zero = remarks(model, boundary, self.measured[0] if known else local, information)
        flat = self.flat
        if flat:
            more = f"; and {len(flat) - _MOST_NAMED} more" if len(flat) > _MOST_NAMED else ""
            flat = [
                f"Not identified: {'; '.join(flat[:_MOST_NAMED])}{more}. The log-likelihood does not change along it, "
                "so that entries in it have no standard error: fix one of them, or leave it out."
            ]
        return [*([corners] if corners else []), *at_zero, *flat]

    # -------------------------------------------------------------------------------------- standard errors

    @functools.cached_property
    def covariance(self) -> Covariance:
        """Covariance matrix of the estimates with its labels."""
        if self._why_none is not None:
            raise ValueError(self._why_none)
        return covariance(self._fit.model, *self.measured, self.second_order, self.held_differences, self._is_at_rest)

    def standard_errors(self) -> dict[str, np.ndarray]:
        """Square roots of the diagonal of the covariance, by parameter."""
        return self._by_parameter(np.sqrt(np.diagonal(self.covariance.matrix)))

    def _by_parameter(self, entries: np.ndarray) -> dict[str, np.ndarray]:
        names = self._fit.model.free
        ends = np.cumsum([self._params[name].size for name in names])[:-1]
        pieces = zip(names, np.split(entries, ends), strict=True)
        return {name: piece.reshape(self._params[name].shape) for name, piece in pieces}

    def score_norm(self) -> float:
        """Largest standardised score: gradient over root information, in local coordinates."""
        if self._fit.model.rough:
            return float("nan")
        information = self.measured[1]
        scale = np.sqrt(np.maximum(np.diagonal(information.matrix), np.finfo(float).tiny))
        return float(np.max(np.abs(information.score / scale), initial=0.0))

    # ----------------------------------------------------------------------------------- Monte Carlo errors

    @functools.cached_property
    def monte_carlo_errors(self) -> dict[str, np.ndarray]:
        """Monte Carlo standard errors of the estimates; NaN where they are not known."""
        if self._simulation is not None and self._simulation.errors is not None:
            return self._simulation.errors
        if self._closing is None:
            return self._unknown()
        errors = spread_over_entries(self._fit.model, self._closing.charts, self._closing.covariance)
        return {**errors, **{name: np.full(self._params[name].shape, np.nan) for name in self._closing.rough}}

    @functools.cached_property
    def standard_error_errors(self) -> dict[str, np.ndarray]:
        """Monte Carlo standard errors of the standard errors; NaN where they are not known."""
        closing = self._closing
        if closing is None:
            return self._unknown()
        held = self.measured[0]
        if any(np.any(local.active != held[name].active) for name, local in closing.charts.items()):
            return self._unknown()  # coordinates are held that were not when the errors were computed
        return {
            name: np.where(closing.charts[name].boundary | (name in closing.rough), np.nan, errors)
            for name, errors in self._by_parameter(closing.deviations).items()
        }

    def _unknown(self) -> dict[str, np.ndarray]:
        return {name: np.full(self._params[name].shape, np.nan) for name in self._fit.model.free}

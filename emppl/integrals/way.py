"""What a way of integrating is: it says whether it applies, integrates, and draws; and the integrals of a model.

Every integral leaves a log evidence per cell, and weighted atoms behind.

A new way is a subclass of :class:`Way`, in a file of its own and a row of :mod:`emppl.integrals.settle`; or, outside of
emppl, the ``way`` of a strategy of one's own.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from emppl.errors import Refusal
from emppl.integrals.centre import starting_vectors
from emppl.integrals.integrated import Integrated
from emppl.integrals.joint import Joint
from emppl.integrals.mcmc import draw_once
from emppl.model.integral import Integral
from emppl.model.model import Model
from emppl.strategies import Continuous
from emppl.types import Data, Params


@dataclasses.dataclass(frozen=True)
class Question:
    """What is known of an integral before its way is chosen.

    Attributes:
        model: the model.
        integral: the integral, its groups laid out.
        asked: the strategy that the user wants, if any.
        limits: observed Delta sites that restrict the latents.
        not_quadratic: why the log joint, without these, is not quadratic for every parameter value; None if it is.
        corners: sites whose densities have corners in the latents.
    """

    model: Model
    integral: Integral
    asked: Continuous | None
    limits: tuple[str, ...]
    not_quadratic: Refusal | None
    corners: tuple[str, ...]

    @property
    def names(self) -> str:
        """The latents, for messages."""
        return ", ".join(map(repr, self.integral.latents))

    @property
    def reason(self) -> str:
        """What kind of density it is, for the plan."""
        if self.corners:
            return f"the density of {', '.join(map(repr, self.corners))} has corners in it"
        return "the log joint density is quadratic in it" if self.not_quadratic is None else self.not_quadratic.reason


@dataclasses.dataclass(frozen=True)
class Way(abc.ABC):
    """How an integral is done.

    Attributes:
        strategy: what the user, or the default, said.
        reason: why it applies, for the plan.
    """

    strategy: Continuous
    reason: str

    strategies: ClassVar[tuple[type[Continuous], ...]] = ()
    """The strategies that it carries out."""

    is_by_step: ClassVar[bool] = False
    """Whether the steps of a chain are integrated one after the other."""

    looks_for_modes: ClassVar[bool] = True
    """Whether it matters where it begins; where a linear equation gives the mean, it does not."""

    @classmethod
    def propose(cls, question: Question) -> Way | Refusal:
        """The way for an integral, or the reason why it does not apply: the whole message if it was asked for."""
        if question.asked is None:
            return Refusal("it is taken only where it is asked for")
        return cls(question.asked, question.reason)

    @abc.abstractmethod
    def integrate(self, joint: Joint, start: jax.Array) -> Integrated:
        """Evidence and weighted atoms of all groups.

        Args:
            joint: the log joint density.
            start: where to look for the mode first, ``(groups, dimensions)``.
        """

    def draw(self, joint: Joint, integrated: Integrated, key: jax.Array) -> jax.Array:
        """One draw of every group given the integral, ``(groups, dimensions)``: from the density itself, by a chain."""
        assert integrated.root is not None
        return draw_once(joint, integrated.mean, integrated.root, key)

    def prepare(self, model: Model, integral: Integral, data: Data) -> Any:
        """What of the data alone is computed once per fit; None for nothing."""
        del model, integral, data
        return None

    def atoms(self, integral: Integral) -> int:
        """How many atoms there are."""
        return self.strategy.atoms(integral.dimensions)

    def arranged(self, integral: Integral) -> Integral:
        """The integral as this way needs it."""
        return dataclasses.replace(integral, way=self)

    @property
    def constant_sites(self) -> tuple[str, ...]:
        """Sites that say where the latents may lie, and nothing where they do: their cells have no weight."""
        return ()


def integrate_all(
    model: Model,
    params: Params,
    data: Data,
    guesses: Mapping[str, jax.Array] | None = None,
    key: jax.Array | None = None,
    prepared: Mapping[str, Any] | None = None,
) -> dict[str, Integrated]:
    """Every integral of the model, by axis.

    Args:
        guesses: by integral, where to look for the modes first, NaN for the centre of the prior, which is the default.
        key: random numbers of ways that draw; default: always the same.
        prepared: by integral, what :func:`prepare_integrals` found.
    """
    guesses, prepared = guesses or {}, prepared or {}
    axes = {integral.axis: integral for integral in model.integrals}
    return {
        axis: integrate(Joint(model, integral, params, data, key, prepared.get(axis)), guesses.get(axis))
        for axis, integral in axes.items()
    }


def integrate(joint: Joint, guess: jax.Array | None = None) -> Integrated:
    """One integral, by its way."""
    way: Way = joint.integral.way
    if not way.looks_for_modes:
        return way.integrate(joint, joint.pack(joint.zeros()))
    return way.integrate(joint, starting_vectors(joint, guess))


def prepare_integrals(model: Model, data: Data) -> dict[str, Any]:
    """By integral, what its way computes from the data alone, once per fit; nothing for ways that need nothing."""
    prepared = {integral.axis: integral.way.prepare(model, integral, data) for integral in model.integrals}
    return {axis: found for axis, found in prepared.items() if found is not None}


def atom_weights(
    model: Model, integral: Integral, integrated: Integrated, weight: jax.Array, params: Params, data: Data
) -> dict[str, jax.Array]:
    """By site that depends on an integrated latent, the posterior weights of the cells of its table.

    Args:
        integrated: their atoms.
        weight: posterior weight of the evidence of every cell.
    """
    joint = Joint(model, integral, params, data)
    shapes = jax.eval_shape(joint.tables_at, integrated.atoms)
    cells = jax.eval_shape(joint.by_cell, shapes)
    (weights,) = jax.linear_transpose(joint.by_cell, shapes)(jnp.broadcast_to(weight * integrated.shares, cells.shape))
    constant = integral.way.constant_sites
    return {name: jnp.zeros_like(table) if name in constant else table for name, table in weights.items()}

"""Strategies of discrete latents: one for all that meet in sites, and one for all latents that are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emppl.errors import ModelError
from emppl.model.model import Model
from emppl.names import latent_of, model_name
from emppl.strategies import Simulated, Strategy
from emppl.trace import Trace


def discrete_strategies(trace: Trace, wishes: Mapping[str, Any]) -> dict[str, Strategy]:
    """What the user said about discrete latents, all steps of a scan alike.

    Args:
        wishes: strategies by the model's own names.
    """
    discrete = [name for name, site in trace.sites.items() if site.kind == "discrete"]
    return {name: wishes[model_name(name)] for name in discrete if model_name(name) in wishes}


def check_components(model: Model) -> None:
    """Refuse a sum and a best value for latents that meet.

    Raises:
        ModelError: latents that meet have different strategies, or one that does not go with a continuous latent's.
    """
    picked = {model_name(latent_of(axis)) for axis in model.picked}
    if not picked:
        return
    kinds = {type(model.strategies[name]) for name in picked}
    if len(kinds) > 1:
        names = ", ".join(f"{name!r}: {model.strategies[name]!r}" for name in sorted(picked))
        raise ModelError(f"Discrete latents that are not summed over need one strategy; there are {{{names}}}.")
    for together, site in _components(model):
        summed, chosen = sorted(together - picked), sorted(together & picked)
        if summed and chosen:
            strategy = model.strategies[chosen[0]]
            line = ", ".join(f"{name!r}: {strategy!r}" for name in sorted(together))
            raise ModelError(
                f"{chosen[0]!r} has {strategy!r} and {summed[0]!r} is summed over, but they meet (in site {site!r}, or "
                "through other latents): the best value of one and the sum over the other are not found in any "
                f"one order. Write EM(model, latents={{{line}}}), or leave all of them to Enumerate()."
            )
    for name in model.latents:
        if model_name(name) in model.drawn and "cell_weight" in model.factors[name].latents:
            raise ModelError(
                f"{name!r} has weights (handlers.scale) and is drawn by StochasticEM(): a cell that counts several "
                "times would get the same draw every time. Repeat its rows, or leave the latent to Enumerate()."
            )
    for integral in model.integrals:
        drawn = sorted({model_name(name) for name in integral.given} & picked)
        if model.drawn and isinstance(integral.strategy, Simulated) and drawn:
            raise ModelError(
                f"{drawn[0]!r} is drawn by StochasticEM() and {integral.latents[0]!r} by "
                f"{integral.strategy!r}, which does not work where they meet. Integrate the continuous "
                f"latent: EM(model, latents={{{integral.latents[0]!r}: Quadrature(15)}}), or Gaussian() or Laplace()."
            )
        if model.hard and isinstance(integral.strategy, Simulated):
            raise ModelError(
                f"Hard() takes the best value of {model.hard[0]!r} by comparing log-likelihoods, and those of "
                f"{integral.latents[0]!r} under {integral.strategy!r} are noisy. Integrate {integral.latents[0]!r} by "
                "Gaussian(), Quadrature(15) or Laplace(), or leave the discrete latent to Enumerate()."
            )


def check_simulated(model: Model, wishes: Mapping[str, Any]) -> None:
    """Refuse different strategies for latents that are drawn: one loop, with one number of draws, makes the fit.

    Args:
        wishes: strategies by the model's own names.

    Raises:
        ModelError: latents are drawn by strategies that are not equal.
    """
    drawn = {model_name(n): strategy for n, strategy in model.strategies.items() if isinstance(strategy, Simulated)}
    if len(set(drawn.values())) <= 1:
        return
    # A discrete latent leaves no choice, and a default is no wish.
    first = next(iter([*model.drawn, *(name for name in drawn if name in wishes), *drawn]))
    there_are, line = (
        ", ".join(f"{name!r}: {strategies[name]!r}" for name in sorted(drawn))
        for strategies in (drawn, dict.fromkeys(drawn, drawn[first]))
    )
    raise ModelError(
        f"Latents that are drawn need one and the same strategy, because one loop draws them all; there are "
        f"{{{there_are}}}. Write EM(model, latents={{{line}}}), or integrate some of them without draws: "
        "Gaussian(), Quadrature(15) or Laplace()."
    )


def _components(model: Model) -> list[tuple[set[str], str]]:
    """Discrete latents that meet in sites, directly or through others, each with a site where some of them do."""
    touching: list[tuple[set[str], str]] = []
    given = {integral.axis: set(integral.given) for integral in model.integrals}
    inside = {name: integral.axis for integral in model.integrals for name in integral.factors}
    for name, factor in model.factors.items():
        axes = given[inside[name]] if name in inside else set(factor.all_latents - model.axes.of_atoms)
        axes -= model.axes.of_atoms
        if axes:
            touching.append(({model_name(latent_of(axis)) for axis in axes}, name))
    components: list[tuple[set[str], str]] = []
    for names, site in touching:
        apart = [component for component in components if not component[0] & names]
        merged = [component for component in components if component[0] & names]
        site = site if len(names) > 1 or not merged else merged[0][1]
        components = [*apart, (names.union(*(component[0] for component in merged)), site)]
    return components

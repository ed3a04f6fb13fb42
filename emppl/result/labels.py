"""Components that a posterior cannot tell apart, and draws whose components are numbered as those of an estimate.

Reference:
    Kuhn (1955), The Hungarian method for the assignment problem; Stephens (2000), Dealing with label switching.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

Axes = Mapping[str, tuple[int, ...]]
"""By parameter, its axes that run over the states of a latent."""

_MOST_ROUNDS = 50
"""Most times that scales and numbers are taken from each other."""

_MOST_TRIED = 5
"""Most states of which all permutations are tried."""


def exchangeable_groups(
    density: Callable[[dict[str, np.ndarray]], float], points: Sequence[dict[str, np.ndarray]], axes: Axes
) -> list[list[int]]:
    """States whose numbers can be exchanged without a change of the joint density, in groups of two and more.

    Args:
        density: log-likelihood plus log prior of some parameters.
        points: parameters at which this is tried.
        axes: of the parameters that are renumbered.
    """
    name, places = next(iter(axes.items()))
    states = points[0][name].shape[places[0]]
    groups = [[state] for state in range(states)]
    before = [density(point) for point in points]
    if not np.all(np.isfinite(before)):
        return []
    rounding = float(np.sqrt(jnp.finfo(jnp.result_type(float)).eps))
    for one, other in itertools.combinations(range(states), 2):
        mine, theirs = (next(group for group in groups if state in group) for state in (one, other))
        if mine is theirs:
            continue
        order = np.arange(states)
        order[[one, other]] = other, one
        after = [density(renumbered(point, order, axes)) for point in points]
        if np.allclose(before, after, rtol=rounding, atol=rounding):
            groups.remove(theirs)
            mine.extend(theirs)
    return [sorted(group) for group in groups if len(group) > 1]


def renumbered(params: Mapping[str, np.ndarray], order: np.ndarray, axes: Axes) -> dict[str, np.ndarray]:
    """Parameters whose component ``i`` is what was component ``order[i]``."""
    moved = dict(params)
    for name, places in axes.items():
        for axis in places:
            moved[name] = np.take(moved[name], order, axis)
    return moved


def best_orders(
    draws: Mapping[str, np.ndarray], estimate: Mapping[str, np.ndarray], axes: Axes, group: Sequence[int]
) -> np.ndarray:
    """Which component of every draw is each component of the estimate.

    Components are compared entry by entry, in units of how much an entry varies over draws of *its* component; numbers
    and these scales are found in turn, from the numbers that draws have. A draw keeps its numbers unless others are
    better.

    Args:
        draws: ``(draws, *shape)`` by parameter.
        estimate: by parameter.
        axes: of the parameters that are renumbered.
        group: exchangeable states.

    Returns:
        ``(draws, states)``.
    """
    single = {name: places[0] for name, places in axes.items() if len(places) == 1}
    if not single:
        return _by_trial(draws, estimate, axes, group)
    theirs = _by_component(draws, single)[:, group]
    ours = _by_component({name: estimate[name][None] for name in single}, single)[0, group]
    name, axis = next(iter(single.items()))
    states = estimate[name].shape[axis]
    identity = np.tile(np.arange(len(group)), (len(theirs), 1))
    best, least = identity, np.inf
    # Numbers that differ between draws blow up the scales they are seen in: the nearest components are tried as well.
    for start in (identity, _assigned(theirs, ours, _nearest_scale(theirs, ours))):
        orders, reference = start, ours
        for _ in range(_MOST_ROUNDS):
            after = _assigned(theirs, reference, _scale(_ordered(theirs, orders), reference))
            if np.array_equal(after, orders):
                break
            orders = after
            reference = np.mean(_ordered(theirs, orders), 0)
        spread = float(np.sum(np.log(_scale(_ordered(theirs, orders), None))))
        if spread < least - 1e-9:
            best, least = orders, spread
    best = _towards(best, theirs, ours)
    whole = np.tile(np.arange(states), (len(theirs), 1))
    whole[:, group] = np.asarray(group)[best]
    return whole


def _by_component(draws: Mapping[str, np.ndarray], single: Mapping[str, int]) -> np.ndarray:
    """All entries of every component, ``(draws, components, entries)``."""
    parts = [np.moveaxis(draws[name], 1 + axis, 1) for name, axis in single.items()]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], -1)


def _ordered(theirs: np.ndarray, orders: np.ndarray) -> np.ndarray:
    return np.take_along_axis(theirs, orders[:, :, None], 1)


def _scale(matched: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """How much every entry of a component varies over draws, ``(components, entries)``."""
    centre = np.mean(matched, 0) if reference is None else reference
    spread = np.sqrt(np.mean((matched - centre) ** 2, 0))
    # An entry may be the same in all draws of a component, and another one in the next component.
    return np.maximum(spread, 1e-12 * np.max(np.abs(centre) + spread, 0) + np.finfo(float).tiny)


def _nearest_scale(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """A first guess: distances of every component to the nearest one of every draw."""
    least = 1e-12 * np.max(np.abs(theirs), (0, 1)) + np.finfo(float).tiny
    rough = np.maximum(np.std(theirs, (0, 1)), least)
    gaps = ((theirs[:, None] - ours[None, :, None]) / rough) ** 2
    nearest = np.argmin(gaps.sum(-1), -1)
    return _scale(_ordered(theirs, nearest), ours)


def _assigned(theirs: np.ndarray, reference: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The best numbers of every draw, its own where none are better."""
    from scipy.optimize import linear_sum_assignment

    cost = (((theirs[:, None] - reference[None, :, None]) / scale[None, :, None]) ** 2).sum(-1)
    own = np.arange(cost.shape[-1])
    orders = np.array([linear_sum_assignment(matrix)[1] for matrix in cost])
    mine, best = (np.take_along_axis(cost, o[..., None], 2).sum((1, 2)) for o in (np.tile(own, (len(cost), 1)), orders))
    return np.where((best < mine * (1 - 1e-9))[:, None], orders, own)


def _towards(orders: np.ndarray, theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """The same numbers in the order of the estimate."""
    matched = _ordered(theirs, orders)
    means = np.mean(matched, 0, keepdims=True)
    order = _assigned(means, ours, _scale(matched, None))[0]
    return orders[:, order]


def _by_trial(
    draws: Mapping[str, np.ndarray], estimate: Mapping[str, np.ndarray], axes: Axes, group: Sequence[int]
) -> np.ndarray:
    """The same where every parameter has the states along several axes, so that no assignment gives the best numbers.

    Of few states all permutations are tried; of many, exchanges of two, from an assignment by sorted entries.
    """
    name, places = next(iter(axes.items()))
    states, count = estimate[name].shape[places[0]], len(draws[name])
    return np.array(
        [
            _nearest({n: draws[n][row] for n in axes}, estimate, axes, list(group), np.arange(states))
            for row in range(count)
        ]
    )


def _nearest(
    draw: Mapping[str, np.ndarray], estimate: Mapping[str, np.ndarray], axes: Axes, group: list[int], own: np.ndarray
) -> np.ndarray:
    def gap(order: np.ndarray) -> float:
        moved = renumbered(draw, order, axes)
        return float(sum(np.sum((moved[name] - estimate[name]) ** 2) for name in axes))

    def placed(within: Sequence[int]) -> np.ndarray:
        order = own.copy()
        order[group] = within
        return order

    if len(group) <= _MOST_TRIED:
        tried = [placed(within) for within in itertools.permutations(group)]
        gaps = [gap(order) for order in tried]
        return tried[int(np.argmin(gaps))]  # the own numbers come first, and stay where no others are nearer
    best, least = own, gap(own)
    for start in (own, placed(np.asarray(group)[_by_looks(draw, estimate, axes, group)])):
        order, now = start, gap(start)
        improves = True
        while improves:
            improves = False
            for one, other in itertools.combinations(group, 2):
                swapped = order.copy()
                swapped[[one, other]] = order[[other, one]]
                after = gap(swapped)
                if after < now * (1 - 1e-9):
                    order, now, improves = swapped, after, True
        if now < least * (1 - 1e-9):
            best, least = order, now
    return best


def _by_looks(
    draw: Mapping[str, np.ndarray], estimate: Mapping[str, np.ndarray], axes: Axes, group: list[int]
) -> np.ndarray:
    """An assignment by what does not depend on numbers: the entries of every component along each axis, sorted."""
    from scipy.optimize import linear_sum_assignment

    def looks(params: Mapping[str, np.ndarray]) -> np.ndarray:
        parts = [np.moveaxis(params[name], axis, 0)[group] for name, places in axes.items() for axis in places]
        return np.concatenate([np.sort(part.reshape(len(group), -1), 1) for part in parts], 1)

    ours, theirs = looks(estimate), looks(draw)
    return linear_sum_assignment(((ours[:, None] - theirs[None]) ** 2).sum(-1))[1]

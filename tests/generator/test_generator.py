"""Random models beside brute force: what emppl says of them is right, or refused in words; nothing else happens."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from tests.generator.charts import Chart
from tests.generator.compare import Outcome, compare, same_density
from tests.generator.draw import KINDS, draw
from tests.generator.known import KNOWN

OFF = frozenset(KNOWN)
DEFAULT, MANY = 24, 48  # models of the default run, and of the slow one; more by hand: python -m tests.generator


def outcome(seed: int, depth: int) -> Outcome:
    """What came of one model; the test fails with the model's text if that is neither right nor a refusal."""
    program, right = draw(seed, None, OFF, depth > 2)
    found = compare(program, right, depth, np.random.default_rng(seed))
    if found.status not in ("right", "refused"):
        pytest.fail(f"seed {seed}: {found.status}: {found.what}\n{program.script}  # right: {right.log_likelihood}")
    return found


@pytest.mark.parametrize("seed", range(DEFAULT))
def test_random_models(seed):
    outcome(seed, depth=(0, 1, 0, 2)[seed % 4])


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(8))
def test_many_random_models(shard):
    counts = collections.Counter(
        outcome(seed, depth=2 + seed % 2).status for seed in range(1000 + shard, 1000 + MANY, 8)
    )
    assert counts["refused"] < 0.4 * counts.total(), counts


@pytest.mark.parametrize("kind", KINDS)
def test_the_stand_in_has_the_density_of_numpyro(kind):
    for seed in range(3):
        program, _ = draw(seed, kind, OFF)
        if program.weights is None:
            by_numpyro, plainly = same_density(program, np.random.default_rng(seed))
            assert np.isclose(by_numpyro, plainly, rtol=1e-10, atol=1e-9), program.script


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_a_model(kind):
    first, again = (draw.__wrapped__(7, kind, OFF)[0] for _ in range(2))
    assert first.script == again.script


def test_a_wrong_answer_is_found():
    program, right = draw(0, "discrete", OFF)
    assert compare(program, right, 0).status == "right"
    name = next(name for name in program.params if program.kinds[name] in ("unit", "simplex", "positive"))
    moved = Chart({name: program.kinds[name]}, program.params)
    other = moved.params(moved.vector(program.params) + 1e-4)
    elsewhere = dataclasses.replace(program, params=program.params | other)
    assert compare(elsewhere, right, 0).status == "wrong"


def test_coordinates_come_back():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 2, 2))
    params = {
        "a": rng.normal(size=(2, 3)),
        "b": rng.uniform(0.1, 3, 4),
        "c": rng.uniform(size=()),
        "d": rng.dirichlet(np.ones(3), (2, 2)),
        "e": root @ root.swapaxes(-1, -2) + np.eye(2),
    }
    chart = Chart(dict(zip("abcde", ["real", "positive", "unit", "simplex", "matrix"], strict=True)), params)
    back = chart.params(chart.vector(params))
    assert chart.dimension == 6 + 4 + 1 + 8 + 9
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-12), back, params)

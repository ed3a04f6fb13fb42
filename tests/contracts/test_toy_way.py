"""A way of integrating that a user writes outside of emppl: its strategy is passed to EM, and no list knows it."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import emppl
from emppl.errors import Refusal
from emppl.integrals import Way, weighted_points
from emppl.strategies import Continuous, ObjectiveKind


class OnGrid(Way):
    @classmethod
    def propose(cls, question):
        if question.integral.dimensions > 1:
            return Refusal(f"Trapezoidal() integrates one number, and {question.names} are more.")
        return cls(question.asked, question.reason)

    def integrate(self, joint, start):
        grid = jnp.linspace(-self.strategy.reach, self.strategy.reach, self.strategy.num_points)
        points = jnp.broadcast_to(grid[:, None, None], (len(grid), joint.integral.groups, 1))
        return weighted_points(joint, points, jnp.log(grid[1] - grid[0]))


@dataclasses.dataclass(frozen=True)
class Trapezoidal(Continuous):
    num_points: int = 121
    reach: float = 6.0

    title = "trapezoidal rule on a fixed grid"
    objective_kind = ObjectiveKind.QUADRATURE
    way = OnGrid

    def atoms(self, dimensions):
        return self.num_points

    def finer(self, dimensions):
        return dataclasses.replace(self, num_points=2 * self.num_points - 1)


def counts_by_group(counts):
    level = numpyro.param("level", jnp.array(0.0))
    spread = numpyro.param("spread", jnp.array(0.5), constraint=constraints.positive)
    with numpyro.plate("groups", counts.shape[1]):
        effect = numpyro.sample("effect", dist.Normal(0, spread))
        with numpyro.plate("repeats", counts.shape[0]):
            numpyro.sample("counts", dist.Poisson(jnp.exp(level + effect)), obs=counts)


def fitted(strategy):
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.exp(0.5 + 0.8 * rng.standard_normal(40)), (3, 40))
    em = emppl.EM(counts_by_group, latents={"effect": strategy}, progress_bar=False)
    return em, em.run(jax.random.key(0), counts), counts


def test_a_toy_way_fits():
    assert len(inspect.getsource(OnGrid).splitlines() + inspect.getsource(Trapezoidal).splitlines()) < 40
    em, toy, counts = fitted(Trapezoidal())
    assert toy.converged
    plan = str(em.plan(counts))
    assert "trapezoidal rule on a fixed grid" in plan and "121 atoms" in plan and "not quadratic" in plan
    _, expected, _ = fitted(emppl.Quadrature(31))
    np.testing.assert_allclose(toy.log_likelihood, expected.log_likelihood, rtol=1e-9)
    for name in ("level", "spread"):
        np.testing.assert_allclose(toy.params[name], expected.params[name], rtol=1e-5)
    for mine, other in zip(toy.posterior("effect"), expected.posterior("effect"), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4)
    for name, error in toy.standard_errors().items():
        np.testing.assert_allclose(error, expected.standard_errors()[name], rtol=1e-4)
    assert abs(toy.integration_error.log_likelihood) < 1e-6
    mean, variance = toy.posterior("effect")
    draws = np.asarray(toy.sample_posterior(jax.random.key(1), 400)["effect"])
    deviations = (draws.mean(0) - np.asarray(mean)) / np.sqrt(np.asarray(variance) / len(draws))
    assert np.abs(deviations).max() < 5
    np.testing.assert_allclose(draws.var(0).mean(), np.mean(variance), rtol=0.05)


def test_a_toy_way_refuses():
    def pairs(y):
        scale = numpyro.param("scale", jnp.array(0.5), constraint=constraints.positive)
        with numpyro.plate("groups", len(y)):
            effects = numpyro.sample("effects", dist.Normal(0, scale).expand([2]).to_event(1))
            numpyro.sample("y", dist.Poisson(jnp.exp(effects.sum(-1))), obs=y)

    with pytest.raises(emppl.ModelError, match="integrates one number, and 'effects' are more"):
        emppl.EM(pairs, latents={"effects": Trapezoidal()}).plan(np.arange(5))


def test_a_strategy_without_a_way():
    class Wish(Trapezoidal):
        way = None

    with pytest.raises(emppl.ModelError, match=r"has no `way`, a subclass of emppl.integrals.Way"):
        emppl.EM(counts_by_group, latents={"effect": Wish()}).plan(np.ones((3, 4), int))

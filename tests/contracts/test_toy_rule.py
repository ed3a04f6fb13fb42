"""An M-step rule from outside the package, given as ``EM(m_step={"mu": rule})``: what a researcher who prototypes writes."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import norm

import emppl
from emppl.errors import Refusal
from emppl.mstep import Maximisation, Rule, RuleContext

SCALE = 0.05


@dataclasses.dataclass(frozen=True)
class SoftThreshold(Rule):
    """Weighted mean under a Laplace prior, zero where the data do not outweigh it."""

    kind: ClassVar[str] = "soft threshold"
    exact: ClassVar[bool] = True

    @classmethod
    def propose(cls, context: RuleContext, name: str) -> Rule | Refusal:
        site = context.model.trace.sites[name]
        return super().propose(context, name) if site.distribution == "Laplace" else Refusal("its prior has no corner")

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        (name,) = self.parameters
        arrays = step.evaluate(step.params, frozenset([("x", "value"), (name, "distribution")]))
        weights = step.expectations.weights["x"]
        total, count = weights @ arrays["x"].value, jnp.sum(weights, -1)
        kept = jnp.maximum(jnp.abs(total) - 1 / arrays[name].distribution.scale, 0)
        return {name: jnp.sign(total) * kept / count}


@dataclasses.dataclass(frozen=True)
class Tempered(Rule):
    """Two means at once, each a part of the way to its weighted mean, further at every step."""

    speed: float = 0.5

    def begin(self, model, params):
        return jnp.zeros(())

    def update(self, step: Maximisation) -> dict[str, jax.Array]:
        past = step.memory[self.name]
        step.memory[self.name] = past + 1
        value = step.evaluate(step.params, frozenset([("x", "value")]))["x"].value
        weights = step.expectations.weights["x"]
        means = weights @ value / jnp.sum(weights, -1)
        share = 1 - self.speed ** (past + 1)
        return {n: (1 - share) * step.params[n] + share * mean for n, mean in zip(self.parameters, means, strict=True)}


def sparse(x, prior=dist.Laplace):
    mu = numpyro.sample("mu", prior(jnp.zeros(2), SCALE).to_event(1))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def free(x):
    left, right = numpyro.param("left", -1.0), numpyro.param("right", 1.0)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(jnp.where(z == 0, left, right), 1.0), obs=x)


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return np.where(rng.random(300) < 0.4, rng.normal(3.0, 1.0, 300), rng.normal(0.02, 1.0, 300))


@pytest.mark.parametrize("rule", [SoftThreshold, SoftThreshold(("mu",), "soft-thresholded")], ids=["class", "object"])
def test_a_rule_from_outside_finds_the_posterior_mode(x, rule):
    em = emppl.EM(sparse, m_step={"mu": rule}, progress_bar=False)
    (parameter,) = em.plan(x).parameters
    assert parameter.rule == "soft threshold"
    result = em.run(jax.random.key(0), x, init_params={"mu": np.array([0.1, 2.0])})

    def height(mu):
        terms = norm.logpdf(x[:, None], mu, 1.0) + np.log([0.6, 0.4])
        return np.sum(logsumexp(terms, 1)) - np.sum(np.abs(mu)) / SCALE - 2 * np.log(2 * SCALE)

    best = minimize(lambda mu: -height(mu), [0.1, 2.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-10})
    assert result.converged and result.params["mu"][0] == 0
    np.testing.assert_allclose(result.params["mu"], best.x, atol=1e-5)
    np.testing.assert_allclose(result.log_posterior, height(np.asarray(result.params["mu"])), rtol=1e-12)


def test_a_rule_that_does_not_apply_says_why(x):
    with pytest.raises(emppl.ModelError, match=r"does not apply to 'mu': its prior has no corner\."):
        emppl.EM(sparse, m_step={"mu": SoftThreshold}).plan(x, prior=dist.Normal)


def test_a_rule_of_a_block_that_remembers(x):
    rule = Tempered(("left", "right"), "part of the way", speed=0.3)
    result = emppl.EM(free, m_step={"left": rule, "right": rule}, progress_bar=False).run(jax.random.key(0), x)
    closed = emppl.EM(free, progress_bar=False).run(jax.random.key(0), x)
    assert result.converged
    np.testing.assert_allclose(result.log_likelihood, closed.log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(result.params["right"], closed.params["right"], atol=1e-4)


def test_a_rule_is_given_to_all_of_its_block(x):
    with pytest.raises(emppl.ParameterError, match="give it to each of these"):
        emppl.EM(free, m_step={"left": Tempered(("left", "right"), "part of the way")}).plan(x)

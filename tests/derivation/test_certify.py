"""What an M-step claims, and rules that claim what is not so."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import emppl
from emppl.derivation.certify import checks, faults
from emppl.mstep import Rule
from tests.contracts.test_rules import EXAMPLES
from tests.contracts.test_rules import Y as ROWS
from tests.kit.fits import compiled_of

RNG = np.random.default_rng(2)
GROUP = RNG.random(80) < 0.4
X = np.stack([np.ones(80), RNG.normal(size=80)], 1)
Y = np.where(GROUP, X @ [-2.0, 0.5], X @ [2.0, -0.7]) + 0.8 * RNG.normal(size=80)


@dataclasses.dataclass(frozen=True)
class Planted(Rule):
    """A rule whose outcome is made wrong.

    Attributes:
        rule: what it was.
        wrong: the value before and the right one after -> what comes out.
    """

    rule: Rule = None
    wrong: Callable = None

    kind: ClassVar[str] = "planted"
    exact: ClassVar[bool] = True

    def update(self, step):
        """The right update, made wrong."""
        before = {name: step.params[name] for name in self.parameters}
        return {name: self.wrong(before[name], value) for name, value in self.rule.update(step).items()}


def checked(model, data, start, planted=None, **options):
    """Certify one M-step, in which some rules may be planted ones."""
    compiled, leaves = compiled_of(emppl.EM(model, progress_bar=False, **options), *data)
    params = {name: jnp.asarray(start[name]) for name in compiled.model.free}
    rules = [
        Planted(rule.parameters, "", rule=rule, wrong=planted[name])
        if (name := rule.parameters[0]) in planted
        else rule
        for planted in [planted or {}]
        for rule in compiled.program.blocks
    ]
    posterior = compiled.e_step(params, leaves)
    found = jax.jit(lambda *args: checks(compiled.model, rules, *args))(params, posterior, leaves)
    return found, faults(found)


def mixture(y):
    weights = numpyro.param("weights", jnp.ones(2) / 2, constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    sigma = numpyro.param("sigma", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("y", dist.Normal(mu[z], sigma[z]), obs=y)


def regressions(x, y):
    beta = numpyro.param("beta", jnp.array([[-1.0, 0.1], [1.0, 0.2]]))
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal((beta[z] * x).sum(-1), sigma), obs=y)


MIXTURE = {"weights": np.array([0.4, 0.6]), "mu": np.array([-1.0, 1.5]), "sigma": np.array([1.1, 0.9])}
REGRESSIONS = {"beta": np.array([[-1.0, 0.1], [1.0, 0.2]]), "sigma": np.array(1.2)}
PLANTED = {
    "mean off by one part in ten thousand": (mixture, "mu", lambda old, new: new * 1.0001),
    "unbiased variance": (mixture, "sigma", lambda old, new: new * np.sqrt(80 / 79)),
    "standard deviation for variance": (mixture, "sigma", lambda old, new: new**2),
    "weights with a pseudo-count": (mixture, "weights", lambda old, new: (new * 80 + 0.1) / 80.2),
    "components exchanged": (mixture, "weights", lambda old, new: new[::-1]),
    "the old value": (mixture, "mu", lambda old, new: old),
    "a step in the wrong direction": (regressions, "beta", lambda old, new: 2 * old - new),
    "half a step": (regressions, "beta", lambda old, new: (old + new) / 2),
    "one coefficient forgotten": (regressions, "beta", lambda old, new: new.at[0, 1].set(old[0, 1])),
    "NaN": (regressions, "sigma", lambda old, new: new * jnp.nan),
    "all weight on a bound": (mixture, "weights", lambda old, new: jnp.array([1.0, 0.0])),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_in_its_block(name):
    model, block, wrong = PLANTED[name]
    data, start = ((X, Y), REGRESSIONS) if model is regressions else ((Y,), MIXTURE)
    found, wrongly = checked(model, data, start, {block: wrong})
    assert list(wrongly) == [block]
    check = wrongly[block]
    if name in ("the old value", "half a step", "mean off by one part in ten thousand", "unbiased variance"):
        assert check.gain >= 0 and check.left > check.noise
    if name in ("a step in the wrong direction", "all weight on a bound"):
        assert check.gain < -1


def test_what_a_wrong_mean_leaves_is_known():
    """A mean that is off by d leaves ``weight * d^2 / (2 sigma^2)`` nats; a fixed sigma keeps that exact."""

    def model(y):
        mu = numpyro.param("mu", 0.5)
        with numpyro.plate("rows", len(y)):
            numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    found, wrongly = checked(model, (Y,), {"mu": np.array(0.5)}, {"mu": lambda old, new: new + 0.01})
    most = 80 * 0.01**2 / (2 * 2.0**2)
    assert 0.5 * most < wrongly["mu"].left <= most * (1 + 1e-6)
    np.testing.assert_allclose(found["mu"].gain, 80 * ((0.5 - Y.mean()) ** 2 - 0.01**2) / 8, rtol=1e-9)


@pytest.mark.parametrize("kind", [name for name in EXAMPLES if name != "Fixed"])
def test_every_rule_is_clean(kind):
    """Medians and edges as well, where slopes say nothing."""
    example = EXAMPLES[kind]
    found, wrongly = checked(example.model, (ROWS,), example.start, **example.options)
    assert wrongly == {} and all(check.gain > 1e-3 for check in found.values())


def test_off_the_median_and_beyond_the_edge():
    for kind, name, wrong in (
        ("Median", "mu", lambda old, new: new + 0.3),
        ("Edge", "high", lambda old, new: new * 1.01),
        ("Edge", "high", lambda old, new: new * 0.99),
    ):
        example = EXAMPLES[kind]
        _, wrongly = checked(example.model, (ROWS,), example.start, {name: wrong})
        assert list(wrongly) == [name], kind


def test_weights_that_go_to_zero_are_at_their_maximum():
    """A category that never occurs gets probability zero: no way up from that bound."""

    def model(x):
        probs = numpyro.param("probs", jnp.full((2, 3), 1 / 3), constraint=constraints.simplex)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Categorical(probs[z]), obs=x)

    x = np.array([0, 1, 1, 0, 1])
    start = {"probs": np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])}
    found, wrongly = checked(model, (x,), start)
    assert wrongly == {} and found["probs"].gain > 0.1
    _, wrongly = checked(model, (x,), start, {"probs": lambda old, new: jnp.array([[0.0, 1, 0], [0.5, 0.5, 0]])})
    assert list(wrongly) == ["probs"]

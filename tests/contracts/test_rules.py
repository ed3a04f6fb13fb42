"""Every M-step rule, found in emppl/mstep: where it ends there is no way up, and it never lowers Q."""

import dataclasses
import importlib
import inspect
import pathlib
import typing
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import biject_to, constraints

import emppl.mstep
from emppl.mstep import policy
from emppl.mstep.given import Fixed
from emppl.mstep.rule import Rule
from tests.kit.brute_force import unconstrained_gradient
from tests.kit.fits import compiled_of

MODULES = [
    importlib.import_module(f"emppl.mstep.{path.stem}")
    for path in sorted(pathlib.Path(emppl.mstep.__file__).parent.glob("[a-z]*.py"))
]
RULES = [
    kind
    for module in MODULES
    for kind in vars(module).values()
    if inspect.isclass(kind) and issubclass(kind, Rule) and kind is not Rule and kind.__module__ == module.__name__
]
RNG = np.random.default_rng(0)
GROUP = RNG.random(60) < 0.4
X = RNG.normal(size=(60, 2))
Y = np.where(GROUP, RNG.normal(-2, 0.7, 60), RNG.normal(2, 1.2, 60))


@dataclasses.dataclass(frozen=True)
class Example:
    """A model of which every parameter that is estimated has the rule.

    Attributes:
        build: parameters by name -> distribution of ``Y`` given the state of a latent.
        start: of the parameters.
        constraints: of those that are not real.
        options: of EM.
        is_smooth: whether Q has a gradient at its maximum.
    """

    build: Callable
    start: Mapping[str, object]
    constraints: Mapping[str, object] = dataclasses.field(default_factory=dict)
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    is_smooth: bool = True

    def support(self, name):
        return self.constraints.get(name, constraints.real)

    def model(self, y):
        values = {n: numpyro.param(n, jnp.asarray(v), constraint=self.support(n)) for n, v in self.start.items()}
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", self.build(z, **values), obs=y)


def means(params, posterior):
    weight = posterior.weights["y"]
    return weight @ Y / weight.sum(-1)


def normal(z, mu):
    return dist.Normal(mu[z], 1.0)


def logistic(z, mu):
    return dist.Logistic(mu[z], 1.0)


MU = {"mu": [-1.0, 1.0]}
EXAMPLES = {
    "Fixed": Example(normal, MU, options={"fixed": {"mu": np.array([-1.0, 1.0])}}),
    "UserUpdate": Example(normal, MU, options={"m_step": {"mu": means}}),
    "ClosedForm": Example(normal, MU),
    "Constrained": Example(normal, MU, {"mu": constraints.ordered_vector}),
    "Median": Example(lambda z, mu: dist.Laplace(mu[z], 1.0), MU, is_smooth=False),
    "Edge": Example(lambda z, high: dist.Uniform(-20.0, high[z]), {"high": [7.0, 9.0]}, is_smooth=False),
    "Quadratic": Example(lambda z, beta: dist.Normal((beta[z] * X).sum(-1), 1.0), {"beta": [[1.0, 0.0], [-1.0, 0.0]]}),
    "Newton": Example(logistic, MU),
    "Numeric": Example(logistic, MU, options={"optimizer": optax.lbfgs()}),
}
EVERY = pytest.mark.parametrize("kind", RULES, ids=lambda kind: kind.__name__)


def test_every_rule_is_found_and_has_an_example():
    assert [kind.__name__ for kind in RULES if kind.__name__ not in EXAMPLES] == []
    assert len({kind.kind for kind in RULES}) == len(RULES)
    assert set(RULES) == set(policy.RULES)


@EVERY
def test_attributes_are_documented(kind):
    """Every field and every attribute of the class has its line in the docstring of the rule or of ``Rule``."""
    documented = (Rule.__doc__ or "") + (kind.__doc__ or "")
    fields = {field.name for field in dataclasses.fields(kind)}
    fields |= {name for name, value in Rule.__annotations__.items() if "ClassVar" in str(value)}
    assert {name for name in fields if f"{name}: " not in documented} == set()
    assert kind.__doc__ and kind.update.__doc__ and typing.get_type_hints(kind.update)


@EVERY
def test_no_way_up_from_the_outcome(kind):
    """Updates at one posterior, one if the rule is exact: Q never falls, and is no higher anywhere near the last."""
    example = EXAMPLES[kind.__name__]
    em = emppl.EM(example.model, **example.options)
    (rule,) = {type(rule) for rule in compiled_of(em, Y)[0].program.rules.values()}
    assert rule is kind
    params = {name: jnp.asarray(value) for name, value in example.start.items()}
    posterior = em.e_step(params, Y)
    heights = [float(em.q(params, posterior, Y))]
    for _ in range(1 if kind.exact else 20):
        updated = em.m_step(params, posterior, Y)
        assert set(updated) == (set(params) if kind.free else set())
        params = {**params, **updated}
        heights.append(float(em.q(params, posterior, Y)))
    rounding = 1e-12 * abs(heights[0])
    assert np.diff(heights).min() >= -rounding
    if kind is Fixed:
        return
    assert heights[-1] > heights[0] + 0.01, "the start is no test"
    maps = {name: biject_to(example.support(name)) for name in params}
    free, unravel = jax.flatten_util.ravel_pytree({name: maps[name].inv(value) for name, value in params.items()})
    near = jax.jit(jax.vmap(lambda v: em.q({n: maps[n](u) for n, u in unravel(v).items()}, posterior, Y)))
    steps = 1e-3 * np.concatenate([np.eye(free.size), -np.eye(free.size)])
    assert np.max(near(np.asarray(free) + steps)) <= heights[-1] + rounding
    if example.is_smooth:
        supports = {name: example.support(name) for name in params}
        slope = unconstrained_gradient(lambda values: em.q(values, posterior, Y), params, supports)
        assert max(np.abs(part).max() for part in slope.values()) < (1e-9 if kind.exact else 1e-5)

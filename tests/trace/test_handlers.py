"""NumPyro's handlers around a model, or around a part of it: the likelihood is that of the model they make."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from scipy import stats

import emppl
from tests.kit.fits import KEY

RNG = np.random.default_rng(0)
N, STEPS = 8, 12
Y, WALK = RNG.normal(size=N) + 1, np.cumsum(RNG.normal(size=STEPS))
normal = stats.norm.logpdf
AT = {"mu": 0.5, "s": 1.2}
RIGHT, PRIOR = normal(Y, 0.5, 1.2).sum(), stats.halfnorm.logpdf(1.2, scale=5)


def simple(y=None):
    mu, s = numpyro.sample("mu", dist.Normal(0, 10)), numpyro.sample("s", dist.HalfNormal(5))
    with numpyro.plate("rows", N):
        numpyro.sample("y", dist.Normal(mu, s), obs=y)


def declared(y):
    mu, s = numpyro.param("mu", 0.0), numpyro.param("s", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", N):
        numpyro.sample("y", dist.Normal(mu, s), obs=y)


def traced():
    with handlers.seed(rng_seed=0), handlers.substitute(data={"s": jnp.array(1.2)}):
        return {"s": handlers.trace(simple).get_trace(Y)["s"]}


def hidden(y):
    with handlers.block(hide=["junk"]):
        numpyro.sample("junk", dist.Normal(0, 1), rng_key=KEY)
    simple(y)


def without_priors(y):
    with handlers.mask(mask=False):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
    s = numpyro.sample("s", dist.HalfNormal(5).mask(False))
    with numpyro.plate("rows", N):
        numpyro.sample("y", dist.Normal(mu, s), obs=y)


# The model, its argument, the parameters it is left with, and its likelihood: what has a value has its density counted.
HANDLED = {
    "condition": (handlers.condition(simple, {"y": Y}), (), ("mu", "s"), RIGHT),
    "condition inside": (lambda y: handlers.condition(simple, {"y": y})(), (Y,), ("mu", "s"), RIGHT),
    "condition a parameter": (handlers.condition(simple, {"s": 1.2}), (Y,), ("mu",), RIGHT + PRIOR),
    "substitute": (handlers.substitute(simple, {"s": 1.2}), (Y,), ("mu",), RIGHT + PRIOR),
    "substitute a param": (handlers.substitute(declared, {"s": 1.2}), (Y,), ("mu",), RIGHT),
    "replay": (handlers.replay(simple, trace=traced()), (Y,), ("mu",), RIGHT + PRIOR),
    "do": (handlers.do(simple, {"s": 1.2}), (Y,), ("mu", "s"), RIGHT),
    "block": (hidden, (Y,), ("mu", "s"), RIGHT),
    "lift": (
        handlers.lift(declared, prior={"mu": dist.Normal(0, 10), "s": dist.HalfNormal(5)}), (Y,), ("mu", "s"), RIGHT,
    ),
    "mask": (without_priors, (Y,), ("mu", "s"), RIGHT),
}  # fmt: skip


@pytest.mark.parametrize("how", HANDLED)
def test_handlers(how):
    model, args, names, right = HANDLED[how]
    assert float(emppl.EM(model).log_likelihood({name: AT[name] for name in names}, *args)) == pytest.approx(right)


def test_the_estimate_under_handlers_and_without_a_prior():
    """Under substitute the check compares with NumPyro's density; a masked prior is none."""
    result = emppl.EM(handlers.substitute(simple, {"s": 1.2})).run(KEY, Y)
    assert result.params["mu"] == pytest.approx(Y.sum() / 1.44 / (N / 1.44 + 0.01), rel=1e-8) and not result.notes
    result = emppl.EM(without_priors).run(KEY, Y)
    assert [result.params["mu"], result.params["s"]] == pytest.approx([Y.mean(), Y.std()], rel=1e-6)
    assert result.log_posterior == result.log_likelihood


def mixture(y, infer=None):
    m = numpyro.param("m", jnp.array([0.0, 1.0]))
    with numpyro.plate("rows", N):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.3, 0.7])), infer=infer)
        numpyro.sample("y", dist.Normal(m[z], 1.0), obs=y)


def test_discrete_latents_under_handlers():
    at = {"m": np.array([0.0, 1.0])}
    right = np.log(0.3 * stats.norm.pdf(Y, 0, 1) + 0.7 * stats.norm.pdf(Y, 1, 1)).sum()
    for how in ("parallel", "sequential"):
        infer = {"enumerate": how}
        enumerated = handlers.infer_config(mixture, lambda site, infer=infer: infer)  # what config_enumerate does
        for model in (enumerated, functools.partial(mixture, infer=infer)):
            assert float(emppl.EM(model).log_likelihood(at, Y)) == pytest.approx(right)
    z = RNG.integers(0, 2, N)
    right = normal(Y, z, 1).sum() + np.log(np.array([0.3, 0.7])[z]).sum()
    for handler in (handlers.condition, handlers.substitute):
        assert float(emppl.EM(handler(mixture, {"z": z})).log_likelihood(at, Y)) == pytest.approx(right)
    intervened = emppl.EM(handlers.do(mixture, {"z": z}))
    assert float(intervened.log_likelihood(at, Y)) == pytest.approx(normal(Y, z, 1).sum())


# ----------------------------------------------------------------------------------------------------------- scans


def second_order(y):
    a, b = numpyro.sample("a", dist.Normal(0, 1)), numpyro.sample("b", dist.Normal(0, 1))

    def step(carry, _):
        before, earlier = carry
        mean = a * before + b * earlier
        now = numpyro.sample("y", dist.Normal(mean, 0.8))
        return (now, before), mean

    with handlers.condition(data={"y": y[2:]}):
        _, means = scan(step, (y[1], y[0]), jnp.arange(len(y) - 2))
    numpyro.deterministic("means", means)


def local_level(length):
    s, e = (numpyro.param(name, 1.0, constraint=constraints.positive) for name in "se")

    def step(x, _):
        x = numpyro.sample("x", dist.Normal(x, s))
        numpyro.sample("y", dist.Normal(x, e))
        return x, None

    scan(step, 0.0, None, length=length)


STEP = np.minimum.outer(np.arange(1, STEPS + 1), np.arange(1, STEPS + 1))
LEVEL = stats.multivariate_normal.logpdf(WALK, np.zeros(STEPS), STEP * 0.7**2 + 0.5**2 * np.eye(STEPS))


def test_an_autoregression_conditioned_around_its_scan():
    em = emppl.EM(second_order)
    right = normal(WALK[2:], 0.6 * WALK[1:-1] + 0.2 * WALK[:-2], 0.8).sum()
    assert float(em.log_likelihood({"a": 0.6, "b": 0.2}, WALK)) == pytest.approx(right)
    result = em.run(KEY, WALK)
    design = np.stack([WALK[1:-1], WALK[:-2]], 1)
    ridge = np.linalg.solve(design.T @ design / 0.64 + np.eye(2), design.T @ WALK[2:] / 0.64)
    assert [result.params["a"], result.params["b"]] == pytest.approx(list(ridge), rel=1e-6) and not result.notes


@pytest.mark.parametrize("kind", [handlers.condition, handlers.substitute])
def test_a_chain_with_its_data_from_a_handler(kind):
    em = emppl.EM(kind(lambda: local_level(STEPS), data={"y": WALK}), max_iterations=3)
    assert float(em.log_likelihood({"s": 0.7, "e": 0.5})) == pytest.approx(LEVEL)
    assert em.run(KEY).notes == []  # compared with NumPyro's own density


def test_the_outer_of_two_handlers_holds():
    inner = handlers.condition(lambda: local_level(STEPS), data={"y": WALK + 1})
    value = emppl.EM(handlers.condition(inner, data={"y": WALK})).log_likelihood({"s": 0.7, "e": 0.5})
    assert float(value) == pytest.approx(LEVEL)


def test_a_replayed_chain():
    with handlers.seed(rng_seed=0), handlers.substitute(data={"s": 0.7, "e": 0.5}):
        trace = handlers.trace(lambda: local_level(STEPS)).get_trace()
    x = np.asarray(trace["x"]["value"])
    model = handlers.replay(handlers.condition(lambda: local_level(STEPS), {"y": WALK}), trace={"x": trace["x"]})
    right = normal(x, np.r_[0, x[:-1]], 0.7).sum() + normal(WALK, x, 0.5).sum()
    assert float(emppl.EM(model).log_likelihood({"s": 0.7, "e": 0.5})) == pytest.approx(right)


def test_a_hidden_markov_model_with_its_data_from_a_handler():
    steps, mean = np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([-1.0, 1.0])

    def model():
        m = numpyro.param("m", jnp.array([-1.0, 1.0]))

        def step(z, _):
            z = numpyro.sample("z", dist.Categorical(jnp.array(steps)[z]))
            numpyro.sample("y", dist.Normal(m[z], 1.0))
            return z, None

        scan(step, 0, None, length=STEPS)

    forward, right = np.array([1.0, 0.0]), 0.0
    for y in WALK:
        forward = (forward @ steps) * stats.norm.pdf(y, mean, 1)
        right, forward = right + np.log(forward.sum()), forward / forward.sum()
    assert float(emppl.EM(handlers.condition(model, {"y": WALK})).log_likelihood({"m": mean})) == pytest.approx(right)


def test_data_that_do_not_cover_a_scan():
    long = handlers.condition(lambda: local_level(STEPS + 3), data={"y": WALK})
    with pytest.raises(emppl.ModelError, match=r"shape \(12,\).*no value for each of 15 steps.*length=len\(y\)"):
        emppl.EM(long).plan()
    emppl.EM(handlers.condition(lambda: local_level(len(WALK)), data={"y": WALK})).plan()
    whole = handlers.condition(lambda: local_level(STEPS), condition_fn=lambda m: WALK if m["name"] == "y" else None)
    with pytest.raises(emppl.ModelError, match=r"numpyro.handlers.condition\(data="):
        emppl.EM(whole).plan()


# ------------------------------------------------------------------------------------------------- reparametrised

GROUP = np.repeat(np.arange(4), 2)
GROUPED = stats.multivariate_normal.logpdf(Y, np.full(N, 0.5), 0.8**2 * (GROUP[:, None] == GROUP) + 1.2**2 * np.eye(N))


def effects(y):
    mean, spread = numpyro.sample("mean", dist.Normal(0, 10)), numpyro.sample("spread", dist.HalfNormal(5))
    with numpyro.plate("groups", 4):
        a = numpyro.sample("a", dist.Normal(mean, spread))
    with numpyro.plate("rows", N):
        numpyro.sample("y", dist.Normal(a[GROUP], 1.2), obs=y)


def by_transform(y):
    mean, spread = numpyro.sample("mean", dist.Normal(0, 10)), numpyro.sample("spread", dist.HalfNormal(5))
    with numpyro.plate("groups", 4):
        shift = dist.transforms.AffineTransform(mean, spread)
        a = numpyro.sample("a", dist.TransformedDistribution(dist.Normal(0, 1), shift))
    with numpyro.plate("rows", N):
        numpyro.sample("y", dist.Normal(a[GROUP], 1.2), obs=y)


REPARAMETRISED = {
    "decentred": handlers.reparam(effects, config={"a": LocScaleReparam(0)}),
    "partly": handlers.reparam(effects, config={"a": LocScaleReparam(0.4)}),
    "centred": handlers.reparam(effects, config={"a": LocScaleReparam(1.0)}),
    "transform": handlers.reparam(by_transform, config={"a": TransformReparam()}),
}


@pytest.mark.parametrize("how", REPARAMETRISED)
def test_a_latent_goes_by_the_name_that_the_model_gives_it(how):
    em = emppl.EM(REPARAMETRISED[how], latents={"a": emppl.Gaussian()})
    assert float(em.log_likelihood({"mean": 0.5, "spread": 0.8}, Y)) == pytest.approx(GROUPED)
    assert jax.tree.structure(em.start(KEY, Y)) == jax.tree.structure({"mean": 0, "spread": 0})


def role_of_the_effect(model):
    """The role of ``a`` under its present name, or what is asked about it."""
    try:
        roles = {site.name: site.role for site in emppl.EM(model).plan(Y).sites}
    except emppl.ModelError as error:
        return str(error).split("Say which")[0].split(":")[-1]
    return next(role for name, role in roles.items() if name[:2] in ("a", "a_"))


@pytest.mark.parametrize("how", REPARAMETRISED)
def test_the_role_follows_the_model_as_it_is_written(how):
    """What is true of a centred effect, or asked about it, is so of one that is not centred."""
    assert role_of_the_effect(REPARAMETRISED[how]) == role_of_the_effect(effects)


def test_a_reparametrised_parameter_is_a_parameter():
    def model(y):
        with handlers.reparam(config={"mu": LocScaleReparam(0)}):
            mu = numpyro.sample("mu", dist.Normal(3, 10))
        with numpyro.plate("rows", N):
            numpyro.sample("y", dist.Normal(mu, 1.2), obs=y)

    assert float(emppl.EM(model).log_likelihood({"mu_decentered": -0.25}, Y)) == pytest.approx(RIGHT)


def test_a_hidden_site_without_a_value_is_refused():
    """NumPyro draws it, and the number would pass for a constant."""
    with pytest.raises(emppl.ModelError, match="'mu' is hidden by handlers.block and has no value.*substitute"):
        emppl.EM(handlers.block(simple, hide=["mu"])).plan(Y)
    em = emppl.EM(handlers.block(handlers.substitute(simple, {"mu": 0.5}), hide=["mu"]))
    assert float(em.log_likelihood({"s": 1.2}, Y)) == pytest.approx(RIGHT, abs=1e-4)

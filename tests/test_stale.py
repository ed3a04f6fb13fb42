"""A fit answers for what its model reads now, and a result for what its model read then: nothing derived goes stale.

Right values are closed: a mixture with known components has the density of scipy, a model without latents the estimate
of the sample mean.
"""

import functools
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import constraints
from scipy.stats import norm

import emppl
from emppl.families import registry
from tests.kit.fits import KEY

X = np.array([0.3, -1.1, 2.0, 0.7, -0.2, 3.1])
PARAMS = {"mu": np.array([0.0, 2.0])}
OFFSET = np.zeros(6)
WIDTH = 1.0
SETTINGS = {"width": [1.0], "offset": 0.0}
ME = sys.modules[__name__]


def mixture(x, offset, width, weights=(0.5, 0.5)):
    mu = numpyro.param("mu", jnp.array([0.0, 1.0]))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.array(weights)))
        numpyro.sample("x", dist.Normal(mu[z] + offset, width), obs=x)


def right(offset=0.0, width=1.0, x=X, mu=PARAMS["mu"]):
    return np.log(0.5 * norm.pdf(x, mu[0] + offset, width) + 0.5 * norm.pdf(x, mu[1] + offset, width)).sum()


def of_globals(x):
    mixture(x, OFFSET, WIDTH)


def of_settings(x):
    mixture(x, SETTINGS["offset"], SETTINGS["width"][0])


def width_now():
    return WIDTH


def of_a_function(x):
    mixture(x, 0.0, width_now())


def of_texts(x):
    mixture(x, getattr(ME, "OFFSET"), globals()["WIDTH"])  # noqa: B009


def of_formulas(x):
    mixture(x, vars(ME)["OFFSET"], eval("1.0 * WIDTH"))


class Machine:
    shift = 0.0

    def __init__(self):
        self.width, self.table = 1.0, np.zeros(6)

    def model(self, x):
        mixture(x, self.table + self.shift, self.width)

    __call__ = model


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(ME, "OFFSET", np.zeros(6))
    monkeypatch.setattr(ME, "WIDTH", 1.0)
    monkeypatch.setattr(ME, "SETTINGS", {"width": [1.0], "offset": 0.0})
    monkeypatch.setattr(ME, "width_now", width_now)
    monkeypatch.setattr(Machine, "shift", 0.0)


def of_closure():
    offset, width = np.zeros(6), 1.0

    def model(x):
        mixture(x, offset, width)

    def wider(value):
        nonlocal width
        width = value

    return model, {"offset": lambda: offset.__setitem__(slice(None), 0.5), "width": lambda: wider(2.0)}


def of_machine(bound):
    machine = Machine()
    return machine.model if bound else machine, {
        "width": lambda: setattr(machine, "width", 2.0),
        "offset": lambda: machine.table.__setitem__(slice(None), 0.5),
        "offset of the class": lambda: setattr(Machine, "shift", 0.5),
    }


def put(name, value):
    return lambda: setattr(ME, name, value)


MODELS = {
    "globals": lambda: (
        of_globals,
        {
            "offset": lambda: OFFSET.__setitem__(slice(None), 0.5),
            "offset, another array": put("OFFSET", np.full(6, 0.5)),
            "offset of JAX": put("OFFSET", jnp.full(6, 0.5)),
            "width": put("WIDTH", 2.0),
        },
    ),
    "settings": lambda: (
        of_settings,
        {
            "width": lambda: SETTINGS["width"].__setitem__(0, 2.0),
            "offset": lambda: SETTINGS.update(offset=0.5),
        },
    ),
    "function": lambda: (
        of_a_function,
        {"width": put("WIDTH", 2.0), "width of another": put("width_now", lambda: 2.0)},
    ),
    "texts": lambda: (of_texts, {"width": put("WIDTH", 2.0), "offset": put("OFFSET", np.full(6, 0.5))}),
    "formulas": lambda: (of_formulas, {"width": put("WIDTH", 2.0), "offset": put("OFFSET", np.full(6, 0.5))}),
    "closure": of_closure,
    "partial": lambda: (functools.partial(of_globals), {"width": put("WIDTH", 2.0)}),
    "method": lambda: of_machine(True),
    "callable": lambda: of_machine(False),
}
CASES = [(model, change) for model, make in MODELS.items() for change in make()[1]]


@pytest.mark.parametrize(("model", "change"), CASES)
def test_a_model_reads_what_is_there_now(model, change):
    model, changes = MODELS[model]()
    em = emppl.EM(model)
    assert float(em.log_likelihood(PARAMS, X)) == pytest.approx(right(), rel=1e-12)
    changes[change]()
    moved = right(width=2.0) if change.startswith("width") else right(offset=0.5)
    assert float(em.log_likelihood(PARAMS, X)) == pytest.approx(moved, rel=1e-12)
    assert float(em.e_step(PARAMS, X).log_likelihood) == pytest.approx(moved, rel=1e-12)


def known(x):
    """No latents: the estimate is the sample mean less the offset."""
    mu = numpyro.param("mu", jnp.array(0.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.Normal(mu + OFFSET, WIDTH), obs=x)


def test_a_fit_follows_closed_over_arrays():
    em = emppl.EM(known)
    assert em.run(KEY, X).params["mu"] == pytest.approx(X.mean(), rel=1e-9)
    OFFSET[:] = np.arange(6.0)
    assert em.run(KEY, X).params["mu"] == pytest.approx(X.mean() - 2.5, rel=1e-9)


def test_starting_values_follow_too():
    start = np.array([0.0, 1.0])

    def model(x):
        mu = numpyro.param("mu", jnp.asarray(start))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    em = emppl.EM(model, max_iterations=0)
    em.run(KEY, X)
    start[:] = [5.0, 7.0]
    np.testing.assert_array_equal(em.run(KEY, X).params["mu"], [5.0, 7.0])


def test_the_observations_may_be_closed_over():
    data = X.copy()

    def model():
        mixture(data, 0.0, 1.0)

    em = emppl.EM(model)
    assert float(em.log_likelihood(PARAMS)) == pytest.approx(right(), rel=1e-12)
    data += 1
    assert float(em.log_likelihood(PARAMS)) == pytest.approx(right(x=X + 1), rel=1e-12)


def test_rules_and_optimisers_follow():
    target = {"value": 3.0}

    def rule(params, posterior):
        return jnp.full(2, target["value"])

    em = emppl.EM(functools.partial(mixture, offset=0.0, width=1.0), m_step={"mu": rule}, max_iterations=1)
    posterior = em.e_step(PARAMS, X)
    np.testing.assert_array_equal(em.m_step(PARAMS, posterior, X)["mu"], [3.0, 3.0])
    em.run(KEY, X)
    target["value"] = 4.0
    np.testing.assert_array_equal(em.m_step(PARAMS, posterior, X)["mu"], [4.0, 4.0])

    rate = {"value": 0.0}

    def update(updates, state, params=None):
        return jax.tree.map(lambda leaf: -rate["value"] * leaf, updates), state

    em = emppl.EM(
        functools.partial(mixture, offset=0.0, width=1.0),
        m_step={"mu": optax.GradientTransformation(lambda params: optax.EmptyState(), update)},
    )
    np.testing.assert_array_equal(em.m_step(PARAMS, posterior, X)["mu"], PARAMS["mu"])
    rate["value"] = 1e-3
    assert np.all(em.m_step(PARAMS, posterior, X)["mu"] != PARAMS["mu"])


def test_functions_among_the_arguments_follow():
    scale = [1.0]

    def link(mu):
        return mu * scale[0]

    def model(x, link):
        mu = numpyro.param("mu", jnp.array([0.0, 1.0]))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("x", dist.Normal(link(mu)[z], 1.0), obs=x)

    em = emppl.EM(model)
    assert float(em.log_likelihood(PARAMS, X, link)) == pytest.approx(right(), rel=1e-12)
    scale[0] = 2.0
    assert float(em.log_likelihood(PARAMS, X, link)) == pytest.approx(right(mu=[0.0, 4.0]), rel=1e-12)


def test_static_arguments_and_dictionaries_follow():
    em = emppl.EM(lambda x, config, width: mixture(x, config["offset"], width))
    config = {"offset": np.zeros(6), "unused": [1.0]}
    assert float(em.log_likelihood(PARAMS, X, config, 1.0)) == pytest.approx(right(), rel=1e-12)
    assert float(em.log_likelihood(PARAMS, X, config, 2.0)) == pytest.approx(right(width=2.0), rel=1e-12)
    assert float(em.log_likelihood(PARAMS, X, config, width=2)) == pytest.approx(right(width=2.0), rel=1e-12)
    config["offset"][:] = 0.5
    assert float(em.log_likelihood(PARAMS, X, config, 1.0)) == pytest.approx(right(offset=0.5), rel=1e-12)
    config["offset"] = 0.25
    assert float(em.log_likelihood(PARAMS, X, config, 1.0)) == pytest.approx(right(offset=0.25), rel=1e-12)

    signed = emppl.EM(lambda x, sign: mixture(x, 0.5 * float(np.copysign(1.0, sign)), 1.0))
    assert float(signed.log_likelihood(PARAMS, X, 0.0)) == pytest.approx(right(offset=0.5), rel=1e-12)
    assert float(signed.log_likelihood(PARAMS, X, -0.0)) == pytest.approx(right(offset=-0.5), rel=1e-12)


def test_fixed_values_are_those_that_were_given():
    held = np.array([0.0, 2.0])
    em = emppl.EM(functools.partial(mixture, offset=0.0, width=1.0), fixed={"mu": held})
    held[:] = 9.0
    assert float(em.log_likelihood({}, X)) == pytest.approx(right(), rel=1e-12)


def test_another_model_or_option_is_another_derivation():
    em = emppl.EM(functools.partial(mixture, offset=0.0, width=1.0))
    em.log_likelihood(PARAMS, X)
    em.model = functools.partial(mixture, offset=0.5, width=1.0)
    assert float(em.log_likelihood(PARAMS, X)) == pytest.approx(right(offset=0.5), rel=1e-12)


def test_a_family_that_is_registered_later():
    class Spread(dist.Weibull):
        arg_constraints = {"scale": constraints.positive}

        def __init__(self, scale, *, validate_args=None):
            super().__init__(scale * 2**0.5, 2.0, validate_args=validate_args)
            self.scale = scale

        def log_prob(self, x):
            return jnp.log(x) - 2 * jnp.log(self.scale) - 0.5 * (x / self.scale) ** 2

    def model(x):
        scale = numpyro.param("scale", jnp.array([0.5, 2.0]), constraint=constraints.positive)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("x", Spread(scale[z]), obs=x)

    em = emppl.EM(model)
    assert "statistics x natural" not in str(em.plan(np.abs(X))).split("x  ")[-1]
    emppl.register(
        Spread,
        check=False,
        statistics=lambda value, fixed, reference: (value**2)[..., None],
        natural=lambda a, reference: (-0.5 / a["scale"][..., None] ** 2, -2 * jnp.log(a["scale"])),
        base_measure=lambda value, fixed: jnp.log(value),
    )
    try:
        assert "statistics x natural" in str(em.plan(np.abs(X))).split("x  ")[-1]
    finally:
        del registry._REGISTRY[Spread]


def posterior_of(mu, offset, x):
    densities = np.stack([norm.pdf(x, mean + offset, 1.0) for mean in mu], 1)
    return densities / densities.sum(1, keepdims=True)


def test_a_result_answers_about_its_own_data_and_model():
    x = X.copy()
    arguments = {"rows": [x]}
    result = emppl.EM(lambda arguments: mixture(arguments["rows"][0], OFFSET, WIDTH)).run(KEY, arguments)
    wanted = posterior_of(result.params["mu"], 0.0, X)
    x[:] = 100.0
    OFFSET[:] = 50.0
    arguments["rows"].clear()
    np.testing.assert_allclose(result.posterior("z"), wanted, rtol=1e-10)
    step, mu = 1e-4, result.params["mu"]
    curvature = [
        [
            sum(i * j * right(mu=mu + step * (i * np.eye(2)[a] + j * np.eye(2)[b])) for i in (1, -1) for j in (1, -1))
            for b in range(2)
        ]
        for a in range(2)
    ]
    errors = np.sqrt(np.diag(np.linalg.inv(-np.array(curvature) / (4 * step**2))))
    np.testing.assert_allclose(result.standard_errors()["mu"], errors, rtol=1e-4)


def test_a_constraint_by_an_array_is_that_of_the_fit():
    low = np.array([-1.0, 0.0])

    def model(x):
        mu = numpyro.param("mu", jnp.array([0.0, 1.0]), constraint=constraints.greater_than(low))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    em = emppl.EM(model)
    result = em.run(KEY, X)
    low[:] = 50.0
    assert np.all(np.isfinite(result.standard_errors()["mu"]))
    with pytest.raises(emppl.ParameterError, match="outside its constraint"):
        em.log_likelihood(PARAMS, X)


def test_a_result_in_another_precision_refuses_another_model():
    result = emppl.EM(of_globals).run(KEY, X)
    with jax.enable_x64(False):
        np.testing.assert_allclose(result.posterior("z"), posterior_of(result.params["mu"], 0.0, X), atol=1e-5)
    later = emppl.EM(of_globals).run(KEY, X)
    OFFSET[:] = 1.0
    with jax.enable_x64(False), pytest.raises(emppl.ModelError, match="model > OFFSET.*fit again"):
        later.posterior("z")
    np.testing.assert_allclose(later.posterior("z"), posterior_of(later.params["mu"], 0.0, X), rtol=1e-10)


def test_a_pickled_result_refuses_another_model():
    result = emppl.EM(of_globals).run(KEY, X)
    stored = pickle.dumps(result)
    np.testing.assert_allclose(pickle.loads(stored).posterior("z"), result.posterior("z"), rtol=1e-12)
    put("WIDTH", 2.0)()
    with pytest.raises(emppl.ModelError, match="model > WIDTH.*fit again"):
        pickle.loads(stored).posterior("z")


def test_nothing_changed_nothing_is_derived():
    calls, cache = [], {}

    def counted(x):
        calls.append(1)
        cache[len(calls)] = x.shape
        mixture(x, 0.0, 1.0)

    em = emppl.EM(counted)
    em.run(KEY, X)
    em.start(KEY, X)
    before = len(calls)
    em.run(jax.random.key(1), X + 1)
    em.e_step(em.start(KEY, X), X)
    em.run(KEY, X[:5])
    em.start(KEY, X[:5])
    after = len(calls)
    em.run(KEY, X)
    em.run(KEY, X[:5])
    em.plan(X)
    assert len(calls) == after > before


def test_a_model_over_a_value_of_a_trace():
    """The model may close over what the caller differentiates: every trace is derived for itself."""

    def likelihood(offset):
        em = emppl.EM(lambda x: mixture(x, offset, 1.0))
        return em.log_likelihood(PARAMS, X)

    step = 1e-5
    slope = (right(offset=0.3 + step) - right(offset=0.3 - step)) / (2 * step)
    assert float(jax.grad(likelihood)(0.3)) == pytest.approx(slope, rel=1e-7)

    held = {"offset": 0.0}
    em = emppl.EM(lambda x: mixture(x, held["offset"], 1.0))

    def again(offset):
        held["offset"] = offset
        return em.log_likelihood(PARAMS, X)

    for at in (0.3, 0.4):
        assert float(jax.jit(lambda offset: again(offset))(at)) == pytest.approx(right(offset=at), rel=1e-12)

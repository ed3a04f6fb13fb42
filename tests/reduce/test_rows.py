"""Few weighted rows or steps in the place of many: EM is the same, iteration by iteration."""

import contextlib
import dataclasses
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl
from emppl.compiled import Compiled
from emppl.errors import Refusal
from emppl.inputs.arguments import split_arguments
from emppl.model.options import Options
from emppl.reduce import rows as compression
from emppl.reduce.reduction import Source
from tests.kit import random_models
from tests.kit.fits import fit


def factors(x):
    mean = numpyro.param("mean", jnp.zeros(x.shape[1]))
    loadings = numpyro.param("loadings", jnp.asarray(np.random.default_rng(0).normal(size=(x.shape[1], 2))))
    variance = numpyro.param("variance", jnp.ones(x.shape[1]), constraint=constraints.positive)
    with numpyro.plate("rows", len(x)):
        f = numpyro.sample("f", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(mean + f @ loadings.T, jnp.sqrt(variance)).to_event(1), obs=x)


def system(y):
    transition = numpyro.param("transition", jnp.array([[0.9, 0.2], [-0.1, 0.8]]))
    loadings = numpyro.param("loadings", jnp.array([[1.0, 0.0], [0.5, 1.0], [0.3, -0.7]]))
    noise = numpyro.param("noise", 0.5 * jnp.eye(3), constraint=constraints.positive_definite)
    innovation = numpyro.param("innovation", jnp.eye(2), constraint=constraints.positive_definite)

    def step(carry, y):
        state, number = carry
        spread = jnp.where(number == 0, jnp.eye(2), innovation)
        state = numpyro.sample("state", dist.MultivariateNormal(transition @ state, spread))
        numpyro.sample("y", dist.MultivariateNormal(loadings @ state, noise), obs=y)
        return (state, number + 1), None

    scan(step, (jnp.zeros(2), 0), y)


def draw(rows, columns):
    rng = np.random.default_rng(rows)
    return jnp.asarray(rng.normal(size=(rows, 2)) @ rng.normal(size=(2, columns)) + rng.normal(size=(rows, columns)))


def growth(y, x, group, groups, strategy=None):
    """Random intercepts and slopes, the group of a row among its data."""
    line = numpyro.param("line", jnp.array([0.5, -0.2]))
    spread = numpyro.param("spread", jnp.eye(2), constraint=constraints.positive_definite)
    noise = numpyro.param("noise", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", groups):
        b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), spread))
    with numpyro.plate("rows", len(y)):
        own = line + b[group]
        numpyro.sample("y", dist.Normal(own[:, 0] + own[:, 1] * x, noise), obs=y)


def classes(answers, weight=None):
    """Latent classes of binary answers."""
    prior = numpyro.param("prior", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    yes = numpyro.param(
        "yes", jnp.linspace(0.2, 0.8, 10).reshape(2, 5), constraint=constraints.unit_interval, event_dim=0
    )
    scaled = numpyro.handlers.scale(scale=1.0 if weight is None else weight)
    with scaled, numpyro.plate("people", len(answers)):
        z = numpyro.sample("z", dist.Categorical(prior))
        numpyro.sample("answers", dist.Bernoulli(yes[z]).to_event(1), obs=answers)


def chances(y, x, group, groups):
    """Binary answers in groups with a random intercept."""
    slope = numpyro.param("slope", jnp.array([0.1, 0.5]))
    spread = numpyro.param("spread", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", groups):
        b = numpyro.sample("b", dist.Normal(0, spread))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=slope[0] + slope[1] * x + b[group]), obs=y)


def counts(words, size=None):
    """Unigram mixtures: a word's category is looked up in its topic's table."""
    prior = numpyro.param("prior", jnp.array([0.3, 0.7]), constraint=constraints.simplex)
    table = numpyro.param("table", jax.nn.softmax(jnp.arange(16.0).reshape(2, 8) % 5), constraint=constraints.simplex)
    with numpyro.plate("rows", len(words) if size is None else size):
        z = numpyro.sample("z", dist.Categorical(prior))
        for column in range(3):
            numpyro.sample(f"word {column}", dist.Categorical(table[z]), obs=words[:, column])


def incomplete(x):
    """A normal distribution with missing cells."""
    mean = numpyro.param("mean", jnp.zeros(x.shape[1]))
    covariance = numpyro.param("covariance", jnp.eye(x.shape[1]), constraint=constraints.positive_definite)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.MultivariateNormal(mean, covariance), obs=x)


def holes(rows):
    rng = np.random.default_rng(rows)
    return jnp.asarray(np.where(rng.random((rows, 3)) < [0.0, 0.2, 0.3], np.nan, draw(rows, 3)))


def grouped(rows, groups):
    rng = np.random.default_rng(rows)
    group = rng.permutation(np.arange(rows) % groups)
    x = rng.normal(size=rows)
    y = 1 + x + rng.normal(size=groups)[group] + rng.normal(size=rows)
    return jnp.asarray(y), jnp.asarray(x), jnp.asarray(group), groups


def binary(rows, groups):
    y, x, group, groups = grouped(rows, groups)
    return jnp.asarray(y > 1, int), jnp.round(x), group, groups


ANSWERS = jnp.asarray(np.random.default_rng(3).random((1500, 5)) < np.linspace(0.2, 0.8, 1500)[:, None], int)
WORDS = jnp.asarray(np.random.default_rng(4).integers(0, 8, (3000, 3)))
B = {"latents": {"b": emppl.Gaussian()}}

CASES = {
    "rows of a plate": (factors, (draw(300, 5),), {}),
    "steps of a scan": (system, (draw(200, 3),), {}),
    "rows of groups": (growth, grouped(400, 20), B),
    "rows of unequal groups": (growth, tuple(np.concatenate([a, a[:50]]) for a in grouped(350, 30)[:3]) + (30,), B),
    "rows with missing cells": (incomplete, (holes(300),), {}),
    "equal rows": (classes, (ANSWERS,), {}),
    "equal rows with weights": (classes, (ANSWERS, jnp.arange(1500) % 3 * 0.5), {}),
    "rows of a table": (counts, (WORDS,), {}),
    "equal rows of groups": (chances, binary(2000, 20), {"latents": {"b": emppl.Quadrature(7)}}),
}


RARE = (
    "steps of a scan",
    "equal rows of groups",
    "rows of unequal groups",
    "equal rows with weights",
    "rows of a table",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in RARE else ()) for n in CASES])
def test_iterations_are_the_same(name):
    model, data, options = CASES[name]
    fits = [
        fit(model, *data, compress=compress, tolerance=0.0, max_iterations=4, **options) for compress in (True, False)
    ]
    np.testing.assert_allclose(fits[0].history["objective"], fits[1].history["objective"], rtol=1e-11)
    for parameter, value in fits[1].params.items():
        np.testing.assert_allclose(fits[0].params[parameter], value, atol=1e-8)
    em = emppl.EM(model, **options)
    assert re.search("fits run on|M-step runs on", str(em.plan(*data)))
    params = em.start(jax.random.key(0), *data)
    for _ in range(4):  # the pieces know nothing of it
        params = em.m_step(params, em.e_step(params, *data), *data)
    np.testing.assert_allclose(fits[0].log_likelihood, em.log_likelihood(params, *data), rtol=1e-11)


def test_the_plan_says_it():
    assert "fits run on 6 weighted rows" in str(emppl.EM(factors).plan(draw(300, 5)))
    assert "M-step runs on 8 weighted steps" in str(emppl.EM(system).plan(draw(200, 3)))
    for model, data, options in (
        (factors, (draw(300, 5),), {}),
        (system, (draw(200, 3),), {}),
        (growth, grouped(400, 20), B),
    ):
        assert "not compressed: compress=False" in str(emppl.EM(model, compress=False, **options).plan(*data))


def test_a_model_that_says_its_number_of_rows_keeps_them():
    result = fit(counts, WORDS, 3000, max_iterations=2)
    assert result.posterior("z").shape == (3000, 2)


def counting(where):
    """A model that reads off its data how many rows there are, in some place."""

    def model(x):
        n = len(x)
        scale = {"prior": 10 / n}.get(where, 10.0)
        mean = numpyro.sample("mean", dist.Normal(0.0, scale))
        covariance = {"matrix": n * jnp.eye(2)}.get(where, jnp.eye(2))
        slope = numpyro.sample("slope", dist.MultivariateNormal(jnp.zeros(2), covariance))
        weighted = numpyro.handlers.scale(scale=10 / n) if where == "weight" else contextlib.nullcontext()
        with weighted, numpyro.plate("rows", n):
            f = numpyro.sample("f", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(mean + slope[0] + slope[1] * f, 1.0), obs=x)

    return model


@pytest.mark.parametrize("where", ["nowhere", "prior", "matrix", "weight"])
def test_a_model_that_counts_its_rows_keeps_them(where):
    x = draw(300, 1)[:, 0]
    plan = str(emppl.EM(counting(where)).plan(x))
    assert ("depends on how many rows" in plan) == (where != "nowhere"), plan
    assert ("fits run on" in plan) == (where == "nowhere"), plan


def test_a_chain_that_counts_its_steps_keeps_them():
    def chain(y):
        level = numpyro.sample("level", dist.Normal(0.0, 5 / len(y)))

        def step(state, y):
            state = numpyro.sample("state", dist.Normal(0.5 * state + level, 1.0))
            numpyro.sample("y", dist.Normal(state, 1.0), obs=y)
            return state, None

        scan(step, jnp.zeros(()), y)

    assert "M-step runs on" not in str(emppl.EM(chain).plan(draw(200, 1)[:, 0]))


def test_short_floats_are_compared_bit_by_bit():
    rows = compression._as_integers(jnp.asarray([[0.25], [0.26], [0.25]], jnp.bfloat16).__array__())
    assert (rows[0] == rows[2]).all() and (rows[0] != rows[1]).any()


def test_a_stopped_gradient_is_no_quadratic():
    def stopped(x, y):
        slope = numpyro.param("slope", 0.1)
        with numpyro.plate("rows", len(x)):
            level = numpyro.sample("level", dist.Normal(jax.lax.stop_gradient(x**3) * slope, 1.0))
            numpyro.sample("y", dist.Normal(level, 1.0), obs=y)

    assert "EM is the same" not in str(emppl.EM(stopped).plan(draw(300, 2)[:, 0], draw(300, 2)[:, 1]))


def test_rows_that_differ_by_more_than_their_data_stay():
    def trend(x):
        slope = numpyro.param("slope", 0.1)
        time = jnp.arange(len(x)) / len(x)
        with numpyro.plate("rows", len(x)):
            effect = numpyro.sample("effect", dist.Normal(slope * time, 1.0))
            numpyro.sample("x", dist.Normal(effect, 1.0), obs=x)

    assert "differ by more than their data" in str(emppl.EM(trend).plan(draw(300, 5)[:, 0]))


def test_rows_whose_latents_meet_others_stay():
    """Effects of rows and columns are integrated together: a row that counts twice would be another model."""

    def crossed(x):
        noise = numpyro.param("noise", 1.0, constraint=constraints.positive)
        rows, columns = numpyro.plate("rows", len(x), dim=-2), numpyro.plate("columns", x.shape[1], dim=-1)
        with rows:
            of_row = numpyro.sample("of_row", dist.Normal(0, 1))
        with columns:
            of_column = numpyro.sample("of_column", dist.Normal(0, 1))
        with rows, columns:
            numpyro.sample("x", dist.Normal(of_row + of_column, noise), obs=x)

    assert "integrated together with others" in str(emppl.EM(crossed).plan(draw(40, 2)))


def test_what_is_not_quadratic_stays():
    def by_size(x, size):
        slope = numpyro.param("slope", 0.1)
        with numpyro.plate("rows", len(x)):
            effect = numpyro.sample("effect", dist.Normal(slope, 1.0))
            numpyro.sample("x", dist.Normal(effect * size, 1.0), obs=x)

    data = draw(300, 5)
    assert "not quadratic in a row" in str(emppl.EM(by_size).plan(data[:, 0], data[:, 1]))


def test_a_prior_that_reads_the_rows_keeps_them():
    """Few rows have another median than many: what reads the data elsewhere must see all of them."""

    def centred(x):
        mean = numpyro.sample("mean", dist.Normal(jnp.median(x), 1.0))
        with numpyro.plate("rows", len(x)):
            effect = numpyro.sample("effect", dist.Normal(mean, 1.0))
            numpyro.sample("x", dist.Normal(effect, 1.0), obs=x)

    x = jnp.exp(draw(300, 5)[:, 0])
    assert "site 'mean', outside the plate, reads the rows too" in str(emppl.EM(centred).plan(x))
    fits = [fit(centred, x, compress=compress).params["mean"] for compress in (True, False)]
    np.testing.assert_allclose(fits[0], fits[1], atol=1e-8)


def with_as_many_rows(data, spec, priors):
    """A random model that takes the size of its outer plate from the data."""
    rows = max((one.shape[0] for one in data.values() if one.ndim > 1), default=spec.sizes[0])
    return random_models.model(data, dataclasses.replace(spec, sizes=(rows, spec.sizes[1])), priors)


@pytest.mark.parametrize("shard", [0, *(pytest.param(shard, marks=pytest.mark.slow) for shard in (1,))])
def test_random_models(shard, monkeypatch):
    """Random structures with plates, masks, weights and several latents: few rows say what all say."""
    monkeypatch.setattr(compression, "_LEAST_ROWS", 1)
    monkeypatch.setattr(compression, "_LEAST_SAVING", 1)
    compressed = []

    def check(spec, priors):
        rng = np.random.default_rng(spec.seed)
        params, data = random_models.random_params(spec, rng), random_models.random_data(spec, rng)
        repeated = rng.integers(0, spec.sizes[0], 12)
        data = {name: one[repeated] if one.ndim > 1 else one for name, one in data.items()}
        leaves, skeleton = split_arguments((data, spec, priors), {})
        source = Source(with_as_many_rows, skeleton, Options())
        whole = Compiled(source, source.derive(leaves))
        found = whole.reducer.few_rows([jnp.asarray(leaf) for leaf in leaves])
        compressed.append(not isinstance(found, Refusal))
        if isinstance(found, Refusal):
            return
        few, short = whole.for_few(found), found.data
        posteriors = [one.e_step(params, data) for one, data in ((whole, leaves), (few, short))]
        np.testing.assert_allclose(posteriors[1].log_likelihood, posteriors[0].log_likelihood, rtol=1e-11)
        after = whole.m_step(params, posteriors[0], leaves)
        for name, value in few.m_step(params, posteriors[1], short).items():
            np.testing.assert_allclose(value, after[name], rtol=1e-8, atol=1e-10, err_msg=name)

    chosen = settings(
        max_examples=6 if shard == 0 else 20,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    hypothesis.seed(shard)(chosen(given(random_models.specs(), st.booleans())(check)))()
    assert sum(compressed) > len(compressed) / 2

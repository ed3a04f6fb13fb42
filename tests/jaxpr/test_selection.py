"""Parameters put together from pieces: `where`, padding, reversal, transposition. Each M-step against direct maximisers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
from jax import flatten_util
from numpyro.distributions import constraints

import emppl
from tests.kit.fits import KEY, rules

RNG = np.random.default_rng(5)
ROWS = 60
CODES = RNG.integers(0, 4, ROWS)
EXTRA = RNG.integers(0, 2, ROWS)
NUMBERS = RNG.normal(size=ROWS) + 3 * (RNG.random(ROWS) < 0.5)
MASK = RNG.random(ROWS) < 0.6


def simplex(name, *shape):
    return numpyro.param(name, jnp.full(shape, 1 / shape[-1]), constraint=constraints.simplex)


def rows_of(probs, codes=CODES):
    """A site of categories whose probabilities depend on a latent state: ``probs(state)``."""
    with numpyro.plate("data", len(codes)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.3, 0.7])))
        numpyro.sample("code", dist.Categorical(probs(z)), obs=codes)


def where_a_state_is_certain(codes, mask):
    table = simplex("p", 4)
    rows_of(lambda z: jnp.where((z == 1)[..., None], table, jnp.full(4, 0.25)), codes)


def where_two_tables(codes, mask):
    one, other = simplex("p", 4), simplex("q", 4)
    rows_of(lambda z: jnp.where((z == 1)[..., None], one, other), codes)


def where_single_entries(codes, mask):
    """The condition runs along the categories: two of them are known."""
    table = simplex("p", 4)
    known = jnp.array([[0.2, 0.0, 0.3, 0.0], [0.1, 0.1, 0.4, 0.4]])
    rows_of(lambda z: jnp.where(jnp.array([True, False, True, False]), known[z], table), codes)


def where_by_row(codes, mask):
    table = simplex("p", 2, 4)
    rows_of(lambda z: jnp.where(jnp.asarray(mask)[:, None], table[z], jnp.full(4, 0.25)), codes)


def padded(codes, mask):
    table = simplex("p", 2, 2)
    rows_of(lambda z: jnp.concatenate([jnp.full((2, 2), 0.1), table], -1)[z], codes)


def reversed_and_shared(codes, mask):
    table = simplex("p", 4)
    rows_of(lambda z: jnp.stack([table, table[::-1]])[z], codes)


def transposed(codes, mask):
    """Columns are distributions over the states of another latent, rows what is seen: entries of one simplex apart."""
    table = simplex("p", 4, 2)
    rows_of(lambda z: table.T[z], codes)


def permuted(codes, mask):
    table = simplex("p", 2, 4)
    rows_of(lambda z: table[z][..., jnp.array([2, 0, 3, 1])], codes)


CATEGORIES = [
    where_a_state_is_certain,
    where_two_tables,
    where_single_entries,
    where_by_row,
    padded,
    reversed_and_shared,
    transposed,
    permuted,
]


def started(em, *args):
    """Parameters away from any symmetry."""
    params = em.start(KEY, *args)
    rng = np.random.default_rng(1)
    moved = {}
    for name, value in params.items():
        value = np.asarray(value)
        if np.allclose(value.sum(-1), 1):
            value = rng.dirichlet(np.ones(value.shape[-1]), value.shape[:-1])
        moved[name] = jnp.asarray(value)
    return moved


def gradients_along_the_simplex(em, params, posterior, *args):
    """Slopes of Q in the softmax coordinates."""

    def q(free):
        return em.q({name: jax.nn.softmax(value, -1) for name, value in free.items()}, posterior, *args)

    free = {name: jnp.log(value) for name, value in params.items()}
    return q, free, jax.grad(q)(free)


@pytest.mark.parametrize("model", CATEGORIES, ids=lambda model: model.__name__)
def test_tables_put_together_from_pieces_keep_their_closed_form(model):
    em = emppl.EM(model)
    args = (CODES, MASK)
    assert set(rules(em, *args).values()) == {"closed form"}
    params = started(em, *args)
    posterior = em.e_step(params, *args)
    new = em.m_step(params, posterior, *args)
    q, free, slopes = gradients_along_the_simplex(em, new, posterior, *args)
    for name, slope in slopes.items():
        np.testing.assert_allclose(slope, 0, atol=1e-11, err_msg=name)
    # A direct maximiser finds nothing higher.
    flat, unravel = flatten_util.ravel_pytree(jax.tree.map(jnp.zeros_like, free))
    found = scipy.optimize.minimize(
        lambda v: -float(q(unravel(v))),
        np.asarray(flat),
        jac=lambda v: -flatten_util.ravel_pytree(jax.grad(q)(unravel(v)))[0],
    )
    assert -found.fun <= float(q(free)) + 1e-10
    ours = em.run(KEY, *args, init_params=params)
    assert ours.converged


def logits_of(name, *shape):
    return numpyro.param(name, 0.1 * jnp.cos(1.3 * jnp.arange(float(np.prod(shape)))).reshape(shape))


def softmax_over_the_first_axis(codes, mask):
    table = jax.nn.softmax(logits_of("p", 4, 2), 0)
    rows_of(lambda z: table.T[z], codes)


def convex_combination(codes, mask):
    share = numpyro.param("share", 0.4, constraint=constraints.unit_interval)
    table = simplex("p", 2, 4)
    known = jnp.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    rows_of(lambda z: share * table[z] + (1 - share) * known[z], codes)


def weights_of_known_tables(codes, mask):
    tables = jnp.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    rows_of(lambda z: simplex("p", 2, 3)[z] @ tables, codes)


def divided_by_the_sum(codes, mask):
    table = numpyro.param("p", 1 + 0.1 * jnp.arange(8.0).reshape(2, 4), constraint=constraints.positive)
    rows_of(lambda z: (table / table.sum(-1, keepdims=True))[z], codes)


TIED = {
    softmax_over_the_first_axis: "summed or compared; constrain what sums to one to a simplex",
    convex_combination: "it is multiplied by other values",
    weights_of_known_tables: "a matrix product mixes its entries",
    divided_by_the_sum: "summed or compared; constrain what sums to one to a simplex",
}


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=() if m is convex_combination else pytest.mark.slow, id=m.__name__) for m in TIED],
)
def test_tables_without_a_closed_form_reach_the_maximum_by_newton_steps(model):
    """The plan says what ties the entries together; a direct maximiser of the log-likelihood finds nothing higher."""
    em = emppl.EM(model)
    args = (CODES, MASK)
    for one in em.plan(*args).parameters:
        assert one.rule == "newton"
        assert TIED[model] in dict(one.rejected)["closed form"]
    params = started(em, *args)
    result = em.run(KEY, *args, init_params=params)
    assert result.converged
    kinds = {"p": constraints.simplex if np.allclose(np.sum(params["p"], -1), 1) else constraints.real}
    kinds |= {
        "share": constraints.unit_interval,
        **({"p": constraints.positive} if "divided" in model.__name__ else {}),
    }
    maps = {name: dist.biject_to(kinds[name]) for name in params}

    @jax.jit
    @jax.value_and_grad
    def loss(vector):
        return -em.log_likelihood({n: maps[n](v) for n, v in unravel(vector).items()}, *args)

    with jax.numpy_rank_promotion("allow"):  # NumPyro's bijections rely on it
        flat, unravel = flatten_util.ravel_pytree({name: maps[name].inv(value) for name, value in params.items()})
        best = min(
            scipy.optimize.minimize(
                lambda v: jax.device_get(loss(v)), flat + shift, jac=True, options={"gtol": 1e-9}
            ).fun
            for shift in (0.0, np.cos(np.arange(flat.size)))
        )
    np.testing.assert_allclose(result.log_likelihood, -best, rtol=1e-9)


def two_conditions_of_one_shape(x, mask):
    """`jnp.where` is traced once for both: that the first condition is broadcast says nothing about the second."""
    mu = numpyro.param("mu", jnp.array([[0.0, 0.0], [1.0, 2.0]]))
    cov = numpyro.param("cov", jnp.stack([jnp.eye(2), 2 * jnp.eye(2)]), constraint=constraints.positive_definite)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        first = jnp.broadcast_to(jnp.array([True, False])[:, None, None], (2, 2, 2))
        known = jnp.stack([jnp.eye(2)] * 2)
        part = jnp.where(first, cov, 3 * known)
        chosen = jnp.where(jnp.asarray(mask), cov, part)[z]
        numpyro.sample("x", dist.MultivariateNormal(mu[z], chosen), obs=x)


def test_a_condition_that_cuts_is_seen_beside_one_that_does_not():
    """The second `where` has a condition of the same shape, an argument of the model, that varies inside a matrix."""
    x = np.random.default_rng(2).normal(size=(40, 2))
    mask = np.broadcast_to(np.array([[True, False], [False, True]]), (2, 2, 2))
    text = str(emppl.EM(two_conditions_of_one_shape).plan(x, mask))
    assert "no 2 of its axes are whole the last ones of covariance_matrix" in text
    assert {o.name: o.rule for o in emppl.EM(two_conditions_of_one_shape).plan(x, mask).parameters}[
        "cov"
    ] != "closed form"


@pytest.mark.parametrize("by", ["row", "state"])
def test_a_location_where_a_condition_holds(by):
    """``where(mask, mu[z], 0)``: rows outside of the mask say nothing about the means, but about the scale."""

    def model(x, mask):
        mu = numpyro.param("mu", jnp.array([-1.0, 2.0]))
        sigma = numpyro.param("sigma", jnp.ones(2), constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            holds = jnp.asarray(mask) if by == "row" else z == 1
            numpyro.sample("x", dist.Normal(jnp.where(holds, mu[z], 0.0), sigma[z]), obs=x)

    em = emppl.EM(model)
    assert set(rules(em, NUMBERS, MASK).values()) == {"closed form"}
    params = {"mu": jnp.array([-1.0, 2.0]), "sigma": jnp.array([0.7, 1.3])}
    posterior = em.e_step(params, NUMBERS, MASK)
    new = em.m_step(params, posterior, NUMBERS, MASK)
    weight = np.asarray(posterior.weights["x"])
    holds = MASK[None] * np.ones((2, 1)) if by == "row" else np.array([[0.0], [1.0]]) * np.ones((1, ROWS))
    used = weight * holds
    mu = np.where(used.sum(1) > 0, (used * NUMBERS).sum(1) / np.maximum(used.sum(1), 1e-300), [-1, 2])
    loc = np.where(holds > 0, mu[:, None], 0)
    sigma = np.sqrt((weight * (NUMBERS - loc) ** 2).sum(1) / weight.sum(1))
    np.testing.assert_allclose(new["mu"], mu, rtol=1e-12)
    np.testing.assert_allclose(new["sigma"], sigma, rtol=1e-12)
    slope = jax.grad(lambda p: em.q(p, posterior, NUMBERS, MASK))(new)
    np.testing.assert_allclose(slope["mu"], 0, atol=1e-11)
    np.testing.assert_allclose(slope["sigma"], 0, atol=1e-11)


def contaminated(codes):
    """Every category has a little probability of its own: no closed form, and the best `p` may have zeros."""
    p = simplex("p", 6)
    with numpyro.plate("data", len(codes)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        probs = jnp.stack([0.7 * p + 0.3 / 6, 0.2 * p + 0.8 / 6])
        numpyro.sample("code", dist.Categorical(probs[z]), obs=codes)


def test_newton_ends_on_the_edge_of_a_simplex():
    counts = np.array([40, 0, 25, 1, 0, 30])
    codes = np.repeat(np.arange(6), counts)
    em = emppl.EM(contaminated)
    (plan,) = em.plan(codes).parameters
    assert plan.rule == "newton"
    result = em.run(KEY, codes)
    assert result.converged, result.stop_reason

    def loss(p):
        return -(counts * np.log(0.45 * p + 0.55 / 6)).sum()

    best = scipy.optimize.minimize(
        loss,
        np.full(6, 1 / 6),
        method="SLSQP",
        bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        options={"ftol": 1e-15},
    )
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-8)
    np.testing.assert_allclose(result.params["p"], best.x, atol=1e-5)
    # From the edge itself it comes back.
    edge = np.array([0.0, 0.5, 0.0, 0.5, 0.0, 0.0])
    other = em.run(KEY, codes, init_params={"p": edge})
    assert other.log_likelihood == pytest.approx(-best.fun, abs=1e-6), other.stop_reason


VECTORS = np.random.default_rng(8).normal(size=(ROWS, 3)) + 2 * (np.random.default_rng(9).random((ROWS, 1)) < 0.4)


def by_columns(x, last=True):
    """States along the last axis of everything, or along the first one: the same model."""
    eye = jnp.stack([jnp.eye(3), 2 * jnp.eye(3)], -1 if last else 0)
    start = jnp.array([[0.0, 0.0, 0.0], [2.0, 2.5, 2.0]])
    mu = numpyro.param("mu", start.T if last else start)
    covariance = numpyro.param(
        "covariance", eye, constraint=constraints.real if last else constraints.positive_definite
    )
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        if last:
            mu, covariance = mu.T, jnp.moveaxis(covariance, -1, 0)
        numpyro.sample("x", dist.MultivariateNormal(mu[z], covariance[z]), obs=x)


def test_cells_along_other_axes_keep_their_closed_form():
    fits = {}
    for last in (True, False):
        em = emppl.EM(by_columns)
        assert set(rules(em, VECTORS, last).values()) == {"closed form"}
        fits[last] = em.run(KEY, VECTORS, last)
    assert fits[True].num_iterations == fits[False].num_iterations
    assert fits[True].log_likelihood == pytest.approx(fits[False].log_likelihood, abs=1e-10)
    np.testing.assert_allclose(fits[True].params["mu"].T, fits[False].params["mu"], rtol=1e-9, atol=1e-12)
    moved = np.moveaxis(fits[True].params["covariance"], -1, 0)
    np.testing.assert_allclose(moved, fits[False].params["covariance"], rtol=1e-9, atol=1e-12)


def test_a_prior_along_other_axes_and_mixing_are_named():
    """What stands in the way of the closed form is said in the model's own terms."""

    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3, 2]).to_event(2))
        share = numpyro.param("share", jnp.ones(2), constraint=constraints.positive)
        a = numpyro.param("a", 0.5)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(share / share.sum()))
            numpyro.sample("x", dist.MultivariateNormal(mu.T[z], jnp.eye(3)), obs=x)
            numpyro.sample("y", dist.Normal(a * mu[0, 0] + (1 - a) * mu[1, 0], 1.0), obs=x[:, 0])

    def simple(x):
        mu = numpyro.sample("mu", dist.Normal(0, 3).expand([3, 2]).to_event(2))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("x", dist.MultivariateNormal(mu.T[z], jnp.eye(3)), obs=x)

    em = emppl.EM(simple)
    (plan,) = em.plan(VECTORS).parameters
    assert plan.rule == "quadratic"
    assert "does not lie along the axes of 'weighted mean'" in str(em.plan(VECTORS))
    text = str(emppl.EM(model).plan(VECTORS))
    assert "constrain what sums to one to a simplex" in text


def test_a_linear_equality_constraint_keeps_an_exact_rule():
    """``stack([a, -a])``: means that sum to zero, in one linear solve."""

    def model(x):
        a = numpyro.param("a", 1.0)
        sigma = numpyro.param("sigma", jnp.ones(2), constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("x", dist.Normal(jnp.stack([a, -a])[z], sigma[z]), obs=x)

    em = emppl.EM(model)
    rules = {one.name: one for one in em.plan(NUMBERS).parameters}
    assert rules["a"].rule == "quadratic" and rules["sigma"].rule == "closed form"
    params = {"a": jnp.asarray(1.0), "sigma": jnp.array([0.7, 1.3])}
    posterior = em.e_step(params, NUMBERS)
    weight = np.asarray(posterior.weights["x"])
    new = em.m_step(params, posterior, NUMBERS)
    # Locations come first in an M-step or last: either way the other block is at its maximum given this one.
    slope = jax.grad(lambda p: em.q(p, posterior, NUMBERS))({**new, "sigma": params["sigma"]})["a"]
    other = jax.grad(lambda p: em.q(p, posterior, NUMBERS))(new)["a"]
    assert min(abs(slope), abs(other)) < 1e-9
    precision = 1 / np.asarray(params["sigma"] if abs(slope) < 1e-9 else new["sigma"]) ** 2
    total = precision @ weight.sum(1)
    assert new["a"] == pytest.approx((precision * [1, -1]) @ (weight @ NUMBERS) / total, rel=1e-12)
    assert em.run(KEY, NUMBERS).converged


EDGES = np.array([-0.5, 0.5])
SEARCHES = {
    "where": (lambda c, mu: jnp.where(jnp.digitize(c, EDGES) == 1, mu[0], 0.0), "closed form"),
    "searchsorted": (lambda c, mu: mu[0] * jnp.searchsorted(EDGES, c), "quadratic"),
    "times": (lambda c, mu: mu[1] * jnp.digitize(c, EDGES), "quadratic"),
    "index": (lambda c, mu: mu[jnp.digitize(c, EDGES)], "closed form"),
    "interp": (lambda c, mu: jnp.interp(c, jnp.array([-1.0, 0.0, 1.0]), mu), "quadratic"),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_covariates_may_be_looked_up(name):
    """The edges of a search have axes that the result lacks."""
    location, rule = SEARCHES[name]

    def model(y, c):
        mu = numpyro.param("mu", jnp.zeros(3))
        with numpyro.plate("rows", 12):
            numpyro.sample("y", dist.Normal(location(c, mu), 1.0), obs=y)

    rng = np.random.default_rng(0)
    plan = emppl.EM(model).plan(rng.normal(size=12), rng.normal(size=12))
    assert {parameter.rule for parameter in plan.parameters} == {rule}

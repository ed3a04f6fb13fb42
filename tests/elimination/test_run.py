"""Variable elimination against full joint tables, and what it must refuse."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import emppl
from emppl.elimination.order import Factor, plan_elimination
from emppl.elimination.reductions import PLAIN_SUM
from emppl.elimination.run import log_normalizer
from emppl.errors import ModelError
from tests.kit.brute_force import BruteForce
from tests.kit.fits import fit

SIZES = {"a": 2, "b": 3, "c": 2, "d": 4, "e": 3}


def at(model, params, *args):
    """A result of the public interface at given parameters, without any iteration."""
    return fit(model, *args, init_params=params, max_iterations=0)


def graph(edges, rng):
    """A plan and random tables for factors over the given latents."""
    axes = tuple(SIZES)
    factors, tables = [], {}
    for number, edge in enumerate(edges):
        name = f"f{number}"
        factors.append(Factor(name, frozenset(edge), frozenset()))
        tables[name] = jnp.asarray(rng.normal(size=[SIZES[a] if a in edge else 1 for a in axes]))
    used = sorted(set("".join(edges)))
    return plan_elimination(factors, {name: frozenset() for name in used}, SIZES, axes), tables, used


@pytest.mark.parametrize(
    "edges", [["a"], ["ab", "bc", "cd"], ["ab", "bc", "cd", "ad"], ["a", "b"], ["abc", "cde", "be"]]
)
def test_log_normalizer_is_the_sum_over_the_joint_table(edges):
    """Chains, a loop, independent pieces and overlapping triples: value and gradient equal the full table's."""
    plan, tables, used = graph(edges, np.random.default_rng(1))
    unscaled = dict.fromkeys(tables)
    evidence = lambda tables: log_normalizer(plan, tables, unscaled, dict.fromkeys(used, PLAIN_SUM))  # noqa: E731
    value, gradient = jax.value_and_grad(evidence)(tables)
    joint = sum(np.broadcast_to(table, [SIZES[a] if a in used else 1 for a in SIZES]) for table in tables.values())
    total = np.log(np.sum(np.exp(joint)))
    np.testing.assert_allclose(value, total, rtol=1e-13)
    probability = np.exp(joint - total)
    for name, table in tables.items():
        away = tuple(axis for axis, size in enumerate(table.shape) if size == 1)
        np.testing.assert_allclose(gradient[name], probability.sum(away, keepdims=True), atol=1e-14)


def test_elimination_order_is_cheap_on_a_chain():
    """A chain of 40 latents with 5 states costs 25 cells a step, not 5**40."""
    names = [f"z{t:02d}" for t in range(40)]
    sizes = dict.fromkeys(names, 5)
    factors = [Factor(f"f{t}", frozenset(names[t : t + 2]), frozenset()) for t in range(39)]
    plan = plan_elimination(factors, {name: frozenset() for name in names}, sizes, tuple(names))
    assert plan.largest == 25
    assert plan.cost <= 40 * 25


def test_plated_elimination_is_a_loop_over_cells():
    """An outer latent with inner ones: equal to explicit loops over cells and states."""
    rng = np.random.default_rng(2)
    groups, rows, k, m = 3, 2, 2, 3
    axes = ("z", "w", "group", "row")
    sizes = {"z": k, "w": m, "group": groups, "row": rows}
    prior, inner = rng.normal(size=(k, groups)), rng.normal(size=(k, m, groups, rows))
    tables = {"z": jnp.asarray(prior.reshape(k, 1, groups, 1)), "x": jnp.asarray(inner)}
    factors = [
        Factor("z", frozenset("z"), frozenset(["group"])),
        Factor("x", frozenset("zw"), frozenset(["group", "row"])),
    ]
    latents = {"z": frozenset(["group"]), "w": frozenset(["group", "row"])}
    plan = plan_elimination(factors, latents, sizes, axes)
    expected = 0.0
    for g in range(groups):
        by_state = []
        for z in range(k):
            by_state.append(
                prior[z, g] + sum(np.log(sum(np.exp(inner[z, w, g, r]) for w in range(m))) for r in range(rows))
            )
        expected += np.log(sum(map(math.exp, by_state)))
    got = log_normalizer(plan, tables, dict.fromkeys(tables), dict.fromkeys(latents, PLAIN_SUM))
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_constant_tables_count_once_per_plate_cell():
    """A table that does not vary along its plate counts once for every cell."""
    factors = [Factor("z", frozenset("z"), frozenset(["row"])), Factor("x", frozenset("z"), frozenset(["row"]))]
    plan = plan_elimination(factors, {"z": frozenset(["row"])}, {"z": 2, "row": 7}, ("z", "row"))
    table = {"z": jnp.log(jnp.array([[0.3], [0.7]])), "x": jnp.log(jnp.array([[0.5], [0.1]]))}
    got = log_normalizer(plan, table, dict.fromkeys(table), {"z": PLAIN_SUM})
    np.testing.assert_allclose(got, 7 * math.log(0.3 * 0.5 + 0.7 * 0.1), rtol=1e-14)


# -------------------------------------------------------------------------------------------- structural zeros


def left_right(x, known=None):
    """A three-step left-right chain with forbidden moves, written as a Python loop."""
    start = jnp.array([1.0, 0.0, 0.0])
    move = jnp.array([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]])
    loc = numpyro.param("loc", jnp.array([-1.0, 0.0, 1.0]))
    with numpyro.plate("sequence", len(x)):
        z = numpyro.sample("z0", dist.Categorical(start))
        numpyro.sample("x0", dist.Normal(loc[z], 1.0), obs=x[:, 0])
        for t in range(1, 4):
            z = numpyro.sample(f"z{t}", dist.Categorical(move[z]))
            numpyro.sample(f"x{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])
        if known is not None:
            numpyro.sample("end", dist.Delta(z), obs=known)


def test_structural_zeros_agree_with_brute_force():
    """A left-right chain: forbidden states get weight exactly zero and nothing is NaN, in any derivative."""
    x = np.random.default_rng(0).normal(size=(2, 4))
    params = {"loc": np.array([-0.5, 0.2, 1.5])}
    oracle, em = BruteForce(left_right, params, x), emppl.EM(left_right)
    np.testing.assert_allclose(em.log_likelihood(params, x), oracle.log_likelihood(), rtol=1e-12)
    result = at(left_right, params, x)
    for name, table in oracle.marginals().items():
        np.testing.assert_allclose(result.posterior(name), table, atol=1e-12)
    np.testing.assert_array_equal(result.posterior("z1")[:, 2], 0)
    gradient = jax.grad(lambda p: em.log_likelihood(p, x))(params)["loc"]
    direct = jax.grad(lambda p: oracle.log_likelihood(p))(params)["loc"]
    np.testing.assert_allclose(gradient, direct, rtol=1e-9)
    posterior = em.e_step(params, x)
    assert all(np.all(np.isfinite(weight)) for weight in posterior.weights.values())
    assert np.isfinite(em.q(params, posterior, x))
    np.testing.assert_allclose(em.m_step(params, posterior, x)["loc"].shape, (3,))
    assert np.all(np.isfinite(em.m_step(params, posterior, x)["loc"]))
    assert np.all(np.isfinite(jax.hessian(lambda p: em.log_likelihood(p, x))(params)["loc"]["loc"]))


def test_impossible_data_have_log_likelihood_minus_infinity():
    """State 2 cannot follow a one-step history that ends in state 0: evidence zero, gradient finite."""

    def model(x):
        loc = numpyro.param("loc", jnp.array([0.0, 1.0]))
        with numpyro.plate("row", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([1.0, 0.0])))
            numpyro.sample("tie", dist.Delta(z), obs=jnp.ones(len(x), int))
            numpyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    params, x = {"loc": np.array([0.0, 1.0])}, np.array([0.1, 0.2])
    em = emppl.EM(model)
    assert em.log_likelihood(params, x) == -np.inf
    assert np.all(np.isfinite(em.e_step(params, x).weights["x"]))
    assert np.all(np.isfinite(jax.grad(lambda p: em.log_likelihood(p, x))(params)["loc"]))


# ---------------------------------------------------------------------------------------------------- refusals


def test_crossing_plates_are_refused():
    """Latents of crossing plates in one factor: an error that names both sites, before any arithmetic."""

    def model(x):
        loc = numpyro.param("loc", jnp.zeros((2, 2)))
        rows, columns = numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1)
        with rows:
            person = numpyro.sample("person", dist.Categorical(jnp.array([0.5, 0.5])))
        with columns:
            item = numpyro.sample("item", dist.Categorical(jnp.array([0.5, 0.5])))
        with rows, columns:
            numpyro.sample("x", dist.Normal(loc[person, item], 1.0), obs=x)

    with pytest.raises(ModelError, match="(?s)item.*person.*exponential"):
        emppl.EM(model).plan(np.zeros((3, 4)))


def test_site_outside_the_plate_of_its_latent_is_refused():
    """A site that sums over a latent's plate without being in it: an error that names site, latent and plate."""

    def model(x, y):
        loc = numpyro.param("loc", jnp.zeros(2))
        with numpyro.plate("rows", 3):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            numpyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)
        numpyro.sample("total", dist.Normal(jnp.sum(loc[z], -1), 1.0), obs=y)

    with pytest.raises(ModelError, match="(?s)'total'.*'z'"):
        emppl.EM(model).plan(np.zeros(3), np.zeros(()))


def test_too_large_a_table_is_refused_before_it_is_allocated():
    """Ten latents of 40 states in one factor (80,000 TiB): a ModelError that names a latent and the sizes."""

    def model(x):
        slope = numpyro.param("slope", 1.0)
        with numpyro.plate("rows", 5):
            total = sum(numpyro.sample(f"z{i}", dist.Categorical(jnp.ones(40) / 40)) for i in range(10))
            numpyro.sample("x", dist.Normal(slope * total, 1.0), obs=x)

    with pytest.raises(ModelError, match="(?s)GiB.*'z.'.*40"):
        emppl.EM(model).plan(np.zeros(5))


# ------------------------------------------------------------------------------------- joint draws and decoding


def two_levels(x):
    """A group label above two row labels, tied through the data."""
    loc = numpyro.param("loc", jnp.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]))
    rate = jnp.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    with numpyro.plate("group", 2, dim=-2):
        g = numpyro.sample("g", dist.Bernoulli(0.4))
        with numpyro.plate("row", 2, dim=-1):
            z = numpyro.sample("z", dist.Categorical(rate[g]))
            numpyro.sample("x", dist.Normal(loc[g, z], 1.0), obs=x)


def test_posterior_draws_are_exact():
    """20,000 joint draws: every marginal and every pair of cells has its brute-force frequency, within 5 sigma."""
    x = np.array([[0.3, -0.4], [1.2, 0.1]])
    params = {"loc": np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 2.0]])}
    oracle, draws = BruteForce(two_levels, params, x), 20_000
    samples = at(two_levels, params, x).sample_posterior(jax.random.key(7), draws)
    flat = np.concatenate([samples["g"].reshape(draws, -1), samples["z"].reshape(draws, -1)], 1)
    assert [cell.site for cell in oracle.cells] == ["g"] * 2 + ["z"] * 4
    columns = np.concatenate([oracle.assignments[n].reshape(len(oracle.assignments[n]), -1) for n in ("g", "z")], 1)
    posterior = oracle.posterior()
    for first, second in itertools.combinations(range(6), 2):
        for one in oracle.cells[first].support:
            for other in oracle.cells[second].support:
                p = posterior[(columns[:, first] == one) & (columns[:, second] == other)].sum()
                seen = np.mean((flat[:, first] == one) & (flat[:, second] == other))
                assert abs(seen - p) <= 5 * math.sqrt(p * (1 - p) / draws) + 1e-12, (first, second, one, other, seen, p)


def test_joint_decoding_differs_from_marginal_argmax():
    """The best pair is (1, 0) with probability 0.4 although state 0 of the first is likelier (0.6)."""

    def model(x):
        rate = numpyro.param("rate", 0.5, constraint=constraints.unit_interval)
        first = numpyro.sample("first", dist.Categorical(jnp.array([0.6, 0.4])))
        second = jnp.array([[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
        numpyro.sample("second", dist.Categorical(second[first]))
        numpyro.sample("x", dist.Bernoulli(rate), obs=x)

    result = at(model, {"rate": np.array(0.5)}, np.array(1))
    assert np.argmax(result.posterior("first")) == 0
    decoded = result.decode()
    assert (int(decoded["first"]), int(decoded["second"])) == (1, 0)
    np.testing.assert_allclose(result.posterior("first"), [0.6, 0.4], rtol=1e-14)


def test_decoding_ties_are_broken_to_one_joint_maximiser():
    """Two equally good assignments that agree nowhere: the answer is one of them, not a mixture of both."""

    def model(x):
        rate = numpyro.param("rate", 0.5, constraint=constraints.unit_interval)
        first = numpyro.sample("first", dist.Bernoulli(0.5))
        second = numpyro.sample("second", dist.Bernoulli(0.5))
        numpyro.sample("differ", dist.Delta((first + second) % 2), obs=jnp.array(1))
        numpyro.sample("x", dist.Bernoulli(rate), obs=x)

    decoded = at(model, {"rate": np.array(0.5)}, np.array(1)).decode()
    assert int(decoded["first"]) + int(decoded["second"]) == 1

"""Quadrature and Laplace against scipy's integrals, closed forms and dense grids."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import integrate, optimize, special, stats

import emppl
from emppl import EM, Laplace, Quadrature
from emppl.integrals.joint import Joint
from emppl.integrals.modes import climbing_root, find_modes
from emppl.integrals.quadrature import nodes
from emppl.result.integration_error import IntegrationError, _compared
from emppl.uncertainty.corners import no_standard_errors
from tests.kit.differences import numerical_hessian
from tests.kit.fits import compiled_of, fit
from tests.montecarlo.test_simulation import many_pumps

positive = dist.constraints.positive


# --------------------------------------------------------------------------------------------- models with an integral


def counts(y):
    """Poisson counts in plates inside a group's plate."""
    mu = numpyro.param("mu", 0.5)
    sd = numpyro.param("sd", 0.8, constraint=positive)
    with numpyro.plate("groups", y.shape[0], dim=-2):
        b = numpyro.sample("b", dist.Normal(mu, sd))
        with numpyro.plate("rows", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)


def answers(y, group, groups=4):
    """Yes or no; an index among the data tells the group."""
    mu = numpyro.param("mu", 0.5)
    sd = numpyro.param("sd", 0.8, constraint=positive)
    with numpyro.plate("groups", groups):
        b = numpyro.sample("b", dist.Normal(mu, sd))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=b[group]), obs=y)


def rates(y):
    """Gamma rates of Poisson counts."""
    shape = numpyro.param("shape", 2.0, constraint=positive)
    rate = numpyro.param("rate", 1.5, constraint=positive)
    with numpyro.plate("rows", len(y)):
        g = numpyro.sample("g", dist.Gamma(shape, rate))
        numpyro.sample("y", dist.Poisson(g), obs=y)


def shares(y):
    """Beta probabilities of binomial counts."""
    a = numpyro.param("a", 2.0, constraint=positive)
    b = numpyro.param("b", 3.0, constraint=positive)
    with numpyro.plate("rows", len(y)):
        p = numpyro.sample("p", dist.Beta(a, b))
        numpyro.sample("y", dist.Binomial(10, p), obs=y)


def lifetimes(y):
    """Log-normal rates of exponential times."""
    m = numpyro.param("m", 0.3)
    s = numpyro.param("s", 0.6, constraint=positive)
    with numpyro.plate("rows", len(y)):
        rate = numpyro.sample("rate", dist.LogNormal(m, s))
        numpyro.sample("y", dist.Exponential(rate), obs=y)


def spreads(y):
    """A scale of its own, half-normal, for every row of normal observations."""
    s = numpyro.param("s", 2.0, constraint=positive)
    with numpyro.plate("rows", y.shape[0]):
        u = numpyro.sample("u", dist.HalfNormal(s))
        numpyro.sample("y", dist.Normal(0, u[:, None] * jnp.ones(y.shape[1])).to_event(1), obs=y)


COUNTS = np.array([[0, 1, 2], [5, 4, 9], [0, 0, 0], [1, 3, 2]])
ANSWERS, GROUP = np.array([1, 0, 1, 1, 1, 0, 1]), np.array([2, 0, 0, 2, 2, 0, 1])  # nobody is in the last group
PLAIN = np.array([0, 3, 10, 7, 2])
TIMES = np.array([0.1, 2.0, 5.0])
ROWS = np.array([[0.1, -2.0, 0.3], [1.0, 2.0, 3.0], [0.4, 0.3, -0.2]])


def log_integral(log_density, low=-np.inf, high=np.inf):
    """By scipy, a log density of one number, scaled by its height on a grid."""
    grid = np.linspace(max(low, -20) + 1e-9, min(high, 20) - 1e-9, 4001)
    values = np.array([log_density(point) for point in grid])
    top, where = values.max(), grid[values.argmax()]
    pieces = [low, where, high]
    found = [
        integrate.quad(lambda v: math.exp(log_density(v) - top), a, b, epsabs=0, epsrel=1e-11, limit=500)[0]
        for a, b in zip(pieces[:-1], pieces[1:], strict=True)
    ]
    return top + math.log(sum(found))


def normal_poisson(row):
    return log_integral(
        lambda b: stats.norm.logpdf(b, 0.5, 0.8) + np.sum(row * b - np.exp(b) - special.gammaln(row + 1)), -30, 30
    )


def normal_bernoulli(y):
    return log_integral(lambda b: stats.norm.logpdf(b, 0.5, 0.8) + np.sum(y * b - np.logaddexp(0, b)))


CASES = {
    "normal-poisson": (counts, (COUNTS,), "b", 21, lambda: sum(map(normal_poisson, COUNTS)), 1e-8),
    "normal-bernoulli": (
        answers,
        (ANSWERS, GROUP),
        "b",
        15,
        lambda: sum(normal_bernoulli(ANSWERS[GROUP == group]) for group in range(3)),
        1e-8,
    ),
    # The tails of log-gamma and logit-beta are exponential on one side: more nodes, and fewer digits.
    "gamma-poisson": (rates, (PLAIN,), "g", 41, lambda: stats.nbinom.logpmf(PLAIN, 2, 1.5 / 2.5).sum(), 1e-7),
    "beta-binomial": (shares, (PLAIN,), "p", 41, lambda: stats.betabinom.logpmf(PLAIN, 10, 2, 3).sum(), 1e-7),
    "half-normal": (
        spreads,
        (ROWS,),
        "u",
        61,
        lambda: sum(
            log_integral(
                lambda u, row=row: stats.halfnorm.logpdf(u, 0, 2) + stats.norm.logpdf(row, 0, u).sum(), 0, np.inf
            )
            for row in ROWS
        ),
        1e-6,
    ),
    "log-normal": (
        lifetimes,
        (TIMES,),
        "rate",
        15,
        lambda: sum(
            log_integral(lambda v, t=t: stats.norm.logpdf(v, 0.3, 0.6) + v - t * math.exp(v), -30, 30) for t in TIMES
        ),
        1e-8,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_log_likelihood_is_scipys_integral(name):
    model, data, latent, nodes, reference, limit = CASES[name]
    em = EM(model, latents={latent: Quadrature(nodes)})
    start = em.start(jax.random.key(0), *data)
    assert float(em.log_likelihood(start, *data)) == pytest.approx(reference(), abs=limit)


def lines(y, x, group, groups=3):
    """A random intercept and a random slope, correlated."""
    root = numpyro.param("root", jnp.array([[0.7, 0.0], [0.2, 0.4]]), constraint=dist.constraints.lower_cholesky)
    with numpyro.plate("groups", groups):
        b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), scale_tril=root))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Poisson(jnp.exp(b[group, 0] + b[group, 1] * x)), obs=y)


HEAVY = {
    "half-normal": (stats.halfnorm(), np.exp, lambda x: x),
    "exponential": (stats.expon(), np.exp, lambda x: x),
    "gamma, shape 1/2": (stats.gamma(0.5), np.exp, lambda x: x),
    "gamma, shape 5": (stats.gamma(5.0), np.exp, lambda x: x),
    "beta, shapes 1/2 and 5": (
        stats.beta(0.5, 5.0),
        special.expit,
        lambda x: -np.logaddexp(0, x) - np.logaddexp(0, -x),
    ),
    "uniform": (stats.uniform(), special.expit, lambda x: -np.logaddexp(0, x) - np.logaddexp(0, -x)),
}


@pytest.mark.parametrize("name", HEAVY)
def test_nodes_of_latents_within_bounds(name):
    """Densities of logarithms and logits integrate to one, around their modes; Hermite nodes miss the slow tails."""
    law, back, log_slope = HEAVY[name]

    def height(x):
        return law.logpdf(back(x)) + log_slope(x)

    mode = optimize.minimize_scalar(lambda x: -height(x), bounds=(-8, 8), method="bounded").x
    curvature = (2 * height(mode) - height(mode + 1e-3) - height(mode - 1e-3)) / 1e-6

    def error(number, heavy):
        z, log_weights = nodes(number, heavy)
        return abs(np.sum(np.exp(log_weights + height(mode + z / np.sqrt(curvature)))) / np.sqrt(curvature) - 1)

    assert error(15, True) < 3e-3
    assert error(31, True) < 5e-5
    assert error(61, True) < 1e-6
    if name != "gamma, shape 5":
        assert error(61, True) < error(61, False) / 10


def gamma_counts(y, shape):
    rate = numpyro.param("rate", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("rows", len(y)):
        level = numpyro.sample("level", dist.Gamma(shape, rate))
        numpyro.sample("y", dist.Poisson(level), obs=y)


@pytest.mark.parametrize("number", [5, 9, 15, 31])
def test_nodes_where_data_leave_little_of_the_tails(number):
    """A gamma latent known well: the negative binomial is its integral."""

    y = np.random.default_rng(0).poisson(100.0, 50).astype(float)
    em = EM(gamma_counts, latents={"level": Quadrature(number)})
    found = float(em.log_likelihood({"rate": 0.2}, y, 20.0))
    expected = stats.nbinom.logpmf(y, 20.0, 0.2 / 1.2).sum()
    assert found == pytest.approx(expected, abs=1e-2 if number < 15 else 2e-3)


@pytest.mark.parametrize("x64", [True, False])
def test_nodes_where_an_exponential_is_no_number(x64):
    """A gamma latent of shape 1/20 has a deviation of 4.5 on the log scale: nodes go where float32 cannot."""

    y = np.array([0.0, 0.0, 1.0, 3.0])
    with jax.enable_x64(x64):
        found = float(EM(gamma_counts, latents={"level": Quadrature(61)}).log_likelihood({"rate": 0.05}, y, 0.05))
    # Below exp(-80), which is where float32 ends, lies exp(-0.05 * 80) of both groups without a count.
    missing = 0.0 if x64 else 2 * np.exp(-0.05 * 80)
    assert found == pytest.approx(stats.nbinom.logpmf(y, 0.05, 0.05 / 1.05).sum() - missing, abs=0.01)


def test_stochastic_frontier():
    """Normal noise less a half-normal shortfall: the density of the sum is known (Aigner, Lovell and Schmidt 1977)."""

    def model(x, y):
        line = numpyro.param("line", jnp.array([1.0, 0.5]))
        noise = numpyro.param("noise", 0.3, constraint=dist.constraints.positive)
        spread = numpyro.param("spread", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("firms", len(y)):
            shortfall = numpyro.sample("shortfall", dist.HalfNormal(spread))
            numpyro.sample("y", dist.Normal(line[0] + line[1] * x - shortfall, noise), obs=y)

    rng = np.random.default_rng(4)
    x = rng.normal(size=60)
    y = 1 + 0.5 * x + 0.3 * rng.normal(size=60) - np.abs(rng.normal(size=60))

    def minus_log_likelihood(v):
        noise, spread = np.exp(v[2:])
        both, rest = np.hypot(noise, spread), y - v[0] - v[1] * x
        return -np.sum(np.log(2) + stats.norm.logpdf(rest, 0, both) + stats.norm.logcdf(-rest * spread / noise / both))

    best = optimize.minimize(minus_log_likelihood, [1.0, 0.5, -1.2, 0.0], method="BFGS")
    result = fit(model, x, y, latents={"shortfall": emppl.Quadrature(41)}, accelerate="squarem")
    assert result.converged and result.log_likelihood == pytest.approx(-best.fun, abs=1e-4)
    np.testing.assert_allclose(result.params["line"], best.x[:2], atol=1e-3)
    np.testing.assert_allclose([result.params["noise"], result.params["spread"]], np.exp(best.x[2:]), rtol=3e-3)
    assert abs(result.integration_error.log_likelihood) < 1e-3


def test_two_dimensions():
    x, group = np.array([0.0, 1.0, 2.0, 0.5, 1.5, -1.0]), np.array([2, 0, 0, 2, 1, 0])
    y = np.array([1, 2, 7, 0, 3, 0])
    em = EM(lines, latents={"b": Quadrature(9)})
    root = np.array([[0.7, 0.0], [0.2, 0.4]])
    # Nodes of the prior, many of them: another rule than the adaptive one.
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1) @ root.T
    heights = np.log(np.outer(weights, weights) / (2 * math.pi))
    expected = 0.0
    for one in range(3):
        here = group == one
        eta = grid[..., :1] + grid[..., 1:] * x[here]
        expected += special.logsumexp(heights + stats.poisson.logpmf(y[here], np.exp(eta)).sum(-1))
    assert float(em.log_likelihood({"root": root}, y, x, group)) == pytest.approx(expected, abs=2e-5)


def three(y, x):
    """Three numbers of a row that meet in its answers."""
    with numpyro.plate("rows", y.shape[0]):
        a = numpyro.sample("a", dist.Normal(0, 0.5))
        b = numpyro.sample("b", dist.Normal(0.3, numpyro.param("sd", 0.7, constraint=positive)).expand([1]).to_event(1))
        c = numpyro.sample("c", dist.Normal(0, 0.4))
        logits = a[:, None] + b * x + c[:, None] * x**2
        numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)


def test_three_dimensions():
    y, x = np.array([[0, 1, 1, 1], [1, 0, 0, 0]]), np.array([-1.0, 0.0, 0.5, 2.0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    a, b, c = (one.ravel() for one in np.meshgrid(0.5 * nodes, 0.3 + 0.7 * nodes, 0.4 * nodes, indexing="ij"))
    heights = np.log(np.einsum("i,j,k->ijk", weights, weights, weights).ravel() / (2 * math.pi) ** 1.5)
    eta = a[:, None] + b[:, None] * x + c[:, None] * x**2
    log_prob = (y[:, None] * eta - np.logaddexp(0, eta)).sum(-1)
    expected = special.logsumexp(heights + log_prob, axis=1).sum()
    assert float(EM(three).log_likelihood({"sd": 0.7}, y, x)) == pytest.approx(expected, abs=3e-6)  # 7 nodes


def ranked(y):
    """Two numbers that meet in an operation nothing is known of."""
    with numpyro.plate("pair", 2):
        b = numpyro.sample("b", dist.Normal(0, numpyro.param("sd", 0.7, constraint=positive)))
    numpyro.sample(
        "y", dist.Poisson(jnp.exp(jnp.linalg.eigvalsh(jnp.array([[2.0, 0.5], [0.5, 1.0]]) * b).sum())), obs=y
    )


def test_latents_that_cannot_be_told_apart_are_one_group():
    em = EM(ranked, latents={"b": Quadrature(15)})
    assert "1 group of 2 dimensions" in str(em.plan(3))


# ------------------------------------------------------------------------------------------------------------- Laplace


@pytest.mark.slow
def test_error_of_laplace_in_many_dimensions():
    """By importance sampling, within its own Monte Carlo error, of log-likelihood and of the maximum."""
    rng = np.random.default_rng(0)
    time = rng.uniform(0.5, 5, 6)
    failures = rng.poisson(rng.gamma(0.8, 1 / 1.3, (8, 6)) * time).astype(float)
    result = fit(many_pumps, time, failures, latents={"rate": Laplace()})
    assert result.converged

    def exact(beta):
        return stats.nbinom.logpmf(failures, 0.8, beta / (beta + time)).sum()

    error = result.integration_error
    here, deviation = float(result.params["beta"]), float(result.standard_errors()["beta"])
    assert 0 < error.log_likelihood_noise < 0.1 * error.log_likelihood
    assert abs(exact(here) - result.log_likelihood - error.log_likelihood) < 3 * error.log_likelihood_noise
    best = optimize.minimize_scalar(lambda beta: -exact(beta), bracket=(0.5, 2), method="brent").x
    # One Newton step by the curvature of Laplace's approximation.
    assert error.shift == pytest.approx(abs(best - here) / deviation, rel=0.2, abs=3 * error.shift_noise)
    assert any("Monte Carlo error" in note for note in result.certificate.notes)


def laplace_by_hand(params, rows):
    """Laplace's approximation of ``counts``."""
    total = 0.0
    for row in rows:

        def minus(b, row=row):
            prior = stats.norm.logpdf(b, params[0], params[1])
            return -(prior + np.sum(row * b - np.exp(b) - special.gammaln(row + 1)))

        mode = optimize.brentq(
            lambda b, row=row: row.sum() - len(row) * np.exp(b) - (b - params[0]) / params[1] ** 2, -9, 9, xtol=1e-14
        )
        curvature = 1 / params[1] ** 2 + len(row) * math.exp(mode)
        total += -minus(mode) + 0.5 * math.log(2 * math.pi / curvature)
    return total


@pytest.mark.slow
def test_laplace_with_second_derivatives():
    """The Hessian, which standard errors come from, sees how modes and curvatures move."""
    for strategy in (Laplace(), Quadrature(1)):
        em = EM(counts, latents={"b": strategy})
        value = lambda v, em=em: em.log_likelihood({"mu": v[0], "sd": v[1]}, COUNTS)  # noqa: E731
        at = np.array([0.5, 0.8])
        assert float(value(jnp.asarray(at))) == pytest.approx(laplace_by_hand(at, COUNTS), abs=1e-9)
    numeric = numerical_hessian(lambda at: laplace_by_hand(at, COUNTS), at, step=1e-3)
    np.testing.assert_allclose(jax.hessian(value)(jnp.asarray(at)), numeric, atol=2e-4)


# --------------------------------------------------------------------------------------------------------- convergence


@functools.cache
def binary_data():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(40), 6)
    effect = rng.normal(0.3, 1.2, 40)
    return (rng.random(240) < special.expit(effect[group])).astype(int), rng.permutation(group)


SLOW = [
    pytest.param(one, marks=pytest.mark.slow) for one in (Quadrature(1), Quadrature(2), Quadrature(3), Quadrature(9))
]


@pytest.mark.parametrize("strategy", [Laplace(), *SLOW], ids=repr)
def test_approximate_evidence_converges_to_the_fixed_point(strategy):
    y, group = binary_data()
    em = EM(functools.partial(answers, groups=40), latents={"b": strategy}, tolerance=1e-12)
    result = em.run(jax.random.key(0), y, group)
    assert result.converged, result.stop_message
    assert "approximate" in result.certificate.objective
    posterior = em.e_step(result.params, y, group)
    after = em.m_step(result.params, posterior, y, group)
    for name in ("mu", "sd"):
        assert float(after[name]) == pytest.approx(float(result.params[name]), abs=1e-5)
    # What the fit says of its error is what a rule with many nodes finds.
    exact = EM(em.model, latents={"b": Quadrature(41)}).log_likelihood(result.params, y, group)
    assert result.integration_error.log_likelihood == pytest.approx(
        float(exact) - result.log_likelihood, rel=0.05, abs=2e-5
    )
    assert any("Error of integration" in note for note in result.certificate.notes)


def test_fixed_point_is_a_maximum():
    y, group = binary_data()
    em = EM(functools.partial(answers, groups=40), latents={"b": Quadrature(25)}, tolerance=1e-13)
    result = em.run(jax.random.key(0), y, group)
    slope = jax.grad(lambda params: em.log_likelihood(params, y, group))(
        {n: jnp.asarray(v) for n, v in result.params.items()}
    )
    assert max(abs(float(one)) for one in slope.values()) < 1e-4

    def minus(v):
        rows = [y[group == one] for one in range(40)]
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        eta = v[0] + np.exp(v[1]) * nodes
        heights = [row.sum() * eta - len(row) * np.logaddexp(0, eta) for row in rows]
        return -sum(special.logsumexp(one + np.log(weights / math.sqrt(2 * math.pi))) for one in heights)

    best = optimize.minimize(minus, [0, 0], tol=1e-10)
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    assert float(result.params["mu"]) == pytest.approx(best.x[0], abs=1e-4)
    assert float(result.params["sd"]) == pytest.approx(math.exp(best.x[1]), abs=1e-4)


def test_an_m_step_that_lowers_q_is_named():
    y, group = binary_data()
    result = fit(
        functools.partial(answers, groups=40),
        y,
        group,
        latents={"b": Laplace()},
        m_step={"mu": lambda params, posterior: params["mu"] + 0.5},
    )
    assert result.stop_reason is emppl.StopReason.DECREASED
    assert "Q" in result.stop_message


# --------------------------------------------------------------------------------------------------------------- modes


def mode_finder(model, latent, data):
    """Modes as a function of parameters and start, compiled once."""
    derived, leaves = compiled_of(EM(model, latents={latent: Quadrature(5)}), *data)
    (integral,) = derived.program.model.integrals

    @jax.jit
    def find(params, start):
        joint = Joint(derived.program.model, integral, params, leaves)
        return find_modes(joint, jnp.full((integral.groups, 1), start))[:, 0]

    return lambda params, start: np.asarray(find(params, start))


def test_modes_from_anywhere():
    """Groups of one kind of answers only have flat log densities with a far mode."""
    y, group = np.array([1] * 7 + [0] * 7 + [0, 1, 1]), np.repeat(np.arange(3), [7, 7, 3])
    find = mode_finder(functools.partial(answers, groups=3), "b", (y, group))
    for sd in (0.01, 4.0, 100.0):
        for start in (0.0, 30.0, -300.0):
            found = find({"mu": 0.5, "sd": sd}, start)
            ones, size = np.bincount(group, y), np.bincount(group)
            slope = ones - size * special.expit(found) - (found - 0.5) / sd**2
            curvature = size * special.expit(found) * special.expit(-found) + sd**-2
            # A Newton step from there would move it by rounding.
            np.testing.assert_array_less(np.abs(slope) / curvature, 1e-9 * (1 + np.abs(found)))


def test_modes_where_the_density_is_not_normal_at_all():
    find = mode_finder(rates, "g", (PLAIN,))
    for start in (0.0, -40.0, 20.0):
        found = find({"shape": 2.0, "rate": 1.5}, start)
        np.testing.assert_allclose(found, np.log((PLAIN + 2) / 2.5), rtol=1e-9)


def test_climbing_root_of_any_matrix():
    matrices = jnp.array([[[2.0, 0.5], [0.5, 1.0]], [[-1.0, 0.3], [0.3, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    root = climbing_root(matrices)
    assert bool(jnp.all(jnp.isfinite(root)))
    np.testing.assert_allclose(root[0] @ root[0].T, matrices[0], atol=1e-14)
    assert float(climbing_root(jnp.array([[[-3.0]]]))[0, 0, 0] ** 2) == pytest.approx(3.0)


@pytest.mark.slow
def test_ten_thousand_groups_in_single_precision():
    rng = np.random.default_rng(0)
    y, group = rng.integers(0, 2, 30_000), np.repeat(np.arange(10_000), 3)
    with jax.enable_x64(False):
        em = EM(functools.partial(answers, groups=10_000), latents={"b": Quadrature(21)})
        value = em.log_likelihood({"mu": 0.1, "sd": 2.0}, jnp.asarray(y), jnp.asarray(group))
        assert value.dtype == jnp.float32
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    eta = 0.1 + 2 * nodes
    table = [
        special.logsumexp(k * eta - 3 * np.logaddexp(0, eta) + np.log(weights / math.sqrt(2 * math.pi)))
        for k in range(4)
    ]
    expected = np.asarray(table)[y.reshape(-1, 3).sum(-1)].sum()
    assert float(value) == pytest.approx(expected, rel=2e-6)


# ------------------------------------------------------------------------------------------------------------- corners


def with_corners(y, prior=dist.Laplace, likelihood=dist.Normal):
    tau = numpyro.param("tau", 1.0, constraint=positive)
    s = numpyro.param("s", 1.0, constraint=positive)
    with numpyro.plate("groups", len(y)):
        b = numpyro.sample("b", prior(0.0, tau))
        numpyro.sample("y", likelihood(b[:, None] * jnp.ones(y.shape[1]), s).to_event(1), obs=y)


def test_corners_are_not_left_to_quadrature():
    """Where the latent's own density has one, nodes gather at it; where that of data has, they are less accurate."""
    y = np.zeros((5, 3))
    for strategy in (Quadrature(), Quadrature(1), Laplace()):
        with pytest.raises(
            emppl.ModelError, match=r"of 'b' has a corner.*latents=\{'b': MonteCarlo\(\)\}.*SoftLaplace"
        ):
            EM(with_corners, latents={"b": strategy}).plan(y)
    assert "the density of 'b' has corners in it" in str(EM(with_corners).plan(y))
    assert EM(with_corners).plan(y).latents[0].strategy.startswith("Monte Carlo")
    median = functools.partial(with_corners, prior=dist.Normal, likelihood=dist.Laplace)
    plan = EM(median).plan(y)
    assert "the density of 'y' has corners in it" in str(plan)
    assert plan.latents[0].strategy.startswith("Monte Carlo")
    plan = EM(median, latents={"b": Quadrature()}).plan(y)
    assert "the density of 'y' has corners in it, where quadrature is less accurate" in str(plan)
    smooth = functools.partial(with_corners, prior=dist.SoftLaplace)
    assert EM(smooth).plan(y).latents[0].strategy.startswith("Quadrature")


@pytest.mark.slow
def test_a_latent_with_a_laplace_density():
    """By default within five Monte Carlo errors of the maximum by a dense grid."""
    rng = np.random.default_rng(0)
    y = rng.laplace(size=(40, 1)) * 0.3 + rng.normal(size=(40, 3))
    half = np.geomspace(1e-7, 30, 6000)
    grid = np.concatenate([-half[::-1], half])

    def loss(free):
        tau, s = np.exp(free)
        joint = stats.laplace.logpdf(grid, 0, tau) + stats.norm.logpdf(y[:, :, None], grid, s).sum(1)
        top = joint.max(1, keepdims=True)
        return -(top[:, 0] + np.log(np.trapezoid(np.exp(joint - top), grid, axis=1))).sum()

    best = optimize.minimize(loss, [np.log(0.3), 0.0], method="Nelder-Mead", options={"xatol": 1e-5})
    result = fit(with_corners, y)
    assert result.converged
    for name, truth in zip(("tau", "s"), np.exp(best.x), strict=True):
        assert abs(result.params[name] - truth) < 5 * result.monte_carlo_errors[name]
    assert result.log_likelihood == pytest.approx(-best.fun, abs=0.2)


def test_a_shift_that_the_log_likelihood_belies_is_not_given():
    for nats, shift, told in ((2.0, 2e-4, False), (-14000.0, 0.0, False), (2.0, 0.1, True), (0.01, 2e-4, True)):
        error = _compared(IntegrationError({"b": "finer"}, nats, shift))
        assert error.disagree is not told
        assert np.isnan(error.shift) == (not told)
        assert ("the two disagree" in str(error)) is not told
        assert ("would move the estimates" in str(error)) is told


@pytest.mark.parametrize("own", [False, True])
def test_corners_that_are_integrated_over(own):
    """Their likelihood is smooth, but no derivative shows its curvature: the error says how to write the model."""

    def model(y):
        mu = numpyro.param("mu", 0.5)
        with numpyro.plate("groups", len(y)):
            b = numpyro.sample("b", dist.Laplace(mu, 0.5) if own else dist.Normal(0.0, 0.5))
            numpyro.sample("y", dist.Normal(b, 1.0) if own else dist.Laplace(mu + b, 1.0), obs=y)

    program = compiled_of(EM(model), np.zeros(5))[0].program
    told = no_standard_errors(program.model)
    assert "The likelihood, its integral, has none" in told
    assert "the log density of the data" not in told
    expected = "latent 'b' has corners in mu" if own else r"put mu into the prior of 'b', such as b ~ Normal(mu, tau)"
    assert expected in told
    if not own:
        result = EM(model, latents={"b": Quadrature()}, max_iterations=0)
        result = result.run(jax.random.key(0), np.arange(5.0))
        with pytest.raises(ValueError, match="put mu into the prior of 'b'"):
            result.standard_errors()

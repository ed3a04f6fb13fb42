"""The search for modes begins at the centre of the prior: models that are singular, or impossible, at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl
from emppl.integrals.centre import prior_centre
from emppl.integrals.joint import Joint
from tests.kit.fits import program_of

NORM = scipy.stats.norm


def evidence(density, low, high):
    """Log of an integral in one dimension."""
    return np.log(scipy.integrate.quad(density, low, high, epsabs=0, epsrel=1e-11, limit=300)[0])


def reciprocal(y, prior):
    m = numpyro.param("m", 5.0)
    with numpyro.plate("n", len(y)):
        v = numpyro.sample("v", prior(m))
        numpyro.sample("y", dist.Normal(10 / v, 0.1), obs=y)


NEAR_TWO = np.array([1.9, 2.3, 1.7])
PRIORS = {
    "Normal": (lambda m: dist.Normal(m, 0.5), lambda v: NORM.pdf(v, 5, 0.5), 5.0, 1e-9),
    "StudentT": (lambda m: dist.StudentT(6.0, m, 0.4), lambda v: scipy.stats.t.pdf(v, 6, 5, 0.4), 5.0, 1e-3),
    "Logistic": (lambda m: dist.Logistic(m, 0.3), lambda v: scipy.stats.logistic.pdf(v, 5, 0.3), 5.0, 1e-4),
    "LogNormal": (
        lambda m: dist.LogNormal(jnp.log(m), 0.1),
        lambda v: scipy.stats.lognorm.pdf(v, 0.1, scale=5),
        5,
        1e-8,
    ),
    "Gamma": (lambda m: dist.Gamma(80.0, 80 / m), lambda v: scipy.stats.gamma.pdf(v, 80, scale=5 / 80), 5.0, 1e-6),
    "shifted": (
        lambda m: dist.TransformedDistribution(dist.Normal(0.0, 0.5), dist.transforms.AffineTransform(m, 1.0)),
        lambda v: NORM.pdf(v, 5, 0.5),
        5.0,
        1e-9,
    ),
}


@pytest.mark.parametrize("prior, density, centre, accuracy", PRIORS.values(), ids=PRIORS)
def test_log_likelihood_of_a_reciprocal(prior, density, centre, accuracy):
    """Against scipy's integral; and where the search begins."""
    em = emppl.EM(reciprocal, latents={"v": emppl.Quadrature(31)})
    right = sum(evidence(lambda v, y=y: density(v) * NORM.pdf(y, 10 / v, 0.1), 2.0, 12.0) for y in NEAR_TWO)
    assert float(em.log_likelihood({"m": 5.0}, NEAR_TWO, prior)) == pytest.approx(right, abs=accuracy)
    program, data = program_of(reciprocal, NEAR_TWO, prior, latents={"v": emppl.Quadrature(31)})
    (integral,) = program.model.integrals
    joint = Joint(program.model, integral, {"m": jnp.asarray(5.0)}, data)
    begun = joint.constrained(joint.unpack(prior_centre(joint)))["v"]
    np.testing.assert_allclose(begun, centre, rtol=1e-12)


@pytest.mark.parametrize("strategy", [emppl.Quadrature(15), emppl.Laplace(), emppl.MonteCarlo(max_samples=200)])
def test_a_fit_from_the_declared_start(strategy):
    """Every first iteration had no number to begin with."""
    y = np.repeat(10 / np.random.default_rng(0).normal(5, 0.5, (20, 1)), 3, 1)
    y = y + np.random.default_rng(1).normal(0, 0.1, y.shape)

    def model(y):
        m = numpyro.param("m", 4.5)
        with numpyro.plate("subjects", len(y), dim=-2):
            v = numpyro.sample("v", dist.Normal(m, 0.5))
            with numpyro.plate("times", y.shape[1], dim=-1):
                numpyro.sample("y", dist.Normal(10 / v, 0.1), obs=y)

    result = emppl.EM(model, latents={"v": strategy}, max_iterations=30).run(jax.random.key(0), y)
    assert np.isfinite(result.log_likelihood)
    # The delta method: the mean of 10 / (mean of y), within a few standard errors of the mean of 20 subjects.
    assert abs(float(result.params["m"]) - (10 / y.mean(1)).mean()) < 0.05


def test_a_latent_whose_mean_is_another_latent():
    """The centre of the first is passed on to the second."""

    def model(y):
        m = numpyro.param("m", 5.0)
        with numpyro.plate("n", len(y)):
            v = numpyro.sample("v", dist.Normal(m, 1.0))
            u = numpyro.sample("u", dist.Normal(v, 0.5))
            numpyro.sample("y", dist.Normal(10 / u, 0.1), obs=y)

    em = emppl.EM(model, latents={"u": emppl.Quadrature(25), "v": emppl.Quadrature(25)})
    sd = np.sqrt(1.25)
    right = sum(evidence(lambda u, y=y: NORM.pdf(u, 5, sd) * NORM.pdf(y, 10 / u, 0.1), 2.0, 15.0) for y in NEAR_TWO)
    assert float(em.log_likelihood({"m": 5.0}, NEAR_TWO)) == pytest.approx(right, abs=1e-8)


def test_far_locations_of_positive_latents():
    """A log-normal latent of thousands: its logarithm is far from zero, too."""

    def model(y):
        m = numpyro.param("m", 8.0)
        with numpyro.plate("n", len(y)):
            v = numpyro.sample("v", dist.LogNormal(m, 0.3))
            numpyro.sample("y", dist.Normal(1e4 / v, 0.5), obs=y)

    y = np.array([3.0, 4.5, 2.0])
    em = emppl.EM(model, latents={"v": emppl.Quadrature(31)})
    right = sum(evidence(lambda u, y=y: NORM.pdf(u, 8, 0.3) * NORM.pdf(y, 1e4 * np.exp(-u), 0.5), 6, 10) for y in y)
    assert float(em.log_likelihood({"m": 8.0}, y)) == pytest.approx(right, abs=1e-9)


def test_shares_and_vectors():
    """Beta and multivariate normal latents, against scipy's integrals."""

    def share(y):
        a = numpyro.param("a", 3.0)
        with numpyro.plate("n", len(y)):
            v = numpyro.sample("v", dist.Beta(a, 200.0))
            numpyro.sample("y", dist.Poisson(50 / (0.5 - v) ** 2 * v), obs=y)

    def vector(y):
        m = numpyro.param("m", jnp.array([5.0, -4.0]))
        with numpyro.plate("n", len(y)):
            v = numpyro.sample("v", dist.MultivariateNormal(m, 0.1 * jnp.eye(2)))
            numpyro.sample("y", dist.Normal(40 / (v[..., 0] * v[..., 1]), 0.1), obs=y)

    counts = np.array([2, 5, 1])
    right = sum(
        evidence(
            lambda v, y=y: scipy.stats.beta.pdf(v, 3, 200) * scipy.stats.poisson.pmf(y, 50 / (0.5 - v) ** 2 * v), 0, 0.2
        )
        for y in counts
    )
    em = emppl.EM(share, latents={"v": emppl.Quadrature(31)})
    assert float(em.log_likelihood({"a": 3.0}, counts)) == pytest.approx(right, abs=1e-6)

    sd = np.sqrt(0.1)
    # Along the first entry by scipy, along the second by a fine trapezoidal rule.
    grid = np.linspace(-5.8, -2.2, 2001)

    def along_both(a, y):
        inner = NORM.pdf(grid, -4, sd) * NORM.pdf(y, 40 / (a * grid), 0.1)
        return NORM.pdf(a, 5, sd) * inner.sum() * (grid[1] - grid[0])

    y = np.array([-1.9, -2.2, -1.8])
    right = sum(evidence(lambda a, y=y: along_both(a, y), 3.2, 6.8) for y in y)
    em = emppl.EM(vector, latents={"v": emppl.Quadrature(25)})
    assert float(em.log_likelihood({"m": [5.0, -4.0]}, y)) == pytest.approx(right, abs=1e-6)


def reverting(y):
    m, s = numpyro.param("m", 5.0), numpyro.param("s", 0.1, constraint=constraints.positive)

    def step(x, y_t):
        x = numpyro.sample("x", dist.Normal(m + 0.8 * (x - m), s))
        numpyro.sample("y", dist.Normal(10 / x, 0.2), obs=y_t)
        return x, None

    scan(step, m, y)


CHAIN = np.random.default_rng(0).normal(2.0, 0.2, size=8)


def test_a_chain_far_from_zero():
    """Against a filter on a grid: a chain around 5 whose reciprocal is observed, by draws."""
    grid = np.linspace(3.5, 7.5, 1601)
    width = grid[1] - grid[0]
    move = NORM.pdf(grid[None, :], 5 + 0.8 * (grid[:, None] - 5), 0.1) * width
    filtered = NORM.pdf(grid, 5, 0.1) * NORM.pdf(CHAIN[0], 10 / grid, 0.2)
    for y_t in CHAIN[1:]:
        filtered = (filtered @ move) * NORM.pdf(y_t, 10 / grid, 0.2)
    em = emppl.EM(reverting, latents={"x": emppl.MonteCarlo()})
    value = float(em.log_likelihood({"m": 5.0, "s": 0.1}, CHAIN))
    # At least 50 draws in eight dimensions, from a proposal close to the posterior.
    assert value == pytest.approx(np.log(filtered.sum() * width), abs=0.05)


def test_laplace_at_the_mode_of_a_chain():
    """The same chain: the mode by scipy, and the determinant of the curvature there."""

    def minus_log_joint(x):
        before = jnp.concatenate([jnp.array([5.0]), x[:-1]])
        moves, seen = (x - 5 - 0.8 * (before - 5)) / 0.1, (CHAIN - 10 / x) / 0.2
        return jnp.sum(moves**2 + seen**2) / 2 + 8 * (np.log(0.1) + np.log(0.2) + np.log(2 * np.pi))

    solve = scipy.optimize.minimize(minus_log_joint, np.full(8, 5.0), jac=jax.grad(minus_log_joint), tol=1e-12)
    curvature = np.linalg.slogdet(jax.hessian(minus_log_joint)(jnp.asarray(solve.x)))[1]
    em = emppl.EM(reverting, latents={"x": emppl.Laplace()})
    value = float(em.log_likelihood({"m": 5.0, "s": 0.1}, CHAIN))
    assert value == pytest.approx(-solve.fun + 4 * np.log(2 * np.pi) - curvature / 2, abs=1e-8)


def test_a_curve_of_absorption_and_elimination():
    """As pharmacologists write it: three positive latents of each subject, singular where two rates are equal."""
    times = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0])

    def curve(clearance, volume, absorption, xp):
        rate = clearance / volume
        rise = xp.exp(-rate * times) - xp.exp(-absorption * times)
        return 4.0 * absorption / (volume * (absorption - rate)) * rise

    def model(y):
        location = numpyro.param("location", jnp.array([-3.2, -0.7, 0.4]))
        with numpyro.plate("subjects", len(y), dim=-2):
            c = numpyro.sample("clearance", dist.LogNormal(location[0], 0.2))
            v = numpyro.sample("volume", dist.LogNormal(location[1], 0.1))
            k = numpyro.sample("absorption", dist.LogNormal(location[2], 0.3))
            with numpyro.plate("times", len(times), dim=-1):
                numpyro.sample("y", dist.Normal(curve(c, v, k, jnp), 0.3), obs=y)

    rng = np.random.default_rng(0)
    logs = np.array([-3.2, -0.7, 0.4]) + np.array([0.2, 0.1, 0.3]) * rng.normal(size=(3, 3))
    y = np.stack([curve(*np.exp(row), np) for row in logs]) + rng.normal(0, 0.3, (3, 8))
    # A product of fine trapezoidal rules over the standardised logarithms.
    grid = np.linspace(-5, 5, 61)
    z = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3)
    c, v, k = np.exp(np.array([-3.2, -0.7, 0.4]) + np.array([0.2, 0.1, 0.3]) * z).T[:, :, None]
    log_prior = NORM.logpdf(z).sum(1) + 3 * np.log(grid[1] - grid[0])
    mean = curve(c, v, k, np)
    right = sum(np.logaddexp.reduce(log_prior + NORM.logpdf(row, mean, 0.3).sum(1)) for row in y)
    em = emppl.EM(model, latents=dict.fromkeys(("clearance", "volume", "absorption"), emppl.Quadrature(11)))
    value = float(em.log_likelihood({"location": [-3.2, -0.7, 0.4]}, y))
    assert value == pytest.approx(right, abs=1e-3)

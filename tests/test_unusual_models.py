"""Models that a demanding user tried, each against a likelihood or a maximum that emppl did not compute."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl
from emppl.trace.distributions import log_density
from tests.kit.differences import numerical_errors
from tests.kit.fits import KEY, fit

WEIGHTS = np.array([0.3, 0.7])


def occupied(y, x):
    psi = numpyro.param("psi", 0.5, constraint=constraints.unit_interval)
    slope = numpyro.param("slope", jnp.zeros(2))
    with numpyro.plate("sites", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(psi))
        numpyro.sample("y", dist.Binomial(4, z * jax.nn.sigmoid(slope[0] + slope[1] * x)), obs=y)


def zero_inflated(y, x):
    psi = numpyro.param("psi", 0.5, constraint=constraints.unit_interval)
    slope = numpyro.param("slope", jnp.zeros(2))
    with numpyro.plate("sites", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(psi))
        numpyro.sample("y", dist.Poisson(jnp.where(z == 1, jnp.exp(slope[0] + slope[1] * x), 0.0)), obs=y)


@pytest.mark.parametrize("model", [occupied, pytest.param(zero_inflated, marks=pytest.mark.slow)])
def test_outcomes_that_a_state_makes_impossible_leave_derivatives_alone(model):
    """Estimates and standard errors are those of the likelihood in closed algebra, maximised by scipy."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    there = rng.random(60) < 0.6
    rate = scipy.special.expit(-0.5 + x / 2) if model is occupied else np.exp(0.3 + x / 2)
    y = np.where(there, rng.binomial(4, rate) if model is occupied else rng.poisson(rate), 0)

    def minus_log_likelihood(at):
        psi, line = scipy.special.expit(at[0]), at[1] + at[2] * x
        if model is occupied:
            seen = scipy.stats.binom.pmf(y, 4, scipy.special.expit(line))
        else:
            seen = scipy.stats.poisson.pmf(y, np.exp(line))
        return -np.log(psi * seen + (1 - psi) * (y == 0)).sum()

    result = fit(model, y, x)
    assert result.converged
    best = scipy.optimize.minimize(minus_log_likelihood, np.zeros(3), tol=1e-9)
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    expected = numerical_errors(lambda at: -minus_log_likelihood(at), best.x, step=1e-3)
    np.testing.assert_allclose(result.standard_errors()["slope"], expected[1:], rtol=1e-3)


@pytest.mark.filterwarnings("ignore:This fit runs in float32")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_number_of_visits_makes_a_detection_possible_where_nobody_lives(dtype):
    """One detection in 200 visits: what stands in for log 0 outweighs every other visit, in either precision."""

    def occupancy(y):
        psi = numpyro.param("psi", 0.5, constraint=constraints.unit_interval)
        p = numpyro.param("p", 0.5, constraint=constraints.unit_interval)
        with numpyro.plate("sites", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(psi))
            visits = dist.Bernoulli((z * p)[..., None] * jnp.ones(y.shape[1]))
            numpyro.sample("y", visits.to_event(1), obs=y)

    detected = np.array([1, 100, 0])
    with jax.enable_x64(dtype == "float64"):
        y = (np.arange(200) < detected[:, None]).astype(dtype)
        em = emppl.EM(occupancy)
        result = em.run(KEY, y)
        p, psi = 101 / 400, 2 / 3  # a site with no detection in 200 visits is empty: 0.75**200
        assert result.params["p"] == pytest.approx(p, rel=1e-6)
        np.testing.assert_array_equal(result.posterior("z")[:2, 1], 1)
        seen = scipy.special.xlogy(detected, p) + scipy.special.xlog1py(200 - detected, -p)
        expected = np.log(psi * np.exp(seen) + (1 - psi) * (detected == 0)).sum()
        assert result.log_likelihood == pytest.approx(expected, rel=1e-6)
        assert em.log_likelihood(result.params, y) == pytest.approx(expected, rel=1e-6)  # by the plain path


@pytest.mark.parametrize("impossible", [(dist.Bernoulli(0.0), 1), (dist.Bernoulli(1.0), 0), (dist.Geometric(1.0), 2)])
def test_what_is_impossible_has_no_derivatives(impossible):
    fn, value = impossible

    def density(p):
        return log_density(type(fn)(p), jnp.asarray(value))

    assert density(fn.probs) == -np.inf
    assert jax.grad(density)(fn.probs) == jax.grad(jax.grad(density))(fn.probs) == 0


def test_survival_by_a_latent_that_the_next_step_is_multiplied_by():
    """Cormack-Jolly-Seber: Newton steps whose curvature was not finite once ended at the start, as if converged."""

    def model(seen):
        survive = numpyro.param("survive", 0.5, constraint=constraints.unit_interval)
        detect = numpyro.param("detect", 0.5, constraint=constraints.unit_interval)

        def step(alive, y):
            with numpyro.plate("animals", seen.shape[1]):
                alive = numpyro.sample("alive", dist.Bernoulli(alive * survive))
                numpyro.sample("y", dist.Bernoulli(alive * detect), obs=y)
            return alive, None

        scan(step, jnp.ones(seen.shape[1], int), seen)

    rng = np.random.default_rng(0)
    alive = np.cumprod(rng.random((5, 40)) < 0.8, 0)
    seen = alive * (rng.random(alive.shape) < 0.5)

    def minus_log_likelihood(at):
        survive, detect = scipy.special.expit(at)
        total = 0.0
        for animal in seen.T:
            gone, here = 0.0, 1.0
            for y in animal:
                gone, here = (gone + here * (1 - survive)) * (1 - y), here * survive * (detect if y else 1 - detect)
            total -= np.log(gone + here)
        return total

    best = scipy.optimize.minimize(minus_log_likelihood, np.zeros(2), tol=1e-9)
    result = fit(model, seen)
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    found = [result.params["survive"], result.params["detect"]]
    np.testing.assert_allclose(found, scipy.special.expit(best.x), atol=1e-4)


def test_curvature_that_is_not_finite_is_no_convergence():
    """The mean of an absent state is zero, and with it one over zero is differentiated, inside NumPyro."""

    def model(y):
        psi = numpyro.param("psi", 0.5, constraint=constraints.unit_interval)
        mean = numpyro.param("mean", 3.0, constraint=constraints.positive)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(psi))
            numpyro.sample("y", dist.NegativeBinomial2(z * mean, 2.0), obs=y)

    result = fit(model, np.array([0, 0, 7, 3, 0, 9, 12, 1, 0, 5]))
    assert not result.converged


def test_a_latent_number_of_trials():
    """An N-mixture: numbers of animals below the largest count are impossible, and no fault of the data."""
    counts = np.array([[2, 3], [0, 1], [4, 4], [1, 0]])

    def model(counts, most):
        mean = numpyro.param("mean", 3.0, constraint=constraints.positive)
        detect = numpyro.param("detect", 0.5, constraint=constraints.unit_interval)
        n = jnp.arange(most + 1)
        with numpyro.plate("sites", len(counts), dim=-2):
            animals = numpyro.sample("animals", dist.Categorical(jax.nn.softmax(dist.Poisson(mean).log_prob(n))))
            with numpyro.plate("visits", counts.shape[1], dim=-1):
                numpyro.sample("counts", dist.Binomial(animals, detect), obs=counts)

    result = fit(model, counts, 12, max_iterations=5)
    n = np.arange(13)
    weights = scipy.stats.poisson.pmf(n, result.params["mean"])
    each = scipy.stats.binom.pmf(counts[:, :, None], n, result.params["detect"]).prod(1)
    assert result.log_likelihood == pytest.approx(np.log(each @ (weights / weights.sum())).sum(), rel=1e-12)
    assert np.all(np.diff(result.history["log_likelihood"]) > 0)


@pytest.mark.parametrize("family", [dist.Multinomial, pytest.param(dist.DirichletMultinomial, marks=pytest.mark.slow)])
def test_numbers_of_trials_that_vary_between_rows(family):
    """NumPyro keeps them in the static part of a distribution, where those of one trace outlived it."""
    counts = np.array([[3, 1, 0], [2, 2, 1], [0, 3, 4], [1, 0, 5], [2, 0, 2], [6, 1, 0]])
    shares = np.array([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]])
    kind = constraints.simplex if family is dist.Multinomial else constraints.positive

    def model(counts, trials):
        weights = numpyro.param("w", jnp.asarray(WEIGHTS), constraint=constraints.simplex)
        theta = numpyro.param("theta", jnp.asarray(shares), constraint=kind)
        with numpyro.plate("rows", len(counts)):
            z = numpyro.sample("z", dist.Categorical(weights))
            given = (trials, theta[z]) if family is dist.Multinomial else (theta[z], trials)
            numpyro.sample("counts", family(*given), obs=counts)

    trials = counts.sum(1)
    result = fit(model, counts, trials, max_iterations=1)
    law = scipy.stats.multinomial if family is dist.Multinomial else scipy.stats.dirichlet_multinomial
    theta = result.params["theta"]
    args = [(trials, one) if family is dist.Multinomial else (one, trials) for one in theta]
    each = np.exp(np.stack([law.logpmf(counts, *one) for one in args], 1))
    assert result.log_likelihood == pytest.approx(np.log(each @ result.params["w"]).sum(), rel=1e-10)
    again = emppl.EM(model).log_likelihood(result.params, counts[::-1], trials[::-1])
    assert float(again) == pytest.approx(result.log_likelihood, rel=1e-10)


def test_a_distribution_with_one_copy_for_several_elements_of_an_event():
    """NumPyro spreads it over the elements of the data, and so must what reads the shape of an event."""

    def model(t):
        rate = numpyro.param("rate", jnp.array([1.0, 3.0]), constraint=constraints.positive)
        with numpyro.plate("rows", len(t)):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)))
            numpyro.sample("t", dist.Exponential(rate[z][..., None]).to_event(1), obs=t)

    t = np.array([[0.1, 0.4, 0.2], [1.1, 2.4, 0.7], [0.2, 0.3, 0.1], [0.6, 0.9, 1.4]])
    rate = np.array([1.0, 3.0])
    expected = np.log(np.prod(scipy.stats.expon.pdf(t[:, :, None], scale=1 / rate), 1) @ WEIGHTS).sum()
    em = emppl.EM(model)
    assert float(em.log_likelihood({"rate": rate}, t)) == pytest.approx(expected, rel=1e-12)
    assert em.run(KEY, t).converged


@pytest.mark.parametrize("weight", [0.01, 1.0])
def test_weights_that_add_up_to_one_are_no_lack_of_data(weight):
    """Weights that are all equal change no estimate, however small, whether rows are many or one row has them all."""

    def model(x, weight):
        mu = numpyro.param("mu", jnp.array([-1.0, 2.0]))
        with numpyro.plate("groups", len(x), dim=-2), numpyro.handlers.scale(scale=weight):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)))
            with numpyro.plate("rows", x.shape[1], dim=-1):
                numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    x = np.random.default_rng(0).normal(size=(100, 1) if weight < 1 else (1, 5))
    result = fit(model, x, weight, max_iterations=3)
    density = scipy.stats.norm.pdf(x[:, :, None], result.params["mu"]).prod(1)
    assert result.log_likelihood == pytest.approx(weight * np.log(density @ WEIGHTS).sum(), rel=1e-12)


@pytest.mark.parametrize("mine", [False, True])
def test_a_median_regression_is_not_taken_for_converged(mine):
    """Q is piecewise linear in both coefficients: its curvature is zero wherever there is one, and Newton stayed put."""

    class Corners(dist.Laplace):
        """The same density, not registered."""

    law = Corners if mine else dist.Laplace

    def model(x, y):
        level, slope = numpyro.param("level", 0.0), numpyro.param("slope", 0.0)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)))
            numpyro.sample("y", law(level + slope * x, jnp.array([2.0, 0.5])[z]), obs=y)

    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = 1 + 2 * x + rng.laplace(size=40)

    def minus_log_likelihood(at):
        density = scipy.stats.laplace.pdf(y[:, None], (at[0] + at[1] * x)[:, None], [2.0, 0.5])
        return -np.log(density @ WEIGHTS).sum()

    options = {"xatol": 1e-9, "fatol": 1e-12}
    best = scipy.optimize.minimize(minus_log_likelihood, [1.0, 2.0], method="Nelder-Mead", options=options)
    result = fit(model, x, y)
    assert not result.converged
    if not mine:
        assert result.log_likelihood == pytest.approx(-best.fun, abs=0.1)
        assert "corners" in result.stop_message
        assert dict(result.plan.parameters[0].rejected)["newton"].startswith("the density of site 'y' has corners")


def test_probabilities_that_nothing_makes_add_up_to_one_are_refused():
    def model(y):
        w = numpyro.param("w", jnp.array([0.5, 0.5]))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", dist.Poisson(jnp.array([1.0, 4.0])[z]), obs=y)

    y = np.array([0, 1, 4, 6])
    with pytest.raises(emppl.ModelError, match="'w' holds the probabilities of site 'z'.*constraints.simplex"):
        emppl.EM(model).plan(y)
    emppl.EM(model, fixed={"w": WEIGHTS}).plan(y)


@pytest.mark.parametrize("model", [occupied, zero_inflated])
def test_holes_in_a_covariate_are_named(model):
    """They are no zeros: a probability of NaN is not an impossible one."""
    y, x = np.array([0, 1, 2, 0]), np.array([0.1, 0.2, np.nan, 0.4])
    with pytest.raises(emppl.DataError, match=r"array 2 among the model's arguments \(shape \(4,\), first at \[2\]\)"):
        fit(model, y, x)


def test_a_coefficient_at_the_corner_of_its_prior_has_no_standard_error():
    """That of the others is the one in the model without it, by the Hessian of the log posterior in closed algebra."""

    def model(x, y):
        slope = numpyro.sample("slope", dist.Laplace(0.0, 0.1).expand([2]).to_event(1))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)))
            numpyro.sample("y", dist.Normal(x @ slope, jnp.array([1.0, 3.0])[z]), obs=y)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = 2 * x[:, 0] + rng.normal(size=60)
    result = fit(model, x, y, init_params={"slope": [1.8, 0.0]}, max_iterations=0)
    with pytest.warns(UserWarning, match=r"slope\[1\]"):
        found = result.standard_errors()["slope"]

    def log_posterior(slope):
        density = scipy.stats.norm.pdf(y[:, None], slope * x[:, :1], [1.0, 3.0])
        return np.log(density @ WEIGHTS).sum() - 10 * abs(slope)

    second = log_posterior(1.801) - 2 * log_posterior(1.8) + log_posterior(1.799)
    np.testing.assert_allclose(found, [1 / np.sqrt(-second / 1e-6), np.nan], rtol=1e-4)
    assert result.boundary == ["slope[1]"]


def test_a_carry_of_python_numbers():
    """Which step is the first may be carried as True and False: two steps by enumeration."""

    def model(y):
        begin = numpyro.param("begin", 0.3, constraint=constraints.unit_interval)
        stay = numpyro.param("stay", jnp.array([0.2, 0.9]), constraint=constraints.unit_interval)

        def step(carry, y):
            z, is_first = carry
            z = numpyro.sample("z", dist.Bernoulli(jnp.where(is_first, begin, stay[z])))
            numpyro.sample("y", dist.Normal(1.0 * z, 1.0), obs=y)
            return (z, False), None

        scan(step, (0, True), y)

    y = np.array([0.2, 1.4])
    density = scipy.stats.norm.pdf(y[:, None], [0.0, 1.0], 1.0)
    moves = np.array([[0.8, 0.2], [0.1, 0.9]])
    expected = np.log((np.array([0.7, 0.3]) * density[0]) @ moves @ density[1])
    found = emppl.EM(model).log_likelihood({"begin": 0.3, "stay": np.array([0.2, 0.9])}, y)
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bounds", [(-6.0, 6.0), (-1.0, 2.0)])
def test_a_median_between_bounds(bounds):
    """One M-step, against the best of all data values and bounds."""

    def model(y):
        with numpyro.plate("states", 2):
            mu = numpyro.sample("mu", dist.Uniform(*bounds))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(WEIGHTS)))
            numpyro.sample("y", dist.Laplace(mu[z], 0.7), obs=y)

    rng = np.random.default_rng(0)
    y = np.where(rng.random(30) < 0.7, 3.0, -2.0) + rng.laplace(scale=0.7, size=30)
    em, params = emppl.EM(model), {"mu": np.array([-0.5, 1.5])}
    new = em.m_step(params, em.e_step(params, y), y)["mu"]
    density = WEIGHTS * scipy.stats.laplace.pdf(y[:, None], params["mu"], 0.7)
    shares = density / density.sum(1, keepdims=True)
    candidates = np.clip(y, *bounds)
    cost = np.abs(y[:, None, None] - candidates[:, None]) * shares[:, None, :]
    np.testing.assert_allclose(new, candidates[np.argmin(cost.sum(0), 0)], atol=1e-12)
    assert em.run(KEY, y).converged


@pytest.mark.parametrize("prior", [dist.Uniform(0.1, 0.7), dist.HalfNormal(0.2)], ids=["uniform", "half-normal"])
def test_a_start_beyond_the_bounds(prior):
    """Seeds come from data that lie outside; the maximum is that of a grid."""

    def model(y, group):
        mu = numpyro.sample("mu", prior.expand([2]).to_event(1))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Laplace(mu[group], 1.0), obs=y)

    rng = np.random.default_rng(0)
    group = np.arange(20) % 2
    y = rng.laplace(size=20) + np.array([0.4, -3.0])[group]
    result = fit(model, y, group)
    assert result.converged
    grid = np.linspace(1e-9, 1.5, 150_001)[:, None]
    grid = grid[np.asarray(prior.support(grid))][:, None]
    height = np.asarray(prior.log_prob(grid))[:, 0]
    for k in (0, 1):
        best = grid[np.argmax(height - np.abs(y[group == k] - grid).sum(1)), 0]
        assert result.params["mu"][k] == pytest.approx(best, abs=2e-5)


def test_a_subclass_keeps_its_own_density():
    """Errors in one of ten readings: the maximum is (3 / 10 - 1 / 10) / (8 / 10)."""

    class Misread(dist.BernoulliProbs):
        def log_prob(self, value):
            return dist.BernoulliProbs(0.1 + 0.8 * self.probs).log_prob(value)

    def model(y):
        p = numpyro.param("p", 0.5, constraint=constraints.unit_interval)
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", Misread(p), obs=y)

    result = fit(model, np.repeat([1.0, 0.0], [3, 7]))
    assert result.params["p"] == pytest.approx(0.25, abs=1e-6)


# ------------------------------------------------------------------------------------ continuous latents, not normal


def normal_grid():
    """Points and log weights that integrate over a standard normal."""
    points = np.linspace(-8, 8, 801)
    return points, scipy.stats.norm.logpdf(points) + np.log(points[1] - points[0])


def test_a_state_that_makes_all_data_of_a_group_impossible():
    """Groups without any count by a state of their own, the others with a random intercept: atoms had shares of NaN."""

    def model(y, x):
        none = numpyro.param("none", 0.5, constraint=constraints.unit_interval)
        line = numpyro.param("line", jnp.zeros(2))
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        with numpyro.plate("groups", len(y), dim=-2):
            z = numpyro.sample("z", dist.Bernoulli(none))
            u = numpyro.sample("u", dist.Normal(0.0, sd))
            with numpyro.plate("rows", y.shape[1], dim=-1):
                rate = jnp.exp(line[0] + line[1] * x + u)
                numpyro.sample("y", dist.Poisson(jnp.where(z == 1, 0.0, rate)), obs=y)

    rng = np.random.default_rng(1)
    x = rng.normal(size=(20, 6))
    rate = np.exp(0.7 + 0.4 * x + 0.6 * rng.normal(size=(20, 1)))
    y = np.where(rng.random((20, 1)) < 0.4, 0, rng.poisson(rate))
    points, weights = normal_grid()

    def minus_log_likelihood(at):
        none, sd = scipy.special.expit(at[0]), np.exp(at[3])
        rate = np.exp(at[1] + at[2] * x + sd * points[:, None, None])
        seen = scipy.special.logsumexp(scipy.stats.poisson.logpmf(y, rate).sum(-1) + weights[:, None], axis=0)
        return -np.logaddexp(np.log1p(-none) + seen, np.where(y.any(1), -np.inf, np.log(none))).sum()

    best = scipy.optimize.minimize(minus_log_likelihood, np.zeros(4), tol=1e-9)
    result = fit(model, y, x)
    assert result.converged
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    np.testing.assert_allclose(result.params["line"], best.x[1:3], atol=1e-4)
    assert np.all(np.isfinite(result.posterior("u")))


def test_steps_that_are_added_up_beside_a_constant_keep_persons_apart():
    """Partial credit: logits of zero and of sums. All persons were one group of many dimensions, left to Monte Carlo."""

    def model(y):
        steps = numpyro.param("steps", jnp.zeros((y.shape[1], 2)))
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        with numpyro.plate("persons", len(y), dim=-2):
            ability = numpyro.sample("ability", dist.Normal(0.0, sd))
            with numpyro.plate("items", y.shape[1], dim=-1):
                up = jnp.cumsum(ability[..., None] - steps, -1)
                logits = jnp.concatenate([jnp.zeros((*up.shape[:-1], 1)), up], -1)
                numpyro.sample("y", dist.Categorical(logits=logits), obs=y)

    y = np.random.default_rng(2).integers(0, 3, (12, 3))
    steps, sd = np.array([[-0.5, 0.3], [0.0, 0.8], [1.0, -0.2]]), 1.3
    points, weights = normal_grid()
    logits = np.cumsum((sd * points)[:, None, None] - steps, -1)
    logits = np.concatenate([np.zeros((len(points), 3, 1)), logits], -1)
    logits -= scipy.special.logsumexp(logits, -1, keepdims=True)
    every = sum(logits[:, item, :][:, y[:, item]] for item in range(3))
    expected = scipy.special.logsumexp(every + weights[:, None], axis=0).sum()
    em = emppl.EM(model)
    found = em.log_likelihood({"steps": jnp.array(steps), "sd": jnp.array(sd)}, y)
    assert float(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("strategy", [emppl.StochasticEM(), pytest.param(emppl.SAEM(), marks=pytest.mark.slow)])
def test_a_standard_deviation_that_draws_took_to_zero_is_no_convergence(strategy):
    """The maximum is at 0.113 and 1.073. Near zero draws repeat the mean, wherever it is, which passed for converged."""

    def model(y):
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        mean = numpyro.param("mean", 0.0)
        with numpyro.plate("groups", len(y), dim=-2):
            b = numpyro.sample("b", dist.Normal(mean, sd))
            with numpyro.plate("rows", y.shape[1], dim=-1):
                numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)

    rng = np.random.default_rng(0)
    y = rng.poisson(np.exp(rng.normal(size=(6, 3)) * 0.7 + 1))
    result = fit(model, y, latents={"b": strategy})
    assert result.params["sd"] < 0.05
    assert result.stop_reason is emppl.StopReason.UNMIXED
    assert "'b'" in result.stop_message and "standard normal" in result.stop_message
    assert np.isnan(result.monte_carlo_errors["mean"])
    with pytest.raises(ValueError, match="standard normal"):
        result.standard_errors()

"""Latent normals that an observed Delta restricts: tobit, probit, grouped normals, against scipy and dense integrals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import integrate, stats

import emppl
from tests.kit.fits import KEY

POSITIVE = constraints.positive
EDGES = np.array([-1.0, 0.0, 0.5, 2.0])
MU, SIGMA = 0.3, 1.1
ALL = np.concatenate([[-np.inf], EDGES, [np.inf]])


# ------------------------------------------------------------------------- which intervals and points Delta sites say


def interval_of(low, high):
    """Log-probability of a class."""
    if np.all(low > MU):
        low, high = 2 * MU - high, 2 * MU - low
    return np.log(stats.norm.cdf(high, MU, SIGMA) - stats.norm.cdf(low, MU, SIGMA))


def density(w):
    return stats.norm.logpdf(w, MU, SIGMA)


X = np.random.default_rng(3).normal(size=30)
FUNCTIONS = {
    "maximum": (lambda w: jnp.maximum(w, 0.0), lambda y: np.where(y == 0, stats.norm.logcdf(0, MU, SIGMA), density(y))),
    "where": (lambda w: jnp.where(w < 0.5, w, 0.5), lambda y: np.where(y == 0.5, stats.norm.logsf(0.5, MU, SIGMA), density(y))),
    "clip": (
        lambda w: jnp.clip(w, -1, 1),
        lambda y: np.select(
            [y == -1, y == 1], [stats.norm.logcdf(-1, MU, SIGMA), stats.norm.logsf(1, MU, SIGMA)], density(y)
        ),
    ),
    "limits of their own": (
        lambda w: jnp.minimum(w, X),
        lambda y: np.where(y == X, stats.norm.logsf(X, MU, SIGMA), density(y)),
    ),
    "sign": (lambda w: w > 0, lambda y: np.where(y, stats.norm.logsf(0, MU, SIGMA), stats.norm.logcdf(0, MU, SIGMA))),
    "codes": (
        lambda w: jnp.where(w > 0, 0, 1),
        lambda y: np.where(y == 0, stats.norm.logsf(0, MU, SIGMA), stats.norm.logcdf(0, MU, SIGMA)),
    ),
    "classes": (lambda w: jnp.digitize(w, EDGES), lambda y: interval_of(ALL[y], ALL[y + 1])),
    "count of cuts": (
        lambda w: jnp.sum(w[:, None] > jnp.asarray(EDGES)[None], -1),
        lambda y: interval_of(ALL[y], ALL[y + 1]),
    ),
    "whole numbers": (lambda w: jnp.floor(w).astype(int), lambda y: interval_of(y, y + 1)),
    "rounded": (lambda w: -jnp.round(w / 2), lambda y: interval_of(-2 * y - 1, -2 * y + 1)),
    "affine": (lambda w: 3 * w + 1, lambda y: density((y - 1) / 3) - np.log(3)),
    "exponential": (jnp.exp, lambda y: stats.lognorm.logpdf(y, SIGMA, scale=np.exp(MU))),
    "times data": (lambda w: w * X, lambda y: density(y / X) - np.log(np.abs(X))),
}  # fmt: skip


QUICK = ("maximum", "clip", "sign", "classes", "exponential")


def every_function(seen):
    """A latent for every function, so that one model is compiled for all of them."""
    mu, sigma = numpyro.param("mu", 0.0), numpyro.param("sigma", 1.0, constraint=POSITIVE)
    with numpyro.plate("rows", len(X)):
        for number, name in enumerate(seen):
            w = numpyro.sample(f"w{number}", dist.Normal(mu, sigma))
            numpyro.sample(f"y{number}", dist.Delta(FUNCTIONS[name][0](w)), obs=seen[name])


@pytest.mark.parametrize("names", [QUICK, pytest.param(tuple(FUNCTIONS), marks=pytest.mark.slow)], ids=["few", "all"])
def test_intervals_and_points_of_monotone_functions(names):
    w = np.random.default_rng(4).normal(MU, SIGMA, (len(names), len(X)))
    seen = {name: np.asarray(FUNCTIONS[name][0](jnp.asarray(one))) for name, one in zip(names, w, strict=True)}
    em = emppl.EM(every_function)
    params = {"mu": jnp.array(MU), "sigma": jnp.array(SIGMA)}
    weights = em.e_step(params, seen)
    expected = sum(np.sum(FUNCTIONS[name][1](values)) for name, values in seen.items())
    np.testing.assert_allclose(weights.log_likelihood, expected, rtol=1e-13)
    plan = em.plan(seen)
    assert {one.strategy for one in plan.latents} == {"truncated normal (exact)"}
    assert "exact E-step" in plan.objective


@pytest.mark.parametrize("weight", [2.0, 0.4])
def test_a_weight_does_not_restrict_twice(weight):
    """Around the Delta alone it changes nothing; a weight of zero takes the restriction away."""

    def model(y, weight):
        mu = numpyro.param("mu", 0.0)
        with numpyro.plate("rows", len(y)):
            w = numpyro.sample("w", dist.Normal(mu, SIGMA))
            with numpyro.handlers.scale(scale=weight):
                numpyro.sample("y", dist.Delta(jnp.maximum(2 * w, 0.0)), obs=y)

    y = np.array([0.0, 0.4, 0.0, 1.3, 0.0])
    off = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    each = np.where(y == 0, stats.norm.logcdf(0, MU, SIGMA), density(y / 2) - np.log(2))
    found = emppl.EM(model).e_step({"mu": jnp.array(MU)}, y, weight * off).log_likelihood
    np.testing.assert_allclose(found, np.sum(each * off), rtol=1e-13)


# ------------------------------------------------------------------------------- a model with everything, by quadrature

CELLS = 12


def everything(y, seen, known, hidden, noisy, count, limit):
    """A mixture; weights; a masked and a partly missing Delta; a second, noisy look at the latent."""
    p = numpyro.param("p", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-0.5, 1.0]))
    sigma = numpyro.param("sigma", jnp.array([0.8, 1.2]), constraint=POSITIVE)
    tau = numpyro.param("tau", 0.7, constraint=POSITIVE)
    with numpyro.plate("rows", len(y)), numpyro.handlers.scale(scale=count):
        z = numpyro.sample("z", dist.Categorical(p))
        w = numpyro.sample("w", dist.Normal(mu[z], sigma[z]))
        with numpyro.handlers.mask(mask=seen):
            numpyro.sample("y", dist.Delta(jnp.maximum(w, limit)), obs=y)
        numpyro.sample("class", dist.Delta(w > 1.5), obs=known, obs_mask=hidden)
        numpyro.sample("noisy", dist.Normal(w, tau), obs=noisy)


@functools.cache
def drawn():
    rng = np.random.default_rng(7)
    w = rng.normal(0.3, 1.3, CELLS)
    limit = rng.choice([-0.2, 0.4], CELLS)
    seen, hidden = rng.random(CELLS) < 0.7, rng.random(CELLS) < 0.6
    data = np.maximum(w, limit), seen, w > 1.5, hidden, w + rng.normal(0, 0.7, CELLS), rng.integers(0, 3, CELLS) * 1.0
    return *data, limit


def params(shift=0.0):
    return {
        "p": jnp.array([0.3 + shift, 0.7 - shift]),
        "mu": jnp.array([-0.4, 0.9]) + shift,
        "sigma": jnp.array([0.9, 1.4]) - shift,
        "tau": jnp.array(0.6) + shift,
    }


def dense(row, at):
    """Of one row, by state: log density at a known latent, or its interval; and the log joint density."""
    y, seen, known, hidden, noisy, _, limit = (one[row] for one in drawn())
    low, high = -np.inf, np.inf
    if hidden:
        low, high = (1.5, high) if known else (low, 1.5)
    if seen and y == limit:
        high = min(high, limit)

    def log_joint(w, state, at=at):
        return (
            np.log(at["p"][state])
            + stats.norm.logpdf(w, at["mu"][state], at["sigma"][state])
            + stats.norm.logpdf(noisy, w, at["tau"])
        )

    return (y if seen and y > limit else None), max(low, -12), min(high, 12), log_joint


def expectation(row, at, function):
    """Evidence of a row, and the posterior expectation of ``function(w, state)``."""
    point, low, high, log_joint = dense(row, at)
    evidence = total = 0.0
    for state in (0, 1):
        if point is not None:
            mass, value = np.exp(log_joint(point, state)), function(point, state)
            evidence, total = evidence + mass, total + mass * value
            continue
        quad = functools.partial(integrate.quad, a=low, b=high, points=[0, 1], epsabs=0, epsrel=1e-11, limit=200)
        evidence += quad(lambda w, s=state: np.exp(log_joint(w, s)))[0]
        total += quad(lambda w, s=state: np.exp(log_joint(w, s)) * function(w, s))[0]
    return evidence, total / evidence


@functools.cache
def em():
    return emppl.EM(everything, tolerance=0)


@pytest.mark.slow
def test_evidence_and_q_of_a_mixture_with_weights_and_masks():
    count = drawn()[5]
    here, there = params(), params(0.05)
    posterior = em().e_step(here, *drawn())
    host = jax.tree.map(np.asarray, (here, there))
    rows = [expectation(row, host[0], lambda w, s, row=row: dense(row, host[1])[3](w, s)) for row in range(CELLS)]
    evidence, expected = np.array(rows).T
    np.testing.assert_allclose(posterior.log_likelihood, np.sum(count * np.log(evidence)), rtol=1e-9)
    np.testing.assert_allclose(em().q(there, posterior, *drawn()), np.sum(count * expected), rtol=1e-9)
    # Fisher's identity: the score of the log-likelihood is that of Q.
    score = jax.grad(lambda at: em().log_likelihood(at, *drawn()))(here)
    of_q = jax.grad(lambda at: em().q(at, posterior, *drawn()))(here)
    for name in here:
        np.testing.assert_allclose(score[name], of_q[name], rtol=1e-10, atol=1e-10)


@functools.cache
def fitted():
    em().max_iterations = 30
    return em().run(KEY, *drawn(), init_params=params())


@pytest.mark.slow
def test_iterations_climb_and_posterior_moments():
    result = fitted()
    assert np.all(np.diff(result.history["objective"]) > -1e-10)
    found = jax.tree.map(np.asarray, result.params)
    mean, variance = result.posterior("w")
    for row in range(CELLS):
        _, first = expectation(row, found, lambda w, s: w)
        _, second = expectation(row, found, lambda w, s, first=first: (w - first) ** 2)
        np.testing.assert_allclose((mean[row], np.squeeze(variance)[row]), (first, second), rtol=1e-8, atol=1e-8)
    draws = np.asarray(result.sample_posterior(KEY, 2000)["w"])
    spread = np.sqrt(np.squeeze(variance))
    free = spread > 1e-12  # the others are known, but for rounding
    np.testing.assert_allclose(draws[:, ~free], np.broadcast_to(mean[~free], draws[:, ~free].shape), rtol=1e-14)
    assert np.max(np.abs(draws.mean(0) - mean)[free] / spread[free]) < 4 / np.sqrt(2000)


# --------------------------------------------------------------------------------------------------------- structures


def test_sites_told_apart_by_an_index():
    """Several thresholds of one latent, the latent picked by data."""
    rng = np.random.default_rng(8)
    subject, cut = np.repeat(np.arange(6), 4), rng.normal(size=24)
    w = rng.normal(0.3, 1.1, 6)
    above = w[subject] > cut

    def model(subject, cut, above):
        mu, sigma = numpyro.param("mu", MU), numpyro.param("sigma", SIGMA, constraint=POSITIVE)
        with numpyro.plate("subjects", 6):
            w = numpyro.sample("w", dist.Normal(mu, sigma))
        with numpyro.plate("rows", len(cut)):
            numpyro.sample("above", dist.Delta(w[subject] > cut), obs=above)

    em = emppl.EM(model, latents={"w": emppl.Gaussian()})
    at = {"mu": jnp.array(MU), "sigma": jnp.array(SIGMA)}
    low = [np.max(np.where(above & (subject == s), cut, -np.inf)) for s in range(6)]
    high = [np.min(np.where(~above & (subject == s), cut, np.inf)) for s in range(6)]
    expected = sum(interval_of(*ends) for ends in zip(low, high, strict=True))
    np.testing.assert_allclose(em.log_likelihood(at, subject, cut, above), expected, rtol=1e-12)


@pytest.mark.slow
def test_float32():
    """Bounds are searched for among the numbers of the data's own precision."""

    def model(y):
        mu, sigma = numpyro.param("mu", 0.0), numpyro.param("sigma", 1.0, constraint=POSITIVE)
        with numpyro.plate("rows", len(y)):
            w = numpyro.sample("w", dist.Normal(mu, sigma))
            numpyro.sample("y", dist.Delta(jnp.maximum(w, 0.0)), obs=y)

    y = np.maximum(np.random.default_rng(9).normal(MU, SIGMA, 200), 0)
    at = {"mu": MU, "sigma": SIGMA}
    wide = emppl.EM(model).log_likelihood(at, y)
    with jax.enable_x64(False):
        narrow = emppl.EM(model).log_likelihood(at, y.astype(np.float32))
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- errors


def restricted(function, strategy=None, extra=None):
    """A model in which a function of a latent is observed, ready to be planned."""

    def model(y):
        mu, cut = numpyro.param("mu", 0.0), numpyro.param("cut", 0.0)
        with numpyro.plate("rows", len(y)):
            w = numpyro.sample("w", dist.Normal(mu, 1.0))
            u = numpyro.sample("u", dist.Normal(0.0, 1.0)) if extra else 0.0
            numpyro.sample("y", dist.Delta(function(w, u, cut)), obs=y)

    return emppl.EM(model, latents={"w": strategy} if strategy else None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((lambda w, u, cut: w**2,), "not known to be a monotone function of 'w'.*integer_pow"),
        ((lambda w, u, cut: (w > 0) & (w < 1),), "not known to be a monotone function of 'w'.*and"),
        ((lambda w, u, cut: w > cut,), "depends on 'cut', which is estimated"),
        ((lambda w, u, cut: w > 0, emppl.Quadrature(15)), "needs a density without jumps"),
        ((lambda w, u, cut: w + u > 0, None, True), "2 numbers are integrated together"),
    ],
)
def test_what_is_not_exact_is_refused(options, message):
    with pytest.raises(emppl.ModelError, match=message):
        restricted(*options).plan(np.ones(4, bool))


def test_jumps_without_a_delta_are_not_quadratic():
    """A step has no gradient: the log joint must not pass as quadratic."""

    def model(y):
        mu = numpyro.param("mu", 0.0)
        with numpyro.plate("rows", len(y)):
            w = numpyro.sample("w", dist.Normal(mu, 1.0))
            numpyro.sample("y", dist.Bernoulli(jnp.where(w > 0, 0.9, 0.1)), obs=y)

    with pytest.raises(emppl.ModelError, match="Gaussian.. cannot integrate 'w'.*gt"):
        emppl.EM(model, latents={"w": emppl.Gaussian()}).plan(np.ones(4, int))


def test_impossible_observation_names_the_row():
    """A censored value below the limit."""
    y = np.array([0.0, 1.0, -3.0, 2.0])
    with pytest.raises(emppl.DataError, match="probability zero.*row 2"):
        restricted(lambda w, u, cut: jnp.maximum(w, 0.0)).run(KEY, y)

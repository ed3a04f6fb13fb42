"""Spherical, diagonal, tied and low-rank covariances as users write them: weighted scatters by numpy, scipy's maximum."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
from numpyro.distributions import constraints

import emppl
from tests.kit.fits import KEY, fit

K, D, ROWS = 2, 3, 70
POSITIVE = constraints.positive
RNG = np.random.default_rng(3)
X = RNG.normal(size=(ROWS, D)) * [1.0, 2.0, 0.5] + 3 * (RNG.random((ROWS, 1)) < 0.5)
MU = np.array([[0.0, 0.0, 0.0], [3.0, 3.0, 3.0]])


def positive(shape, name="v"):
    return numpyro.param(name, jnp.full(shape, 1.3), constraint=POSITIVE)


def eye(v):
    return v[..., None, None] * jnp.eye(D)


# By name: the argument and its value for both components; then, from numpy, what the parameter must be, given the
# scatters (K, D, D) and the counts (K,).
STRUCTURES = {
    "spherical": (
        lambda: {"covariance_matrix": eye(positive(K))},
        lambda S, n: np.trace(S, axis1=1, axis2=2) / (D * n),
    ),
    "spherical, tied": (
        lambda: {"covariance_matrix": jnp.stack([positive(()) * jnp.eye(D)] * K)},
        lambda S, n: np.trace(S.sum(0)) / (D * n.sum()),
    ),
    "spherical, by standard deviations": (
        lambda: {"covariance_matrix": eye(positive(K) ** 2)},
        lambda S, n: np.sqrt(np.trace(S, axis1=1, axis2=2) / (D * n)),
    ),
    "spherical, by logarithms": (
        lambda: {"covariance_matrix": eye(jnp.exp(2 * numpyro.param("v", jnp.zeros(K))))},
        lambda S, n: np.log(np.trace(S, axis1=1, axis2=2) / (D * n)) / 2,
    ),
    "diagonal": (
        lambda: {"covariance_matrix": jax.vmap(jnp.diag)(positive((K, D)))},
        lambda S, n: np.diagonal(S, axis1=1, axis2=2) / n[:, None],
    ),
    "diagonal, by a product with the identity": (
        lambda: {"covariance_matrix": positive((K, D))[:, :, None] * jnp.eye(D)},
        lambda S, n: np.diagonal(S, axis1=1, axis2=2) / n[:, None],
    ),
    "diagonal, tied": (
        lambda: {"covariance_matrix": jnp.stack([jnp.diag(positive(D))] * K)},
        lambda S, n: np.diagonal(S.sum(0)) / n.sum(),
    ),
    "diagonal, set into zeros": (
        lambda: {
            "covariance_matrix": jnp.stack([jnp.zeros((D, D)).at[np.arange(D), np.arange(D)].set(positive(D))] * K)
        },
        lambda S, n: np.diagonal(S.sum(0)) / n.sum(),
    ),
    "diagonal, two entries alike": (
        lambda: {"covariance_matrix": jnp.stack([jnp.diag(positive(2)[jnp.array([0, 1, 0])])] * K)},
        lambda S, n: np.array([(S.sum(0)[0, 0] + S.sum(0)[2, 2]) / 2, S.sum(0)[1, 1]]) / n.sum(),
    ),
    "diagonal root": (
        lambda: {"scale_tril": jax.vmap(jnp.diag)(positive((K, D)))},
        lambda S, n: np.sqrt(np.diagonal(S, axis1=1, axis2=2) / n[:, None]),
    ),
    "diagonal precision": (
        lambda: {"precision_matrix": jax.vmap(jnp.diag)(positive((K, D)))},
        lambda S, n: n[:, None] / np.diagonal(S, axis1=1, axis2=2),
    ),
    "one diagonal, one known": (
        lambda: {"covariance_matrix": jnp.stack([jnp.diag(positive(D)), 1.0 + jnp.eye(D)])},
        lambda S, n: np.diagonal(S[0]) / n[0],
    ),
}


def model(x, name):
    covariance = STRUCTURES[name][0]()
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample(
            "x", dist.MultivariateNormal(jnp.asarray(MU)[z], **{n: m[z] for n, m in covariance.items()}), obs=x
        )


def scatters(posterior, x, mu):
    weight = np.asarray(posterior.weights["x"])
    centred = x[None] - mu[:, None]
    return np.einsum("kn,kni,knj->kij", weight, centred, centred), weight.sum(1)


@pytest.mark.parametrize("name", STRUCTURES)
def test_entries_of_a_diagonal_are_mean_squares(name):
    em = emppl.EM(model)
    (plan,) = em.plan(X, name).parameters
    assert plan.rule == "closed form" and "on the diagonal" in plan.update
    params = em.start(KEY, X, name)
    posterior = em.e_step(params, X, name)
    new = em.m_step(params, posterior, X, name)
    wanted = STRUCTURES[name][1](*scatters(posterior, X, MU))
    np.testing.assert_allclose(new["v"], wanted, rtol=1e-11)
    slope = jax.grad(lambda p: em.q(p, posterior, X, name))(new)["v"]
    np.testing.assert_allclose(slope * new["v"], 0, atol=1e-10)


def known(x, kind):
    """Covariances that hold a parameter, but not on a diagonal of its own: Newton steps on the sums."""
    v = positive(K)
    root = jnp.array([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.2, 0.3, 1.0]])
    covariance = {
        "known shape": v[:, None, None] * (root @ root.T),
        "twice": v[:, None, None] * (2 * jnp.eye(D)),
        "plus the identity": v[:, None, None] * jnp.eye(D) + 0.1 * jnp.eye(D),
        "beside correlations": v[:, None, None] * jnp.eye(D) + jnp.array([[0, 0.1, 0], [0.1, 0, 0], [0, 0, 0]]),
    }[kind]
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("x", dist.MultivariateNormal(jnp.asarray(MU)[z], covariance[z]), obs=x)


@pytest.mark.parametrize("kind", ["known shape", "twice", "plus the identity", "beside correlations"])
def test_other_structures_are_exact_on_the_sums(kind):
    em = emppl.EM(known)
    (plan,) = em.plan(X, kind).parameters
    assert plan.rule == "newton"
    params = em.start(KEY, X, kind)
    posterior, new = em.e_step(params, X, kind), params
    for _ in range(4):  # from weights of rows, a step stops where little is left to gain; the next goes on
        new = em.m_step(new, posterior, X, kind)
    slope = jax.grad(lambda p: em.q(p, posterior, X, kind))(new)["v"]
    np.testing.assert_allclose(slope, 0, atol=1e-7)
    if kind == "known shape":
        S, n = scatters(posterior, X, MU)
        root = np.array([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.2, 0.3, 1.0]])
        wanted = np.trace(np.linalg.inv(root @ root.T) @ S, axis1=1, axis2=2) / (D * n)
        np.testing.assert_allclose(new["v"], wanted, rtol=1e-9)


PRIORS = {
    "variance": ("covariance_matrix", dist.InverseGamma(3.0, 2.0)),
    "scale": ("scale_tril", dist.HalfNormal(0.4)),
    "precision": ("precision_matrix", dist.Gamma(3.0, 2.0)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_conjugate_priors_of_single_entries(name):
    argument, prior = PRIORS[name]

    def model(x):
        with numpyro.plate("components", K):
            v = numpyro.sample("v", prior)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("x", dist.MultivariateNormal(jnp.asarray(MU)[z], **{argument: eye(v)[z]}), obs=x)

    em = emppl.EM(model)
    (plan,) = em.plan(X).parameters
    assert plan.rule == "closed form"
    params = {"v": jnp.array([0.7, 1.8])}
    posterior = em.e_step(params, X)
    new = em.m_step(params, posterior, X)

    def objective(v):
        return em.q({"v": v}, posterior, X) + jnp.sum(prior.log_prob(v))

    # Whether `q` counts the prior or not: the outcome is stationary with it exactly once.
    with_prior = float(em.q(new, posterior, X))
    without = float(emppl.EM(model, prior=False).q(new, posterior, X))
    assert with_prior == pytest.approx(without) or with_prior == pytest.approx(
        without + float(jnp.sum(prior.log_prob(new["v"])))
    )
    once = objective if with_prior == pytest.approx(without) else lambda v: em.q({"v": v}, posterior, X)
    np.testing.assert_allclose(jax.grad(once)(new["v"]), 0, atol=1e-9)


def test_a_fit_far_from_the_origin_equals_the_one_near_it():
    name = "diagonal"

    def free(x, name):
        mu = numpyro.param("mu", jnp.asarray(MU + x[0, 0]))
        covariance = STRUCTURES[name][0]()["covariance_matrix"]
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("x", dist.MultivariateNormal(mu[z], covariance[z]), obs=x)

    x = np.round(X * 2**20) / 2**20
    near = fit(free, x, name)
    far = fit(free, x + 2**20, name)
    assert near.converged and far.converged
    np.testing.assert_allclose(far.params["v"], near.params["v"], rtol=1e-6)
    assert far.log_likelihood == pytest.approx(near.log_likelihood, abs=1e-5)


def low_rank(x):
    mu = numpyro.param("mu", jnp.zeros(D + 1))
    factor = numpyro.param("factor", jnp.array([[0.5], [0.4], [0.3], [0.2]]))
    noise = numpyro.param("noise", jnp.ones(D + 1), constraint=POSITIVE)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("z", dist.Categorical(jnp.ones(1)))
        numpyro.sample("x", dist.LowRankMultivariateNormal(mu, factor, noise), obs=x)


def test_low_rank_covariance_equals_a_direct_maximum():
    rng = np.random.default_rng(4)
    loading = np.array([1.0, -0.8, 0.6, 0.4])
    x = rng.normal(size=(150, 1)) * loading + rng.normal(size=(150, 4)) * [0.5, 0.7, 0.9, 1.1]
    em = emppl.EM(low_rank)
    plan = {one.name: one for one in em.plan(x).parameters}
    assert plan["mu"].rule == "closed form"
    assert plan["factor"].rule == plan["noise"].rule == "newton"
    assert "LowRankMultivariateNormal.cov_factor" in str(em.plan(x))
    result = em.run(KEY, x)
    assert result.converged

    def loss(free):
        covariance = np.outer(free[:4], free[:4]) + np.diag(np.exp(free[4:]))
        return -scipy.stats.multivariate_normal.logpdf(x, x.mean(0), covariance).sum()

    best = scipy.optimize.minimize(loss, np.concatenate([loading, np.zeros(4)]), method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    sign = np.sign(result.params["factor"][0, 0] * best.x[0])
    np.testing.assert_allclose(result.params["factor"][:, 0], sign * best.x[:4], atol=1e-4)
    np.testing.assert_allclose(result.params["noise"], np.exp(best.x[4:]), atol=1e-4)

"""Hard EM: k-means, Viterbi training and the best joint assignment, against scikit-learn and enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import emppl
from emppl import Enumerate, Gaussian, Hard, MonteCarlo, estep
from emppl.inputs.arguments import split_arguments
from tests.elimination.test_chains import CASES
from tests.estep.test_fused import em_step, many
from tests.kit.brute_force import BruteForce
from tests.kit.fits import fit, program_of
from tests.kit.random_models import model as random_model
from tests.kit.random_models import random_data, random_params, specs

simplex, positive = dist.constraints.simplex, dist.constraints.positive


def clusters(x, K):
    mu = numpyro.param("mu", jnp.zeros((K, x.shape[1])))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(K) / K))
        numpyro.sample("x", dist.Normal(mu[z], 1.0).to_event(1), obs=x)


@functools.cache
def points():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(centre, 1, (300, 2)) for centre in ([0, 0], [3, 1], [1, 4])])


@functools.cache
def k_means():
    em = emppl.EM(clusters, latents={"z": Hard()})
    return em.run(jax.random.key(0), points(), K=3, init_params={"mu": points()[:3]})


# ---------------------------------------------------------------------------------------------------------- k-means


def test_equal_fixed_variances_and_weights_are_k_means():
    """Lloyd's algorithm from the same start: centres, labels, inertia and number of iterations."""
    cluster = pytest.importorskip("sklearn.cluster")
    x, result = points(), k_means()
    lloyd = cluster.KMeans(3, init=x[:3], n_init=1, algorithm="lloyd", tol=0, max_iter=1000).fit(x)
    np.testing.assert_allclose(result.params["mu"], lloyd.cluster_centers_, rtol=1e-12)
    np.testing.assert_array_equal(result.decode()["z"], lloyd.labels_)
    constant = -len(x) * (np.log(3) + np.log(2 * np.pi))
    np.testing.assert_allclose(result.classification, constant - lloyd.inertia_ / 2, rtol=1e-12)
    assert result.converged and result.num_iterations == lloyd.n_iter_
    assert "assignments no longer change" in result.stop_message


def test_result_of_hard_em_says_what_it_maximised(capsys):
    """Observed-data log-likelihood by scipy, another objective in history and plan, and no standard errors."""
    stats = pytest.importorskip("scipy.stats")
    x, result = points(), k_means()
    heights = np.stack([stats.norm.logpdf(x, mu, 1).sum(1) for mu in result.params["mu"]])
    np.testing.assert_allclose(result.log_likelihood, np.logaddexp.reduce(heights).sum() - len(x) * np.log(3))
    assert result.objective == result.classification == result.history["objective"][-1]
    assert np.diff(result.history["objective"]).min() >= 0 and "log_likelihood" not in result.history
    assert result.certificate.monotone and np.isnan(result.certificate.score_norm)
    np.testing.assert_allclose(result.posterior("z"), np.exp(heights - np.logaddexp.reduce(heights)).T, atol=1e-12)
    with pytest.raises(ValueError, match="Hard.*no standard errors"):
        result.standard_errors()
    result.print_summary()
    printed = capsys.readouterr().out
    assert "classification likelihood" in printed and "not computed unasked" not in printed
    plan = str(result.plan)
    assert "EM plan: classification likelihood" in plan and "another objective" in plan
    assert "sums out 'z' (its best value in place of the sum)" in plan


def test_classification_em_ends_at_a_fixed_point():
    """Free weights and scales: at the end, sums over the assigned points give the estimates, and no point moves."""

    def mixture(x, K):
        weights = numpyro.param("weights", jnp.ones(K) / K, constraint=simplex)
        mu = numpyro.param("mu", jnp.zeros(K))
        sigma = numpyro.param("sigma", jnp.ones(K), constraint=positive)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)

    x = points()[:, 1]
    em = emppl.EM(mixture, latents={"z": Hard()}, restarts=3)
    result = em.run(jax.random.key(1), x, K=2, init_params={"mu": np.array([0.0, 4.0])})
    assert result.converged and len(result.history["final_objectives"]) == 3
    labels = result.decode()["z"]
    for k in range(2):
        mine = x[labels == k]
        np.testing.assert_allclose(result.params["weights"][k], len(mine) / len(x), rtol=1e-12)
        np.testing.assert_allclose(result.params["mu"][k], mine.mean(), rtol=1e-12)
        np.testing.assert_allclose(result.params["sigma"][k], mine.std(), rtol=1e-10)


# -------------------------------------------------------------------------------------------------- Viterbi training


def hidden_markov(x, K=2):
    init = numpyro.param("init", jnp.array([0.6, 0.4]), constraint=simplex)
    trans = numpyro.param("trans", jnp.array([[0.7, 0.3], [0.4, 0.6]]), constraint=simplex)
    mu = numpyro.param("mu", jnp.array([0.0, 1.0]))

    def step(carry, x_t):
        before, t = carry
        with numpyro.plate("sequences", x.shape[1]):
            z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, init, trans[before])))
            numpyro.sample("x", dist.Normal(mu[z], 1), obs=x_t)
        return (z, t + 1), None

    scan(step, (jnp.zeros(x.shape[1], int), 0), x)


def viterbi_training(x, init, trans, mu):
    """By listing all paths of every sequence: objectives and parameters of every iteration."""
    paths = np.array(list(itertools.product(range(2), repeat=len(x))))
    objectives, estimates = [], []
    with np.errstate(divide="ignore"):
        while len(objectives) < 2 or objectives[-1] > objectives[-2]:
            prior = np.log(init)[paths[:, 0]] + np.log(trans)[paths[:, :-1], paths[:, 1:]].sum(1)
            squares = ((x[None] - mu[paths][..., None]) ** 2).sum(1)  # (paths, sequences)
            heights = prior[:, None] - squares / 2 - len(x) / 2 * np.log(2 * np.pi)
            objectives.append(heights.max(0).sum())
            best = paths[heights.argmax(0)]
            init = np.bincount(best[:, 0], minlength=2) / len(best)
            moves = np.zeros((2, 2))
            np.add.at(moves, (best[:, :-1].ravel(), best[:, 1:].ravel()), 1)
            trans = moves / moves.sum(1, keepdims=True)
            mu = np.array([x.T[best == k].mean() for k in range(2)])
            estimates.append((init, trans, mu))
    return np.array(objectives), estimates[-1]


def test_viterbi_training_is_that_of_all_paths():
    """Objective of every iteration, estimates, and the number of iterations, of a plate of short chains."""
    rng = np.random.default_rng(3)
    states = (rng.random((7, 6)) < 0.4).cumsum(0) % 2
    x = rng.normal(2.5 * states)
    em = emppl.EM(hidden_markov, latents={"z": Hard()})
    result = em.run(jax.random.key(0), x)
    start = np.array([0.6, 0.4]), np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([0.0, 1.0])
    objectives, (init, trans, mu) = viterbi_training(x, *start)
    np.testing.assert_allclose(result.history["objective"], objectives, rtol=1e-12)
    for name, value in {"init": init, "trans": trans, "mu": mu}.items():
        np.testing.assert_allclose(result.params[name], value, rtol=1e-12, atol=1e-15)
    assert result.converged and "Viterbi" in str(em.plan(x))


# ----------------------------------------------------------------------------------- the best joint assignment


def check_structure(spec):
    """Three data sets: plain and fused E-step give the best joint assignment, and hard EM never falls."""
    names = None
    for draw in range(3):
        rng = np.random.default_rng([spec.seed, draw])
        params, data = random_params(spec, rng), random_data(spec, rng)
        oracle = BruteForce(random_model, params, data, spec, False)
        leaves, _ = split_arguments((data, spec, False), {})
        if names is None:
            names = oracle.latents
            program, _ = program_of(random_model, data, spec, False, latents=dict.fromkeys(names, Hard()))
            fused = program.fused

            @jax.jit
            def several(params, leaves, program=program, fused=fused):
                prepared = estep.prepare(program.model, fused, leaves)

                def advance(params, _):
                    after, *values = em_step(program, fused, params, leaves, prepared)
                    return after, values

                _, values = jax.lax.scan(advance, params, None, length=6)
                return values, estep.e_step(program.model, params, leaves)

        (objectives, log_likelihoods), posterior = jax.device_get(several(params, leaves))
        best = oracle.log_joint().max()
        np.testing.assert_allclose(posterior.log_likelihood, best, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(log_likelihoods[0], best, rtol=1e-9, atol=1e-9)
        assert np.diff(objectives).min() >= -1e-11 * (1 + np.abs(objectives).max())


def test_best_assignment_of_random_models():
    """Plates in plates, weights, masks, several latents."""
    many(1, 0, specs())(check_structure)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(1, 2))
def test_best_assignment_of_more_random_models(shard):
    """The same on more of them."""
    many(15, shard, specs())(check_structure)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_best_path_of_chains(name):
    """Ragged sequences, higher order, several chains: objective by enumeration of all paths, fused equals plain."""
    model, data = CASES[name]
    names = emppl.EM(model).plan(*data).latents
    em = emppl.EM(model, latents={one.name: Hard() for one in names}, max_iterations=5)
    start = em.start(jax.random.key(0), *data)
    oracle = BruteForce(model, start, *data)
    best = oracle.log_joint().max()
    np.testing.assert_allclose(em.e_step(start, *data).log_likelihood, best, rtol=1e-10)
    result = em.run(jax.random.key(0), *data, init_params=start)
    np.testing.assert_allclose(result.history["objective"][0], best, rtol=1e-10)
    assert np.diff(result.history["objective"]).min() >= -1e-10


# ------------------------------------------------------------------------------------------- beside other latents


def two_latents(x, group):
    mu = numpyro.param("mu", jnp.array([0.0, 3.0]))
    sd = numpyro.param("sd", 0.5, constraint=positive)
    with numpyro.plate("groups", 30):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
        b = numpyro.sample("b", dist.Normal(0.0, sd))
        with numpyro.plate("within", 4):
            numpyro.sample("x", dist.Normal(mu[z] + b, 1.0), obs=x)


def test_continuous_latents_are_integrated_given_the_assignment():
    """The classification likelihood of random intercepts is that of multivariate normals, and rises."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    x = rng.normal(3.0 * (rng.random(30) < 0.5) + rng.normal(0, 0.7, 30), 1.0, (4, 30))
    result = fit(two_latents, x, None, latents={"z": Hard(), "b": Gaussian()})
    covariance = np.eye(4) + result.params["sd"] ** 2
    heights = [stats.multivariate_normal(np.full(4, mu), covariance).logpdf(x.T) for mu in result.params["mu"]]
    np.testing.assert_allclose(result.classification, np.max(heights, 0).sum() - 30 * np.log(2), rtol=1e-10)
    np.testing.assert_array_equal(result.decode()["z"], np.argmax(heights, 0))
    assert result.converged and np.diff(result.history["objective"]).min() >= -1e-9


def test_what_hard_em_cannot_do_is_refused():
    """Sums and best values that meet, draws beside it, continuous latents, acceleration."""

    def meeting(x):
        mu = numpyro.param("mu", jnp.array([0.0, 3.0]))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
            w = numpyro.sample("w", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(mu[z] + w, 1.0), obs=x)

    x = np.arange(5.0)
    with pytest.raises(emppl.ModelError, match=r"'z' has Hard.*'w' is summed over.*site 'x'.*'w': Hard\(\), 'z'"):
        emppl.EM(meeting, latents={"z": Hard(), "w": Enumerate()}).plan(x)
    emppl.EM(meeting, latents={"z": Hard(), "w": Hard()}).plan(x)
    y = np.zeros((4, 30))
    with pytest.raises(emppl.ModelError, match="'b' under MonteCarlo.*noisy"):
        emppl.EM(two_latents, latents={"z": Hard(), "b": MonteCarlo()}).plan(y, None)
    with pytest.raises(emppl.ParameterError, match=r"EM\(model, estimate=\['b'\]\)"):
        emppl.EM(two_latents, latents={"b": Hard()}).plan(y, None)
    with pytest.raises(emppl.ParameterError, match="assignments jump"):
        fit(meeting, x, latents={"z": Hard(), "w": Hard()}, accelerate="squarem")

"""The loop and the result: convergence, restarts, chunks, rules other than closed forms, uncertainty, interruption."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
from numpyro.distributions import constraints

import emppl
from emppl import estep
from tests.kit.differences import numerical_errors
from tests.kit.fits import KEY, compiled_of, fit, program_of, rules


def mixture(x, K=2):
    weights = numpyro.param("weights", jnp.ones(K) / K, constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.linspace(-1.0, 1.0, K))
    sigma = numpyro.param("sigma", jnp.ones(K), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)


def bayesian_mixture(x, K=2):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(K)))
    with numpyro.plate("components", K):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        sigma = numpyro.sample("sigma", dist.HalfNormal(5))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)


def direct_log_likelihood(vector, x):
    """Two normals, written by hand: logit weight, means, log standard deviations."""
    weight = 1 / (1 + np.exp(-vector[0]))
    density = [
        w * np.exp(-0.5 * ((x - m) / np.exp(s)) ** 2) / (np.exp(s) * np.sqrt(2 * np.pi))
        for w, m, s in zip((weight, 1 - weight), vector[1:3], vector[3:5], strict=True)
    ]
    return np.log(sum(density)).sum()


@pytest.fixture(scope="module")
def direct(x):
    """Direct maximisation of the marginal likelihood by scipy."""
    start = np.array([0.0, -1.0, 1.0, 0.0, 0.0])
    return scipy.optimize.minimize(lambda v: -direct_log_likelihood(v, x), start, method="BFGS", options={"gtol": 1e-8})


def test_maximum_equals_direct_maximisation(x, direct):
    """EM ends where scipy's direct maximisation of the marginal likelihood does."""
    result = fit(mixture, x)
    assert result.converged
    assert result.log_likelihood == pytest.approx(-direct.fun, abs=1e-7)
    np.testing.assert_allclose(result.params["mu"], direct.x[1:3], atol=2e-4)
    np.testing.assert_allclose(np.log(result.params["sigma"]), direct.x[3:5], atol=2e-4)


def test_standard_errors_equal_numerical_hessian(x):
    """Standard errors come from the marginal likelihood's Hessian, here by finite differences of a hand-written one."""
    result = fit(mixture, x, tolerance=1e-12)
    p = result.params
    at = np.array([np.log(p["weights"][0] / p["weights"][1]), *p["mu"], *np.log(p["sigma"])])
    deviations = numerical_errors(lambda vector: direct_log_likelihood(vector, x), at)
    errors = result.standard_errors()
    w = p["weights"][0]
    np.testing.assert_allclose(errors["weights"], deviations[0] * w * (1 - w) * np.ones(2), rtol=1e-4)
    np.testing.assert_allclose(errors["mu"], deviations[1:3], rtol=1e-4)
    np.testing.assert_allclose(errors["sigma"], deviations[3:5] * p["sigma"], rtol=1e-4)


def test_objective_never_falls(x):
    """History starts at the start and rises at every step."""
    result = fit(mixture, x)
    objective = result.history["objective"]
    assert len(objective) == result.num_iterations + 1
    assert np.all(np.diff(objective) > -1e-9)
    assert objective[-1] == result.log_posterior


def test_posterior_mode_has_zero_gradient(x):
    """With priors, the end point is a stationary point of log-likelihood plus log prior."""
    em = emppl.EM(bayesian_mixture, restarts=5, tolerance=1e-13)
    result = em.run(KEY, x)
    params = {name: jnp.asarray(value) for name, value in result.params.items()}

    def objective(params):
        return em.log_likelihood(params, x) + em.log_prior(params, x)

    gradient = jax.grad(objective)(params)
    assert np.abs(gradient["mu"]).max() < 1e-4
    assert np.abs(gradient["sigma"]).max() < 1e-4
    tangent = np.asarray(gradient["weights"])
    assert abs(tangent[0] - tangent[1]) < 1e-3
    assert result.log_posterior == pytest.approx(float(objective(params)), abs=1e-8)
    assert result.log_likelihood < result.log_posterior or result.log_likelihood > result.log_posterior


def test_prior_false_is_maximum_likelihood(x):
    """The Bayesian model without its priors gives the same fit as the model written with params."""
    free = fit(mixture, x)
    dropped = fit(bayesian_mixture, x, prior=False, restarts=3)
    assert dropped.log_likelihood == pytest.approx(free.log_likelihood, abs=1e-7)
    assert dropped.log_posterior == dropped.log_likelihood


def test_restarts_keep_the_best_and_count_optima(x):
    """All restarts run together; the best is kept and the agreement is counted."""
    result = emppl.EM(bayesian_mixture, restarts=8).run(KEY, x, K=3)
    finals = result.history["final_objectives"]
    assert finals.shape == (8,)
    assert (
        result.log_posterior == finals[np.isin(result.history["final_status"], ["CONVERGED", "MAX_ITERATIONS"])].max()
    )
    assert 1 <= result.certificate.distinct_optima <= 8
    assert result.certificate.restarts_at_best >= 1


def test_one_lane_of_many_equals_a_single_run(x):
    """The first restart starts at init_params, and runs exactly as it would alone."""
    init = {"mu": [-0.5, 0.5], "sigma": [1.0, 1.0], "weights": [0.5, 0.5]}
    alone = fit(mixture, x, init_params=init)
    many = fit(mixture, x, init_params=init, restarts=4)
    assert many.history["final_objectives"][0] == pytest.approx(alone.log_posterior, abs=1e-8)


@pytest.mark.parametrize(("rows", "size"), [(300, 64), (300, 75), (300, 299)])
def test_chunked_expectations_equal_unchunked(x, rows, size):
    """Chunks of rows, padded or not, give the sums of the whole."""
    program, leaves = program_of(mixture, jnp.asarray(x))
    params = {"weights": jnp.array([0.3, 0.7]), "mu": jnp.array([-1.0, 2.0]), "sigma": jnp.array([0.5, 1.5])}
    natural = program.fused.natural
    count = -(-rows // size)
    whole = estep.FusedPlan(natural, estep.Chunking(1, rows, 0))
    cut = estep.FusedPlan(natural, estep.Chunking(count, size, count * size - rows))
    found = [
        estep.expectations(program.model, plan, params, leaves, estep.prepare(program.model, plan, leaves))
        for plan in (whole, cut)
    ]
    assert float(found[0].log_likelihood) == pytest.approx(float(found[1].log_likelihood), abs=1e-9)
    for name in found[0].sums:
        np.testing.assert_allclose(found[0].sums[name], found[1].sums[name], rtol=1e-11, atol=1e-9)


def test_chunks_with_weights_and_tables(x):
    """Row weights and sites in table form survive the cutting of rows."""

    def model(x, counts):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        slope = numpyro.param("slope", 0.1)
        with numpyro.handlers.scale(scale=counts), numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
            numpyro.sample("y", dist.Logistic(mu[z] * slope, 2.0), obs=0.5 * x)

    counts = np.random.default_rng(1).integers(1, 4, len(x)).astype(float)
    program, leaves = program_of(model, jnp.asarray(x), jnp.asarray(counts))
    params = {"mu": jnp.array([-1.0, 2.0]), "slope": jnp.array(0.3)}
    natural = frozenset(["z", "x"])
    whole = estep.FusedPlan(natural, estep.Chunking(1, 300, 0))
    cut = estep.FusedPlan(natural, estep.Chunking(5, 64, 20))
    found = [
        estep.expectations(program.model, plan, params, leaves, estep.prepare(program.model, plan, leaves))
        for plan in (whole, cut)
    ]
    assert float(found[0].log_likelihood) == pytest.approx(float(found[1].log_likelihood), abs=1e-9)
    plain = estep.e_step(program.model, params, leaves)
    assert float(plain.log_likelihood) == pytest.approx(float(found[1].log_likelihood), abs=1e-9)
    np.testing.assert_allclose(found[1].weights["y"], plain.weights["y"], atol=1e-11)


def test_loop_equals_pieces(x):
    """The fused loop makes the same iterates as the public pieces put together by hand."""
    em = emppl.EM(mixture, max_iterations=5, tolerance=0.0)
    params = {"weights": np.array([0.5, 0.5]), "mu": np.array([-1.0, 1.0]), "sigma": np.array([1.0, 1.0])}
    result = em.run(KEY, x, init_params=params)
    for step in range(5):
        posterior = em.e_step(params, x)
        assert float(posterior.log_likelihood) == pytest.approx(result.history["log_likelihood"][step], abs=1e-9)
        params = em.m_step(params, posterior, x)
    for name in params:
        np.testing.assert_allclose(result.params[name], params[name], rtol=1e-10)


def test_new_data_of_equal_shape_do_not_recompile(x):
    """The model function runs only when shapes change."""
    calls = []

    def counted(x):
        calls.append(1)
        return mixture(x)

    em = emppl.EM(counted)
    em.run(KEY, x)
    before = len(calls)
    em.run(jax.random.key(1), x + 1.0)
    em.e_step(em.start(KEY, x), x)
    after_start = len(calls)
    em.e_step(em.start(KEY, x * 2), x * 2)
    assert len(calls) == after_start
    assert after_start - before <= 1  # em.start for one restart was compiled by run already
    em.run(KEY, x[:100])
    assert len(calls) > after_start


def test_pieces_are_jittable_differentiable_and_vmappable(x):
    """The gradient of the log-likelihood equals the gradient of Q at the same point (Fisher's identity)."""
    em = emppl.EM(mixture)
    params = {name: jnp.asarray(value) for name, value in em.start(KEY, x).items()}
    step = jax.jit(lambda p, x: em.m_step(p, em.e_step(p, x), x))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    moved = jax.vmap(lambda p: step(p, jnp.asarray(x)))(stacked)
    np.testing.assert_allclose(moved["mu"][0], step(params, jnp.asarray(x))["mu"], rtol=1e-10)
    posterior = em.e_step(params, x)
    by_q = jax.grad(lambda p: em.q(p, posterior, x))(params)
    direct = jax.grad(lambda p: em.log_likelihood(p, x))(params)
    for name in params:
        np.testing.assert_allclose(by_q[name], direct[name], rtol=1e-8, atol=1e-8)


def test_fixed_parameter_keeps_the_closed_forms_of_the_rest(x):
    """A frozen mean stays; the rest is still closed form and maximises the likelihood given it."""
    em = emppl.EM(mixture, fixed={"mu": np.array([-2.0, 2.0])})
    assert rules(em, x) == {"weights": "closed form", "mu": "fixed", "sigma": "closed form"}
    result = em.run(KEY, x)
    np.testing.assert_array_equal(result.params["mu"], [-2.0, 2.0])

    def negative(v):
        return -direct_log_likelihood(np.array([v[0], -2.0, 2.0, v[1], v[2]]), x)

    best = scipy.optimize.minimize(negative, np.zeros(3), method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    assert result.num_parameters == 3


def test_users_own_update_is_used(x):
    """A user's update for one parameter: here the mean's closed form, written by hand from the weights."""

    def mean(params, posterior):
        w = posterior.weights["x"]
        return (w @ x) / w.sum(-1)

    result = fit(mixture, x, m_step={"mu": mean}, init_params={"mu": [-1.0, 1.0]})
    assert result.converged
    assert result.log_likelihood == pytest.approx(fit(mixture, x).log_likelihood, abs=1e-7)


def test_an_update_that_lowers_the_objective_is_reported(x):
    """A decrease is a named outcome, never hidden, and the parameters before it are kept."""
    result = fit(mixture, x, m_step={"mu": lambda params, posterior: params["mu"] + 3.0})
    assert result.stop_reason is emppl.StopReason.DECREASED
    assert not result.converged


def regression(x, y):
    beta = numpyro.param("beta", jnp.array([[1.0, -1.0], [-1.0, 1.0]]))
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal((beta[z] * x).sum(-1), sigma), obs=y)


def test_quadratic_block_is_solved_exactly():
    """A linear predictor: one solve makes the gradient of Q vanish, as the normal equations do."""
    rng = np.random.default_rng(3)
    x = np.stack([np.ones(80), rng.normal(size=80)], -1)
    y = np.where(rng.random(80) < 0.5, x @ [1.0, 2.0], x @ [-1.0, -2.0]) + 0.3 * rng.normal(size=80)
    em = emppl.EM(regression)
    assert rules(em, x, y) == {"beta": "quadratic", "sigma": "closed form"}
    params = {"beta": jnp.array([[1.0, -1.0], [-1.0, 1.0]]), "sigma": jnp.array(1.0)}
    posterior = em.e_step(params, x, y)
    new = em.m_step(params, posterior, x, y)
    w = np.asarray(posterior.weights["y"])
    for k in range(2):
        by_hand = np.linalg.solve((x * w[k][:, None]).T @ x, (x * w[k][:, None]).T @ y)
        np.testing.assert_allclose(new["beta"][k], by_hand, rtol=1e-9)
    result = em.run(KEY, x, y)
    assert result.converged and np.all(np.diff(result.history["objective"]) > -1e-9)


def test_newton_block_rises_to_the_maximum():
    """A family without a registered closed form: Newton steps inside EM, monotone, to a stationary point."""

    def model(x):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        width = numpyro.param("width", 1.0, constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Logistic(mu[z], width), obs=x)

    rng = np.random.default_rng(4)
    x = np.where(rng.random(100) < 0.5, rng.logistic(-3, 0.6, 100), rng.logistic(3, 0.6, 100))
    em = emppl.EM(model)
    plan = em.plan(x)
    assert {one.name: one.rule for one in plan.parameters} == {"mu": "newton", "width": "newton"}
    assert "Logistic, which has no registered closed form" in str(plan)
    result = em.run(KEY, x)
    assert result.converged and np.all(np.diff(result.history["objective"]) > -1e-8)

    def negative(v):
        density = [
            np.exp(-(x - m) / np.exp(v[2])) / np.exp(v[2]) / (1 + np.exp(-(x - m) / np.exp(v[2]))) ** 2 for m in v[:2]
        ]
        return -np.log(0.5 * density[0] + 0.5 * density[1]).sum()

    best = scipy.optimize.minimize(negative, np.array([-1.0, 1.0, 0.0]), method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-5)


def test_non_conjugate_prior_is_explained(x):
    """A prior without a closed form goes to optax, and the plan says why."""

    def model(x):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        sigma = numpyro.sample("sigma", dist.LogNormal(0, 1))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], sigma), obs=x)

    text = str(emppl.EM(model).plan(x))
    assert "prior LogNormal is not conjugate" in text
    assert fit(model, x).converged


def test_narrow_components_switch_to_the_accurate_path():
    """Components a millionth as wide as the data: the plain path takes over and keeps the digits."""
    rng = np.random.default_rng(5)
    centre = np.repeat([0.0, 1e6], 50)
    x = centre + 1e-2 * rng.normal(size=100)
    result = fit(mixture, x, init_params={"mu": [1.0, 1e6 - 1.0], "sigma": [1.0, 1.0]})
    assert result.converged and result.notes
    halves = [x[:50], x[50:]]
    np.testing.assert_allclose(result.params["mu"], [half.mean() for half in halves], rtol=1e-12)
    np.testing.assert_allclose(result.params["sigma"], [half.std() for half in halves], rtol=1e-6)


def test_interrupt_returns_the_best_so_far(x, monkeypatch):
    """Ctrl-C between blocks keeps what was computed."""
    em = emppl.EM(mixture, tolerance=0.0, max_iterations=10_000)
    derived, _ = compiled_of(em, x)
    derived.compile_in_background(1, [jnp.asarray(x)])
    block = derived.block(1, False)
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return block(*args)

    monkeypatch.setattr(derived, "block", lambda lanes, accurate: interrupted)
    result = em.run(KEY, x)
    assert result.stop_reason is emppl.StopReason.INTERRUPTED
    assert not result.converged
    assert result.num_iterations > 0 and np.isfinite(result.log_likelihood)


def test_max_iterations_is_not_called_converged(x):
    """The cap is a named outcome; zero iterations only evaluate the start."""
    result = fit(mixture, x, max_iterations=2)
    assert result.stop_reason is emppl.StopReason.MAX_ITERATIONS and result.num_iterations == 2
    nothing = fit(mixture, x, max_iterations=0)
    assert nothing.num_iterations == 0 and len(nothing.history["objective"]) == 1


def test_information_criteria(x):
    """AIC, BIC and ICL by their formulas."""
    result = fit(mixture, x)
    assert result.num_parameters == 5
    assert result.aic == pytest.approx(10 - 2 * result.log_likelihood)
    assert result.bic == pytest.approx(5 * np.log(300) - 2 * result.log_likelihood)
    r = result.posterior("z")
    assert result.icl == pytest.approx(result.bic - 2 * np.sum(np.where(r > 0, r * np.log(np.where(r > 0, r, 1)), 0)))


def test_decode_and_sample_agree_with_the_posterior(x):
    """With independent rows the joint mode is the marginal mode, and draws follow the marginals."""
    result = fit(mixture, x)
    r = result.posterior("z")
    np.testing.assert_array_equal(result.decode()["z"], r.argmax(-1))
    draws = result.sample_posterior(KEY, 2000)["z"]
    assert draws.shape == (2000, 300)
    error = np.sqrt(r[:, 1] * r[:, 0] / 2000) + 1e-12
    assert np.max(np.abs(draws.mean(0) - r[:, 1]) / error) < 5


def test_result_pickles(x):
    """A result survives pickling and still answers."""
    result = fit(mixture, x)
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(again.params["mu"], result.params["mu"])
    np.testing.assert_allclose(again.posterior("z"), result.posterior("z"))


def test_summary_and_printing(x, capsys):
    """The table holds every entry; printing says how the fit ended."""
    result = fit(mixture, x)
    frame = result.summary()
    assert list(frame.index[:2]) == ["weights[0]", "weights[1]"]
    result.print_summary()
    assert "converged after" in capsys.readouterr().out


def test_compare_aligns_components(x):
    """Draws with swapped labels are matched to the estimate, draw by draw."""
    result = fit(bayesian_mixture, x, restarts=3)
    rng = np.random.default_rng(0)
    draws = {n: v[None] + 0.01 * rng.normal(size=(100, *v.shape)) for n, v in result.params.items()}
    for row in range(50):
        for name in draws:
            draws[name][row] = draws[name][row][::-1]
    table = emppl.compare(result, draws)
    np.testing.assert_allclose(table.mean, table.estimate, atol=0.01)
    assert table.relabelled == {"z": 0.5}
    assert "50% of the draws" in str(table)


def test_plan_tells_roles_rules_and_cost(x):
    """Everything that was derived is in the printed plan."""
    text = str(emppl.EM(bayesian_mixture).plan(x))
    for words in (
        "maximum a posteriori (exact E-step)",
        "indexed by latent 'z'",
        "Enumerate (exact)",
        "prior HalfNormal",
        "table cells per iteration",
        "statistics x natural parameters",
    ):
        assert words in text


def test_accurate_path_equals_fast_path(x):
    """The plain twin of one iteration gives the same parameters."""
    program, leaves = program_of(mixture, jnp.asarray(x))
    params = {"weights": jnp.array([0.3, 0.7]), "mu": jnp.array([-1.0, 2.0]), "sigma": jnp.array([0.5, 1.5])}
    fused = program.fused
    prepared = estep.prepare(program.model, fused, leaves)
    fast = program.m_step(params, estep.expectations(program.model, fused, params, leaves, prepared), leaves, prepared)
    found, local = estep.from_posterior(
        program.model, params, estep.e_step(program.model, params, leaves), leaves, local=True
    )
    plain = program.m_step(params, found, leaves, local)
    for name in params:
        np.testing.assert_allclose(fast[name], plain[name], rtol=1e-10)


def test_a_wrong_name_is_refused_every_time(x):
    """What was derived before a name was found wrong is not kept."""
    em = emppl.EM(mixture, m_step={"nope": lambda params, posterior: 0.0})
    for _ in range(2):
        with pytest.raises(emppl.ParameterError, match="nope"):
            em.run(jax.random.key(0), x)


def test_a_result_answers_in_another_precision(x):
    """A fit in float64 may be asked in a session of float32: it is derived again for the precision of the moment."""
    result = fit(mixture, x)
    exact = result.standard_errors()
    with jax.enable_x64(False):
        probabilities = result.posterior("z")
    np.testing.assert_allclose(probabilities, result.posterior("z"), atol=1e-4)
    assert exact


def test_results_of_one_fit_are_pickled_without_what_is_compiled(x):
    """Nothing is derived while they are read, and what they share they share again."""
    results = [fit(mixture, x)] * 2
    again = pickle.loads(pickle.dumps(results))
    assert not again[0].fit.resolved
    assert again[0].fit.cache is again[1].fit.cache
    np.testing.assert_allclose(again[0].posterior("z"), results[0].posterior("z"), rtol=1e-12)

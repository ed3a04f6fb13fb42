"""Monte Carlo EM against exact answers: conjugate posteriors, the oracles of non-Gaussian models, closed algebra."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from scipy import integrate, stats

import emppl
from emppl import SAEM, MonteCarlo, Quadrature, StochasticEM, StopReason
from emppl.montecarlo.mixing import effective_draws
from emppl.montecarlo.path import joined
from models import absences, law_school
from tests.kit.fits import compiled_of, fit
from tests.kit.oracles import data_set, oracle

POSITIVE = dist.constraints.positive


# ------------------------------------------------------------------------------------------------------------ models


def effects(y, names=("u", "v")):
    """Latents that do not meet: each of them is an integral of its own."""
    a = numpyro.param("a", 0.0)
    with numpyro.plate("rows", len(y)):
        for name in names:
            rate = jnp.exp(a + numpyro.sample(name, dist.Normal(0.0, 0.5)))
            numpyro.sample(f"y_{name}", dist.Poisson(rate), obs=y)


def pumps(time, failures):
    alpha = numpyro.param("alpha", 1.0, constraint=POSITIVE)
    beta = numpyro.param("beta", 1.0, constraint=POSITIVE)
    with numpyro.plate("pumps", len(failures)):
        rate = numpyro.sample("rate", dist.Gamma(alpha, beta))
        numpyro.sample("failures", dist.Poisson(rate * time), obs=failures)


def pump_data():
    data = oracle("pump_gamma_poisson")["data"]["inline"]
    return np.array(data["time"]), np.array(data["failures"], float)


def glmm(design, group, size, successes, groups):
    coef = numpyro.param("coef", jnp.zeros(design.shape[1]))
    sd = numpyro.param("sd", 0.5, constraint=POSITIVE)
    with numpyro.plate("groups", groups):
        b = numpyro.sample("b", dist.Normal(0.0, sd))
    with numpyro.plate("rows", len(successes)):
        numpyro.sample("y", dist.Binomial(size, logits=design @ coef + b[group]), obs=successes)


def cbpp():
    herd, y, size, period = data_set("cbpp").T
    design = np.stack([np.ones(len(y))] + [(period == k) * 1.0 for k in (2, 3, 4)], 1)
    return design, herd.astype(int) - 1, size, y, 15


def seeds():
    data = {name: np.array(column, float) for name, column in oracle("seeds")["data"]["inline"].items()}
    seed, extract = data["seed"], data["extract"]
    design = np.stack([np.ones(21), seed, extract, seed * extract], 1)
    return design, np.arange(21), data["n"], data["r"], 21


def booth_hobert():
    y, x, cluster = data_set("booth_hobert").T
    return x[:, None], cluster.astype(int) - 1, np.ones(len(y)), y, 10


def examinees():
    """One row per examinee: chains of a pattern that stands for hundreds would need hundreds of times the draws."""
    answers, frequency = law_school.data()
    return np.repeat(answers, frequency, 0), np.ones(frequency.sum())


CASES = {
    "pump_gamma_poisson": (pumps, pump_data, "rate"),
    "cbpp": (glmm, cbpp, "b"),
    "seeds": (glmm, seeds, "b"),
    "booth_hobert": (glmm, booth_hobert, "b"),
    "lsat7_2pl": (law_school.model, examinees, "ability"),
    "quine_gamma_poisson": (absences.model, absences.data, "multiplier"),
}


def block(name, which):
    """A block of an oracle as one vector, in the order of the model's parameters."""
    found = oracle(name)["reference"][which]
    match name:
        case "pump_gamma_poisson":
            return np.array([found["alpha"], found["beta"]])
        case "lsat7_2pl":
            return np.array([*found["2pl"]["a"], *found["2pl"]["d"]])
        case "quine_gamma_poisson":
            return np.array([*found["coef"].values(), found["theta"]])
    return np.array([*found["coef"].values(), found["sd"]])


def reference(name):
    return block(name, "params")


def entries(params):
    return np.concatenate([np.ravel(params[name]) for name in params])


@functools.cache
def em_of(name, strategy):
    """One EM object for all tests of a model: what was compiled for it stays."""
    model, _, latent = CASES[name]
    return emppl.EM(model, latents={latent: strategy})


def fit_case(name, strategy, seed, tolerance=None):
    em = em_of(name, strategy)
    em.tolerance = tolerance
    return em.run(jax.random.key(seed), *CASES[name][1]())


def check_oracle(name, result):
    expected, errors = reference(name), entries(result.monte_carlo_errors)
    assert result.converged, result.stop_message
    off = np.abs(entries(result.params) - expected)
    assert np.all(off <= 3 * errors), off / errors
    scale = np.maximum(np.abs(expected), standard_errors(name))
    assert np.all(off <= 0.02 * scale), off / scale
    value = oracle(name)["reference"]["loglik"]
    value = value["2pl"] if name == "lsat7_2pl" else value
    assert abs(result.log_likelihood - value) <= 4 * result.simulation.log_likelihood_error + 2e-3
    assert result.certificate.monotone
    assert max(result.certificate.r_hat.values()) < 1.05


def standard_errors(name):
    return block(name, "standard_errors")


# ------------------------------------------------------------------------------------------------------- the oracles


def test_pumps_reach_the_oracle_within_their_own_error(capsys):
    result = fit_case("pump_gamma_poisson", MonteCarlo(), 0, tolerance=1e-4)
    check_oracle("pump_gamma_poisson", result)
    shares = {n: error / result.standard_errors()[n] for n, error in result.standard_error_errors.items()}
    assert all(0 < share < 0.05 for share in shares.values()), shares
    result.print_summary()
    assert "mc_error  of std_err" in capsys.readouterr().out


def test_posterior_moments_of_drawn_latents():
    """Exact gamma posteriors at the estimate; importance sampling is off by more in the group with the longest tail."""
    result = fit_case("pump_gamma_poisson", MonteCarlo(), 0, tolerance=1e-4)
    time, failures = pump_data()
    shape, rate = result.params["alpha"] + failures, result.params["beta"] + time
    mean, variance = result.posterior("rate")
    deviation = np.sqrt(shape) / rate
    assert np.all(np.abs(mean - shape / rate) < 0.1 * deviation)
    np.testing.assert_allclose(variance, deviation**2, rtol=0.2)
    assert np.sqrt(np.mean(((mean - shape / rate) / deviation) ** 2)) < 0.04


@pytest.mark.slow
def test_stochastic_approximation_reaches_the_oracle():
    result = fit_case("pump_gamma_poisson", SAEM(window=64), 0, tolerance=1e-4)
    check_oracle("pump_gamma_poisson", result)
    decisions = list(result.history["decision"])
    assert decisions == sorted(decisions, key=["burn-in", "averaging", "closing step"].index)
    assert {"burn-in", "averaging", "closing step"} == set(decisions)


QUICK = ("pump_gamma_poisson",)
# Two percent of the estimates of LSAT7, which are many standard errors from zero, take fewer draws. Three stated errors
# are exceeded by chance, in one seed of 200 with two parameters. At 3e-4 seed 1 of the pumps is 3.17 off; of 300 seeds
# there two are beyond 3 (1.3 expected), and the scores have standard deviations 1.02 and 0.99.
TOLERANCE = {"lsat7_2pl": 3e-3, "cbpp": 5e-5, "pump_gamma_poisson": 1e-4}


@pytest.mark.parametrize("strategy", [MonteCarlo(), SAEM()], ids=["MonteCarlo", "SAEM"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in QUICK else pytest.mark.long) for name in CASES]
)
def test_oracles_from_five_seeds(name, strategy):
    """All seeds in one test, which compiles once for all of them."""
    for seed in range(5):
        check_oracle(name, fit_case(name, strategy, seed, tolerance=TOLERANCE.get(name, 3e-4)))


@pytest.mark.long
def test_stated_errors_cover_the_maximum():
    expected = reference("pump_gamma_poisson")
    covered = []
    for seed in range(50):
        result = fit_case("pump_gamma_poisson", MonteCarlo(), seed)
        off = np.abs(entries(result.params) - expected)
        covered.append(off <= stats.norm.ppf(0.975) * entries(result.monte_carlo_errors))
    assert np.all((np.mean(covered, 0) >= 0.85) & (np.mean(covered, 0) <= 0.99)), np.mean(covered, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["pump_gamma_poisson", "cbpp"])
def test_stated_errors_of_standard_errors_cover_those_by_quadrature(name):
    """Against standard errors at the maximum of the likelihood by 41 nodes, which have no noise."""
    model, data, latent = {
        "pump_gamma_poisson": (pumps, pump_data(), "rate"),
        "cbpp": (glmm, cbpp(), "b"),
    }[name]
    exact = fit(model, *data, latents={latent: emppl.Quadrature(41)})
    expected = entries(exact.standard_errors())
    em = emppl.EM(model, latents={latent: MonteCarlo(25)})
    scores = []
    for seed in range(100):
        result = em.run(jax.random.key(seed), *data)
        off = entries(result.standard_errors()) - expected
        scores.append(off / entries(result.standard_error_errors))
    covered = np.mean(np.abs(scores) <= stats.norm.ppf(0.975), 0)
    print(name, covered, np.std(scores, 0))
    assert np.all((covered >= 0.87) & (covered <= 1)), covered


# ----------------------------------------------------------------------------------------------------------- pieces


def many_draws(compiled, params, leaves, blocks, seed=1, skipped=0):
    """Draws in blocks of a hundred, after some that are dropped, by the function that the loop uses."""
    chains, found = compiled.simulator.begin(), []
    for key in jax.random.split(jax.random.key(seed), blocks + skipped):
        found.append(compiled.simulator.draw(params, chains, key, leaves, number=100))
        chains = found[-1].walkers
    return joined(found[skipped:])


def check_gamma_draws(draws, shape, rate):
    """Mean and log-mean of independent gamma posteriors, within five Monte Carlo errors."""
    chains, number = draws.shape[:2]
    for values, mean in (
        (draws, shape / rate),
        (np.log(draws), jax.scipy.special.digamma(shape) - np.log(rate)),
    ):
        flat = values.reshape(chains, number, -1)
        error = np.sqrt(flat.var((0, 1)) / effective_draws(flat))
        np.testing.assert_array_less(np.abs(flat.mean((0, 1)) - np.ravel(mean)), 5 * error)


def test_small_groups_are_drawn_from_their_posterior():
    time, failures = pump_data()
    compiled, leaves = compiled_of(em_of("pump_gamma_poisson", MonteCarlo()), time, failures)
    params = {"alpha": jnp.asarray(0.8), "beta": jnp.asarray(1.3)}
    drawn = many_draws(compiled, params, leaves, 20)
    found = np.exp(np.asarray(drawn.draws["rate@atoms"]))[..., 0]
    check_gamma_draws(found[:, 100:], 0.8 + failures, 1.3 + time)
    # Ten pumps: their evidence is negative binomial.
    exact = stats.nbinom.logpmf(failures, 0.8, 1.3 / (1.3 + time))
    value = float(jnp.sum(drawn.evidence["rate@atoms"]))
    assert abs(value - exact.sum()) < 0.1
    assert abs(float(compiled.log_likelihood(params, leaves)) - exact.sum()) < 0.05


def many_pumps(time, failures):
    beta = numpyro.param("beta", 1.3, constraint=POSITIVE)
    with numpyro.plate("sites", failures.shape[0]):
        rate = numpyro.sample("rate", dist.Gamma(0.8 * jnp.ones(failures.shape[1]), beta).to_event(1))
        numpyro.sample("failures", dist.Poisson(rate * time).to_event(1), obs=failures)


@pytest.mark.slow
def test_larger_groups_are_drawn_by_hamiltonian_steps():
    rng = np.random.default_rng(0)
    time = rng.uniform(0.5, 5, 6)
    failures = rng.poisson(3 * time, (3, 6)).astype(float)
    compiled, leaves = compiled_of(emppl.EM(many_pumps), time, failures)
    (integral,) = compiled.program.model.integrals
    assert isinstance(integral.strategy, MonteCarlo)  # six numbers are too many for quadrature
    assert (integral.groups, integral.dimensions) == (3, 6)
    params = {"beta": jnp.asarray(1.3)}
    drawn = many_draws(compiled, params, leaves, 15)
    found = np.exp(np.asarray(drawn.draws[integral.axis]))
    check_gamma_draws(found[:, 100:], 0.8 + failures, (1.3 + time) * np.ones_like(failures))
    exact = stats.nbinom.logpmf(failures, 0.8, 1.3 / (1.3 + time)).sum()
    assert abs(float(compiled.log_likelihood(params, leaves)) - exact) < 0.2


def mixture_of_counts(n, y):
    share = numpyro.param("share", 0.4, constraint=dist.constraints.unit_interval)
    level = numpyro.param("level", jnp.array([-1.0, 1.5]))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(share))
        b = numpyro.sample("b", dist.Normal(level[z], 0.7))
        numpyro.sample("y", dist.Binomial(n, logits=b), obs=y)


@pytest.mark.slow
def test_discrete_latents_are_summed_out_inside():
    y = np.array([2.0, 9.0, 5.0, 7.0])
    em = emppl.EM(mixture_of_counts, latents={"b": MonteCarlo()})
    params = {"share": jnp.asarray(0.4), "level": jnp.array([-1.0, 1.5])}
    posterior = em.e_step(params, 10, y)

    def joint(one, level, power):
        def density(b):
            return b**power * stats.norm.pdf(b, level, 0.7) * stats.binom.pmf(one, 10, 1 / (1 + np.exp(-b)))

        return integrate.quad(density, -12, 12, epsabs=1e-13, limit=200)[0]

    states = np.array([[(1 - 0.4) * joint(one, -1.0, 0), 0.4 * joint(one, 1.5, 0)] for one in y])
    assert abs(float(posterior.log_likelihood) - np.log(states.sum(1)).sum()) < 0.02
    # Chains, their evidence and the weights of states, as the loop puts them together.
    compiled, leaves = compiled_of(em, 10, y)
    simulator = compiled.simulator
    drawn = many_draws(compiled, params, leaves, 10)
    prepared, _ = compiled.prepared_and_report(leaves)
    improved = simulator.improve(params, drawn, None, leaves, prepared, {})
    responsibility = states[:, 1] / states.sum(1)
    assert abs(float(improved.params["share"]) - responsibility.mean()) < 0.01
    means = np.array([[joint(one, level, 1) / joint(one, level, 0) for level in (-1.0, 1.5)] for one in y])
    weights = np.stack([1 - responsibility, responsibility], 1)
    expected = (weights * means).sum(0) / weights.sum(0)
    np.testing.assert_allclose(improved.params["level"], expected, atol=0.04)


# ---------------------------------------------------------------------------------------------------------- the loop


def test_interrupting_keeps_everything(monkeypatch):
    from emppl.fit import progress

    seen = []

    def report(_, states):
        seen.append({name: value.copy() for name, value in states.params.items()})
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.Progress, "__call__", report)
    stopped = fit_case("pump_gamma_poisson", MonteCarlo(), 3)
    assert stopped.stop_reason is StopReason.INTERRUPTED
    assert len(stopped.history["gain"]) == 2
    assert np.all(np.isnan(entries(stopped.monte_carlo_errors)))
    # The step that had just been made when the interrupt came is kept.
    np.testing.assert_array_equal(entries(stopped.params), entries(seen[-1]))


def test_every_decision_is_in_the_history():
    result = fit_case("pump_gamma_poisson", MonteCarlo(5), 0)  # few draws, which must grow
    history = result.history
    assert {"iteration", "draws", "gain", "gain_error", "decision", "objective"} <= set(history)
    assert len({len(history[name]) for name in ("draws", "gain", "decision", "objective", "log_likelihood")}) == 1
    accepted = history["decision"] == "accepted"
    assert np.all(history["gain"][accepted] > 0.67 * history["gain_error"][accepted])
    enlarged = np.flatnonzero(history["decision"] == "enlarged")
    assert len(enlarged)
    assert np.all(history["draws"][enlarged + 1] == 2 * history["draws"][enlarged])
    assert np.all(history["iteration"][enlarged + 1] == history["iteration"][enlarged])


def test_too_few_draws_are_no_convergence():
    result = fit_case("pump_gamma_poisson", MonteCarlo(max_samples=100), 0, tolerance=1e-7)
    assert result.stop_reason is StopReason.NOISY
    assert "max_samples" in result.stop_message


def test_options_are_checked():
    with pytest.raises(emppl.ParameterError, match="decay"):
        SAEM(decay=0.5)
    with pytest.raises(emppl.ParameterError, match="num_chains must be at least 2"):
        MonteCarlo(num_chains=1)
    with pytest.raises(emppl.ParameterError, match="max_samples"):
        MonteCarlo(num_samples=1000, max_samples=10)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: MonteCarlo(num_samples=1e3), "num_samples of MonteCarlo"),
        (lambda: MonteCarlo(num_chains="4"), "num_chains of MonteCarlo"),
        (lambda: StochasticEM(num_samples=True), "num_samples of StochasticEM"),
        (lambda: SAEM(window=0), "window of SAEM"),
        (lambda: SAEM(decay="fast"), "decay of SAEM"),
        (lambda: Quadrature(1.5), "num_points of Quadrature"),
        (lambda: Quadrature(None), "num_points of Quadrature"),
        (lambda: emppl.EM(pumps, restarts=2.0), "restarts"),
        (lambda: emppl.EM(pumps, max_iterations=2.5), "max_iterations"),
        (lambda: emppl.EM(pumps, tolerance="1e-3"), "tolerance"),
    ],
)
def test_options_that_are_no_numbers_are_named(make, option):
    with pytest.raises(emppl.ParameterError, match=option):
        make()


# ------------------------------------------------------------------------------------------------- what is no convergence


@pytest.mark.parametrize(
    ("strategy", "rate"),
    [(MonteCarlo(), 1e-9), (MonteCarlo(max_samples=100), 1e3), (SAEM(), 1e3), (StochasticEM(), 1e3)],
    ids=["too small", "too noisy", "SAEM", "stochastic EM"],
)
def test_inner_iterations_that_do_not_end_are_no_convergence(strategy, rate):
    """Steps far too small or too large: no gain is seen, nothing drifts, and the maximum (1.1) is far."""
    y = np.array([3.0, 1.0, 4.0, 5.0, 2.0, 6.0, 3.0, 2.0])
    result = fit(effects, y, ("u",), latents={"u": strategy}, m_step={"a": optax.sgd(rate)})
    assert result.params["a"] == pytest.approx(0.0, abs=1e-4)
    assert result.stop_reason is StopReason.UNFINISHED and not result.converged
    assert "learning rate" in result.stop_message and np.all(result.history["unfinished"])


@pytest.mark.parametrize(
    ("latents", "line"),
    [
        ({"u": MonteCarlo(), "v": SAEM()}, {"u": MonteCarlo(), "v": MonteCarlo()}),
        ({"u": StochasticEM(), "v": MonteCarlo(500)}, {"u": StochasticEM(), "v": StochasticEM()}),
        ({"u": StochasticEM(), "v": StochasticEM(7, 3)}, {"u": StochasticEM(), "v": StochasticEM()}),
    ],
)
def test_latents_that_are_drawn_need_one_strategy(latents, line):
    """One loop makes the fit: it would take the options of the first, without a word."""
    em = emppl.EM(effects, latents=latents)
    with pytest.raises(emppl.ModelError, match=f"one and the same.*{re.escape(f'latents={line}')}"):
        em.plan(np.arange(4.0))
    emppl.EM(effects, latents=line).plan(np.arange(4.0))
    emppl.EM(effects, latents={"u": latents["u"], "v": emppl.Laplace()}).plan(np.arange(4.0))


def test_draws_are_counted():
    """A block of stochastic EM that max_iterations shortens has used its first draws alone."""
    strategy = StochasticEM(num_samples=3, num_chains=2)
    result = fit(effects, np.arange(4.0), ("u",), latents={"u": strategy}, max_iterations=25)
    assert result.simulation.total_draws == np.sum(result.history["draws"]) == 25 * 6

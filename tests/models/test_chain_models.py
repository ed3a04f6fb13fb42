"""The hidden Markov models of models/ against published and independently computed answers."""

import functools

import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, gammaln, logsumexp

import emppl
from models import (
    dippers,
    dishonest_casino,
    earthquakes,
    lynx,
    nile,
    old_faithful_durations,
    old_faithful_second_order,
    response_speed,
    two_sources,
    unigram_tokenizer,
)
from tests.kit.fits import fit
from tests.kit.oracles import check, oracle


@functools.cache
def fitted(module, *data):
    return fit(module.model, *DATA[module, data])


def forward(initial, transition, log_emission):
    """Log-likelihood of one sequence by the textbook's recursion, ``log_emission`` being ``(steps, states)``."""
    peak = log_emission.max(1)
    emission = np.exp(log_emission - peak[:, None])
    alpha, total = np.asarray(initial) * emission[0], peak.sum()
    for row in emission[1:]:
        scale = alpha.sum()
        alpha, total = (alpha / scale) @ transition * row, total + np.log(scale)
    return total + np.log(alpha.sum())


def highest(log_likelihood, start):
    """A local maximum by BFGS with numerical gradients: no EM, no emppl."""
    found = minimize(lambda free: -log_likelihood(free), start, method="BFGS")
    return -found.fun, found.x


SPEED = response_speed.data()
SEEN, FIRST, FLOOD = dippers.data()
DATA = {
    (earthquakes, ("stationary",)): (earthquakes.data(), 2),
    (earthquakes, (2,)): (earthquakes.data(), 2, False),
    (earthquakes, (3,)): (earthquakes.data(), 3, False),
    (earthquakes, (4,)): (earthquakes.data(), 4, False),
    (response_speed, ("rt_three_series",)): SPEED[:2],
    (response_speed, ("rt_corr_three_series",)): SPEED[:3],
    (response_speed, ("rt_corr_transition_previous_pacc",)): SPEED,
    (dippers, ("constant",)): (SEEN, FIRST, 0 * FLOOD),
    (dippers, ("flood",)): (SEEN, FIRST, FLOOD, 2),
    (dishonest_casino, ()): (dishonest_casino.data(),),
    (old_faithful_durations, ()): (old_faithful_durations.data(),),
    (old_faithful_second_order, ()): (old_faithful_second_order.data(),),
    (nile, (2,)): (nile.data(),),
    (lynx, ()): (lynx.data(),),
    (two_sources, ()): (two_sources.data(),),
    (unigram_tokenizer, ()): unigram_tokenizer.data(),
}


@pytest.mark.parametrize("states", [2, 3, 4])
def test_earthquakes_of_baum_and_welch(states):
    result, known = fitted(earthquakes, states), oracle("earthquakes_poisson_hmm")
    reference, limits = known["reference"]["free_start"][f"m{states}"], known["tolerance"]
    assert result.converged
    check(result.log_likelihood, reference["loglik"], limits["loglik"], "loglik")
    names = {"rate": "lambda", "transition": "Gamma", "initial": "delta"}
    for name, theirs in names.items():
        check(result.params[name], reference[theirs], limits["params"], name)


def test_earthquakes_with_a_stationary_start_and_their_standard_errors():
    result, known = fitted(earthquakes, "stationary"), oracle("earthquakes_poisson_hmm")
    reference = known["reference"]["stationary_start"]["m2"]
    check(result.log_likelihood, reference["loglik"], known["tolerance"]["loglik"], "loglik")
    check(result.params["transition"], reference["Gamma"], known["tolerance"]["params"], "Gamma")
    errors, wanted = result.standard_errors(), known["reference"]["standard_errors_stationary_m2"]
    limit = known["tolerance"]["standard_errors"]
    check(errors["rate"], wanted["lambda"], limit, "lambda")
    check(errors["transition"][0, 1], wanted["gamma12"], limit, "gamma12")
    check(errors["transition"][1, 0], wanted["gamma21"], limit, "gamma21")


def test_earthquakes_decoded():
    known = oracle("earthquakes_poisson_hmm")
    reference, wanted = known["reference"]["stationary_start"]["m3"], known["reference"]["decoding_m3_stationary"]
    start = {"rate": np.array(reference["lambda"]), "transition": np.array(reference["Gamma"])}
    start["transition"] = start["transition"] / start["transition"].sum(-1, keepdims=True)
    result = fit(earthquakes.model, earthquakes.data(), 3, init_params=start, max_iterations=0)
    limit = known["tolerance"]["decoding"]
    check(result.posterior("state")[:5], wanted["smoothed_state_probs_first_5"], limit, "first 5")
    check(result.posterior("state")[40:51], wanted["smoothed_state_probs_years_1940_1950"], limit, "1940-1950")
    np.testing.assert_array_equal(result.decode()["state"] + 1, wanted["viterbi_path_states_1_to_3"])


@pytest.mark.parametrize("variant", ["rt_three_series", "rt_corr_three_series", "rt_corr_transition_previous_pacc"])
def test_response_speed(variant):
    result, known = fitted(response_speed, variant), oracle("speed_hmm")
    reference, limits = known["reference"], known["tolerance"]
    check(result.log_likelihood, reference["loglik"][variant], limits["loglik"], "loglik")
    theirs = reference["params"][variant]
    check(result.params["location"], theirs["mu"], limits["params"], "mu")
    check(result.params["scale"], theirs["sd"], limits["params"], "sd")
    if "a11" in theirs:
        check(np.diagonal(result.params["transition"]), [theirs["a11"], theirs["a22"]], limits["params"], "a")
    else:
        for number, name in enumerate(("logit_1to2", "logit_2to2")):
            check(result.params["intercept"][number], theirs[name]["intercept"], limits["params"], name)
            check(result.params["slope"][number], theirs[name]["slope_scaled_pacc"], limits["params"], name)


@pytest.mark.parametrize("variant", ["constant", "flood"])
def test_dippers(variant):
    result, known = fitted(dippers, variant), oracle("dipper_cjs")
    theirs, limits = known["reference"]["params"][variant], known["tolerance"]
    check(result.log_likelihood, known["reference"]["loglik"][variant], limits["loglik"], "loglik")
    survival = [theirs["phi"]] if variant == "constant" else [theirs["phi_normal"], theirs["phi_flood"]]
    check(result.params["survival"], survival, limits["params"], "phi")
    check(result.params["recapture"], theirs["p"], limits["params"], "p")


def test_the_casino_is_that_of_hmmlearn():
    hmm = pytest.importorskip("hmmlearn.hmm")
    result, rolls = fitted(dishonest_casino), dishonest_casino.data()
    theirs = hmm.CategoricalHMM(2, n_iter=5000, tol=1e-10, init_params="")
    theirs.startprob_, theirs.transmat_ = np.array([0.5, 0.5]), np.array([[0.9, 0.1], [0.1, 0.9]])
    theirs.emissionprob_ = np.array([[1 / 6] * 6, [0.1] * 5 + [0.5]])
    theirs.fit(rolls[:, None])
    check(result.log_likelihood, theirs.score(rolls[:, None]), 1e-8, "loglik")
    check(result.params["transition"], theirs.transmat_, 1e-4, "transition")
    check(result.params["faces"], theirs.emissionprob_, 1e-4, "faces")
    # At the same point everything agrees, whatever the last digits of the two fits.
    theirs.startprob_, theirs.transmat_ = np.array(result.params["initial"]), np.array(result.params["transition"])
    theirs.emissionprob_ = np.array(result.params["faces"])
    np.testing.assert_allclose(result.posterior("die"), theirs.predict_proba(rolls[:, None]), atol=1e-10)
    np.testing.assert_array_equal(result.decode()["die"], theirs.predict(rolls[:, None]))


def test_old_faithful_durations():
    result, published = fitted(old_faithful_durations), old_faithful_durations.published
    is_long = old_faithful_durations.data()
    assert (len(is_long), is_long.sum()) == (299, 194)
    np.testing.assert_allclose(result.log_likelihood, published["log_likelihood"], atol=0.005)
    for name in ("transition", "long"):
        np.testing.assert_allclose(result.params[name], published[name], atol=0.0005)

    def log_likelihood(free):
        a, b, *long = expit(free)
        emission = np.log(np.where(is_long[:, None], long, 1 - np.array(long)))
        return forward(np.array([b, a]) / (a + b), np.array([[1 - a, a], [b, 1 - b]]), emission)

    # The maximum is on the edge, where the logits run away: the likelihood tells, not they.
    best, free = highest(log_likelihood, [4.0, 1.0, -1.0, 4.0])
    check(result.log_likelihood, best, 1e-6, "loglik")
    check(result.params["transition"][1, 0], expit(free[1]), 1e-4, "transition")


def test_the_nile_by_enumeration_of_its_change_points():
    result, flow = fitted(nile, 2), nile.data()
    years = len(flow)

    def paths(level, spread, move):
        """Log joint density of every path: it stays for some years, then moves; or never moves."""
        density = [-0.5 * ((flow - mean) / spread) ** 2 - np.log(spread * np.sqrt(2 * np.pi)) for mean in level]
        stays = np.arange(1, years + 1)
        log_prior = (stays - 1) * np.log1p(-move) + np.where(stays < years, np.log(move), 0.0)
        before = np.cumsum(density[0])
        return log_prior + before + density[1].sum() - np.cumsum(density[1])

    ours = paths(result.params["level"], result.params["spread"], result.params["move"][0])
    check(result.log_likelihood, logsumexp(ours), 1e-10, "loglik")
    weights = np.exp(ours - logsumexp(ours))
    np.testing.assert_allclose(result.posterior("period")[:, 1], np.cumsum(weights) - weights, atol=1e-10)
    best, free = highest(
        lambda free: logsumexp(paths(1000 * free[:2], 100 * np.exp(free[2]), expit(free[3]))), [1.0, 0.9, 0.4, -3.0]
    )
    check(result.log_likelihood, best, 1e-8, "loglik")
    check(result.params["level"], 1000 * free[:2], 1e-4, "level")
    check(result.params["move"], expit(free[3:]), 1e-4, "move")
    last = 1870 + np.sum(result.decode()["period"] == 0)
    assert last == nile.published["last_year"]
    # The published means are those given the change; the chain leaves its year uncertain.
    np.testing.assert_allclose(result.params["level"], nile.published["level"], atol=1.0)


def test_the_nile_with_three_levels():
    def log_likelihood(params):
        move = params["move"]
        transition = np.array([[1 - move[0], move[0], 0], [0, 1 - move[1], move[1]], [0, 0, 1]])
        standard = (flow[:, None] - params["level"]) / params["spread"]
        return forward([1, 0, 0], transition, -0.5 * standard**2 - np.log(params["spread"] * np.sqrt(2 * np.pi)))

    flow, em = nile.data(), emppl.EM(nile.model)
    start = {name: np.asarray(value) for name, value in em.start(jax.random.key(0), flow, 3).items()}
    check(em.log_likelihood(start, flow, 3), log_likelihood(start), 1e-10, "loglik")


def test_lynx_by_direct_maximisation():
    result, trapped = fitted(lynx), lynx.data()

    def log_likelihood(params):
        mean = params["intercept"] + params["lag1"] * trapped[1:-1, None] + params["lag2"] * trapped[:-2, None]
        standard = (trapped[2:, None] - mean) / params["scale"]
        emission = -0.5 * standard**2 - np.log(params["scale"] * np.sqrt(2 * np.pi))
        return forward(params["initial"], params["transition"], emission)

    def named(free):
        first, a, b = expit(free[:3])
        return {
            "initial": np.array([first, 1 - first]),
            "transition": np.array([[1 - a, a], [b, 1 - b]]),
            **dict(zip(("intercept", "lag1", "lag2"), free[3:9].reshape(3, 2), strict=True)),
            "scale": np.exp(free[9:]),
        }

    check(result.log_likelihood, log_likelihood(result.params), 1e-10, "loglik")
    start = [0.0, -1.4, -1.4, 0.5, 1.0, 1.2, 1.4, -0.3, -0.8, -1.6, -1.6]
    best, free = highest(lambda free: log_likelihood(named(free)), start)
    check(result.log_likelihood, best, 1e-6, "loglik")
    check(result.log_likelihood, lynx.known["log_likelihood"], 1e-5, "loglik")
    for name in ("transition", "intercept", "lag1", "lag2", "scale"):
        check(result.params[name], named(free)[name], 1e-3, name)


def test_old_faithful_with_a_memory_of_two():
    result, is_long = fitted(old_faithful_second_order), old_faithful_second_order.data()

    def log_likelihood(params):
        """Pairs (last but one, last) are the states of a chain of first order, which starts at the second step."""
        long, transition = params["long"], params["transition"]
        emission = np.log(np.where(is_long[:, None], long, 1 - long))
        one = params["initial"] * np.exp(emission[0])
        pairs = np.zeros((2, 2, 2, 2))
        for i, j in np.ndindex(2, 2):
            pairs[i, j, j] = transition[i, j]
        first = one[:, None] * np.stack([transition[0, 0], transition[1, 1]])
        scale = first.sum()
        later = np.stack([emission[1:], emission[1:]], 1).reshape(-1, 4)
        return np.log(scale) + forward(first.ravel() / scale, pairs.reshape(4, 4), later)

    def named(free):
        to_long = expit(free[1:5].reshape(2, 2))
        first = expit(free[0])
        return {
            "initial": np.array([first, 1 - first]),
            "transition": np.stack([1 - to_long, to_long], -1),
            "long": expit(free[5:]),
        }

    ours = {name: np.asarray(value) for name, value in result.params.items()}
    ours["long"] = np.minimum(ours["long"], 1 - 1e-15)
    check(result.log_likelihood, log_likelihood(ours), 1e-10, "loglik")
    best, free = highest(lambda free: log_likelihood(named(free)), [0.0, 1.0, -0.4, 2.0, 0.0, -1.4, 2.0])
    check(result.log_likelihood, best, 1e-6, "loglik")
    check(result.log_likelihood, old_faithful_second_order.known["log_likelihood"], 1e-5, "loglik")
    check(result.params["transition"][:, 1], named(free)["transition"][:, 1], 2e-3, "transition")


def test_two_sources_of_earthquakes():
    result, counts = fitted(two_sources), two_sources.data()

    def log_likelihood(params):
        """The pair of sources is one chain of four states."""
        moves = [
            np.array([[1 - up, up], [down, 1 - down]]) for up, down in zip(params["rise"], params["fall"], strict=True)
        ]
        log_rate = params["base"] + np.add.outer([0, params["effect"][0]], [0, params["effect"][1]]).ravel()
        emission = counts[:, None] * log_rate - np.exp(log_rate) - gammaln(counts + 1)[:, None]
        transition = np.kron(*moves)
        return forward(transition[0], transition, emission)

    def named(free):
        return {"rise": expit(free[:2]), "fall": expit(free[2:4]), "base": free[4], "effect": free[5:]}

    check(result.log_likelihood, log_likelihood(result.params), 1e-10, "loglik")
    start = [-2.2, -1.4, -2.2, -1.4, np.log(12), 0.6, 0.3]  # the highest of the maxima that eight starts find
    best, free = highest(lambda free: log_likelihood(named(free)), start)
    check(result.log_likelihood, best, 1e-6, "loglik")
    check(result.log_likelihood, two_sources.known["log_likelihood"], 1e-5, "loglik")
    for name, theirs in named(free).items():
        check(result.params[name], theirs, 2e-3, name)


def lattice(probability, longest=4):
    """Log-likelihood and expected counts of pieces, over all segmentations of every word."""
    total, counts = 0.0, dict.fromkeys(probability, 0.0)
    for word in unigram_tokenizer.TEXT.split():
        edges = [
            (start, stop, word[start:stop])
            for start in range(len(word))
            for stop in range(start + 1, min(len(word), start + longest) + 1)
            if word[start:stop] in probability
        ]
        before, after = np.zeros(len(word) + 1), np.zeros(len(word) + 1)
        before[0] = after[-1] = 1
        for start, stop, piece in edges:
            before[stop] += before[start] * probability[piece]
        for start, stop, piece in reversed(edges):
            after[start] += probability[piece] * after[stop]
        for start, stop, piece in edges:
            counts[piece] += before[start] * probability[piece] * after[stop] / after[0]
        total += np.log(after[0])
    return total, counts


def test_the_unigram_tokenizer_by_em_on_its_lattice():
    result, data = fitted(unigram_tokenizer), unigram_tokenizer.data()
    ours = unigram_tokenizer.probabilities(result.params)
    check(result.log_likelihood, lattice(ours)[0], 1e-10, "loglik")
    theirs = unigram_tokenizer.probabilities(emppl.EM(unigram_tokenizer.model).start(jax.random.key(0), *data))

    def em_step(probability):
        counts = lattice(probability)[1]
        pieces = sum(counts.values())
        return {piece: count / pieces for piece, count in counts.items()}

    # The path from a common start agrees until the many maxima of this likelihood pull rounding errors apart.
    em = emppl.EM(unigram_tokenizer.model)
    params = em.start(jax.random.key(0), *data)
    for _ in range(20):
        theirs = em_step(theirs)
        params = em.m_step(params, em.e_step(params, *data), *data)
    check(unigram_tokenizer.probabilities(params), theirs, 1e-8, "path")
    assert result.converged
    assert lattice(em_step(ours))[0] - result.log_likelihood <= 1e-6  # a hand-written step gains nothing more
    # Which maximum is found depends on the machine's rounding; it is one of the good ones.
    assert result.log_likelihood >= unigram_tokenizer.known["log_likelihood"] - 1

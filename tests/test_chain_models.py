"""The hidden Markov models of models/ against published and independently computed answers."""

import functools

import jax
import numpy as np
import pytest

import emppl
from models import dippers, earthquakes, response_speed
from tests.test_models import check, oracle

TESTED = ("earthquakes", "response_speed", "dippers")


@functools.cache
def fit(module, *data):
    return emppl.EM(module.model, progress_bar=False).run(jax.random.key(0), *DATA[module, data])


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
}


@pytest.mark.parametrize("states", [2, 3, 4])
def test_earthquakes_of_baum_and_welch(states):
    result, known = fit(earthquakes, states), oracle("earthquakes_poisson_hmm")
    reference, limits = known["reference"]["free_start"][f"m{states}"], known["tolerance"]
    assert result.converged
    check(result.log_likelihood, reference["loglik"], limits["loglik"], "loglik")
    names = {"rate": "lambda", "transition": "Gamma", "initial": "delta"}
    for name, theirs in names.items():
        check(result.params[name], reference[theirs], limits["params"], name)


def test_earthquakes_with_a_stationary_start_and_their_standard_errors():
    result, known = fit(earthquakes, "stationary"), oracle("earthquakes_poisson_hmm")
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
    em = emppl.EM(earthquakes.model, max_iterations=0)
    start = {"rate": np.array(reference["lambda"]), "transition": np.array(reference["Gamma"])}
    start["transition"] = start["transition"] / start["transition"].sum(-1, keepdims=True)
    result = em.run(jax.random.key(0), earthquakes.data(), 3, init_params=start)
    limit = known["tolerance"]["decoding"]
    check(result.posterior("state")[:5], wanted["smoothed_state_probs_first_5"], limit, "first 5")
    check(result.posterior("state")[40:51], wanted["smoothed_state_probs_years_1940_1950"], limit, "1940-1950")
    np.testing.assert_array_equal(result.decode()["state"] + 1, wanted["viterbi_path_states_1_to_3"])


@pytest.mark.parametrize("variant", ["rt_three_series", "rt_corr_three_series", "rt_corr_transition_previous_pacc"])
def test_response_speed(variant):
    result, known = fit(response_speed, variant), oracle("speed_hmm")
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
    result, known = fit(dippers, variant), oracle("dipper_cjs")
    theirs, limits = known["reference"]["params"][variant], known["tolerance"]
    check(result.log_likelihood, known["reference"]["loglik"][variant], limits["loglik"], "loglik")
    survival = [theirs["phi"]] if variant == "constant" else [theirs["phi_normal"], theirs["phi_flood"]]
    check(result.params["survival"], survival, limits["params"], "phi")
    check(result.params["recapture"], theirs["p"], limits["params"], "p")

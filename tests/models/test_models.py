"""Every model in models/ against answers that papers print and other programs compute.

The answers and their tolerances are the files in tests/oracles (see tests/kit/oracles.py).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import norm

import emppl
from models import (
    abo_blood_groups,
    affairs,
    biochemists,
    carcinoma,
    chest_girths,
    dawid_skene,
    death_notices,
    galaxies,
    genetic_linkage,
    hair_eye,
    house_votes,
    ibm_model1,
    line_with_outliers,
    old_faithful,
    peppered_moths,
    stack_loss,
    teaching_method,
    tone_experts,
    tone_perception,
    trypanosomes,
    two_coins,
)
from tests.kit.fits import fit
from tests.kit.oracles import check, check_block, oracle


@dataclasses.dataclass(frozen=True)
class Case:
    """A fit and what to compare.

    ``blocks`` turns the fit into (part of) a block of the oracle, laid out as there; ``path`` does so for the first
    ``steps`` iterates from ``start``, given as a list of parameters and a list of log-likelihoods. ``rules`` are the
    M-step rules other than closed forms.
    """

    name: str
    oracle: str
    em: emppl.EM
    data: tuple
    blocks: Mapping[str, Callable[[emppl.EMResult], Any]]
    start: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    path: Callable[[list, list], Any] | None = None
    steps: int = 0
    rules: Mapping[str, str] = dataclasses.field(default_factory=dict)


def entries(*names: str) -> Callable[[Any], dict]:
    """The entries of a vector, by the oracle's names."""
    return lambda vector: dict(zip(names, vector, strict=True))


TOBIT = entries("intercept", "age", "yearsmarried", "religiousness", "occupation", "rating")
PROBIT = entries("intercept", "gpa", "tuce", "psi")


def errors(name: str) -> Callable[[emppl.EMResult], np.ndarray]:
    return lambda result: result.standard_errors()[name]


def frequencies(names: Callable[[Any], dict]) -> dict:
    """Blocks of the gene-counting models."""
    return {
        "params": lambda result: names(result.params["frequency"]),
        "loglik": lambda result: result.log_likelihood,
        "standard_errors": lambda result: names(result.standard_errors()["frequency"]),
    }


def galaxy_blocks(variant: str) -> dict:
    def params(result):
        order = np.argsort(result.params["mu"])
        sigma = result.params["sigma"]
        spread = {"sds": sigma[order]} if sigma.ndim else {"sd": sigma}
        found = {"weights": result.params["weights"][order], "means": result.params["mu"][order]}
        return {variant: found | spread}

    return {
        "params": params,
        "loglik": lambda result: {variant: result.log_likelihood},
        "bic_mclust_convention": lambda result: {variant: -result.bic},
    }


def carcinoma_blocks(K: int) -> dict:
    def params(result):
        order = np.argsort(result.params["positive"].mean(-1))
        found = {
            "class_weights": result.params["weights"][order],
            "prob_category_2": result.params["positive"][order],
        }
        return {f"K{K}": found}

    def likelihood_ratio(result):
        _, counts = np.unique(carcinoma.data(), axis=0, return_counts=True)
        saturated = np.sum(counts * np.log(counts / counts.sum()))
        return {f"K{K}": 2 * (saturated - result.log_likelihood)}

    blocks = {"loglik": lambda result: {f"K{K}": result.log_likelihood}, "G2": likelihood_ratio}
    return blocks | ({"params": params} if K in (2, 3) else {})


def hair_eye_blocks(K: int) -> dict:
    blocks: dict = {"loglik": lambda result: {f"K{K}": result.log_likelihood}}
    if K == 2:
        blocks["fitted"] = lambda result: {"K2": hair_eye.fitted(result.params, hair_eye.data())}
    return blocks


def faithful_start() -> dict:
    start = oracle("faithful_gmm2")["start"]
    return {"weights": start["weights"], "mu": start["means"], "covariance": start["covariances"]}


def votes_blocks() -> dict:
    votes, party, known = house_votes.data()

    def posterior(result):
        republican = result.posterior("party")[:, 1]
        return {
            "p_republican_rows_1_to_9": republican[1:10],
            "unlabelled_correct": np.sum(((republican > 0.5) == party)[~known]),
            "unlabelled": np.sum(~known),
        }

    return {
        "params": lambda result: {
            "p_republican": result.params["republican"],
            "p_yes_democrat": result.params["yes"][0],
            "p_yes_republican": result.params["yes"][1],
        },
        "loglik": lambda result: result.log_likelihood,
        "posterior": posterior,
    }


def tone_blocks(variant: str) -> dict:
    def params(result):
        found = {"weight_1": result.params["weights"][0], "sd": np.broadcast_to(result.params["sigma"], 2)}
        return {variant: found | {name: result.params[name] for name in ("intercept", "slope")}}

    def standard_errors(result):
        found = result.standard_errors()
        names = {"weight_1": found["weights"][0], "sd": found["sigma"]}
        return {variant: names | {name: found[name] for name in ("intercept", "slope")}}

    blocks = {"params": params, "loglik": lambda result: {variant: result.log_likelihood}}
    return blocks | ({"standard_errors": standard_errors} if variant == "free_sd" else {})


def curves(values: Mapping) -> dict:
    """Intercepts and slope of the dose-response curves, by the oracle's names."""
    return {"intercept_at_log_dose_1.6": values["intercept"], "slope_log_dose": values["slope"]}


LINES = {"intercept": "quadratic", "slope": "quadratic"}

moth_names, abo_names = entries("p_C", "p_I", "p_T"), entries("p_A", "p_B", "p_O")


def biochemist_blocks() -> dict:
    names = entries(*biochemists.names)
    parts = ("count", "zero")
    return {
        "params": lambda result: {"full": {part: names(result.params[part]) for part in parts}},
        "loglik": lambda result: {"full": result.log_likelihood},
        "standard_errors": lambda result: {"full": {part: names(result.standard_errors()[part]) for part in parts}},
    }


CASES = [
    Case(
        "biochemists",
        "biochemists_zip",
        emppl.EM(biochemists.model),
        biochemists.data(),
        biochemist_blocks(),
        rules={"count": "newton", "zero": "newton"},
    ),
    Case(
        "two_coins",
        "coins_do_batzoglou",
        emppl.EM(two_coins.model, prior=False),
        (two_coins.data(),),
        {
            "params": lambda result: result.params,
            "loglik": lambda result: result.log_likelihood,
            "standard_errors": lambda result: result.standard_errors(),
            "posterior": lambda result: {"p_coin_A_at_mle": result.posterior("coin")[..., 0].ravel()},
        },
        start=two_coins.start,
        path=lambda params, logliks: {"theta": [one["theta"] for one in params], "loglik": logliks},
        steps=11,
    ),
    Case(
        "peppered_moths",
        "peppered_moth",
        emppl.EM(peppered_moths.model),
        (peppered_moths.data(),),
        frequencies(moth_names),
        start=peppered_moths.start,
        path=lambda params, logliks: {"p_C_I_T": [one["frequency"] for one in params]},
        steps=11,
    ),
    Case(
        "abo_blood_groups",
        "abo_clarke1959",
        emppl.EM(abo_blood_groups.model),
        (abo_blood_groups.data(),),
        frequencies(abo_names),
        start=abo_blood_groups.start,
        path=lambda params, logliks: {"p_A_B_O": [one["frequency"] for one in params]},
        steps=7,
    ),
    Case(
        "genetic_linkage",
        "linkage_dlr1977",
        emppl.EM(genetic_linkage.model, prior=False),
        (genetic_linkage.data(),),
        {
            "params": lambda result: result.params,
            "loglik": lambda result: result.log_likelihood,
            "standard_errors": lambda result: result.standard_errors(),
        },
        start=genetic_linkage.start,
        path=lambda params, logliks: {"pi": [one["pi"] for one in params]},
        steps=13,
    ),
    Case(
        "old_faithful",
        "faithful_gmm2",
        emppl.EM(old_faithful.model, prior=False),
        (old_faithful.data(),),
        {
            "params": lambda result: {
                "weights": result.params["weights"],
                "means": result.params["mu"],
                "covariances": result.params["covariance"],
            },
            "loglik": lambda result: result.log_likelihood,
            "bic_mclust_convention": lambda result: -result.bic,
            "standard_errors": lambda result: {
                "weight_1": result.standard_errors()["weights"][0],
                "means": result.standard_errors()["mu"],
                "covariances_s11_s21_s22": result.standard_errors()["covariance"][:, [0, 1, 1], [0, 0, 1]],
            },
        },
        start=faithful_start(),
        path=lambda params, logliks: {"loglik_0_to_5": logliks},
        steps=6,
    ),
    Case(
        "galaxies_free",
        "galaxies_gmm",
        emppl.EM(galaxies.model),
        (galaxies.data(),),
        galaxy_blocks("free_variance_K3"),
        start=galaxies.start_free,
        options={"K": 3, "common": False},
    ),
    *(
        Case(
            f"galaxies_{K}",
            "galaxies_gmm",
            emppl.EM(galaxies.model, restarts=60),
            (galaxies.data(),),
            galaxy_blocks(f"common_variance_K{K}"),
            options={"K": K},
        )
        for K in (3, 4, 5, 6)
    ),
    *(
        Case(
            f"carcinoma_{K}",
            "carcinoma_lca",
            emppl.EM(carcinoma.model, prior=False, restarts=20, max_iterations=5000),
            (carcinoma.data(),),
            carcinoma_blocks(K),
            options={"K": K},
        )
        for K in (1, 2, 3, 4)
    ),
    Case(
        "death_notices",
        "poisson_mixture_london_times",
        emppl.EM(death_notices.model, max_iterations=20_000),
        death_notices.data(),
        {
            "params": lambda result: {
                "p": result.params["weights"][0],
                "lambda1": result.params["rate"][0],
                "lambda2": result.params["rate"][1],
            },
            "loglik": lambda result: result.log_likelihood,
            "standard_errors": lambda result: {
                "p": result.standard_errors()["weights"][0],
                "lambda1": result.standard_errors()["rate"][0],
                "lambda2": result.standard_errors()["rate"][1],
            },
        },
        start=death_notices.start,
        path=lambda params, logliks: {
            "p_lambda1_lambda2": [[one["weights"][0], *one["rate"]] for one in params],
        },
        steps=11,
    ),
    Case(
        "chest_girths",
        "chest_grouped_normal",
        emppl.EM(chest_girths.model),
        chest_girths.data(),
        {
            "params": lambda result: result.params,
            "loglik": lambda result: result.log_likelihood,
            "standard_errors": lambda result: result.standard_errors(),
        },
    ),
    Case(
        "affairs",
        "censored_and_probit",
        emppl.EM(affairs.model, accelerate="squarem"),
        affairs.data(),
        {
            "params": lambda result: {
                "affairs_tobit": {"coef": TOBIT(result.params["coef"]), "sigma": result.params["sigma"]}
            },
            "loglik": lambda result: {"affairs_tobit": result.log_likelihood},
            "standard_errors": lambda result: {
                "affairs_tobit": {
                    "coef": TOBIT(errors("coef")(result)),
                    "log_sigma": errors("sigma")(result) / result.params["sigma"],
                }
            },
        },
        rules={"coef": "quadratic"},
    ),
    Case(
        "teaching_method",
        "censored_and_probit",
        emppl.EM(teaching_method.model, accelerate="squarem"),
        teaching_method.data(),
        {
            "params": lambda result: {"spector_probit": PROBIT(result.params["coef"])},
            "loglik": lambda result: {"spector_probit": result.log_likelihood},
            "standard_errors": lambda result: {"spector_probit": PROBIT(errors("coef")(result))},
        },
        rules={"coef": "quadratic"},
    ),
    Case(
        "stack_loss",
        "student_t",
        emppl.EM(stack_loss.model),
        stack_loss.data(),
        {
            "params": lambda result: {"stackloss_df1.1": result.params},
            "loglik": lambda result: {"stackloss_df1.1": result.log_likelihood},
        },
        rules={"coef": "newton", "sigma": "newton"},
    ),
    Case(
        "dawid_skene",
        "dawid_skene",
        emppl.EM(dawid_skene.model, prior=False),
        dawid_skene.data(),
        {
            "params": lambda result: {
                "prevalence": result.params["prevalence"],
                "confusion_rater_true_observed": result.params["confusion"],
            },
            "loglik": lambda result: result.log_likelihood,
            "posterior": lambda result: {"patient_class_probs": result.posterior("fitness").reshape(45, 4)},
        },
        start=dawid_skene.consensus(*dawid_skene.data()),
        options={"raters": 5},
    ),
    Case(
        "house_votes",
        "house_votes_semisupervised",
        emppl.EM(house_votes.model),
        house_votes.data(),
        votes_blocks(),
        start=house_votes.from_labels(*house_votes.data()),
        path=lambda params, logliks: {"loglik_0_to_5": logliks},
        steps=6,
    ),
    *(
        Case(
            f"hair_eye_{K}",
            "hair_eye_plsa",
            emppl.EM(hair_eye.model, prior=False, restarts=10, max_iterations=20_000),
            (hair_eye.data(),),
            hair_eye_blocks(K),
            options={"K": K},
        )
        for K in (1, 2, 3)
    ),
    Case(
        "tone_perception",
        "tonedata_mixreg",
        emppl.EM(tone_perception.model),
        tone_perception.data(),
        tone_blocks("free_sd"),
        start=tone_perception.start,
        path=lambda params, logliks: {"loglik_0_to_5": logliks},
        steps=6,
        rules=LINES,
    ),
    Case(
        "tone_perception_common",
        "tonedata_mixreg",
        emppl.EM(tone_perception.model),
        tone_perception.data(),
        tone_blocks("common_sd"),
        start=tone_perception.start | {"sigma": 0.1},
        options={"common": True},
        rules=LINES,
    ),
    Case(
        "tone_experts",
        "tone_experts",
        emppl.EM(tone_experts.model),
        tone_perception.data(),
        {
            "params": lambda result: result.params,
            "loglik": lambda result: result.log_likelihood,
            "standard_errors": lambda result: {
                name: error for name, error in result.standard_errors().items() if name != "sigma"
            },
        },
        start=tone_experts.start,
        rules=LINES | {"gate_intercept": "newton", "gate_slope": "newton"},
    ),
    Case(
        "trypanosomes",
        "trypanosome_mixture",
        emppl.EM(trypanosomes.model),
        trypanosomes.data(),
        {
            "params": lambda result: curves(result.params) | {"weight_1": result.params["weights"][0]},
            "loglik": lambda result: {"two_components": result.log_likelihood},
            "standard_errors": lambda result: curves(result.standard_errors()),
        },
        start=trypanosomes.start,
        rules={"intercept": "newton", "slope": "newton"},
    ),
]
BY_NAME = {case.name: case for case in CASES}
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@functools.cache
def fitted(name: str) -> emppl.EMResult:
    case = BY_NAME[name]
    return case.em.run(jax.random.key(0), *case.data, init_params=case.start, **case.options)


def iterate(case: Case, steps: int) -> tuple[list, list]:
    """Iterates from the start of a case, by the pieces of EM."""
    params: Any = {name: jnp.asarray(value, float) for name, value in case.start.items()}
    path, logliks = [], []
    for _ in range(steps):
        posterior = case.em.e_step(params, *case.data, **case.options)
        path.append(params)
        logliks.append(posterior.log_likelihood)
        params = case.em.m_step(params, posterior, *case.data, **case.options)
    return path, logliks


@pytest.mark.parametrize(
    ("case", "block"),
    [pytest.param(case, block, id=f"{case.name}-{block}") for case in CASES for block in case.blocks],
)
def test_answer(case, block):
    check_block(case.oracle, block, case.blocks[block](fitted(case.name)))


@pytest.mark.parametrize("case", [case for case in CASES if case.path], ids=lambda case: case.name)
def test_every_iterate(case):
    check_block(case.oracle, "iterations", case.path(*iterate(case, case.steps)))


@EVERY
def test_plan_has_the_strongest_rules(case):
    plan = case.em.plan(*case.data, **case.options)
    expected = {one.name: case.rules.get(one.name, "closed form") for one in plan.parameters}
    assert {one.name: one.rule for one in plan.parameters} == expected


@EVERY
def test_fit_is_sound(case):
    result = fitted(case.name)
    assert result.converged, result.stop_message
    objective = result.history["objective"]
    rounding = 1e-12 * np.abs(objective[-1])
    assert np.diff(objective).min(initial=0) >= -rounding
    # The compiled loop and the pieces are the same computation in different order.
    again = case.em.log_likelihood(result.params, *case.data, **case.options)
    np.testing.assert_allclose(result.log_likelihood, again, rtol=1e-12)


@pytest.mark.parametrize("module", [two_coins, genetic_linkage], ids=["two_coins", "genetic_linkage"])
def test_prior_gives_posterior_mode(module):
    case = next(case for case in CASES if case.em.model is module.model)
    result = fit(module.model, *case.data, init_params=case.start)
    expected = oracle(case.oracle)["reference"]["map_beta_2_2"]
    found = result.params | ({"log_joint": result.log_posterior} if "log_joint" in expected else {})
    check_block(case.oracle, "map_beta_2_2", found)


def test_two_coins_posterior_at_start():
    case = BY_NAME["two_coins"]
    result = fit(two_coins.model, *case.data, init_params=case.start, max_iterations=0)
    check_block(case.oracle, "posterior", {"p_coin_A_at_start": result.posterior("coin")[..., 0].ravel()})


def test_linkage_information_by_louis():
    """The curvature of Q is the complete information; what Q misses of the observed information is the missing one."""
    case, result = BY_NAME["genetic_linkage"], fitted("genetic_linkage")
    posterior = case.em.e_step(result.params, *case.data)
    pi = jnp.asarray(result.params["pi"])
    complete = -jax.hessian(lambda value: case.em.q({"pi": value}, posterior, *case.data))(pi)
    observed = 1 / result.standard_errors()["pi"] ** 2
    found = {
        "complete": complete,
        "observed": observed,
        "missing": complete - observed,
        "em_rate_of_convergence": 1 - observed / complete,
    }
    check_block(case.oracle, "information", found)


def test_dawid_skene_start_is_an_m_step_from_the_consensus():
    case = BY_NAME["dawid_skene"]
    loglik = case.em.log_likelihood(case.start, *case.data, **case.options)
    reference = oracle("dawid_skene")["reference"]["iterations"]["loglik_after_first_m_step"]
    check(loglik, reference, oracle("dawid_skene")["tolerance"]["loglik"], "loglik_after_first_m_step")


def test_dawid_skene_random_starts_find_the_higher_maximum():
    em = emppl.EM(dawid_skene.model, prior=False, restarts=60)
    result = em.run(jax.random.key(1), *dawid_skene.data(), raters=5)
    assert result.log_likelihood >= oracle("dawid_skene")["reference"]["best_of_60_random_starts_loglik"] - 0.01


@pytest.mark.parametrize(("name", "parameter"), [("carcinoma_3", "positive"), ("dawid_skene", "confusion")])
def test_boundary_is_named(name, parameter):
    """Probabilities at 0 or 1 have no standard error, and are named instead."""
    result = fitted(name)
    value = result.params[parameter]
    expected = [f"{parameter}[{', '.join(map(str, at))}]" for at in np.argwhere((value < 1e-8) | (value > 1 - 1e-8))]
    assert set(expected) <= set(result.boundary)
    with pytest.warns(UserWarning, match="boundary"):
        errors = result.standard_errors()
    assert np.all(np.isnan(errors[parameter][(value < 1e-8) | (value > 1 - 1e-8)]))
    assert np.any(np.isfinite(errors[parameter]))


def test_ibm_model1_translation_tables():
    reference = oracle("ibm_model1_toy")["reference"]["iterations"]
    limit = oracle("ibm_model1_toy")["tolerance"]["iterations"]
    em, data = emppl.EM(ibm_model1.model), ibm_model1.data()
    uniform = {"translation": np.full((4, 4), 0.25)}
    case = Case("ibm_model1", "ibm_model1_toy", em, data, {}, start=uniform)
    path, logliks = iterate(case, 11)
    check(logliks, reference["loglik_0_to_10"], limit, "loglik_0_to_10")
    for number in (1, 2, 3, 10):
        listed = reference[f"iteration_{number}"]
        expected = [[listed[f].get(e, 0.0) for e in ibm_model1.ENGLISH] for f in ibm_model1.FOREIGN]
        check(path[number]["translation"], expected, limit, f"iteration_{number}")
        # Words that never meet have exactly no chance.
        assert np.all(np.asarray(path[number]["translation"])[np.asarray(expected) == 0] == 0)
    assert [one.rule for one in em.plan(*data).parameters] == ["closed form"]


@pytest.mark.slow
def test_scale_mixture_is_the_t_distribution():
    """Weights integrated by quadrature; the error of integration that the fit states is what it is off."""
    em = emppl.EM(stack_loss.model, latents={"weight": emppl.Quadrature(31)})
    result = em.run(jax.random.key(0), *stack_loss.data(), scaled=True)
    assert result.converged
    off = fitted("stack_loss").log_likelihood - result.log_likelihood
    np.testing.assert_allclose(result.integration_error.log_likelihood, off, rtol=0.05)
    # EM stops where the gain that is left is below its tolerance: to about a thousandth of a standard error.
    np.testing.assert_allclose(result.params["coef"], fitted("stack_loss").params["coef"], rtol=1e-3)
    # Given the parameters, the weight of a day has a gamma distribution.
    loss, covariates = stack_loss.data()
    squares = ((loss - covariates @ result.params["coef"]) / result.params["sigma"]) ** 2
    np.testing.assert_allclose(result.posterior("weight")[0], 2.1 / (1.1 + squares), rtol=1e-3)


def test_line_with_outliers():
    """The paper's line through the good points checks the table; the mixture is compared with scipy's maximum."""
    x, y, error = line_with_outliers.data()
    good = np.stack([x, np.ones_like(x)], 1)[4:] / error[4:, None]
    line = np.linalg.lstsq(good, y[4:] / error[4:], rcond=None)[0]
    spread = np.sqrt(np.diagonal(np.linalg.inv(good.T @ good)))
    np.testing.assert_allclose([line[0], spread[0]], [2.24, 0.11], atol=0.005)
    np.testing.assert_allclose([line[1], spread[1]], [34, 18], atol=0.5)
    result = fit(line_with_outliers.model, x, y, error)
    assert result.converged

    def loss(free):
        share = 1 / (1 + np.exp(-free[0]))
        on_line = norm.pdf(y, free[1] * x + free[2], error)
        return -np.log((1 - share) * on_line + share * norm.pdf(y, free[3], np.hypot(error, np.exp(free[4])))).sum()

    options = {"maxiter": 20_000, "maxfev": 20_000, "adaptive": True}
    rough = minimize(loss, [-1.0, *line, 450.0, 4.0], method="Nelder-Mead", options=options)
    best = minimize(loss, rough.x, method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-6)
    assert result.params["slope"] == pytest.approx(best.x[1], abs=1e-4)
    assert result.params["spread"] == pytest.approx(np.exp(best.x[4]), rel=1e-4)
    # Points 2, 3 and 4 cannot be on the line; point 1, with its long error bar, might be.
    bad = result.posterior("bad")[:, 1]
    assert np.all(bad[1:4] > 0.99) and np.all(np.delete(bad, [1, 2, 3]) < 0.4)

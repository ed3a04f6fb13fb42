"""The models with Gaussian latents of models/ against published and independently computed answers."""

import functools

import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

import emppl
from models import (
    bcg_vaccine,
    dyestuff,
    eight_schools,
    fitness_club,
    holzinger,
    iris_factors,
    pearson_line,
    penicillin,
    sleep_study,
    swiss_fertility,
)
from tests.kit.oracles import check_block, oracle


def em(model, **options):
    return emppl.EM(model, **{"max_iterations": 5000, **options})


def compare(name, found):
    """Blocks of an oracle, as far as they are given, to its tolerances."""
    for block, value in found.items():
        check_block(name, block, value)


def sound(result):
    assert result.converged, result.stop_message
    assert np.diff(result.history["objective"]).min() >= -1e-12 * abs(result.log_posterior)
    assert result.certificate.notes == []
    assert result.certificate.boundary == []


# ------------------------------------------------------------------------------------------------- mixed models


@functools.cache
def sleepers():
    # Convergence to many more digits than the oracle's, so that standard errors can be compared too.
    return em(sleep_study.model, latents={"b": emppl.Gaussian()}).run(jax.random.key(0), *sleep_study.data())


def test_sleep_study():
    result = sleepers()
    sound(result)
    labels, covariance = result.covariance()
    numbers = [np.ravel(result.params[name]) for name in ("beta", "covariance", "sigma")]
    assert [len(part) for part in numbers] == [2, 4, 1]
    # The delta method from variances to what lme4 prints.
    at = np.concatenate(numbers)

    def printed(values):
        params = {"beta": values[:2], "covariance": values[2:6].reshape(2, 2), "sigma": values[6]}
        return np.array(list(sleep_study.named(params).values()))

    steps = np.eye(7) * 1e-5 * np.maximum(1, np.abs(at))
    slopes = np.stack([(printed(at + step) - printed(at - step)) / (2 * step.sum()) for step in steps], 1)
    errors = np.sqrt(np.diagonal(slopes @ covariance @ slopes.T))
    names = list(sleep_study.named(result.params))
    mean, _ = result.posterior("b")
    compare(
        "sleepstudy_lmm",
        {
            "params": sleep_study.named(result.params),
            "loglik": result.log_likelihood,
            "standard_errors": dict(zip(names, errors, strict=True)),
            "posterior": {"random_effects_mean": mean},
        },
    )


def test_reports_on_the_sleep_study(capsys):
    result = sleepers()
    assert result.num_parameters == 6
    assert result.num_observations == 18  # subjects
    assert result.icl == result.bic
    assert result.decode() == {}
    result.print_summary()
    printed = capsys.readouterr().out
    assert "covariance[0, 1]" in printed
    assert "converged" in printed
    rng = np.random.default_rng(0)
    draws = {"beta": rng.normal(size=(50, 2)), "sigma": rng.normal(size=50)}
    assert "beta[1]" in str(emppl.compare(result, draws))
    plan = em(sleep_study.model, latents={"b": emppl.Gaussian()}).plan(*sleep_study.data())
    (latent,) = plan.latents
    assert (latent.dimensions, latent.groups, latent.atoms, latent.states) == (2, 18, 3, 0)
    assert "18 groups of 2 dimensions" in str(plan)
    assert "the log joint density is quadratic in it" in str(plan)
    assert "sums out" not in str(plan)


def test_to_arviz():
    pytest.importorskip("arviz")
    found = sleepers().to_arviz(num_samples=10)
    assert found.posterior["covariance"].shape == (1, 10, 2, 2)


def test_dyestuff():
    result = em(dyestuff.model, tolerance=1e-12).run(jax.random.key(0), dyestuff.data())
    sound(result)
    mean, variance = result.posterior("effect")
    compare(
        "dyestuff_lmm",
        {
            "params": result.params,
            "loglik": result.log_likelihood,
            "standard_errors": result.standard_errors(),
            "posterior": {"batch_effect_mean_A_to_F": mean, "batch_effect_sd": np.sqrt(variance[0])},
        },
    )
    for name, value in dyestuff.closed_form(dyestuff.data()).items():
        np.testing.assert_allclose(result.params[name], value, rtol=1e-5)


@pytest.mark.slow
def test_penicillin():
    """Crossed effects: lme4's printed answer, and the dense normal density of all measurements."""
    y = penicillin.data()
    result = em(penicillin.model, max_iterations=20_000).run(jax.random.key(0), y)
    sound(result)
    p = result.params
    for name, value in penicillin.published.items():
        found = result.log_likelihood if name == "log_likelihood" else p[name]
        np.testing.assert_allclose(found, value, atol=5e-3 if name == "log_likelihood" else 2e-4)
    np.testing.assert_allclose(result.standard_errors()["mu"], 0.7446, atol=1e-4)
    plates, samples = y.shape
    cov = np.kron(np.eye(plates), np.ones((samples, samples))) * p["sd_plate"] ** 2
    cov += np.kron(np.ones((plates, plates)), np.eye(samples)) * p["sd_sample"] ** 2 + np.eye(y.size) * p["sigma"] ** 2
    expected = multivariate_normal.logpdf(y.ravel(), np.full(y.size, p["mu"]), cov)
    np.testing.assert_allclose(result.log_likelihood, expected, rtol=1e-12)
    assert result.num_observations == y.size  # nothing smaller is independent


# ---------------------------------------------------------------------------------------------- factor analysis


@pytest.mark.slow
def test_holzinger():
    result = em(holzinger.model).run(jax.random.key(0), holzinger.data())
    sound(result)
    tests = [f"x{1 + number}" for number in range(9)]

    def named(loading, covariance, noise_variance):
        pairs = {"visual_textual": (0, 1), "visual_speed": (0, 2), "textual_speed": (1, 2)}
        return {
            "loadings": dict(zip([tests[j] for j in holzinger.FREE], loading, strict=True)),
            "factor_var": dict(zip(("visual", "textual", "speed"), np.diagonal(covariance), strict=True)),
            "factor_cov": {name: covariance[at] for name, at in pairs.items()},
            "residual_var": dict(zip(tests, noise_variance, strict=True)),
        }

    p, errors = result.params, result.standard_errors()
    compare(
        "holzinger_cfa",
        {
            "params": named(p["loading"], p["covariance"], p["noise"] ** 2)
            | {"intercepts": dict(zip(tests, p["intercept"], strict=True))},
            "loglik": result.log_likelihood,
            "standard_errors": named(errors["loading"], errors["covariance"], 2 * p["noise"] * errors["noise"]),
            "posterior": {"factor_mean_first_5": result.posterior("ability")[0][:5]},
        },
    )
    assert result.num_parameters == 30


@pytest.mark.parametrize(
    ("factors", "common"),
    [
        pytest.param(1, True, marks=pytest.mark.slow),
        (2, True),
        pytest.param(3, True, marks=pytest.mark.slow),
        pytest.param(1, False, marks=pytest.mark.slow),
    ],
)
def test_swiss_fertility(factors, common):
    fit = em(swiss_fertility.model, fixed=swiss_fertility.triangular(factors))
    result = fit.run(jax.random.key(0), swiss_fertility.data(), factors=factors, common=common)
    sound(result)
    loading, noise = result.params["loading"], result.params["noise"]
    variant = f"{'ppca' if common else 'fa'}_q{factors}"
    found = {"WWt": loading @ loading.T, ("sigma2" if common else "uniquenesses"): noise**2}
    compare("swiss_ppca_fa", {"params": {variant: found}, "loglik": {variant: result.log_likelihood}})
    assert result.num_parameters == 6 * factors - factors * (factors - 1) // 2 + noise.size
    assert all(np.all(np.isfinite(one)) for one in result.standard_errors().values())
    if common:
        product, variance, log_likelihood = swiss_fertility.principal_components(swiss_fertility.data(), factors)
        np.testing.assert_allclose(loading @ loading.T, product, atol=2e-4)
        np.testing.assert_allclose([noise**2, result.log_likelihood], [variance, log_likelihood], rtol=1e-5)


@pytest.mark.slow
def test_heywood_case_is_named():
    fit = em(swiss_fertility.model, fixed=swiss_fertility.triangular(2))
    result = fit.run(jax.random.key(0), swiss_fertility.data(), factors=2)
    reference = oracle("swiss_ppca_fa")["reference"]["loglik"]["fa_q2"]
    assert reference - 1e-2 < result.log_likelihood < reference + 1e-6  # the case's own notes: 1e-2 absolute
    assert not result.converged
    assert result.boundary == ["noise[0]"]
    assert "Heywood" in result.certificate.notes[0]
    with pytest.warns(UserWarning, match="boundary"):
        errors = result.standard_errors()
    assert np.isnan(errors["noise"][0])
    assert np.all(np.isfinite(errors["noise"][1:]))


@pytest.mark.slow
def test_fitness_club():
    body, exercise = fitness_club.data()
    result = em(fitness_club.model).run(jax.random.key(0), body, exercise)
    assert result.converged
    np.testing.assert_allclose(fitness_club.correlations(result.params), [0.795608], atol=1e-5)
    # Closed form: what the sets say by themselves, and the canonical correlation.
    rows, log_det = len(body), [np.linalg.slogdet(x.T @ x / len(x))[1] for x in (body, exercise)]
    expected = -rows / 2 * (6 * np.log(2 * np.pi) + sum(log_det) + np.log(1 - 0.795608**2) + 6)
    np.testing.assert_allclose(result.log_likelihood, expected, atol=1e-5)


@pytest.mark.slow
def test_iris_factors():
    """A maximum of a likelihood that scipy computes."""
    x, species = iris_factors.data()
    result = em(iris_factors.model, tolerance=1e-11).run(jax.random.key(0), x)
    sound(result)

    def log_likelihood(p):
        parts = [
            np.log(weight) + multivariate_normal.logpdf(x, mean, loading @ loading.T + np.diag(p["noise"] ** 2))
            for weight, mean, loading in zip(p["weights"], p["mean"], p["loading"], strict=True)
        ]
        return np.sum(logsumexp(parts, 0))

    np.testing.assert_allclose(result.log_likelihood, log_likelihood(result.params), rtol=1e-12)
    for name in ("mean", "loading", "noise"):
        for index in np.ndindex(result.params[name].shape):
            value = result.params[name].copy()
            value[index] += 1e-4
            up = log_likelihood(result.params | {name: value})
            value[index] -= 2e-4
            down = log_likelihood(result.params | {name: value})
            assert max(up, down) < result.log_likelihood
            assert abs(up - down) < 2e-3 * abs(up + down - 2 * result.log_likelihood)
    assert np.mean(result.decode()["species"] == species) > 0.95


# ------------------------------------------------------------------------------------------------------- others


@pytest.mark.slow
def test_pearson_line():
    x, y = pearson_line.data()
    result = em(pearson_line.model, tolerance=1e-12).run(jax.random.key(0), x, y)
    sound(result)
    for name, value in pearson_line.closed_form(x, y).items():
        np.testing.assert_allclose(result.params[name], value, rtol=1e-5, err_msg=name)
    for name, value in pearson_line.published.items():
        np.testing.assert_allclose(result.params[name], value, atol=5e-4)


@pytest.mark.parametrize("exact", [(), (4, 7)], ids=["all measured", "some exact"])
def test_regression_on_measured_and_exact_responses(exact):
    ratio, error, latitude = bcg_vaccine.data()
    error[list(exact)] = 0.0
    result = em(bcg_vaccine.model, tolerance=1e-12, accelerate="squarem").run(jax.random.key(0), ratio, error, latitude)
    assert result.converged

    def loss(free):
        spread = np.sqrt(np.exp(2 * free[2]) + error**2)
        return -np.sum(norm.logpdf(ratio, free[0] + free[1] * latitude, spread))

    best = minimize(loss, [0.28, -0.03, -1.7], method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(result.log_likelihood, -best.fun, rtol=1e-10)
    found = [result.params["intercept"], result.params["slope"], np.log(result.params["tau"])]
    np.testing.assert_allclose(found, best.x, rtol=1e-4)
    if not exact:
        for name, value in bcg_vaccine.weighted_least_squares(ratio, error, latitude).items():
            np.testing.assert_allclose(result.params[name], value, rtol=1e-5, err_msg=name)


def school_objective(mu, tau, prior):
    effect, error = eight_schools.data()
    value = multivariate_normal.logpdf(effect, np.full(8, mu), np.diag(tau**2 + error**2))
    return value + (np.log(tau) - 0.01 * tau if prior else 0)


def test_eight_schools_mode():
    result = em(eight_schools.model).run(jax.random.key(0), *eight_schools.data(), init_params=eight_schools.start)
    sound(result)
    grid = np.arange(2.0, 12.0, 1e-3)
    variance = grid[:, None] ** 2 + eight_schools.data()[1] ** 2
    centre = np.sum(eight_schools.data()[0] / variance, 1) / np.sum(1 / variance, 1)
    profile = [school_objective(mu, tau, True) for mu, tau in zip(centre, grid, strict=True)]
    np.testing.assert_allclose(result.params["tau"], grid[np.argmax(profile)], atol=2e-3)
    np.testing.assert_allclose(result.params["mu"], centre[np.argmax(profile)], atol=2e-3)


def test_singular_fit_is_named():
    """Without the prior, the effects of the schools do not vary at all."""
    fit = em(eight_schools.model, prior=False, max_iterations=1000)
    result = fit.run(jax.random.key(0), *eight_schools.data(), init_params=eight_schools.start)
    assert not result.converged
    assert result.boundary == ["tau"]
    assert "singular fit" in result.certificate.notes[0]
    effect, error = eight_schools.data()
    pooled = np.sum(effect / error**2) / np.sum(1 / error**2)
    np.testing.assert_allclose(result.params["mu"], pooled, atol=0.01)
    with pytest.warns(UserWarning, match="boundary"):
        errors = result.standard_errors()
    np.testing.assert_allclose(errors["mu"], np.sum(1 / error**2) ** -0.5, rtol=1e-2)
    assert np.isnan(errors["tau"])


@pytest.mark.slow
def test_singular_covariance_is_named():
    """Subjects that all follow one line."""
    _, days, subject = sleep_study.data()
    y = 250 + 10 * days + 25 * np.random.default_rng(0).normal(size=len(days))
    fit = em(sleep_study.model, latents={"b": emppl.Gaussian()}, max_iterations=1000)
    result = fit.run(jax.random.key(0), y, days, subject)
    assert not result.converged
    assert "singular fit" in result.certificate.notes[0]

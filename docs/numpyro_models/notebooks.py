"""The models of NumPyro's tutorials, and small data for each."""

from __future__ import annotations

import jax.numpy as jnp
import marginals
import numpy as np
from examples_latent import _ratings
from examples_plain import _binary, _regression, _series
from registry import Arguments, entry
from source import Definitions

import emppl

Rng = np.random.Generator

_DIVORCES = {"latents": {"divorce_rate": emppl.Gaussian()}}
_TRAINS = ["origin_seasonal", "destin_seasonal", "pairwise", "origin_scale", "destin_scale", "destin_centered"]
_RATE = {"latents": {"lambda": emppl.Quadrature(31)}}
_LOC = {"latents": {"loc": emppl.Gaussian()}}
_EFFECTS = {"latents": {name: emppl.Gaussian() for name in "xy"}}
_CREDIT = {"latents": {"log_tau_i": emppl.Laplace(), "beta": emppl.Laplace()}}
_CREDIT_REPARAM = {"latents": {"log_tau_i": emppl.Laplace(), "beta_decentered": emppl.Laplace()}}

for _name, _options in (
    ("_unrep_hs_model", {"estimate": ["betas"]}),
    ("_rep_hs_model1", {}),
    ("_rep_hs_model3", {"estimate": ["betas_base"]}),
):

    @entry("bad_posterior_geometry.ipynb", _name, options=_options)
    def horseshoe(found: Definitions, rng: Rng, name: str = _name) -> Arguments:
        """Three covariates; the scales of the coefficients are parameters."""
        covariates, _, outcome = _regression(rng)
        return found[name], (jnp.array(covariates), jnp.array(outcome)), {}


@entry("bayesian_cuped.ipynb", "difference_in_means_model")
def difference(found: Definitions, rng: Rng) -> Arguments:
    """An experiment."""
    return found["difference_in_means_model"], (jnp.array(rng.normal(size=20)), jnp.array(np.tile([0, 1], 10))), {}


@entry("bayesian_cuped.ipynb", "cuped_model")
def cuped(found: Definitions, rng: Rng) -> Arguments:
    """An experiment with a measurement before it."""
    before = rng.normal(size=20)
    found.let(ad_campaign=before)
    after = before + 0.5 * rng.normal(size=20)
    return found["cuped_model"], (jnp.array(after), jnp.array(np.tile([0, 1], 10)), jnp.array(before)), {}


def _lungs(rng: Rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    patient, weeks = np.repeat(np.arange(6), 5), np.tile(np.arange(5.0), 6)
    capacity = 2500 + 300 * rng.normal(size=6)[patient] - (5 + rng.normal(size=6))[patient] * weeks
    return patient, weeks, capacity + 60 * rng.normal(size=30)


@entry("bayesian_hierarchical_linear_regression.ipynb", "model", "continuous", marginal=marginals.lungs)
def lungs(found: Definitions, rng: Rng) -> Arguments:
    """An intercept and a slope for each patient."""
    return found["model"], _lungs(rng), {}


@entry(
    "bayesian_hierarchical_linear_regression.ipynb",
    "model_smoking_hierarchy",
    "continuous",
    marginal=marginals.lungs_of_smokers,
)
def lungs_of_smokers(found: Definitions, rng: Rng) -> Arguments:
    """Patients within three groups of smokers."""
    patient, weeks, capacity = _lungs(rng)
    return found["model_smoking_hierarchy"], (patient, weeks, np.array([0, 0, 1, 1, 2, 2]), capacity), {}


@entry("bayesian_hierarchical_stacking.ipynb", "logistic")
def logistic(found: Definitions, rng: Rng) -> Arguments:
    """Logistic regression."""
    return found["logistic"], tuple(map(jnp.array, _binary(rng))), {}


@entry("bayesian_hierarchical_stacking.ipynb", "stacking", options={"estimate": ["mu", "sigma", "tau", "beta_con"]})
def stacking(found: Definitions, rng: Rng) -> Arguments:
    """Weights of three models, which depend on two discrete and two continuous features."""
    features = jnp.array(rng.normal(size=(20, 4)))
    return found["stacking"], (features, 2, features, jnp.array(rng.normal(size=(20, 3))), 1.0, 0.5), {"test": False}


@entry("bayesian_imputation.ipynb", "model", "continuous")
def titanic(found: Definitions, rng: Rng) -> Arguments:
    """Passengers, some of whom have no age."""
    age = rng.normal(size=30)
    age[::6] = np.nan
    levels = {"pclass": 3, "title": 5, "sex": 2, "sibsp": 2, "parch": 3, "embarked": 3}
    factors = {name: rng.integers(0, count, 30) for name, count in levels.items()}
    return found["model"], (age,), {**factors, "survived": rng.integers(0, 2, 30)}


@entry("bayesian_regression.ipynb", "model")
def divorces(found: Definitions, rng: Rng) -> Arguments:
    """Two covariates."""
    covariates, _, outcome = _regression(rng, columns=2)
    return found["model"], (), {"marriage": covariates[:, 0], "age": covariates[:, 1], "divorce": outcome}


@entry("bayesian_regression.ipynb", "model_se", "continuous", _DIVORCES, marginal=marginals.measurement_error)
def measured_divorces(found: Definitions, rng: Rng) -> Arguments:
    """The outcome is measured with known errors; its true value has no plate."""
    covariates, _, outcome = _regression(rng, columns=2)
    return found["model_se"], (covariates[:, 0], covariates[:, 1], np.full(20, 0.2), outcome), {}


for _method in ("circulant", "cholesky"):

    @entry("circulant_gp.ipynb", f"model, {_method}", "continuous", {"latents": {"z": emppl.Laplace()}})
    def circle(found: Definitions, rng: Rng, method: str = _method) -> Arguments:
        """A binary outcome of a Gaussian process on a circle of six points."""
        return found["model"], (jnp.arange(6), jnp.array(rng.integers(0, 2, 6))), {"method": method}


@entry("consensus_mc.ipynb", "model")
def decay(found: Definitions, rng: Rng) -> Arguments:
    """Exponential decay."""
    x = jnp.linspace(0, 2, 20)
    return found["model"], (x, 5 * jnp.exp(-x) + 0.1 * jnp.array(rng.normal(size=20))), {"prior_scale": 0.25}


@entry("discrete_imputation.ipynb", "ccmodel")
def complete_cases(found: Definitions, rng: Rng) -> Arguments:
    """Regression on a binary and a continuous covariate."""
    return found["ccmodel"], _missing(rng, False), {}


for _name, _options in (("impmodel", {}), ("impmissmodel", {"estimate": ["p_Aobs"]})):

    @entry("discrete_imputation.ipynb", _name, "discrete", _options)
    def imputed(found: Definitions, rng: Rng, name: str = _name) -> Arguments:
        """A binary covariate, -1 where missing."""
        return found[name], _missing(rng, True), {}


def _missing(rng: Rng, is_missing: bool) -> tuple:
    binary, other = rng.integers(0, 2, 20), rng.normal(size=20)
    outcome = binary - other + 0.5 * rng.normal(size=20)
    return jnp.array(np.where((np.arange(20) < 5) & is_missing, -1, binary)), jnp.array(other), jnp.array(outcome)


@entry(
    "effect_handlers.ipynb",
    "model_with_param",
    "continuous",
    {"latents": {"loc": emppl.Gaussian()}},
    marginal=marginals.one_normal,
)
def one_effect(found: Definitions, rng: Rng) -> Arguments:
    """One normal latent for all data, its scale estimated."""
    return found["model_with_param"], (jnp.array(rng.normal(size=6) + 2),), {}


for _name in ("simple_obs_model", "model_for_mask"):

    @entry("effect_handlers.ipynb", _name)
    def constant_data(found: Definitions, rng: Rng, name: str = _name) -> Arguments:
        """Data inside the model."""
        return found[name], (), {}


@entry("effect_handlers.ipynb", "email_causal_model")
def email(found: Definitions, rng: Rng) -> Arguments:
    """A binary treatment and a payment."""
    limit, risk, sent = jnp.array(rng.normal(size=20)), jnp.array(rng.normal(size=20)), rng.integers(0, 2, 20)
    return found["email_causal_model"], (limit, risk, jnp.array(sent), jnp.array(500 + rng.normal(size=20))), {}


@entry("effect_handlers.ipynb", "eight_schools", "continuous", marginal=marginals.eight_schools)
def eight_schools(found: Definitions, rng: Rng) -> Arguments:
    """Rubin's eight schools."""
    sigma, y = [15.0, 10, 16, 11, 9, 11, 10, 18], [28.0, 8, -3, 7, -1, 1, 18, 12]
    return found["eight_schools"], (8, jnp.array(sigma)), {"y": jnp.array(y)}


@entry("gmm.ipynb", "model", "discrete", {"prior": False})
def gmm(found: Definitions, rng: Rng) -> Arguments:
    """The data of the tutorial."""
    found.let(K=2)
    return found["model"], (jnp.array([0.0, 1.0, 10.0, 11.0, 12.0]),), {}


@entry("gpjax_example.ipynb", "joint_model")
def spatial(found: Definitions, rng: Rng) -> Arguments:
    """A Gaussian process of another package, as a factor."""
    covariates, _, outcome = _regression(rng, columns=2)
    return found["joint_model"], (jnp.array(covariates), jnp.array(outcome)), {}


@entry("hierarchical_forecasting.ipynb", "model", "continuous", {"estimate": _TRAINS})
def trains(found: Definitions, rng: Rng) -> Arguments:
    """Riders between two stations, a random walk for each destination."""
    return found["model"], (jnp.zeros((2, 2, 6)), jnp.array(rng.normal(size=(2, 2, 6)))), {}


for _is_non_centered in (True, False):

    @entry("hsgp_example.ipynb", f"model, non_centered={_is_non_centered}", options={"estimate": ["beta"]})
    def basis(found: Definitions, rng: Rng, is_non_centered: bool = _is_non_centered) -> Arguments:
        """Three basis functions."""
        x = np.linspace(-0.5, 0.5, 20)
        return found["model"], (jnp.array(x), 0.8, 3, is_non_centered, jnp.array(np.sin(6 * x))), {}


@entry("hsgp_nd_example.ipynb", "GPModel.model")
def surface(found: Definitions, rng: Rng) -> Arguments:
    """A Gaussian process of two covariates; the data are attributes."""
    covariates, _, outcome = _regression(rng, columns=2)
    return found["GPModel"](jnp.array(covariates), jnp.array(outcome)).model, (), {}


@entry("hsgp_nd_example.ipynb", "HSGPModel.model", options={"estimate": ["beta"]})
def surface_basis(found: Definitions, rng: Rng) -> Arguments:
    """Three basis functions in each of two directions."""
    covariates, _, outcome = _regression(rng, columns=2)
    return found["HSGPModel"](3, 3.0).model, (jnp.array(covariates), jnp.array(outcome)), {}


@entry("logistic_regression.ipynb", "model")
def logistic_regression(found: Definitions, rng: Rng) -> Arguments:
    """The number of coefficients is a global name."""
    found.let(dim=3)
    return found["model"], tuple(map(jnp.array, _binary(rng))), {}


@entry("lotka_volterra_multiple.ipynb", "model")
def populations(found: Definitions, rng: Rng) -> Arguments:
    """Two pairs of populations, some cells missing."""
    times = jnp.broadcast_to(jnp.arange(5.0), (2, 5))
    y = rng.lognormal(3, 0.3, (2, 5, 2))
    y[0, 2, 1] = np.nan
    return found["model"], (times, jnp.array(y[:, 0])), {"y": jnp.array(y)}


for _number in (0, 2):

    @entry("model_rendering.ipynb", f"model {_number + 1}", options={"estimate": ["sd"]})
    def rendered(found: Definitions, rng: Rng, number: int = _number) -> Arguments:
        """A mean and a scale."""
        return found["model", number], (jnp.array(rng.normal(size=10)),), {}


@entry("model_rendering.ipynb", "model 2", "continuous", _RATE, marginal=marginals.lognormal_exponential)
def rate(found: Definitions, rng: Rng) -> Arguments:
    """One log-normal rate for all data, its location and scale estimated."""
    return found["model", 1], (jnp.array(rng.exponential(size=6)),), {}


@entry("model_rendering.ipynb", "model 4", "continuous", _RATE, marginal=marginals.network_of_a_latent)
def network_of_latent(found: Definitions, rng: Rng) -> Arguments:
    """A network of one latent for all data."""
    return found["model", 3], (jnp.array(rng.exponential(size=6)),), {}


@entry("model_rendering.ipynb", "model 5", "continuous", _EFFECTS, marginal=marginals.sums_of_effects)
def odd_plates(found: Definitions, rng: Rng) -> Arguments:
    """Normal latents in two crossed plates, summed over one of them; no parameter."""
    return found["model", 4], (), {}


@entry("model_rendering.ipynb", "mace", "discrete")
def mace(found: Definitions, rng: Rng) -> Arguments:
    """Annotators who may guess."""
    return found["mace"], _ratings(rng), {}


@entry("nnx_example.ipynb", "model", assigned=("mu_nn_module", "sigma_nn_module"))
def nnx(found: Definitions, rng: Rng) -> Arguments:
    """A network for the mean, one with priors for the scale; conditioned as in the tutorial."""
    from numpyro.handlers import condition

    x = np.linspace(1, np.pi, 20)
    y = np.sqrt(x + 0.5) * np.sin(9 * x) + 0.15 * x**2 * rng.normal(size=20)
    return condition(found["model"], {"likelihood": jnp.array(y)}), (jnp.array(x[:, None]),), {}


for _name in ("model1", "model2", "model3"):

    @entry("ordinal_regression.ipynb", _name)
    def ordinal(found: Definitions, rng: Rng, name: str = _name) -> Arguments:
        """Three ordered categories."""
        x = rng.normal(size=30)
        return found[name], (jnp.array(x), jnp.array(np.digitize(x + rng.logistic(size=30), [-1, 1]))), {}


@entry("ordinal_regression.ipynb", "model4")
def ordinal_simplex(found: Definitions, rng: Rng) -> Arguments:
    """Three ordered categories, cut points from probabilities."""
    x = rng.normal(size=30)
    outcome = np.digitize(x + rng.logistic(size=30), [-1, 1])
    return found["model4"], (jnp.array(x), jnp.array(outcome), 3, jnp.full(3, 2.0)), {}


@entry("other_samplers.ipynb", "model")
def line(found: Definitions, rng: Rng) -> Arguments:
    """A straight line."""
    x = np.linspace(0, 1, 20)
    return found["model"], (jnp.array(x), jnp.array(1 + 2 * x + 0.1 * rng.normal(size=20))), {}


@entry("tbip.ipynb", "TBIP.model", "continuous", {"estimate": ["x", "beta", "eta"], "prior": False})
def tbip(found: Definitions, rng: Rng) -> Arguments:
    """Four documents of three people, two topics, five words."""
    words = jnp.array(rng.poisson(1.0, (4, 5)))
    return found["TBIP"](3, 4, 2, 5, 4).model, (words, jnp.arange(4), jnp.array([0, 1, 2, 0])), {}


@entry("time_series_forecasting.ipynb", "sgt")
def sgt(found: Definitions, rng: Rng) -> Arguments:
    """A seasonal series."""
    return found["sgt"], (jnp.array(_series(rng)),), {"seasonality": 6}


@entry("truncated_distributions.ipynb", "truncated_normal_model 1")
def truncated(found: Definitions, rng: Rng) -> Arguments:
    """A known upper end."""
    return found["truncated_normal_model", 0], (20, 1.0), {"x": jnp.array(1 - rng.exponential(size=20))}


@entry("truncated_distributions.ipynb", "truncated_soft_laplace_model")
def soft_laplace(found: Definitions, rng: Rng) -> Arguments:
    """A known upper end."""
    return found["truncated_soft_laplace_model"], (20, 1.0), {"x": jnp.array(1 - rng.exponential(size=20))}


@entry("truncated_distributions.ipynb", "folded_student_model")
def folded(found: Definitions, rng: Rng) -> Arguments:
    """Absolute values."""
    return found["folded_student_model"], (20,), {"x": jnp.array(abs(2 + rng.standard_t(4, 20)))}


for _name, _get in (("truncated_normal_model 2", ("truncated_normal_model", 1)), ("truncated_normal_model_2",) * 2):

    @entry("truncated_distributions.ipynb", _name, assigned=("right_extended_real",))
    def unknown_end(found: Definitions, rng: Rng, get: str | tuple[str, int] = _get) -> Arguments:
        """The upper end is a parameter."""
        return found[get], (20,), {"x": jnp.array(1 - rng.exponential(size=20))}


for _number in (0, 1):

    @entry("truncated_distributions.ipynb", f"truncated_poisson_model {_number + 1}", "discrete")
    def left_truncated(found: Definitions, rng: Rng, number: int = _number) -> Arguments:
        """Counts from an unknown lower end on."""
        found.let(inf=jnp.inf)
        return found["truncated_poisson_model", number], (20,), {"x": jnp.array(2 + rng.poisson(2.0, 20))}


def _credit(found: Definitions, rng: Rng) -> None:
    covariates, outcome = _binary(rng)
    found.let(num_features=3, all_x=jnp.array(covariates), y=jnp.array(outcome)[None])


@entry("variationally_inferred_parameterization.ipynb", "german_credit", "continuous", _CREDIT)
def credit(found: Definitions, rng: Rng) -> Arguments:
    """Coefficients whose scales have a distribution; data are global names."""
    _credit(found, rng)
    return found["german_credit"], (), {}


@entry("variationally_inferred_parameterization.ipynb", "german_credit_reparam", "continuous", _CREDIT_REPARAM)
def credit_reparam(found: Definitions, rng: Rng) -> Arguments:
    """The same, non-centred."""
    _credit(found, rng)
    return found["german_credit_reparam"](0.0), (), {}

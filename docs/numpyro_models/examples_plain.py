"""NumPyro's examples without latents (or with such as stay parameters), and small data for each."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from registry import Arguments, entry
from source import Definitions

Rng = np.random.Generator


def _regression(rng: Rng, rows: int = 20, columns: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariates, their linear predictor, and a continuous outcome."""
    covariates = rng.normal(size=(rows, columns))
    predictor = covariates @ np.linspace(1, -1, columns)
    return covariates, predictor, predictor + 0.3 * rng.normal(size=rows)


def _binary(rng: Rng, rows: int = 20) -> tuple[np.ndarray, np.ndarray]:
    covariates, predictor, _ = _regression(rng, rows)
    return covariates, (rng.random(rows) < 1 / (1 + np.exp(-predictor))).astype(int)


def _series(rng: Rng, length: int = 24) -> np.ndarray:
    return np.sin(np.arange(length) * np.pi / 6) + 3 + 0.1 * rng.normal(size=length)


for _name in ("ar2_scan", "ar2_for_loop"):

    @entry("ar2.py", _name)
    def autoregression(found: Definitions, rng: Rng, name: str = _name) -> Arguments:
        """A short series."""
        return found[name], (jnp.array(_series(rng, 12)),), {}


for _name, _options in (("fully_pooled", {}), ("not_pooled", {"estimate": ["phi"]})):

    @entry("baseball.py", _name, options=_options)
    def pooled(found: Definitions, rng: Rng, name: str = _name) -> Arguments:
        """Eight players."""
        return found[name], (np.full(8, 45), rng.binomial(45, 0.25, 8)), {}


@entry("bnn.py", "model")
def network(found: Definitions, rng: Rng) -> Arguments:
    """A network of two hidden units."""
    covariates, _, outcome = _regression(rng)
    return found["model"], (jnp.array(covariates), jnp.array(outcome[:, None]), 2), {}


@entry("covtype.py", "model")
def covtype(found: Definitions, rng: Rng) -> Arguments:
    """Logistic regression, all rows in the plate."""
    covariates, outcome = _binary(rng)
    return found["model"], (jnp.array(covariates), jnp.array(outcome)), {}


@entry("gp.py", "model")
def gaussian_process(found: Definitions, rng: Rng) -> Arguments:
    """Ten points of a function."""
    x = np.linspace(-1, 1, 10)
    return found["model"], (jnp.array(x), jnp.array(np.sin(3 * x) + 0.1 * rng.normal(size=10))), {}


@entry("hmcecs.py", "model")
def subsampled(found: Definitions, rng: Rng) -> Arguments:
    """Logistic regression; the subsample is the whole."""
    covariates, outcome = _binary(rng)
    return found["model"], (jnp.array(covariates), jnp.array(outcome), 20), {}


@entry("hmm.py", "semi_supervised_hmm", options={"prior": False})
def hidden_markov(found: Definitions, rng: Rng) -> Arguments:
    """Three categories, five words; the sum over hidden categories is the model's own."""
    supervised = (jnp.array(rng.integers(0, 3, 12)), jnp.array(rng.integers(0, 5, 12)))
    return (
        found["semi_supervised_hmm"],
        (jnp.ones(3), jnp.full(5, 0.5), *supervised, jnp.array(rng.integers(0, 5, 9))),
        {},
    )


@entry("holt_winters.py", "holt_winters", options={"estimate": ["seasonality_init"]})
def holt_winters(found: Definitions, rng: Rng) -> Arguments:
    """Two seasons of twelve months."""
    return found["holt_winters"], (jnp.array(_series(rng)), 12), {}


@entry("horseshoe_regression.py", "model_normal_likelihood")
def horseshoe(found: Definitions, rng: Rng) -> Arguments:
    """Three covariates."""
    covariates, _, outcome = _regression(rng)
    return found["model_normal_likelihood"], (jnp.array(covariates), jnp.array(outcome)), {}


@entry("horseshoe_regression.py", "model_bernoulli_likelihood")
def binary_horseshoe(found: Definitions, rng: Rng) -> Arguments:
    """Three covariates."""
    covariates, outcome = _binary(rng)
    return found["model_bernoulli_likelihood"], (jnp.array(covariates), jnp.array(outcome)), {}


@entry("hsgp.py", "birthdays_model")
def birthdays(found: Definitions, rng: Rng) -> Arguments:
    """Forty days of births."""
    day = np.arange(40)
    holidays = [jnp.array((day % n == 0).astype(float)) for n in (7, 11, 13)]
    settings = {"w0": 2 * np.pi / 7, "L": 3.0, "M1": 3, "M2": 3, "M3": 3, "y": jnp.array(rng.normal(size=40))}
    x = jnp.array((day - day.mean()) / day.std())
    return found["birthdays_model"], (x, jnp.array(day % 7), jnp.array(day), *holidays), settings


@entry("minipyro.py", "model")
def one_mean(found: Definitions, rng: Rng) -> Arguments:
    """A mean."""
    return found["model"], (jnp.array(rng.normal(size=20) + 3),), {}


@entry("ode.py", "model")
def predators(found: Definitions, rng: Rng) -> Arguments:
    """Six years of hares and lynxes."""
    return found["model"], (6,), {"y": jnp.array(rng.lognormal(3, 0.3, (6, 2)))}


@entry("proportion_test.py", "model")
def proportions(found: Definitions, rng: Rng) -> Arguments:
    """Logistic regression with one prior for all coefficients."""
    covariates, outcome = _binary(rng)
    return found["model"], (jnp.array(covariates), jnp.array(outcome)), {}


@entry("sparse_regression.py", "model", options={"estimate": ["eta1"]})
def sparse_regression(found: Definitions, rng: Rng) -> Arguments:
    """A kernel of all pairs of covariates."""
    covariates, _, outcome = _regression(rng)
    hypers = {
        "expected_sparsity": 1.0,
        "alpha1": 3.0,
        "beta1": 1.0,
        "alpha2": 3.0,
        "beta2": 1.0,
        "alpha3": 1.0,
        "c": 1.0,
    }
    return found["model"], (jnp.array(covariates), jnp.array(outcome), hypers), {}


@entry("stein_bnn.py", "model", options={"estimate": ["nn_b1", "nn_w1", "nn_w2", "nn_b2"]})
def stein_network(found: Definitions, rng: Rng) -> Arguments:
    """Three hidden units; the subsample is the whole."""
    covariates, _, outcome = _regression(rng)
    return found["model"], (jnp.array(covariates), jnp.array(outcome)), {"hidden_dim": 3, "sub_size": 20}


@entry("thompson_sampling.py", "model")
def bandit(found: Definitions, rng: Rng) -> Arguments:
    """Six evaluations of a function."""
    x = np.linspace(-2, 2, 6)
    return found["model"], (jnp.array(x), jnp.array(x**2 - 1)), {}


@entry("var2.py", "var2_scan")
def vector_autoregression(found: Definitions, rng: Rng) -> Arguments:
    """Two series of twenty steps."""
    return found["var2_scan"], (jnp.array(rng.normal(size=(20, 2))),), {}


@entry("zero_inflated_poisson.py", "model")
def zero_inflated(found: Definitions, rng: Rng) -> Arguments:
    """Counts with too many zeros."""
    covariates, predictor, _ = _regression(rng)
    counts = rng.poisson(np.exp(0.3 * predictor)) * (rng.random(20) < 0.7)
    return found["model"], (jnp.array(covariates), jnp.array(counts)), {}

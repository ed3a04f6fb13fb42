"""Published answers of distributions that hide a latent inside: Student's t, censoring, gamma factors, probit.

The hidden variable is integrated out by the distribution. No latent is left: Q is the log-likelihood itself, and the
M-step is all there is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import ndtr
from numpyro.distributions import constraints

import emppl
from tests.kit.fits import rules
from tests.kit.oracles import check, data_set, oracle

POSITIVE = constraints.positive


def with_ones(columns):
    return np.column_stack([np.ones(len(columns)), columns])


def newcomb(times, df):
    mu = numpyro.param("mu", 26.0)
    sigma = numpyro.param("sigma", 5.0, constraint=POSITIVE)
    df = numpyro.param("df", 4.0, constraint=POSITIVE) if df is None else df
    with numpyro.plate("rows", len(times)):
        numpyro.sample("times", dist.StudentT(df, mu, sigma), obs=times)


def stackloss(loss, covariates, df):
    coef = numpyro.param("coef", jnp.array([-39.9, 0.72, 1.3, -0.15]))  # least squares
    sigma = numpyro.param("sigma", 2.9, constraint=POSITIVE)
    with numpyro.plate("rows", len(loss)):
        numpyro.sample("loss", dist.StudentT(df, covariates @ coef, sigma), obs=loss)


def tobit(affairs, covariates):
    coef = numpyro.param("coef", jnp.zeros(covariates.shape[1]))
    sigma = numpyro.param("sigma", 5.0, constraint=POSITIVE)
    with numpyro.plate("rows", len(affairs)):
        latent = dist.Normal(covariates @ coef, sigma)
        numpyro.sample("affairs", dist.LeftCensoredDistribution(latent, affairs <= 0), obs=affairs)


def probit(grade, covariates):
    coef = numpyro.param("coef", jnp.zeros(covariates.shape[1]))
    with numpyro.plate("rows", len(grade)):
        numpyro.sample("grade", dist.Bernoulli(probs=ndtr(covariates @ coef)), obs=grade)


def lifetimes(time, censored, group):
    rate = numpyro.param("rate", jnp.array([0.1, 0.1]), constraint=POSITIVE)
    with numpyro.plate("rows", len(time)):
        numpyro.sample("time", dist.RightCensoredDistribution(dist.Exponential(rate[group]), censored), obs=time)


def absences(days, covariates):
    coef = numpyro.param("coef", jnp.zeros(covariates.shape[1]))
    theta = numpyro.param("theta", 1.0, constraint=POSITIVE)
    with numpyro.plate("rows", len(days)):
        numpyro.sample("days", dist.NegativeBinomial2(jnp.exp(covariates @ coef), theta), obs=days)


def quine():
    raw = data_set("quine", converters={2: lambda form: float(form[1:])})
    form = raw[:, 2:3] == np.array([[1, 2, 3]])
    return raw[:, 4].astype(int), np.column_stack([np.ones(len(raw)), raw[:, :2], form, raw[:, 3]])


def affairs():
    raw = data_set("affairs")
    return raw[:, 0], with_ones(raw[:, [2, 3, 5, 7, 8]])


def gehan():
    raw = data_set("gehan", converters={3: lambda treatment: float(treatment == "control")})
    return raw[:, 1], (raw[:, 2] == 0).astype(float), raw[:, 3].astype(int)


STACK = data_set("stackloss")
SPECTOR = data_set("spector")
CASES = {
    "newcomb_df1": ("student_t", newcomb, (data_set("newcomb"), 1.0)),
    "newcomb_df4": ("student_t", newcomb, (data_set("newcomb"), 4.0)),
    "newcomb_df_free": ("student_t", newcomb, (data_set("newcomb"), None)),
    "stackloss_df1.1": ("student_t", stackloss, (STACK[:, 3], with_ones(STACK[:, :3]), 1.1)),
    "stackloss_df4": ("student_t", stackloss, (STACK[:, 3], with_ones(STACK[:, :3]), 4.0)),
    "affairs_tobit": ("censored_and_probit", tobit, affairs()),
    "spector_probit": ("censored_and_probit", probit, (SPECTOR[:, 3].astype(int), with_ones(SPECTOR[:, :3]))),
    "gehan_exponential": ("censored_and_probit", lifetimes, gehan()),
    "quine": ("quine_gamma_poisson", absences, quine()),
}


@pytest.mark.parametrize("name", CASES)
def test_answer(name):
    oracle_name, model, data = CASES[name]
    known = oracle(oracle_name)
    params, loglik = known["reference"]["params"], known["reference"]["loglik"]
    if name != "quine":
        params, loglik = params[name], loglik[name]
    em = emppl.EM(model)
    assert "optax" not in set(rules(em, *data).values())
    result = em.run(jax.random.key(0), *data)
    assert result.converged, result.stop_message
    assert result.num_iterations <= 6  # the inner steps of the first M-step go nearly all the way
    assert result.num_observations == len(data[0])
    np.testing.assert_allclose(result.log_likelihood, loglik, rtol=known["tolerance"]["loglik"])
    if name == "spector_probit":
        params = {"coef": params}
    if name == "gehan_exponential":
        params = {"rate": [params["rate_6mp"], params["rate_control"]]}
    for key, wanted in params.items():
        wanted = list(wanted.values()) if isinstance(wanted, dict) else wanted
        check(result.params[key], wanted, known["tolerance"]["params"], key)


@pytest.mark.parametrize("make", [lambda v: dist.Bernoulli(logits=v), lambda v: dist.Binomial(5, logits=v)])
def test_gradient_at_logit_zero_is_right(make):
    """Where every logistic regression starts, NumPyro's own gradient is wrong: it clips its logits there."""

    def model(y):
        logit = numpyro.param("logit", 0.0)
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", make(logit * jnp.ones(len(y))), obs=y)

    y = np.array([1, 1, 0, 1])
    em = emppl.EM(model)
    value = lambda logit: em.log_likelihood({"logit": logit}, y)  # noqa: E731
    step = 1e-5
    difference = (value(jnp.array(step)) - value(jnp.array(-step))) / (2 * step)
    np.testing.assert_allclose(jax.grad(value)(jnp.array(0.0)), difference, rtol=1e-8)

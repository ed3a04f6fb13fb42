"""Models of missing cells and state spaces against oracles (see tests/test_models.py)."""

import jax
import numpy as np
import pytest

import emppl
from models import air_quality, nile_level, uk_gas
from tests.test_models import check, oracle


def test_air_quality():
    days = air_quality.data()
    result = emppl.EM(air_quality.model, progress_bar=False).run(jax.random.key(0), days)
    known = oracle("mvn_missing")
    check(result.log_likelihood, known["reference"]["loglik"]["airquality"], known["tolerance"]["loglik"], "loglik")
    path = known["reference"]["iterations"]["airquality_loglik_0_to_4"]
    check(result.history["log_likelihood"][:5], path, known["tolerance"]["iterations"], "path")
    params = {"mean": result.params["mean"], "cov": result.params["covariance"]}
    check(params, known["reference"]["params"]["airquality"], known["tolerance"]["params"], "params")


def test_the_nile_iteration_by_iteration():
    known = oracle("nile_local_level")
    path = np.array(known["reference"]["iterations"]["em_var_obs_var_level_loglik"])
    em = emppl.EM(nile_level.model, max_iterations=5, progress_bar=False)
    result = em.run(jax.random.key(0), nile_level.data())
    check(result.history["log_likelihood"], path[:, 2], known["tolerance"]["iterations"], "path")
    found = [result.params["observation_variance"], result.params["level_variance"]]
    check(found, path[5, :2], known["tolerance"]["iterations"], "variances")


def test_the_nile_accelerated():
    known = oracle("nile_local_level")
    em = emppl.EM(nile_level.model, accelerate="squarem", max_iterations=20_000, progress_bar=False)
    result = em.run(jax.random.key(0), nile_level.data())
    assert result.converged
    assert result.num_iterations < 200
    check(result.log_likelihood, known["reference"]["loglik"]["prior_N_0_1e7"], known["tolerance"]["loglik"], "loglik")
    params = known["reference"]["params"]["prior_N_0_1e7"]
    check(result.params["observation_variance"], params["var_obs"], known["tolerance"]["params"], "var_obs")
    check(result.params["level_variance"], params["var_level"], known["tolerance"]["params"], "var_level")


@pytest.mark.slow
def test_gas_by_quarter():
    known = oracle("ukgas_bsm")
    em = emppl.EM(uk_gas.model, accelerate="squarem", max_iterations=20_000, progress_bar=False)
    result = em.run(jax.random.key(0), uk_gas.data())
    assert result.converged
    check(result.log_likelihood, known["reference"]["loglik"], known["tolerance"]["loglik"], "loglik")
    for ours, theirs in (("slope", "slope"), ("seasonal", "seasonal"), ("observation", "obs")):
        reference = known["reference"]["params"][f"var_{theirs}"]
        np.testing.assert_allclose(result.params[f"{ours}_variance"], reference, rtol=known["tolerance"]["params"])

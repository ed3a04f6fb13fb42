"""Blocks left to optax, against the maximum that scipy finds."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from numpyro.distributions import constraints

import emppl
from emppl import mstep
from emppl.fit import loop
from tests.kit.fits import KEY, compiled_of, fit, never_falls, rules


def logistic_mixture(x):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    width = numpyro.param("width", 1.0, constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Logistic(mu[z], width), obs=x)


@pytest.fixture(scope="module")
def logistic_data():
    rng = np.random.default_rng(4)
    return np.where(rng.random(100) < 0.5, rng.logistic(-3, 0.6, 100), rng.logistic(3, 0.6, 100))


@pytest.fixture(scope="module")
def logistic_maximum(logistic_data):
    def negative(v):
        log_prob = scipy.stats.logistic.logpdf(logistic_data, v[:2, None], np.exp(v[2]))
        return -scipy.special.logsumexp(log_prob + np.log(0.5), 0).sum()

    return -scipy.optimize.minimize(negative, np.array([-1.0, 1.0, 0.0]), method="BFGS").fun


OPTIMIZERS = {"lbfgs": optax.lbfgs(), "adam": optax.adam(1e-2), "small steps": optax.sgd(2e-3)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_reaches_the_maximum(logistic_data, logistic_maximum, name):
    """Whatever the user passes: monotone, to scipy's maximum."""
    em = emppl.EM(logistic_mixture, optimizer=OPTIMIZERS[name])
    assert rules(em, logistic_data) == {"mu": "optax", "width": "optax"}
    assert "not newton: an optimizer is given" in str(em.plan(logistic_data))
    result = em.run(KEY, logistic_data)
    assert result.converged and never_falls(result)
    assert result.log_likelihood == pytest.approx(logistic_maximum, abs=1e-6)


def test_an_optimizer_for_one_parameter(logistic_data, logistic_maximum):
    """The others keep their rules."""
    em = emppl.EM(logistic_mixture, m_step={"width": optax.lbfgs()})
    assert rules(em, logistic_data) == {"mu": "newton", "width": "optax"}
    result = em.run(KEY, logistic_data)
    assert result.converged and result.log_likelihood == pytest.approx(logistic_maximum, abs=1e-6)


def test_an_optimizer_that_only_overshoots_is_not_called_converged(logistic_data):
    """Steps far too large never raise Q: nothing falls, nothing is gained, and that is no convergence."""
    result = fit(logistic_mixture, logistic_data, optimizer=optax.sgd(1e3))
    assert result.stop_reason is emppl.StopReason.UNFINISHED and not result.converged
    assert never_falls(result) and "learning rate" in result.stop_message


def test_state_is_kept_between_iterations(logistic_data):
    """Adam goes on counting its steps, restart by restart."""
    em = emppl.EM(logistic_mixture, optimizer=optax.adam(1e-3), restarts=2)
    derived, leaves = compiled_of(em, logistic_data)
    params = {name: np.asarray(value) for name, value in derived.start(KEY, leaves, 2).items()}
    states = loop.initial_states(derived.program.model, params, derived.begin(params), 2, jnp.result_type(float))
    prepared, _ = derived.prepared_and_report(leaves)
    states, *_ = derived.block(2, False)(states, leaves, prepared, *loop.limits(0.0, 3, 3))
    (count,) = [state.count for state in jax.tree.leaves(states.memory, is_leaf=is_adam) if is_adam(state)]
    assert count.shape == (2,) and np.all(count > 20)


def is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_what_is_no_optimizer_is_refused(logistic_data):
    with pytest.raises(emppl.ParameterError, match="optax.GradientTransformation such as"):
        emppl.EM(logistic_mixture, optimizer="adam").plan(logistic_data)
    with pytest.raises(emppl.ParameterError, match="or an optax.GradientTransformation"):
        emppl.EM(logistic_mixture, m_step={"mu": 3.0}).plan(logistic_data)


def test_rules_are_exported():
    """Names that other modules rely on."""
    assert mstep.is_optimizer(optax.adam(1.0)) and not mstep.is_optimizer(np.mean)

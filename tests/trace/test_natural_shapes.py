"""Models whose own code takes one state at a time: matrix products, ``jnp.stack`` and ``jnp.where`` of vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.special import logsumexp
from scipy.stats import norm

import emppl

_ROWS = np.random.default_rng(0).normal(size=(12, 2))
_Q, _MU = np.array([0.2, 0.7]), np.array([[-1.0, 1.0], [1.0, 0.5]])
_TURN = np.array([[0.5, 0.2], [0.1, 0.9]])


def _chain(rows):
    q = numpyro.param("q", jnp.array(_Q), constraint=dist.constraints.unit_interval)
    mu = numpyro.param("mu", jnp.array(_MU))

    def step(z, row):
        z = numpyro.sample("z", dist.Categorical(probs=jnp.stack([1 - q[z], q[z]])))
        loc = _TURN @ jnp.where(z > 0, mu[1], mu[0])
        numpyro.sample("y", dist.Normal(loc, 1.0).to_event(1), obs=row)
        return z, None

    scan(step, 0, rows)


def _mixture(rows):
    q = numpyro.param("q", jnp.array(_Q), constraint=dist.constraints.unit_interval)
    mu = numpyro.param("mu", jnp.array(_MU))
    u = numpyro.sample("u", dist.Bernoulli(0.4))
    with numpyro.plate("n", len(rows)):
        z = numpyro.sample("z", dist.Categorical(jnp.stack([1 - q[u], q[u]])))
        numpyro.sample("y", dist.MultivariateNormal(jnp.stack([mu[z, 0], mu[z, 1] * z], 1), jnp.eye(2)), obs=rows)


def _states_in_turn(rows):
    """States that are indices in turn, and a covariate in every step."""
    q = numpyro.param("q", jnp.array(_Q), constraint=dist.constraints.unit_interval)
    mu = numpyro.param("mu", jnp.array(_MU))

    def step(z, row):
        z = numpyro.sample("z", dist.Bernoulli(q[z]))
        numpyro.sample("y", dist.Normal(mu[z][z] * row[1], 1.0), obs=row[0])
        return z, None

    scan(step, 0, rows)


def _by_hand_states_in_turn():
    return _forward(norm.logpdf(_ROWS[:, :1], np.diag(_MU) * _ROWS[:, 1:]))


def _by_hand_chain():
    return _forward(norm.logpdf(_ROWS[:, None], (_TURN @ _MU.T).T).sum(-1))


def _forward(emissions):
    log_step = np.log(np.stack([1 - _Q, _Q], 1))
    alpha = log_step[0] + emissions[0]
    for emission in emissions[1:]:
        alpha = logsumexp(alpha[:, None] + log_step, 0) + emission
    return logsumexp(alpha)


def _by_hand_mixture():
    emissions = norm.logpdf(_ROWS[:, None], np.stack([_MU[:, 0], _MU[:, 1] * [0, 1]], 1)).sum(-1)
    given = [logsumexp(emissions + np.log([1 - q, q]), 1).sum() for q in _Q]
    return logsumexp(given + np.log([0.6, 0.4]))


_PAIRS = [
    (_chain, _by_hand_chain),
    (_states_in_turn, _by_hand_states_in_turn),
    (_mixture, _by_hand_mixture),
]


@pytest.mark.parametrize(("model", "by_hand"), _PAIRS)
def test_the_log_likelihood_is_that_of_the_model_as_written(model, by_hand):
    em = emppl.EM(model, max_iterations=2, progress_bar=False)
    assert np.isclose(em.log_likelihood({"q": _Q, "mu": _MU}, _ROWS), by_hand(), rtol=1e-12)
    assert em.run(jax.random.key(0), _ROWS).log_likelihood > by_hand()


def test_code_that_fails_at_one_state_too_is_refused_as_before():
    def model(rows):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(jnp.ones(3) @ (z + jnp.ones(2)), 1.0), obs=rows[0, 0])

    with pytest.raises(emppl.ModelError, match="The model failed after site 'z'.*dot_general"):
        emppl.EM(model).plan(_ROWS)

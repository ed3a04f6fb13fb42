"""NumPyro's density of a model as it is written, against sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from scipy import stats

from emppl.inputs.arguments import split_arguments
from emppl.trace.density import draw_latents, log_probs


def chain(y):
    move = numpyro.param("move", jnp.array([[0.9, 0.1], [0.4, 0.6]]))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))

    def step(before, this):
        z = numpyro.sample("z", dist.Categorical(move[before]))
        numpyro.sample("y", dist.Normal(mu * z, 1.0), obs=this)
        return z, None

    scan(step, 0, y)
    numpyro.deterministic("twice", 2 * mu)


def test_density_is_the_sum_by_hand_for_a_value_of_every_latent():
    y = np.array([0.3, 1.2, -0.4])
    data, skeleton = split_arguments((y,), {})
    move, states = np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([1, 1, 0])
    found = log_probs(chain, skeleton, {"move": jnp.asarray(move), "mu": 1.5}, {"z": jnp.asarray(states)}, data)
    assert set(found) == {"mu", "z", "y"}
    np.testing.assert_allclose(found["mu"], stats.norm(0, 2).logpdf(1.5))
    np.testing.assert_allclose(found["z"], np.log([0.3, 0.8, 0.2]).sum(), rtol=1e-6)
    np.testing.assert_allclose(found["y"], stats.norm(1.5 * states, 1).logpdf(y).sum())


def test_draws_are_of_every_site_that_is_not_observed():
    data, skeleton = split_arguments((np.zeros(2000),), {})
    drawn = draw_latents(
        chain, skeleton, {"move": jnp.array([[0.5, 0.5], [0.9, 0.1]]), "mu": 1.5}, data, jax.random.key(0)
    )
    assert set(drawn) == {"mu", "z", "twice"} and drawn["twice"] == 3.0
    assert drawn["z"].shape == (2000,)
    # Of a chain that leaves 0 half of the time and 1 nearly always: its stationary share.
    np.testing.assert_allclose(np.mean(drawn["z"]), 0.5 / 1.4, atol=0.05)

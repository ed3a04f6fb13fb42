"""Weights of cells: a block that counts w times is written out w times, and every cell of the copies is enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.handlers import scale

import emppl
from emppl.errors import ModelError
from tests.kit.brute_force import BruteForce
from tests.kit.fits import fit, never_falls

PX, PY, PZ = np.array([0.4, 0.6]), np.array([[0.75, 0.25], [0.55, 0.45]]), np.array([[0.3, 0.7], [0.2, 0.8]])
START = {"px": PX, "py": PY, "pz": PZ}
OBSERVED = jnp.array(0)


def tables():
    return [jnp.asarray(numpyro.param(n, jnp.array(v), constraint=constraints.simplex)) for n, v in START.items()]


def chain_of_three(z, weights):
    """x, then y, then z, each with the weight that is written beside it."""
    a, b, c = tables()
    with scale(scale=weights[0]):
        x = numpyro.sample("x", dist.Categorical(a))
        with scale(scale=weights[1]):
            y = numpyro.sample("y", dist.Categorical(b[x]))
            with scale(scale=weights[2]):
                numpyro.sample("z", dist.Categorical(c[y]), obs=z)


def chain_written_out(z, weights):
    a, b, c = tables()
    with numpyro.plate("outer", weights[0], dim=-3):
        x = numpyro.sample("x", dist.Categorical(a))
        with numpyro.plate("middle", weights[1], dim=-2):
            y = numpyro.sample("y", dist.Categorical(b[x]))
            with numpyro.plate("inner", weights[2], dim=-1):
                numpyro.sample("z", dist.Categorical(c[y]), obs=jnp.broadcast_to(z, weights))


@pytest.mark.parametrize("weights", [(1, 3, 1), (2, 1, 1), (1, 1, 3), (1, 2, 2), (2, 2, 1)])
def test_copies_share_what_lies_outside_their_weight(weights):
    """Log-likelihood and Q against every assignment of every copy."""
    right = BruteForce(chain_written_out, START, OBSERVED, weights)
    em = emppl.EM(chain_of_three)
    posterior = em.e_step(START, OBSERVED, tuple(map(float, weights)))
    assert float(posterior.log_likelihood) == pytest.approx(float(right.log_likelihood()), rel=1e-12)
    after = {"px": np.array([0.3, 0.7]), "py": PY[::-1], "pz": PZ[::-1]}
    q = float(em.q(after, posterior, OBSERVED, tuple(map(float, weights))))
    assert q == pytest.approx(float(right.q(after)), rel=1e-11)


@pytest.mark.parametrize("weight", [0.4, 3.0, 10.0])
def test_a_fit_with_an_unweighted_latent_above_a_weighted_one(weight):
    """The closed sum over x of p(x) times the evidence of one copy to the power of the weight; never above zero."""

    def model(z, weight):
        a, b, c = tables()
        x = numpyro.sample("x", dist.Categorical(a))
        with scale(scale=weight):
            y = numpyro.sample("y", dist.Categorical(b[x]))
            numpyro.sample("z", dist.Categorical(c[y]), obs=z)

    em = emppl.EM(model)
    right = np.log(PX @ (PY @ PZ[:, 0]) ** weight)
    assert float(em.log_likelihood(START, OBSERVED, weight)) == pytest.approx(right, rel=1e-12)
    result = em.run(jax.random.key(0), OBSERVED, weight)
    assert never_falls(result) and result.log_likelihood <= 1e-12


def test_the_latent_inside_the_weight_may_come_first_in_the_model():
    """The data see both; the unweighted latent is shared by the copies, whichever is written first."""

    def model(z, unweighted_first):
        a, b, c = tables()
        x = numpyro.sample("x", dist.Categorical(a)) if unweighted_first else None
        with scale(scale=3.0):
            y = numpyro.sample("y", dist.Categorical(a))
        x = x if unweighted_first else numpyro.sample("x", dist.Categorical(a))
        with scale(scale=3.0):
            numpyro.sample("z", dist.Categorical((b[x] + c[y]) / 2), obs=z)

    right = np.log(PX @ ((PY[:, None, 0] + PZ[None, :, 0]) / 2 @ PX) ** 3)
    for unweighted_first in (True, False):
        value = emppl.EM(model).log_likelihood(START, OBSERVED, unweighted_first)
        assert float(value) == pytest.approx(right, rel=1e-12)


def test_weights_that_are_data_in_nested_plates():
    """Neither latent depends on the other: the plates say which is inside."""

    def model(y, outer, inner):
        mean = numpyro.param("mean", jnp.array([0.0, 1.0]))
        with numpyro.plate("n", 4, dim=-1), scale(scale=outer):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            with numpyro.plate("k", 3, dim=-2), scale(scale=inner):
                u = numpyro.sample("u", dist.Bernoulli(0.4))
                numpyro.sample("y", dist.Normal(mean[z] + u, 1.0), obs=y)

    y = np.random.default_rng(0).normal(size=(3, 4))
    outer, inner = np.array([1.0, 2, 0.5, 1]), np.array([[1.0], [2], [0.5]])
    pdf = scipy.stats.norm.pdf
    of_cells = [(inner * np.log(0.6 * pdf(y, z, 1) + 0.4 * pdf(y, z + 1, 1))).sum(0) for z in (0, 1)]
    right = (outer * np.logaddexp(np.log(0.7) + of_cells[0], np.log(0.3) + of_cells[1])).sum()
    assert float(emppl.EM(model).log_likelihood({"mean": [0.0, 1.0]}, y, outer, inner)) == pytest.approx(right, 1e-12)


def test_subsampled_rows_below_a_latent_of_all_rows():
    """A plate that shows 5 of 50 rows counts each ten times, with its latent; what lies outside is counted once."""

    def model(y):
        mean = numpyro.param("mean", jnp.array([0.0, 1.0]))
        x = numpyro.sample("x", dist.Bernoulli(0.4))
        with numpyro.plate("n", 50, subsample_size=5):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("y", dist.Normal(mean[z] + x, 1.0), obs=y)

    y = np.random.default_rng(1).normal(size=5)
    pdf = scipy.stats.norm.pdf
    rows = [10 * np.log(0.7 * pdf(y, x, 1) + 0.3 * pdf(y, 1 + x, 1)).sum() for x in (0, 1)]
    right = np.logaddexp(np.log(0.6) + rows[0], np.log(0.4) + rows[1])
    assert float(emppl.EM(model).log_likelihood({"mean": [0.0, 1.0]}, y)) == pytest.approx(right, rel=1e-12)


def test_partly_observed_labels_with_weights():
    """A weight over labels and data counts rows; one over the data alone counts these, given the label."""

    def model(label, known, y, weight, over_labels):
        mean = numpyro.param("mean", jnp.array([0.0, 1.0]))
        with numpyro.plate("n", 5), scale(scale=weight if over_labels else 1.0):
            z = numpyro.sample("z", dist.Bernoulli(0.3), obs=label, obs_mask=known)
            with scale(scale=1.0 if over_labels else weight):
                numpyro.sample("y", dist.Normal(mean[z], 1.0), obs=y)

    label, known = np.array([0, 1, 1, 0, 1]), np.array([True, False, True, False, False])
    y, weight = np.array([0.1, 1.2, 0.8, -0.3, 0.9]), np.array([1.0, 2, 3, 1, 2])
    for over_labels in (True, False):
        outside, inside = (weight, 1.0) if over_labels else (1.0, weight)
        joint = np.stack(
            [scipy.stats.bernoulli.logpmf(z, 0.3) + inside * scipy.stats.norm.logpdf(y, z, 1) for z in (0, 1)]
        )
        right = (outside * np.where(known, joint[label, np.arange(5)], np.logaddexp(*joint))).sum()
        value = emppl.EM(model).log_likelihood({"mean": [0.0, 1.0]}, label, known, y, weight, over_labels)
        assert float(value) == pytest.approx(right, rel=1e-12)


def test_an_integral_inside_the_weight_of_a_discrete_latent():
    """Three copies of b and y share one z."""

    def model(y):
        mean = numpyro.param("mean", jnp.array([0.0, 1.0]))
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        with scale(scale=3.0):
            b = numpyro.sample("b", dist.Normal(mean[z], 1.0))
            numpyro.sample("y", dist.Normal(b, 1.0), obs=y)

    em = emppl.EM(model, latents={"b": emppl.Gaussian()})
    right = np.log([0.7, 0.3] @ scipy.stats.norm.pdf(1.3, [0, 1], np.sqrt(2)) ** 3)
    assert float(em.log_likelihood({"mean": [0.0, 1.0]}, 1.3)) == pytest.approx(right, rel=1e-12)


TRANSITION = np.array([[0.8, 0.2], [0.3, 0.7]])


def test_a_weighted_latent_in_the_steps_of_a_chain():
    """In each step two copies of u and y share the state: the forward recursion with squared emissions."""

    def model(y):
        mean = numpyro.param("mean", jnp.array([0.0, 1.0]))

        def step(state, y_t):
            state = numpyro.sample("z", dist.Categorical(jnp.asarray(TRANSITION)[state]))
            with scale(scale=2.0):
                u = numpyro.sample("u", dist.Bernoulli(0.3))
                numpyro.sample("y", dist.Normal(mean[state] + u, 1.0), obs=y_t)
            return state, None

        scan(step, 0, y)

    y = np.random.default_rng(2).normal(size=4)
    pdf = scipy.stats.norm.pdf(y[:, None], [0.0, 1.0, 2.0], 1)
    emission = (0.7 * pdf[:, :2] + 0.3 * pdf[:, 1:]) ** 2
    forward = TRANSITION[0] * emission[0]
    for t in range(1, 4):
        forward = (forward @ TRANSITION) * emission[t]
    value = emppl.EM(model).log_likelihood({"mean": [0.0, 1.0]}, y)
    assert float(value) == pytest.approx(np.log(forward.sum()), rel=1e-12)


def only_the_latents(z):
    a, b, c = tables()
    with scale(scale=3.0):
        x = numpyro.sample("x", dist.Categorical(a))
        y = numpyro.sample("y", dist.Categorical(b[x]))
    numpyro.sample("z", dist.Categorical(c[y]), obs=z)


def only_the_first_latent(z):
    a, b, c = tables()
    with scale(scale=3.0):
        x = numpyro.sample("x", dist.Categorical(a))
    y = numpyro.sample("y", dist.Categorical(b[x]))
    numpyro.sample("z", dist.Categorical(c[y]), obs=z)


def side_by_side(z):
    a, b, c = tables()
    with scale(scale=3.0):
        x = numpyro.sample("x", dist.Categorical(a))
    with scale(scale=2.0):
        y = numpyro.sample("y", dist.Categorical(a))
        numpyro.sample("z", dist.Categorical((b[x] + c[y]) / 2), obs=z)


def two_integrals(z):
    mean = numpyro.param("mean", 0.0)
    a = numpyro.sample("a", dist.Normal(mean, 1.0))
    with scale(scale=3.0):
        b = numpyro.sample("b", dist.Normal(a, 1.0))
        numpyro.sample("z", dist.Normal(b, 1.0), obs=z)


def discrete_inside_an_integral(z):
    mean = numpyro.param("mean", 0.0)
    a = numpyro.sample("a", dist.Normal(mean, 1.0))
    with scale(scale=3.0):
        b = numpyro.sample("b", dist.Bernoulli(0.3))
        numpyro.sample("z", dist.Normal(a + b, 1.0), obs=z)


@pytest.mark.parametrize(
    "model, latents, said",
    [
        (only_the_latents, None, "site 'z', which depends on it, has none"),
        (only_the_first_latent, None, "site 'y', which depends on it, has none"),
        (side_by_side, None, "'x' and 'y' have different weights"),
        (two_integrals, {"a": emppl.Gaussian(), "b": emppl.Gaussian()}, "'a' and 'b' have different weights"),
        (discrete_inside_an_integral, {"a": emppl.Gaussian()}, "'a' and 'b' have different weights"),
    ],
)
def test_what_no_order_of_sums_counts_is_refused(model, latents, said):
    """Weights that do not cover what depends on their latents, or of which neither lies inside the other."""
    with pytest.raises(ModelError, match=said):
        emppl.EM(model, latents=latents).plan(OBSERVED)


def test_one_weight_in_two_places_is_one_weight():
    """The latent and its data in blocks of their own, weighted by the same array: rows that count several times."""

    def model(y, weight):
        mean = numpyro.param("mean", jnp.array([-1.0, 1.0]))
        with numpyro.plate("n", len(y)):
            with scale(scale=weight):
                z = numpyro.sample("z", dist.Bernoulli(0.3))
                u = numpyro.sample("u", dist.Bernoulli(0.6))
            with scale(scale=weight):
                numpyro.sample("y", dist.Normal(mean[z] + u, 1.0), obs=y)

    y, weight = np.array([-1.2, 0.4, 1.9]), np.array([2, 1, 3])
    weighted = fit(model, y, weight)
    repeated = fit(model, np.repeat(y, weight), np.ones(6))
    assert weighted.log_likelihood == pytest.approx(repeated.log_likelihood, rel=1e-10)

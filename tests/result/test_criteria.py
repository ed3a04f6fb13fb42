"""Criteria of weighted and of masked fits."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from tests.kit.fits import fit
from tests.result.test_result import X, mixture


def test_icl_of_a_weighted_fit_equals_that_of_replicated_rows():
    """A weight counts a row that many times, in the entropy as in BIC; rows of weight zero count nothing."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, 80).astype(float)
    assert (counts == 0).any() and counts.max() > 1
    weighted = fit(mixture, X, counts, tolerance=1e-12)
    replicated = fit(mixture, np.repeat(X, counts.astype(int)), tolerance=1e-12)
    assert replicated.icl - replicated.bic > 1
    assert weighted.icl == pytest.approx(replicated.icl, rel=1e-8)
    assert weighted.num_observations == counts.sum()


def test_icl_of_masked_rows_equals_that_of_absent_rows():
    """A masked row is absent: it adds no entropy and no observation."""
    rng = np.random.default_rng(0)
    seen = rng.random(80) < 0.7
    masked, absent = fit(mixture, X, None, seen), fit(mixture, X[seen])
    assert masked.icl == pytest.approx(absent.icl, rel=1e-8)
    assert masked.bic == pytest.approx(absent.bic, rel=1e-8)


def test_icl_of_weighted_groups():
    """A weighted group with rows inside: the same as the group written down that many times."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(3, 12)) + np.repeat([-2.0, 2.0], 6)

    def model(y, counts):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.handlers.scale(scale=counts), numpyro.plate("groups", y.shape[1]):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            with numpyro.plate("rows", y.shape[0]):
                numpyro.sample("y", dist.Normal(mu[z], 3.0), obs=y)

    counts = rng.integers(1, 4, 12)
    weighted = fit(model, y, counts.astype(float))
    repeated = fit(model, np.repeat(y, counts, axis=1), np.ones(counts.sum()))
    assert repeated.icl - repeated.bic > 0.5
    assert weighted.icl == pytest.approx(repeated.icl, rel=1e-8)

"""Starting values lie where the parameter may be, whatever the data suggest; and priors at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.distributions import constraints, transforms

import emppl
from emppl.errors import ModelError
from tests.kit.fits import fit, never_falls

X = np.concatenate([np.random.default_rng(0).normal(-1, 0.6, 60), np.random.default_rng(1).normal(2, 0.6, 40)])

MEANS = {
    "improper ordered": lambda: dist.ImproperUniform(constraints.ordered_vector, (), (3,)),
    "transformed ordered": lambda: dist.TransformedDistribution(
        dist.Normal(0, 5).expand([3]).to_event(1), transforms.OrderedTransform()
    ),
    "positive ordered": lambda: dist.ImproperUniform(constraints.positive_ordered_vector, (), (3,)),
    "zero sum": lambda: dist.ZeroSumNormal(2.0, (3,)),
    "bounded": lambda: dist.Uniform(-0.5, 0.5).expand([3]).to_event(1),
    "bounds by entry": lambda: dist.Uniform(np.array([-2.0, 0.0, 1.0]), np.array([0.0, 1.0, 9.0])).to_event(1),
    "truncated": lambda: dist.TruncatedNormal(0.0, 1.0, low=0.3).expand([3]).to_event(1),
    "simplex": lambda: dist.Dirichlet(jnp.ones(3)),
    "sphere": lambda: dist.ProjectedNormal(jnp.array([1.0, 0.2, -0.4])),
}


@pytest.mark.parametrize("prior", MEANS.values(), ids=MEANS)
def test_every_start_lies_in_the_support(prior):
    """Means of a mixture are seeded by rows of the data, which know nothing of constraints."""

    def model(x):
        mu = numpyro.sample("mu", prior())
        with numpyro.plate("n", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
            numpyro.sample("x", dist.Normal(mu[z], 0.6), obs=x)

    em, support = emppl.EM(model, prior=False), prior().support
    starts = [em.start(jax.random.key(key), X)["mu"] for key in range(4)]
    for start in starts:
        assert np.all(support(start)), start


@pytest.mark.parametrize("how", ["improper ordered", "transformed ordered"])
def test_ordered_means_end_in_their_support(how):
    """Some starts were out of order, and so were the fits from them."""

    def model(x):
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
        mu = numpyro.sample("mu", MEANS[how]())
        with numpyro.plate("n", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(mu[z], 0.6), obs=x)

    result = emppl.EM(model, prior=False, restarts=4, max_iterations=100).run(jax.random.key(2), X)
    assert np.all(np.diff(result.params["mu"]) > 0)
    assert never_falls(result)


# ---------------------------------------------------------------------------------------------- priors at their edges

VOTES = np.array([0, 0, 1, 0, 1, 0])


@pytest.mark.parametrize("concentration", [(1.0, 1.0, 1.0), (1.0, 2.0, 1.0), (2.0, 1.5, 1.0), (2.0, 2.0, 2.0)])
def test_a_category_that_nobody_chose(concentration):
    """Counts plus concentration minus one over their total, an exact zero where both are none."""

    def model(votes):
        p = numpyro.sample("p", dist.Dirichlet(np.array(concentration)))
        with numpyro.plate("n", len(votes)):
            numpyro.sample("votes", dist.Categorical(p), obs=votes)

    result = fit(model, VOTES)
    counts = np.bincount(VOTES, minlength=3)
    best = (counts + np.array(concentration) - 1) / (counts + np.array(concentration) - 1).sum()
    likelihood = scipy.special.xlogy(counts, best).sum()
    prior = scipy.special.xlogy(np.array(concentration) - 1, best).sum()
    prior += scipy.special.gammaln(sum(concentration)) - scipy.special.gammaln(concentration).sum()
    assert result.converged
    np.testing.assert_allclose(result.params["p"], best, atol=1e-12)
    assert result.log_likelihood == pytest.approx(likelihood, abs=1e-9)
    assert result.log_posterior == pytest.approx(likelihood + prior, abs=1e-9)


EDGES = [
    (dist.Beta(1.0, 1.0), 0.0, 0.0, 0.0),
    (dist.Beta(1.0, 2.0), 0.0, np.log(2.0), -1.0),
    (dist.Beta(1.0, 1.0), 1.0, 0.0, 0.0),
    (dist.Beta(2.0, 1.0), 1.0, np.log(2.0), 1.0),
    (dist.BetaProportion(0.5, 2.0), 0.0, 0.0, 0.0),
    (dist.Gamma(1.0, 2.0), 0.0, np.log(2.0), -2.0),
    (dist.Chi2(2.0), 0.0, np.log(0.5), -0.5),
    (dist.Exponential(2.0), 0.0, np.log(2.0), -2.0),
    (dist.Uniform(0.0, 4.0), 0.0, -np.log(4.0), 0.0),
    (dist.Uniform(0.0, 4.0), 4.0, -np.log(4.0), 0.0),
    (dist.HalfNormal(2.0), 0.0, np.log(2 / np.sqrt(2 * np.pi) / 2), 0.0),
    (dist.Beta(2.0, 1.0), 0.0, -np.inf, None),
    (dist.Gamma(2.0, 1.0), 0.0, -np.inf, None),
]


@pytest.mark.parametrize("prior, at, value, slope", EDGES, ids=[f"{type(e[0]).__name__} {e[1]:g}" for e in EDGES])
def test_log_density_and_slope_at_the_edge_of_a_support(prior, at, value, slope):
    """By hand: 0 log 0 is none, and the slope of the other factor stays."""

    def model(x):
        p = numpyro.sample("p", prior)
        with numpyro.plate("n", len(x)):
            numpyro.sample("x", dist.Normal(p, 1.0), obs=x)

    em = emppl.EM(model)
    log_prior = lambda p: em.log_prior({"p": p}, jnp.ones(2))  # noqa: E731
    assert float(log_prior(jnp.asarray(at))) == pytest.approx(value, abs=1e-12)
    if slope is not None:
        assert float(jax.grad(log_prior)(jnp.asarray(at))) == pytest.approx(slope, abs=1e-12)


SIX = np.array([0.2, 0.5, 1.1, 0.4, 0.3, 0.9])


@pytest.mark.parametrize(
    "prior",
    [
        dist.Beta(0.5, 2.0),
        dist.Kumaraswamy(0.7, 2.0),
        dist.BetaProportion(0.2, 1.0),
        dist.Gamma(0.5, 1.0),
        dist.Chi2(1.0),
        dist.Weibull(1.0, 0.5),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_a_density_without_bound_has_no_mode(prior):
    """It is refused, by name."""

    def model(x):
        p = numpyro.sample("p", prior)
        with numpyro.plate("n", len(x)):
            numpyro.sample("x", dist.Exponential(p), obs=x)

    with pytest.raises(ModelError, match=f"The {type(prior).__name__} prior of 'p' has concentration below 1"):
        fit(model, SIX)


def test_flat_priors_change_nothing_where_categories_are_empty():
    """Judges with flat Dirichlet confusion matrices, as Dawid and Skene: the fit without priors, digit by digit."""

    def judges(votes):
        classes = numpyro.sample("classes", dist.Dirichlet(jnp.ones(3)))
        with numpyro.plate("judges", 3, dim=-2), numpyro.plate("true", 3, dim=-1):
            confusion = numpyro.sample("confusion", dist.Dirichlet(jnp.ones(3)))
        with numpyro.plate("items", votes.shape[1], dim=-1):
            z = numpyro.sample("z", dist.Categorical(classes))
            with numpyro.plate("judge", 3, dim=-2):
                numpyro.sample("votes", dist.Categorical(confusion[jnp.arange(3)[:, None], z]), obs=votes)

    votes = np.array([[0, 0, 1, 1, 0, 2, 0, 1], [0, 0, 1, 1, 0, 2, 1, 1], [0, 1, 1, 1, 0, 2, 0, 0]])
    rows = 0.7 * np.eye(3) + 0.1
    start = {"classes": np.ones(3) / 3, "confusion": np.broadcast_to(rows, (3, 3, 3))}
    flat = fit(judges, votes, init_params=start)
    free = fit(judges, votes, init_params=start, prior=False)
    assert flat.converged == free.converged
    assert flat.log_likelihood == pytest.approx(free.log_likelihood, abs=1e-8)
    assert flat.log_posterior == pytest.approx(flat.log_likelihood + 10 * np.log(2), abs=1e-8)

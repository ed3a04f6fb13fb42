"""What a fit reports: criteria with weights, identified dimensions, boundaries, standard errors, their cost."""

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

import emppl
from emppl.uncertainty import charts
from tests.kit.differences import numerical_errors
from tests.kit.fits import KEY, fit

RNG = np.random.default_rng(0)
X = np.where(RNG.random(80) < 0.4, RNG.normal(-1.5, 1, 80), RNG.normal(1.5, 1, 80))


def mixture(x, counts=None, seen=True):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    scale = numpyro.handlers.scale(scale=jnp.ones(len(x)) if counts is None else counts)
    with scale, numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=seen):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


# ------------------------------------------------------------------------------------------------- criteria


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


def class_model(written):
    """A mixture of two groups of categorical rows; class probabilities written in different ways."""

    def model(y, x):
        if written == "probs":
            weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
            table = numpyro.param(
                "table", jnp.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]), constraint=constraints.simplex
            )
            latent, rows = dist.Categorical(weights), lambda z: dist.Categorical(table[z])
        else:
            weights = numpyro.param("weights", jnp.log(jnp.array([0.4, 0.6])))
            table = numpyro.param("table", jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])))
            if written == "softmax":
                latent = dist.Categorical(jax.nn.softmax(weights))
            else:
                latent = dist.Categorical(logits=weights)
            rows = lambda z: dist.Categorical(logits=table[z])  # noqa: E731
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", latent)
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
            numpyro.sample("y", rows(z), obs=y)

    return model


@pytest.fixture(scope="module")
def classes():
    rng = np.random.default_rng(1)
    z = rng.random(200) < 0.5
    y = np.where(z, rng.choice(3, 200, p=[0.6, 0.3, 0.1]), rng.choice(3, 200, p=[0.2, 0.2, 0.6]))
    return y, rng.normal(size=200) + np.where(z, -1.5, 1.5)


@pytest.mark.parametrize("written", ["logits", "softmax"])
def test_logits_count_their_identified_dimensions(classes, written, capsys):
    """The same model in probabilities and in logits has the same criteria and the same standard errors elsewhere."""
    probs, logits = (fit(class_model(how), *classes, tolerance=1e-12) for how in ("probs", written))
    assert probs.num_parameters == logits.num_parameters == 1 + 2 * 2 + 2
    assert logits.aic == pytest.approx(probs.aic, abs=1e-6)
    assert logits.bic == pytest.approx(probs.bic, abs=1e-6)
    with pytest.warns(
        UserWarning, match="No standard error for '(weights|table)'.*constraint=dist.constraints.simplex"
    ):
        errors = logits.standard_errors()
    np.testing.assert_allclose(errors["mu"], probs.standard_errors()["mu"], rtol=1e-4)
    assert np.isnan(errors["weights"]).all() and np.isnan(errors["table"]).all()
    logits.print_summary()
    assert "Fix the last entry at zero: table = jnp.concatenate" in capsys.readouterr().out


@pytest.mark.slow
def test_what_the_warning_says_to_write_has_standard_errors(classes):
    """One logit fixed at zero: its standard error is that of the log odds, by the delta method from probabilities."""

    def model(y, x):
        weights = jnp.concatenate([numpyro.param("weights", jnp.zeros((1,))), jnp.zeros((1,))], -1)
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Categorical(logits=weights))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    _, x = classes
    free = fit(model, *classes, tolerance=1e-12)
    probs = fit(mixture, x, tolerance=1e-12)
    assert free.num_parameters == probs.num_parameters == 3
    w = probs.params["weights"][0]
    expected = probs.standard_errors()["weights"][0] / (w * (1 - w))
    np.testing.assert_allclose(free.standard_errors()["weights"], [expected], rtol=1e-4)


def test_softmax_regression_counts_a_reference_class(classes):
    """Coefficients of a softmax regression: one class per covariate is not identified, and ``mu`` still has an error."""

    def model(y, x):
        beta = numpyro.param("beta", jnp.array([[0.1, 0.0, -0.1], [0.0, 0.1, 0.0]]))
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
            design = jnp.stack([jnp.ones(len(x)), x], -1)
            numpyro.sample("y", dist.Categorical(logits=design @ beta), obs=y)

    result = fit(model, *classes)
    assert result.num_parameters == 2 * 2 + 2
    with pytest.warns(UserWarning, match="No standard error for 'beta'"):
        assert np.all(np.isfinite(result.standard_errors()["mu"]))


def test_logits_that_enter_elsewhere_count_in_full(classes):
    """A parameter whose level matters somewhere keeps all its dimensions, and a Normal mean does anyway."""

    def model(y, x):
        table = numpyro.param("table", jnp.array([-0.5, 0.0, 0.5]))
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z] + table[0], 1.0), obs=x)
            numpyro.sample("y", dist.Categorical(logits=table * jnp.array([1.0, 2.0, 3.0])), obs=y)

    assert fit(model, *classes, max_iterations=0).num_parameters == 5


def test_a_prior_identifies_logits(classes):
    """With a proper prior the level of the logits has a standard error; the likelihood still counts K - 1."""

    def model(y, x):
        weights = numpyro.sample("weights", dist.Normal(0, 1).expand([2]).to_event(1))
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Categorical(logits=weights))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    result = fit(model, *classes)
    errors = result.standard_errors()["weights"]
    # The sum of the two is seen by the prior only: variance 2; the difference adds at most its own 2.
    assert result.num_parameters == 3
    assert np.all((errors > np.sqrt(0.5)) & (errors < 1))


# ------------------------------------------------------------------------------------- boundary and curvature


INTERVALS = {
    "interval, upper": (constraints.interval(-3.0, 1.0), 0.5, 1.0),
    "interval, lower": (constraints.interval(2.5, 9.0), 3.5, 2.5),
    "greater than": (constraints.greater_than(2.5), 3.0, 2.5),
}


@pytest.mark.parametrize("case", INTERVALS)
def test_estimate_on_the_edge_of_an_interval(case):
    """A mean pressed against its bound is named, has no standard error, and the others have that of the model with it fixed."""
    constraint, start, edge = INTERVALS[case]

    def model(x):
        low = numpyro.param("low", -1.0)
        high = numpyro.param("high", start, constraint=constraint)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.6))
            numpyro.sample("x", dist.Normal(jnp.where(z == 1, high, low), 1.0), obs=x)

    result = fit(model, X, max_iterations=5000)
    assert result.boundary == ["high"]
    assert result.params["high"] == pytest.approx(edge, abs=1e-4)
    with pytest.warns(UserWarning, match="No standard error for entries on the boundary: high"):
        errors = result.standard_errors()
    assert np.isnan(errors["high"])

    def by_hand(v):
        return np.log(0.4 * stats.norm.pdf(X, v[0], 1) + 0.6 * stats.norm.pdf(X, edge, 1)).sum()

    expected = numerical_errors(by_hand, np.array([float(result.params["low"])]))
    np.testing.assert_allclose(errors["low"], expected[0], rtol=1e-4)
    assert "high" in result.certificate.boundary


def test_estimate_inside_an_interval_is_no_boundary():
    """The same model with wide bounds: no boundary, and both standard errors as from a numerical Hessian."""

    def model(x):
        low = numpyro.param("low", -1.0)
        high = numpyro.param("high", 0.5, constraint=constraints.interval(-4.0, 9.0))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.6))
            numpyro.sample("x", dist.Normal(jnp.where(z == 1, high, low), 1.0), obs=x)

    result = fit(model, X, tolerance=1e-12)
    assert result.boundary == []

    def by_hand(v):
        return np.log(0.4 * stats.norm.pdf(X, v[0], 1) + 0.6 * stats.norm.pdf(X, v[1], 1)).sum()

    at = np.array([float(result.params["low"]), float(result.params["high"])])
    errors = result.standard_errors()
    np.testing.assert_allclose([errors["low"], errors["high"]], numerical_errors(by_hand, at), rtol=1e-4)


def test_probability_and_rate_of_zero():
    """A component without successes, one without counts: exactly on the edge, the rest as with them fixed at zero."""
    heads = np.array([0, 0, 0, 0, 7, 8, 6, 9])
    counts = np.array([0, 0, 0, 0, 5, 2, 4, 6])

    def model(heads, counts):
        bias = numpyro.param("bias", jnp.array([0.1, 0.6]), constraint=constraints.unit_interval)
        rate = numpyro.param("rate", jnp.array([0.1, 3.0]), constraint=constraints.positive)
        with numpyro.plate("data", len(heads)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("heads", dist.Binomial(10, bias[z]), obs=heads)
            numpyro.sample("counts", dist.Poisson(rate[z]), obs=counts)

    result = fit(model, heads, counts)
    assert result.boundary == ["bias[0]", "rate[0]"]
    with pytest.warns(UserWarning, match=r"bias\[0\], rate\[0\]"):
        errors = result.standard_errors()
    assert np.isnan(errors["bias"][0]) and np.isnan(errors["rate"][0])

    def by_hand(v):
        one = stats.binom.pmf(heads, 10, v[0]) * stats.poisson.pmf(counts, v[1])
        return np.log(0.5 * ((heads == 0) & (counts == 0)) + 0.5 * one).sum()

    expected = numerical_errors(by_hand, np.array([result.params["bias"][1], result.params["rate"][1]]))
    np.testing.assert_allclose([errors["bias"][1], errors["rate"][1]], expected, rtol=1e-4)


def test_zero_in_a_simplex_and_errors_of_the_rest():
    """A category that never occurs is on the boundary; the others have multinomial standard errors."""
    y = np.repeat([0, 1, 2], [30, 50, 20])

    def model(y):
        p = numpyro.param("p", jnp.ones(4) / 4, constraint=constraints.simplex)
        with numpyro.plate("data", len(y)):
            numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Categorical(p), obs=y)

    result = fit(model, y)
    assert result.boundary == ["p[3]"]
    with pytest.warns(UserWarning, match=r"p\[3\]"):
        errors = result.standard_errors()["p"]
    p = np.array([0.3, 0.5, 0.2])
    np.testing.assert_allclose(errors[:3], np.sqrt(p * (1 - p) / 100), rtol=1e-6)
    found = result.covariance().matrix[:3, :3]
    np.testing.assert_allclose(found, (np.diag(p) - np.outer(p, p)) / 100, rtol=1e-6, atol=1e-12)


def moments_model(x):
    loc = numpyro.param("loc", jnp.zeros(2))
    cov = numpyro.param("cov", jnp.eye(2), constraint=constraints.positive_definite)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.MultivariateNormal(loc, cov), obs=x)


def test_covariance_matrix_parameter_has_wishart_errors():
    """Standard errors of a covariance matrix: Var(s_ij) = (s_ii s_jj + s_ij^2) / n."""
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([0, 1], [[2.0, 0.7], [0.7, 1.0]], 90)
    result = fit(moments_model, x)
    s = np.cov(x.T, bias=True)
    np.testing.assert_allclose(result.params["cov"], s, rtol=1e-8)
    errors = result.standard_errors()
    np.testing.assert_allclose(errors["cov"], np.sqrt((np.outer(np.diag(s), np.diag(s)) + s**2) / 90), rtol=1e-5)
    np.testing.assert_allclose(errors["loc"], np.sqrt(np.diag(s) / 90), rtol=1e-6)


@pytest.mark.parametrize(
    ("constraint", "shape"),
    [
        (constraints.real, (3,)),
        (constraints.positive, ()),
        (constraints.interval(-2.0, 5.0), (2,)),
        (constraints.simplex, (3, 4)),
        (constraints.positive_definite, (2, 3, 3)),
        (constraints.lower_cholesky, (3, 3)),
        (constraints.ordered_vector, (2, 3)),
        (constraints.corr_cholesky, (3, 3)),
    ],
)
def test_chart_jacobian_is_the_derivative_of_its_map(constraint, shape):
    """The sparse lists equal central differences of the moves, and the moves stay inside the constraint."""
    start = jnp.zeros(dist.transforms.biject_to(constraint).inverse_shape(shape))
    with jax.numpy_rank_promotion("allow"):
        point = np.asarray(dist.transforms.biject_to(constraint)(start))
    chart = charts.chart(constraint, point, 1e-5)
    rows, columns, values = charts.jacobian(constraint, chart.frame)
    dense = np.zeros((point.size, chart.frame.size))
    np.add.at(dense, (rows, columns), values)
    step = 1e-6

    def at(direction):
        return np.asarray(charts.value_at(constraint, chart.frame, jnp.asarray(direction)))

    unit = np.eye(chart.frame.size) * step
    numerical = np.stack([(at(one) - at(-one)).ravel() / (2 * step) for one in unit], -1)
    np.testing.assert_allclose(at(np.zeros(chart.frame.size)), point, atol=1e-12)
    np.testing.assert_allclose(dense, numerical, atol=1e-8)
    with jax.numpy_rank_promotion("allow"):
        assert np.all(constraint(jnp.asarray(at(unit.sum(0)))))


# ----------------------------------------------------------------------------------------------------- cost


def test_uncertainty_compiles_once_and_is_computed_once():
    """A second fit of equal shape compiles no Hessian anew, and one result computes it once."""
    em = emppl.EM(mixture)
    results = [em.run(KEY, data) for data in (X, X + 0.5)]
    compiled = results[0].fit.compiled.hessian_columns
    calls = []

    def counted(*args):
        calls.append(1)
        return compiled(*args)

    results[0].fit.compiled.hessian_columns = counted
    for result in results:
        result.standard_errors()
        result.covariance()
        result.certificate  # noqa: B018
        result.print_summary()
        result.standard_errors()
    assert len(calls) == 2
    assert compiled._cache_size() == 1


def large(y, K=2):
    weights = numpyro.param("weights", jnp.ones(K) / K, constraint=constraints.simplex)
    width = 2600
    start = jnp.ones((K, width)) + 0.1 * jnp.sin(jnp.arange(K * width)).reshape(K, width)
    table = numpyro.param("table", start / start.sum(-1, keepdims=True), constraint=constraints.simplex)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(weights))
        with numpyro.plate("words", y.shape[1], dim=-2):
            numpyro.sample("y", dist.Categorical(table[z]), obs=y.T)


def test_a_large_model_is_summarised_without_its_hessian(capsys, monkeypatch):
    """Beyond the stated limit no second derivative is taken unasked, and the line to call is printed."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2600, (30, 40))
    result = fit(large, y, max_iterations=3)
    assert result.num_parameters == 1 + 2 * 2599
    began = time.perf_counter()
    with monkeypatch.context() as patch:
        patch.setattr(result.fit.compiled, "hessian_columns", lambda *args: pytest.fail("a Hessian was computed"))
        result.print_summary()
        certificate = result.certificate
        with pytest.warns(UserWarning, match=r"result.standard_errors\(\)"):
            assert result.summary()["std_error"].isna().all()
        draws = {"table": np.stack([result.params["table"]] * 3)}
        assert np.isnan(emppl.compare(result, draws).std_error).all()
    assert time.perf_counter() - began < 20
    assert "Call result.standard_errors()" in capsys.readouterr().out
    assert np.isnan(certificate.score_norm) and "result.standard_errors()" in certificate.notes[-1]


def test_standard_errors_asked_for_are_shown_afterwards(monkeypatch):
    """The limit is about what is computed unasked: errors that exist are printed."""
    monkeypatch.setattr("emppl.result.accuracy.LARGEST", 2)
    result = fit(mixture, X)
    with pytest.warns(UserWarning, match="not computed unasked"):
        assert result.summary()["std_error"].isna().all()
    errors = result.standard_errors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(result.summary()["std_error"][2:], errors["mu"])

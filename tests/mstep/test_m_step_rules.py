"""How parameters enter: elementwise maps, linear predictors, smooth blocks by Newton, optax; against scipy and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from numpyro.distributions import constraints

import emppl
from emppl import estep
from emppl.jaxpr.layout import find_layout
from tests.kit.fits import KEY, compiled_of, fit, never_falls, rules


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return np.where(rng.random(300) < 0.4, rng.normal(-2, 0.7, 300), rng.normal(2, 1.2, 300))


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(150, 3))
    z = rng.random(150) < 0.4
    loc = np.where(z, X @ [1.0, -2.0, 0.5] + 3.0, X @ [-1.0, 1.0, 2.0] - 1.0)
    return X, loc + np.where(z, 0.5, 1.0) * rng.normal(size=150)


# ---------------------------------------------------------------------------------------------- elementwise maps

MAPS = {
    "exp": (jnp.exp, np.exp, 0.0),
    "softplus": (jax.nn.softplus, lambda s: np.log1p(np.exp(s)), 0.5),
    "log1p of exp of twice": (lambda s: jnp.exp(2 * s + 1), lambda s: np.exp(2 * s + 1), 0.0),
    "square root": (jnp.sqrt, np.sqrt, 1.0),
    "inverse square root": (lambda v: 1 / jnp.sqrt(v), lambda v: 1 / np.sqrt(v), 1.0),
}


@pytest.mark.parametrize("name", MAPS)
def test_closed_form_through_a_map(x, name):
    """The scale's weighted root mean square, whatever the parameter that it is a function of."""
    to_scale, by_numpy, start = MAPS[name]
    positive = "root" in name

    def model(x):
        s = numpyro.param("s", jnp.full(2, start), constraint=constraints.positive if positive else constraints.real)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(jnp.array([-2.0, 2.0])[z], to_scale(s)[z]), obs=x)

    em = emppl.EM(model)
    (plan,) = em.plan(x).parameters
    assert plan.rule == "closed form" and "through" in plan.update
    params = {"s": jnp.full(2, start)}
    posterior = em.e_step(params, x)
    weight = np.asarray(posterior.weights["x"])
    expected = np.sqrt((weight * (x - np.array([[-2.0], [2.0]])) ** 2).sum(-1) / weight.sum(-1))
    np.testing.assert_allclose(by_numpy(np.asarray(em.m_step(params, posterior, x)["s"])), expected, rtol=1e-12)


def test_maps_of_location_and_probability_reach_the_same_maximum(x):
    """``2 mu + 1``, ``exp`` and a logistic weight: the fit of the plain parameterisation, mapped."""

    def plain(x):
        w = numpyro.param("w", 0.4, constraint=constraints.unit_interval)
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        sigma = numpyro.param("sigma", jnp.ones(2), constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(w))
            numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)

    def mapped(x):
        w = numpyro.param("w", scipy.special.logit(0.4))
        mu = numpyro.param("mu", jnp.array([-1.0, 0.0]))
        sigma = numpyro.param("sigma", jnp.zeros(2))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(jax.nn.sigmoid(w)))
            numpyro.sample("x", dist.Normal(2 * mu[z] + 1, jnp.exp(sigma)[z]), obs=x)

    one, other = fit(plain, x), fit(mapped, x)
    assert set(rules(emppl.EM(mapped), x).values()) == {"closed form"}
    assert other.num_iterations == one.num_iterations
    assert other.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-9)
    np.testing.assert_allclose(2 * other.params["mu"] + 1, one.params["mu"], rtol=1e-8)
    np.testing.assert_allclose(np.exp(other.params["sigma"]), one.params["sigma"], rtol=1e-8)
    np.testing.assert_allclose(scipy.special.expit(other.params["w"]), one.params["w"], rtol=1e-8)
    # Seeds from the data are values of the argument: they are mapped back.
    assert fit(mapped, x, restarts=3).log_likelihood == pytest.approx(one.log_likelihood, abs=1e-8)


def test_maps_that_bind_or_have_a_prior_say_so(x):
    """A location forced to be positive, and a prior before the map, are no closed forms; the plan gives the reason."""

    def model(x):
        mu = numpyro.param("mu", jnp.array([0.0, 1.0]))
        log_sigma = numpyro.sample("log_sigma", dist.Normal(0, 1))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(jnp.exp(mu)[z], jnp.exp(log_sigma)), obs=x)

    text = str(emppl.EM(model).plan(x))
    assert "through a map (exp) whose values lie in (0.0, inf), which may bind" in text
    assert "prior Normal is on the value before the map (exp)" in text


# --------------------------------------------------------------------------------- structure of the second derivatives


BETA, ALPHA, SLOPE = ("beta", (2, 3)), ("alpha", (2,)), ("slope", (3,))
# A location by state and row: ``z`` is (2, 1) as enumeration lays it out, ``X`` is (1, rows, 3). Then the groups and probes.
STRUCTURES = {
    "rows": (lambda p, z, X: (p["beta"][z] * X).sum(-1), (BETA,), 2, 3),
    "rows and intercepts": (lambda p, z, X: (p["beta"][z] * X).sum(-1) + p["alpha"][z], (BETA, ALPHA), 2, 4),
    "common slope": (lambda p, z, X: X @ p["slope"] + p["alpha"][z], (SLOPE, ALPHA), 2, 4),
    "columns": (lambda p, z, X: (X[0] @ p["beta"].T)[jnp.arange(X.shape[1])[None], z], (BETA,), 2, 3),
    "mixed axes": (lambda p, z, X: (p["beta"][z] * X).sum(-1) * p["slope"].sum(), (BETA, SLOPE), 2, 6),
    "where": (lambda p, z, X: jnp.where(z == 1, X @ p["slope"], X[..., 0] * p["alpha"].sum()), (SLOPE, ALPHA), 0, 5),
    "states that meet": (lambda p, z, X: p["alpha"][z] + 0.5 * p["alpha"][1 - z], (ALPHA,), 0, 2),
    "deviations from a mean": (lambda p, z, X: (p["alpha"] - p["alpha"].mean())[z], (ALPHA,), 0, 2),
    "cumulated": (lambda p, z, X: jnp.cumsum(p["alpha"])[z], (ALPHA,), 0, 2),
    "cumulated within rows": (lambda p, z, X: (jnp.cumsum(p["beta"], -1)[z] * X).sum(-1), (BETA,), 2, 3),
    "softmax within rows": (lambda p, z, X: (jax.nn.softmax(p["beta"], -1)[z] * X).sum(-1), (BETA,), 2, 3),
    "softmax across rows": (lambda p, z, X: (jax.nn.softmax(p["beta"], 0)[z] * X).sum(-1), (BETA,), 0, 6),
    "stacked": (lambda p, z, X: jnp.stack([p["alpha"], 2 * p["alpha"]], -1)[z, 1], (ALPHA,), 2, 1),
    "stacked entries": (lambda p, z, X: jnp.stack([p["alpha"][1], p["alpha"][0]])[z], (ALPHA,), 2, 1),
    "indexed by data": (lambda p, z, X: p["alpha"][(X[..., 0] > 0).astype(int)], (ALPHA,), 2, 1),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structured_hessian_equals_the_dense_one(table, name):
    """Few probes give every second derivative; entries that may meet are never put into different groups."""
    loc, shapes, groups, probes = STRUCTURES[name]
    X, y = jnp.asarray(table[0]), jnp.asarray(table[1])
    weight = jnp.asarray(np.random.default_rng(0).dirichlet([1, 1], len(y)).T)

    def cells(block, X, y):
        mean = loc(block, jnp.arange(2)[:, None], X[None])
        return [-((y[None] - mean) ** 2) * (1 + mean**2)]

    layout = find_layout(cells, dict(shapes), X, y)
    assert (layout.groups, layout.probes) == (groups, probes)
    block = {n: jnp.asarray(np.random.default_rng(5).normal(size=s)) for n, s in shapes}

    def total(block):
        return jnp.sum(weight * cells(block, X, y)[0])

    @jax.jit
    def both(block):
        dense = jax.hessian(lambda vectors: total(layout.unpack(vectors)))(layout.pack(block))
        return layout.hessian(jax.grad(total), block), dense

    found, dense = both(block)
    expected = np.zeros_like(dense)
    for number in range(len(found)):
        expected[number, :, number] = found[number]
    np.testing.assert_allclose(dense, expected, atol=1e-9)


# ------------------------------------------------------------------------------------------------ linear predictors


def regressions(X, y):
    beta = numpyro.param("beta", jnp.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    alpha = numpyro.param("alpha", jnp.array([1.0, -1.0]))
    sigma = numpyro.param("sigma", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal((X * beta[z]).sum(-1) + alpha[z], sigma[z]), obs=y)


def weighted_least_squares(design, y, weight):
    root = np.sqrt(weight)
    return np.linalg.lstsq(design * root[:, None], y * root, rcond=None)[0]


def pieces(em, *args, **params):
    """One M-step by the fused path and one by the plain path, from the same parameters."""
    derived, leaves = compiled_of(em, *args)
    start = {name: jnp.asarray(value) for name, value in params.items()}
    prepared, _ = derived.prepare(leaves)
    program = derived.program
    found = jax.jit(lambda p: estep.expectations(program.model, derived.program.fused, p, leaves, prepared))(start)
    fused = jax.jit(lambda p, f: program.m_step(p, f, leaves, prepared))(start, found)
    posterior = em.e_step(start, *args)
    assert float(found.log_likelihood) == pytest.approx(float(posterior.log_likelihood), rel=1e-11)
    return fused, em.m_step(start, posterior, *args), posterior


def test_intercepts_and_slopes_are_solved_together(table):
    """Two parameters, one weighted least-squares problem per component, by both paths."""
    X, y = table
    em = emppl.EM(regressions)
    assert rules(em, X, y) == {"beta": "quadratic", "alpha": "quadratic", "sigma": "closed form"}
    assert "beta, alpha jointly" in str(em.plan(X, y)) and "2 groups of 4" in str(em.plan(X, y))
    start = {"beta": np.array([[1.0, 0, 0], [-1.0, 0, 0]]), "alpha": np.array([1.0, -1.0]), "sigma": np.ones(2)}
    fused, plain, posterior = pieces(em, X, y, **start)
    design = np.concatenate([X, np.ones((len(y), 1))], 1)
    for k, weight in enumerate(np.asarray(posterior.weights["y"])):
        solution = weighted_least_squares(design, y, weight)
        spread = np.sqrt((weight * (y - design @ solution) ** 2).sum() / weight.sum())
        for found in (fused, plain):
            np.testing.assert_allclose(np.append(found["beta"][k], found["alpha"][k]), solution, rtol=1e-10)
            assert float(found["sigma"][k]) == pytest.approx(spread, rel=1e-10)


def test_common_slope_offsets_weights_masks_and_a_prior():
    """Everything that may surround a linear predictor, in one M-step, against the normal equations written by hand."""
    rng = np.random.default_rng(2)
    X, offset, counts = rng.normal(size=(80, 2)), rng.normal(size=80), rng.integers(1, 4, 80).astype(float)
    present = rng.random(80) < 0.8
    y = offset + X @ [1.0, 2.0] + np.where(rng.random(80) < 0.5, -2.0, 2.0) + 0.5 * rng.normal(size=80)

    def model(X, y, offset, counts, present):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        alpha = numpyro.param("alpha", jnp.array([1.0, -1.0]))
        with numpyro.handlers.scale(scale=counts), numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            with numpyro.handlers.mask(mask=present):
                numpyro.sample("y", dist.Normal(offset + X @ slope + alpha[z], 0.5), obs=y)

    y = np.where(present, y, np.nan)
    args = (X, y, offset, counts, present)
    em = emppl.EM(model)
    derived, _ = compiled_of(em, *args)
    assert set(derived.program.model.regressions) == {"y"}
    fused, plain, posterior = pieces(em, *args, slope=np.array([0.5, 0.5]), alpha=np.array([1.0, -1.0]))
    weight = np.where(present, np.broadcast_to(posterior.weights["y"], (2, 80)), 0.0)
    normal, right = np.diag([0.25, 0.25, 0.0, 0.0]), np.zeros(4)
    for k in range(2):
        design = np.concatenate([X, np.eye(2)[[k]].repeat(80, 0)], 1)[present]
        w = weight[k][present] / 0.25
        normal += (design * w[:, None]).T @ design
        right += (design * w[:, None]).T @ (y - offset)[present]
    solution = np.linalg.solve(normal, right)
    for found in (fused, plain):
        np.testing.assert_allclose(np.concatenate([found["slope"], found["alpha"]]), solution, rtol=1e-9)


def longdouble_least_squares(design, y, weight):
    """Householder-free QR (modified Gram-Schmidt, twice) in extended precision."""
    root = np.sqrt(weight.astype(np.longdouble))[:, None]
    columns = np.concatenate([design.astype(np.longdouble), y.astype(np.longdouble)[:, None]], 1) * root
    size = columns.shape[1]
    upper, basis = np.zeros((size, size), np.longdouble), columns.copy()
    for j in range(size):
        for _ in range(2):
            for i in range(j):
                part = basis[:, i] @ basis[:, j]
                upper[i, j] += part
                basis[:, j] -= part * basis[:, i]
        upper[j, j] = np.sqrt(basis[:, j] @ basis[:, j])
        basis[:, j] /= upper[j, j]
    solution = np.zeros(size - 1, np.longdouble)
    for i in reversed(range(size - 1)):
        solution[i] = (upper[i, -1] - upper[i, i + 1 : -1] @ solution[i + 1 :]) / upper[i, i]
    return solution.astype(float)


def test_nearly_collinear_columns_far_from_the_origin_keep_their_digits(table):
    """Columns that differ by 1e-5, a response around 1e6, other units: eight digits, by both paths."""
    X, y = table
    near = np.stack([X[:, 0], X[:, 0] + 1e-5 * X[:, 1], 1e4 * X[:, 2]], 1)
    far = y + 1e6
    start = {"beta": np.zeros((2, 3)), "alpha": np.array([1e6 + 2, 1e6 - 2]), "sigma": np.array([2.0, 2.0])}
    fused, plain, posterior = pieces(emppl.EM(regressions), near, far, **start)
    design = np.concatenate([near, np.ones((len(y), 1))], 1)
    for k, weight in enumerate(np.asarray(posterior.weights["y"])):
        exact = longdouble_least_squares(design, far, weight)
        for found in (fused, plain):
            got = np.append(found["beta"][k], found["alpha"][k])
            np.testing.assert_allclose(got, exact, rtol=1e-8)
    with pytest.raises(AssertionError):  # the normal equations as they stand do not reach this
        normal = (design * weight[:, None]).T @ design
        np.testing.assert_allclose(np.linalg.solve(normal, (design * weight[:, None]).T @ far), exact, rtol=1e-8)


def test_a_flat_direction_gives_the_smallest_step(table):
    """A column given twice: the fit of the model without it, and equal shares for the twins when they start equal."""
    X, y = table
    twice = np.concatenate([X[:, :2], X[:, 1:2]], 1)
    start = {"beta": np.zeros((2, 3)), "alpha": np.array([1.0, -1.0]), "sigma": np.ones(2)}
    fused, plain, posterior = pieces(emppl.EM(regressions), twice, y, **start)
    design = np.concatenate([X[:, :2], np.ones((len(y), 1))], 1)
    for k, weight in enumerate(np.asarray(posterior.weights["y"])):
        slope, twin, intercept = weighted_least_squares(design, y, weight)
        for found in (fused, plain):
            got = np.append(found["beta"][k], found["alpha"][k])
            np.testing.assert_allclose(got, [slope, twin / 2, twin / 2, intercept], rtol=1e-7)


def test_a_design_that_differs_between_states_is_no_common_predictor(table):
    """Each state has its own columns: no shared statistics, but still an exact solve."""
    X, y = table

    def model(X, y):
        beta = numpyro.param("beta", jnp.array([[1.0, 0.0], [-1.0, 0.0]]))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            column = jnp.where(z == 1, X[:, 1], X[:, 2])
            numpyro.sample("y", dist.Normal(beta[z, 0] * X[:, 0] + beta[z, 1] * column, 1.0), obs=y)

    em = emppl.EM(model)
    derived, _ = compiled_of(em, X, y)
    assert rules(em, X, y) == {"beta": "quadratic"} and not derived.program.model.regressions
    params = {"beta": jnp.array([[1.0, 0.0], [-1.0, 0.0]])}
    posterior = em.e_step(params, X, y)
    new = em.m_step(params, posterior, X, y)
    for k, columns in enumerate([[0, 2], [0, 1]]):
        expected = weighted_least_squares(X[:, columns], y, np.asarray(posterior.weights["y"])[k])
        np.testing.assert_allclose(new["beta"][k], expected, rtol=1e-10)


# --------------------------------------------------------------------------------------------- some entries fixed

NAN = np.nan


def mixture(x):
    weights = numpyro.param("weights", jnp.full(3, 1 / 3), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-2.0, 0.0, 2.0]))
    sigma = numpyro.param("sigma", jnp.ones(3), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)


def test_fixed_entries_keep_the_closed_forms(x):
    """Some means, scales and weights stay; the others are where scipy finds the maximum given these."""
    fixed = {"mu": [NAN, 0.5, NAN], "sigma": [NAN, 1.5, NAN], "weights": [NAN, 0.1, NAN]}
    em = emppl.EM(mixture, fixed=fixed)
    assert set(rules(em, x).values()) == {"closed form"}
    result = em.run(KEY, x)
    assert result.converged and never_falls(result)
    for name, value in fixed.items():
        assert result.params[name][1] == value[1]

    def negative(v):
        weight = 0.9 * scipy.special.expit([v[0], -v[0]])
        log_prob = scipy.stats.norm.logpdf(
            x, np.array([v[1], 0.5, v[2]])[:, None], np.array([np.exp(v[3]), 1.5, np.exp(v[4])])[:, None]
        )
        return -scipy.special.logsumexp(log_prob + np.log([weight[0], 0.1, weight[1]])[:, None], 0).sum()

    best = scipy.optimize.minimize(negative, np.array([0.0, -2, 2, 0, 0]), method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-7)
    assert result.num_parameters == 5
    errors = result.standard_errors()
    assert all(np.isfinite(errors[name][[0, 2]]).all() for name in fixed)
    assert errors["mu"][0] == pytest.approx(np.sqrt(best.hess_inv[1, 1]), rel=0.05)
    assert not result.boundary


def test_fixed_entries_of_a_linear_predictor(table):
    """A coefficient that stays takes its column to the other side of the normal equations, by both paths."""
    X, y = table
    em = emppl.EM(regressions, fixed={"beta": [[NAN, -2.0, NAN], [NAN, NAN, NAN]]})
    start = {"beta": np.array([[1.0, -2.0, 0], [-1.0, 0, 0]]), "alpha": np.array([1.0, -1.0]), "sigma": np.ones(2)}
    fused, plain, posterior = pieces(em, X, y, **start)
    weight = np.asarray(posterior.weights["y"])
    design = np.stack([X[:, 0], X[:, 2], np.ones(len(y))], 1)
    solution = weighted_least_squares(design, y + 2.0 * X[:, 1], weight[0])
    for found in (fused, plain):
        got = [found["beta"][0, 0], found["beta"][0, 2], found["alpha"][0]]
        np.testing.assert_allclose(got, solution, rtol=1e-9)
        assert found["beta"][0, 1] == -2.0


def test_fixed_entries_of_a_smooth_block(table):
    """Newton steps on the free coefficients of a logistic regression."""
    X, y = table
    y = (y > 0).astype(float)

    def model(X, y):
        beta = numpyro.param("beta", jnp.zeros(3))
        with numpyro.plate("data", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Bernoulli(logits=X @ beta + jnp.array([-1.0, 1.0])[z]), obs=y)

    em = emppl.EM(model, fixed={"beta": [NAN, 0.5, NAN]})
    assert rules(em, X, y) == {"beta": "newton"}
    result = em.run(KEY, X, y)
    assert result.converged and result.params["beta"][1] == 0.5 and result.num_parameters == 2

    def negative(v):
        eta = X @ np.array([v[0], 0.5, v[1]]) + np.array([[-1.0], [1.0]])
        return -np.log(0.5 * scipy.special.expit(np.where(y == 1, eta, -eta)).sum(0)).sum()

    best = scipy.optimize.minimize(negative, np.zeros(2), method="BFGS")
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-8)


def test_fixed_entries_that_cannot_be_are_refused(x):
    with pytest.raises(emppl.ParameterError, match="outside its constraint 'positive'"):
        emppl.EM(mixture, fixed={"sigma": [NAN, -1.0, NAN]}).plan(x)
    with pytest.raises(emppl.ParameterError, match="leaves nothing for the free entries"):
        emppl.EM(mixture, fixed={"weights": [NAN, 0.5, 0.5]}).plan(x)
    with pytest.raises(emppl.ParameterError, match=r"shape \(2,\); the model needs \(3,\)"):
        emppl.EM(mixture, fixed={"mu": [NAN, 0.5]}).plan(x)


# -------------------------------------------------------------------------------------- constraints that may bind


def two_normals(constraint, start):
    def model(x):
        mu = numpyro.param("mu", jnp.array(start), constraint=constraint)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    return model


def test_ordered_means_take_the_closed_form_as_long_as_they_are_ordered(x):
    """The constraint does not bind: the fit of the free means, step by step."""
    start = [-1.0, 1.0]
    free = fit(two_normals(constraints.real, start), x)
    em = emppl.EM(two_normals(constraints.ordered_vector, start))
    (plan,) = em.plan(x).parameters
    assert plan.rule == "constrained" and "or else newton" in plan.update
    result = em.run(KEY, x)
    assert result.num_iterations == free.num_iterations
    np.testing.assert_allclose(result.params["mu"], free.params["mu"], rtol=1e-12)


def test_a_bound_is_where_the_maximum_is():
    """Means beyond their interval: the bound, as scipy's bounded maximiser says, and the boundary is named."""
    x = np.concatenate([np.random.default_rng(0).normal(-2, 1, 80), np.random.default_rng(1).normal(0.5, 1, 80)])
    em = emppl.EM(two_normals(constraints.interval(-1.0, 1.0), [-0.5, 0.6]))
    (plan,) = em.plan(x).parameters
    assert plan.rule == "constrained" and "or else the bound" in plan.update
    result = em.run(KEY, x)

    def negative(mu):
        return -scipy.special.logsumexp(scipy.stats.norm.logpdf(x, mu[:, None]) + np.log(0.5), 0).sum()

    best = scipy.optimize.minimize(negative, [-0.5, 0.6], bounds=[(-1, 1)] * 2, method="L-BFGS-B", tol=1e-12)
    assert best.x[0] == -1.0
    assert result.converged and never_falls(result)
    assert result.log_likelihood == pytest.approx(-best.fun, abs=1e-8)
    assert result.boundary == ["mu[0]"]

"""Linear predictors: one weighted least-squares problem, against numpy and the normal equations written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import emppl
from emppl import estep
from tests.kit.fits import compiled_of, rules


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
    prepared, _ = derived.prepared_and_report(leaves)
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

"""Second derivatives of the log-likelihood: standard errors in closed algebra, chains whose states are unreachable."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.handlers import mask as masked

import emppl
from emppl import estep
from tests.kit.differences import numerical_errors, numerical_hessian
from tests.kit.fits import fit, program_of


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


# ------------------------------------------------------------------------------- chains with unreachable states


def forward(initial, move, emission, present=None):
    """Log evidence of one sequence in plain NumPy: ``move(t)`` is the transition matrix that leads to step t."""
    alpha = np.array(initial) * np.exp(emission[0])
    for t in range(1, len(emission)):
        if present is None or present[t]:
            alpha = alpha @ move(t) * np.exp(emission[t])
    return np.log(np.sum(alpha))


def normal(y, loc, scale=0.5):
    return -(((y - loc) / scale) ** 2) / 2 - np.log(scale) - np.log(2 * np.pi) / 2


def staircase(stay, np=np):
    return np.diag(np.append(stay, 1.0)) + np.diag(1 - stay, 1)


STEPS, SEQUENCES, K = 9, 2, 4
WALKS = np.array([[0, 0, 1, 1, 1, 2, 2, 3, 3], [0, 0, 0, 1, 1, 2, 2, 0, 0]]).T
Y = np.random.default_rng(3).normal(size=(STEPS, SEQUENCES)) * 0.4 + 1.5 * WALKS
PRESENT = np.arange(STEPS)[:, None] < np.array([[STEPS, 7]])


def steps(y, present, initial, move):
    """A chain per sequence with a known start, observed with noise around the level of its state."""
    mu = numpyro.param("mu", 1.5 * jnp.arange(K))

    def body(carry, data):
        z, t = carry
        observed, there = data
        with numpyro.plate("sequences", y.shape[1]), masked(mask=there):
            z = numpyro.sample("z", dist.Categorical(jnp.where(t == 0, jnp.asarray(initial), move(z, t))))
            numpyro.sample("y", dist.Normal(mu[z], 0.5), obs=observed)
        return (z, t + 1), None

    scan(body, (jnp.zeros(y.shape[1], int), 0), (y, present))


def absorbing(y, present):
    """Four states in a row, the last one absorbs: the third is unreachable for two steps."""
    stay = numpyro.param("stay", 0.7 * jnp.ones(K - 1), constraint=constraints.unit_interval)
    steps(y, present, [1.0, 0, 0, 0], lambda z, t: staircase(stay, jnp)[z])


def absorbing_by_hand(v):
    return [1.0, 0, 0, 0], lambda t: staircase(v["stay"])


UPPER = np.triu(np.ones((K, K)))


def zeros_by_product(y, present):
    """Jumps forward of any length, written as a matrix times zeros and ones."""
    rows = numpyro.param("rows", jnp.ones((K, K)), constraint=constraints.positive)
    steps(y, present, [1.0, 0, 0, 0], lambda z, t: (UPPER * rows / jnp.sum(UPPER * rows, -1, keepdims=True))[z])


def zeros_by_product_by_hand(v):
    return [1.0, 0, 0, 0], lambda t: UPPER * v["rows"] / np.sum(UPPER * v["rows"], -1, keepdims=True)


def varying(y, present):
    """Moves are possible at even steps only."""
    stay = numpyro.param("stay", 0.7 * jnp.ones(K - 1), constraint=constraints.unit_interval)
    steps(y, present, [0.5, 0.5, 0, 0], lambda z, t: jnp.where(t % 2 == 0, staircase(stay, jnp), jnp.eye(K))[z])


def varying_by_hand(v):
    return [0.5, 0.5, 0, 0], lambda t: staircase(v["stay"]) if t % 2 == 0 else np.eye(K)


def semi_markov(y, present):
    """Two states with a least duration of two: (state, age) as four states, most moves impossible."""
    leave = numpyro.param("leave", jnp.array([0.3, 0.2]), constraint=constraints.unit_interval)
    steps(y, present, [1.0, 0, 0, 0], lambda z, t: _durations(leave, jnp)[z])


def _durations(leave, np=np):
    a, b = leave[0], leave[1]
    rows = [[0.0, 1, 0, 0], [0.0, 1 - a, a, 0], [0.0, 0, 0, 1], [b, 0, 0, 1 - b]]
    return np.stack([np.array(row) for row in rows])


def semi_markov_by_hand(v):
    return [1.0, 0, 0, 0], lambda t: _durations(v["leave"])


MU = np.array([0.1, 1.4, 2.7, 4.2])
CHAINS = {
    "absorbing": (absorbing, absorbing_by_hand, {"stay": np.array([0.6, 0.5, 0.7])}),
    "product": (zeros_by_product, zeros_by_product_by_hand, {"rows": 1 + np.arange(16).reshape(4, 4) % 5 / 3}),
    "varying": (varying, varying_by_hand, {"stay": np.array([0.6, 0.5, 0.7])}),
    "semi-Markov": (semi_markov, semi_markov_by_hand, {"leave": np.array([0.35, 0.25])}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_derivatives_of_chains_with_unreachable_states(name):
    """Value, gradient and Hessian of the log-likelihood, and the posterior, beside a recursion by hand."""
    model, by_hand, params = CHAINS[name]
    params = {"mu": MU, **params}

    def log_likelihood(values):
        initial, move = by_hand(values)
        tables = normal(Y[:, :, None], values["mu"])
        return sum(forward(initial, move, tables[:, i], PRESENT[:, i]) for i in range(SEQUENCES))

    check_derivatives(model, (Y, PRESENT), params, log_likelihood)


def check_derivatives(model, args, params, log_likelihood):
    """Compare emppl's derivatives with central differences of a function by hand."""
    flat, unravel = jax.flatten_util.ravel_pytree({name: jnp.asarray(value) for name, value in params.items()})
    plain = lambda vector: log_likelihood({n: np.asarray(v) for n, v in unravel(vector).items()})  # noqa: E731
    program, data = program_of(model, *args)
    value = lambda vector: estep.log_likelihood(program.model, unravel(vector), data)  # noqa: E731
    np.testing.assert_allclose(value(flat), plain(flat), rtol=1e-12)
    gradient = np.array([(plain(flat + 1e-5 * u) - plain(flat - 1e-5 * u)) / 2e-5 for u in np.eye(len(flat))])
    np.testing.assert_allclose(jax.jit(jax.grad(value))(flat), gradient, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        jax.jit(jax.hessian(value))(flat), numerical_hessian(plain, np.asarray(flat), 1e-4), rtol=1e-4, atol=1e-5
    )
    # The slope of Q at its own parameters is that of the log-likelihood: a check of the weights.
    em = emppl.EM(model, progress_bar=False)
    posterior = em.e_step(unravel(flat), *args)
    slope = jax.grad(lambda vector: em.q(unravel(vector), posterior, *args))(flat)
    np.testing.assert_allclose(slope, gradient, rtol=1e-6, atol=1e-6)


def test_derivatives_of_two_chains_with_unreachable_states():
    """A left-right chain that lets another one move only while it is in the middle."""

    def model(y):
        stay = numpyro.param("stay", jnp.array([0.6, 0.5]), constraint=constraints.unit_interval)
        flip = numpyro.param("flip", 0.4, constraint=constraints.unit_interval)
        mu = numpyro.param("mu", jnp.array([0.0, 2.0, 4.0]))

        def body(carry, observed):
            a, b, t = carry
            a = numpyro.sample("a", dist.Categorical(jnp.where(t == 0, jnp.eye(3)[0], staircase(stay, jnp)[a])))
            move = jnp.where(a == 1, flip, 0.0)
            b = numpyro.sample("b", dist.Bernoulli(jnp.where(t == 0, 0.0, jnp.where(b == 1, 1 - move, move))))
            numpyro.sample("y", dist.Normal(mu[a] + 0.7 * b, 0.5), obs=observed)
            return (a, b, t + 1), None

        scan(body, (0, 0, 0), y)

    y = Y[:, 0] * 0.8

    def log_likelihood(v):
        mu, flip = v["mu"], float(v["flip"])
        free = np.array([[1 - flip, flip], [flip, 1 - flip]])
        joint = np.zeros((6, 6))
        for a in range(3):
            for c in range(3):
                joint[2 * a : 2 * a + 2, 2 * c : 2 * c + 2] = staircase(v["stay"])[a, c] * (
                    free if c == 1 else np.eye(2)
                )
        loc = np.array([mu[a] + 0.7 * b for a in range(3) for b in range(2)])
        return forward(np.eye(6)[0], lambda t: joint, normal(y[:, None], loc))

    check_derivatives(model, (y,), {"stay": np.array([0.6, 0.5]), "flip": np.array(0.3), "mu": MU[:3]}, log_likelihood)


def logits_of_zeros(y, present):
    stay = numpyro.param("stay", 0.7 * jnp.ones(K - 1), constraint=constraints.unit_interval)
    mu = numpyro.param("mu", 1.5 * jnp.arange(K))
    log_move = jnp.log(staircase(stay, jnp))

    def body(carry, data):
        z, t = carry
        observed, there = data
        with numpyro.plate("sequences", y.shape[1]), masked(mask=there):
            z = numpyro.sample("z", dist.Categorical(logits=jnp.where(t == 0, jnp.log(jnp.eye(K)[0]), log_move[z])))
            numpyro.sample("y", dist.Normal(mu[z], 0.5), obs=observed)
        return (z, t + 1), None

    scan(body, (jnp.zeros(y.shape[1], int), 0), (y, present))


def test_the_logarithm_of_an_exact_zero_is_named():
    """Its second derivatives are those of the model itself, 0 / 0: neither a maximum nor errors are claimed."""
    result = fit(logits_of_zeros, Y, PRESENT, progress_bar=False)
    assert result.stop_reason is emppl.StopReason.UNFINISHED
    assert "in stay: this is no maximum" in result.stop_message and "exact zero" in result.stop_message
    with pytest.raises(ValueError, match="no maximum"):
        result.standard_errors()


def test_standard_errors_of_a_left_right_chain():
    result = fit(absorbing, Y, PRESENT, progress_bar=False)
    assert result.converged

    def log_likelihood(vector):
        initial, move = absorbing_by_hand({"stay": vector[:3]})
        tables = normal(Y[:, :, None], vector[3:])
        return sum(forward(initial, move, tables[:, i], PRESENT[:, i]) for i in range(SEQUENCES))

    at = np.concatenate([result.params["stay"], result.params["mu"]])
    errors = result.standard_errors()
    np.testing.assert_allclose(
        np.concatenate([errors["stay"], errors["mu"]]), numerical_errors(log_likelihood, at), rtol=1e-4
    )

"""Groups of continuous latents wherever and in whatever order a model reads them: two and three at a time on a grid.

The oracle is NumPyro's own density of the model, summed over a grid of all latents together.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer.util import log_density
from scipy import stats

import emppl

PARAMS = {"slope": np.array(0.4), "scale": np.array(1.1)}
BEFORE = np.array([1.0, -2.0])
Y = np.array([0, 4])
INDEX = np.array([1, 1])


def on_a_grid(model, latents, *args, side=121, width=8.0):
    """Log of the integral over two latent numbers; ``latents`` makes the sites' values of them."""
    grid, step = np.linspace(-width, width, side, retstep=True)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    with jax.numpy_rank_promotion("allow"):
        values = jax.vmap(lambda point: log_density(model, args, {}, {**PARAMS, **latents(point)})[0])(points)
    return float(jax.nn.logsumexp(values) + 2 * np.log(step))


def parameters():
    return (
        numpyro.param("slope", jnp.array(0.4)),
        numpyro.param("scale", jnp.array(1.1), constraint=constraints.positive),
    )


def counted(read, in_plate=True):
    """Counts whose log rates are read off two latents with different means."""

    def model(y, index):
        slope, scale = parameters()
        with numpyro.plate("groups", 2):
            b = numpyro.sample("b", dist.Normal(slope * BEFORE, scale))
        with numpyro.plate("groups" if in_plate else "rows", 2):
            numpyro.sample("y", dist.Poisson(jnp.exp(read(b, index))), obs=y)

    return model


READINGS = {
    "in order": lambda b, index: b,
    "reversed": lambda b, index: b[::-1],
    "by an index in the data": lambda b, index: b[index],
    "by an index of an index": lambda b, index: b[index][index],
    "by constants": lambda b, index: b[jnp.array([1, 0])],
    "rolled": lambda b, index: jnp.roll(b, 1),
    "taken along": lambda b, index: jnp.take_along_axis(b, index, 0),
    "by a product": lambda b, index: jax.nn.one_hot(index, 2) @ b,
    "written elsewhere": lambda b, index: jnp.zeros(2).at[jnp.array([1, 0])].set(b),
    "added up by an index": lambda b, index: jax.ops.segment_sum(b, index, 2),
    "one of them for all": lambda b, index: b[index[0]] * jnp.ones(2),
    "none for some": lambda b, index: jnp.where(jnp.arange(2) == 0, 0.0, b[index]),
    "both": lambda b, index: b + b[index],
    "by a branch": lambda b, index: lax.cond(index[0] == 1, lambda b: b[::-1], lambda b: b, b),
    "by a loop": lambda b, index: lax.scan(lambda s, b: (0.5 * s + b, 0.5 * s + b), 0.0, b)[1],
}
FAST = ("by an index in the data", "reversed", "none for some")


@pytest.mark.parametrize("in_plate", [True, False], ids=["in their plate", "in another plate"])
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in READINGS])
def test_quadrature_of_groups_that_are_read_in_any_order(name, in_plate):
    model = counted(READINGS[name], in_plate)
    expected = on_a_grid(model, lambda point: {"b": point}, Y, INDEX)
    found = emppl.EM(model, latents={"b": emppl.Quadrature(31)}).log_likelihood(PARAMS, Y, INDEX)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_q_of_sites_that_an_index_reads_in_their_own_plate_has_the_slope_of_the_log_likelihood():
    """Fisher's identity, with the derivative of the log-likelihood by differences of the grid."""
    model = counted(READINGS["by an index in the data"])
    em = emppl.EM(model, latents={"b": emppl.Quadrature(31)})
    posterior = em.e_step(PARAMS, Y, INDEX)
    for name in PARAMS:

        def q(value, name=name):
            return em.q({**PARAMS, name: value}, posterior, Y, INDEX)

        def log_likelihood(value, name=name):
            def at(point):
                return {"b": point, name: value}

            return on_a_grid(model, at, Y, INDEX)

        rise = (log_likelihood(PARAMS[name] + 1e-4) - log_likelihood(PARAMS[name] - 1e-4)) / 2e-4
        assert float(jax.grad(q)(jnp.asarray(PARAMS[name]))) == pytest.approx(rise, abs=1e-5)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3)])
def test_every_cell_of_two_plates_is_a_group(shape):
    """Whichever of the two plates is the larger one."""

    def model(y):
        slope, scale = parameters()
        with numpyro.plate("outer", shape[0], dim=-2), numpyro.plate("inner", shape[1], dim=-1):
            b = numpyro.sample("b", dist.Normal(slope, scale))
            numpyro.sample("y", dist.Poisson(jnp.exp(b)), obs=y)

    y = np.arange(6).reshape(shape)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    rates = np.exp(0.4 + 1.1 * nodes)
    each = [weights @ (rates**n * np.exp(-rates)) / np.sqrt(2 * np.pi) for n in range(6)]
    factorials = np.cumsum(np.log(np.arange(1, 6))).sum()
    em = emppl.EM(model, latents={"b": emppl.Quadrature(41)})
    assert float(em.log_likelihood(PARAMS, y)) == pytest.approx(np.log(each).sum() - factorials, abs=1e-6)
    assert "6 groups of 1 dimension" in str(em.plan(y))


def test_chains_that_are_read_in_another_order_are_refused():
    def model(y, read):
        slope, scale = parameters()

        def step(previous, data):
            with numpyro.plate("series", 2):
                x = numpyro.sample("x", dist.Normal(0.8 * previous + slope * BEFORE, scale))
                numpyro.sample("y", dist.Poisson(jnp.exp(x[::-1] if read == "reversed" else x)), obs=data)
            return x, None

        scan(step, jnp.zeros(2), y)

    y = np.array([[1, 2], [0, 4], [3, 1]])
    with pytest.raises(emppl.ModelError, match="in another order than that of the cells"):
        emppl.EM(model).plan(y, "reversed")
    assert "x" in str(emppl.EM(model).plan(y, "in order"))


PLANE = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])


def zero_sum_counts(y, index):
    slope, scale = parameters()
    u = numpyro.sample("u", dist.ZeroSumNormal(scale, (3,)))
    with numpyro.plate("rows", len(index)):
        numpyro.sample("y", dist.Poisson(jnp.exp(slope + u[index])), obs=y)


def test_effects_that_add_up_to_zero_are_integrated_in_their_plane():
    y, index = np.array([3, 0, 1, 5, 2, 0]), np.array([0, 1, 2, 0, 0, 1])
    em = emppl.EM(zero_sum_counts, latents={"u": emppl.Quadrature()})
    wanted = on_a_grid(zero_sum_counts, lambda point: {"u": point @ PLANE}, y, index)
    np.testing.assert_allclose(em.log_likelihood(PARAMS, y, index), wanted, rtol=1e-6)


def test_gaussian_effects_that_add_up_to_zero_are_exact():
    def model(y):
        slope, scale = parameters()
        with numpyro.plate("groups", 2, dim=-2):
            u = numpyro.sample("u", dist.ZeroSumNormal(scale, (3,)))
            with numpyro.plate("rows", 4, dim=-1):
                numpyro.sample("y", dist.Normal(slope + u, 0.7).to_event(1), obs=y)

    y = np.random.default_rng(0).normal(size=(2, 4, 3))
    covariance = np.kron(np.ones((4, 4)), PARAMS["scale"] ** 2 * (np.eye(3) - 1 / 3)) + 0.49 * np.eye(12)
    wanted = stats.multivariate_normal.logpdf(y.reshape(2, 12), np.full(12, PARAMS["slope"]), covariance).sum()
    em = emppl.EM(model, latents={"u": emppl.Gaussian()})
    np.testing.assert_allclose(em.log_likelihood(PARAMS, y), wanted, rtol=1e-6)


def test_latents_on_a_simplex_are_refused_with_what_works():
    def model(counts):
        concentration = numpyro.param("concentration", jnp.array([2.0, 3.0]), constraint=constraints.positive)
        with numpyro.plate("rows", 3):
            shares = numpyro.sample("shares", dist.Dirichlet(concentration))
            numpyro.sample("counts", dist.Multinomial(probs=shares, total_count=9), obs=counts)

    counts = np.array([[3, 6], [5, 4], [8, 1]])
    with pytest.raises(emppl.ModelError, match=r"entries that constrain each other \(simplex\).*estimate=\['shares'\]"):
        emppl.EM(model, latents={"shares": emppl.Laplace()}).plan(counts)
    assert emppl.EM(model, estimate=["shares"], fixed={"concentration": [2.0, 3.0]}).plan(counts)

"""Discrete latents: what reads them across cells, or lies elsewhere once they are enumerated, is refused.

What is not refused equals a loop over all assignments (:mod:`tests.kit.brute_force`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.ops.indexing import Vindex
from scipy import stats

import emppl
from tests.kit.brute_force import BruteForce

PARAMS = {"w": np.array([0.4, 0.6]), "mu": np.array([-1.0, 1.5])}
Y = np.array([0.3, -1.2, 2.1])


def parameters():
    weights = numpyro.param("w", jnp.ones(2) / 2, constraint=constraints.simplex)
    return weights, numpyro.param("mu", jnp.array([0.0, 1.0]))


def mixture(location):
    """Rows whose location is a function of the component means and of the states of all rows."""

    def model(y):
        weights, mu = parameters()
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("y", dist.Normal(location(mu, z), 1.0), obs=y)

    return model


def log_likelihood(model, *args):
    return float(emppl.EM(model).log_likelihood(PARAMS, *args))


def agrees(model, *args):
    assert log_likelihood(model, *args) == pytest.approx(float(BruteForce(model, PARAMS, *args).log_likelihood()))


def refused(model, *args, match):
    with pytest.raises(emppl.EMError, match=match):
        log_likelihood(model, *args)


ACROSS = {
    "mu[z[::-1]]": lambda mu, z: mu[z[::-1]],
    "mu[z][::-1]": lambda mu, z: mu[z][::-1],
    "mu[roll(z)]": lambda mu, z: mu[jnp.roll(z, 1)],
    "mu[concatenate]": lambda mu, z: mu[jnp.concatenate([z[1:], z[:1]])],
    "mu[z] + z[0]": lambda mu, z: mu[z] + z[0],
    "mu[z] + z[-1:]": lambda mu, z: mu[z] + z[-1:],
    "z - mean": lambda mu, z: mu[0] + mu[1] * (z - z.mean()),
    "mu[z] - mean": lambda mu, z: mu[z] - mu[z].mean(),
    "z - max": lambda mu, z: mu[0] + mu[1] * (z - z.max()),
    "cumsum": lambda mu, z: mu[0] + mu[1] * jnp.cumsum(z, -1),
    "sort": lambda mu, z: mu[jnp.sort(z)],
    "any": lambda mu, z: mu[z] * jnp.any(z == 1),
    "vdot": lambda mu, z: mu[z] + jnp.vdot(z * 1.0, Y),
    "A @ z": lambda mu, z: mu[0] + jnp.asarray(np.vander(Y)) @ z,
    "A @ mu[z]": lambda mu, z: jnp.asarray(np.vander(Y)) @ mu[z],
    "z[index]": lambda mu, z: mu[z[jnp.array([0, 0, 2])]],
    "where": lambda mu, z: jnp.where(z[0] == 1, mu[0], mu[z]),
    "bincount": lambda mu, z: mu[z] + jnp.bincount(z, length=2)[z],
    "segment_sum": lambda mu, z: jax.ops.segment_sum(mu[z], jnp.array([0, 0, 2]), 3),
    "at": lambda mu, z: jnp.zeros(3).at[jnp.array([2, 0, 1])].set(mu[z]),
    "at[z]": lambda mu, z: jnp.zeros(3).at[z].add(1.0),
    "convolve": lambda mu, z: jnp.convolve(mu[z], jnp.array([0.5, 0.5]), "same"),
    "fft": lambda mu, z: jnp.fft.ifft(jnp.fft.fft(mu[z])).real,
    "einsum": lambda mu, z: jnp.einsum("n,m->n", mu[z], z * 1.0),
    "outer": lambda mu, z: (mu[z][:, None] * z[None, :]).sum(-1),
    "lax.scan": lambda mu, z: jax.lax.scan(lambda s, k: (s + k, mu[k]), 0, z)[1],
    "lax.map": lambda mu, z: jax.lax.map(lambda k: mu[k], z),
    "associative_scan": lambda mu, z: jax.lax.associative_scan(jnp.maximum, mu[z]),
    "fori_loop": lambda mu, z: jax.lax.fori_loop(0, 2, lambda i, s: s[::-1] + mu[z], mu[z]),
    "take_along_axis": lambda mu, z: jnp.take_along_axis(mu[z], jnp.array([1, 2, 0]), 0),
    "diff": lambda mu, z: mu[z] + jnp.diff(z, prepend=0),
    "dynamic_slice": lambda mu, z: mu[z] + jax.lax.dynamic_slice(z, (jnp.argmax(jnp.asarray(Y)),), (1,)),
    "argmax": lambda mu, z: mu[z] + jnp.argmax(z),
    "softmax": lambda mu, z: jax.nn.softmax(mu[z]),
    "unused factor 0 * z[0]": lambda mu, z: mu[z] + 0 * z[0],
}


@pytest.mark.parametrize("name", ACROSS)
def test_a_latent_read_across_cells_is_refused(name):
    refused(mixture(ACROSS[name]), Y, match="Site 'y' reads latent 'z' across the cells of plate 'rows'")


@pytest.mark.parametrize("states", [2, 3])
def test_as_many_rows_as_states(states):
    """Indices into a latent that fit its states as well as its cells."""

    def model(y):
        weights, mu = parameters()
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(states) / states))
            numpyro.sample("y", dist.Normal(mu[z[jnp.arange(len(y))[::-1]] // 2], 1.0), obs=y)

    refused(model, Y[:states], match="across the cells of plate 'rows'")


CELLWISE = {
    "mu[z]": lambda mu, z: mu[z],
    "arithmetic": lambda mu, z: mu[0] + mu[1] * z**2,
    "where": lambda mu, z: jnp.where(z == 1, mu[0] * Y, mu[1]),
    "one_hot": lambda mu, z: jax.nn.one_hot(z, 2) @ mu,
    "rows of a table": lambda mu, z: Vindex(jnp.outer(jnp.arange(3), mu))[jnp.arange(3), z],
    "linear predictor": lambda mu, z: (jnp.asarray(np.vander(Y, 2)) * jnp.stack([mu, -mu], -1)[z]).sum(-1),
    "last axis": lambda mu, z: jnp.stack([mu[z], 2 * mu[z]], -1).max(-1),
    "inverse of matrices": lambda mu, z: jnp.linalg.inv(jnp.eye(2) * (2 + mu[:, None, None]))[z][..., 0, 0],
    "solution": lambda mu, z: jnp.linalg.solve(jnp.eye(2) * (2 + mu[z])[..., None, None], jnp.ones((2, 1)))[..., 0, 0],
    "determinant": lambda mu, z: jnp.linalg.slogdet(jnp.eye(2) * (2 + mu[z])[..., None, None])[1],
    "eigenvalues": lambda mu, z: jnp.linalg.eigvalsh(jnp.eye(2) * mu[z][..., None, None])[..., 0],
    "lax.scan of other things": lambda mu, z: jax.lax.scan(lambda s, x: (s + x * mu[z], s), mu[z], jnp.ones(2))[0],
    "zeros_like": lambda mu, z: mu[z] + jnp.zeros_like(z),
    "digitize": lambda mu, z: mu[jnp.digitize(z, jnp.array([0.5]))],
}


@pytest.mark.parametrize("name", CELLWISE)
def test_cell_by_cell(name):
    agrees(mixture(CELLWISE[name]), Y)


def test_a_latent_in_another_plate_of_its_size():
    def model(y):
        weights, mu = parameters()
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(weights))
        with numpyro.plate("others", len(y)):
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    refused(model, Y, match="plate 'rows', which are no cells of 'y'")


def test_two_plates_of_one_size_crosswise():
    def model(y, turned):
        weights, mu = parameters()
        rows, columns = numpyro.plate("rows", 2, dim=-2), numpyro.plate("columns", 2, dim=-1)
        with rows:
            z = numpyro.sample("z", dist.Categorical(weights))
        with rows, columns:
            numpyro.sample("y", dist.Normal(mu[z.T if turned else z], 1.0), obs=y)

    y = np.array([[0.1, 1.0], [-2.0, 0.5]])
    agrees(model, y, False)
    refused(model, y, True, match="plate 'rows', which are no cells of 'y'")


def test_a_factor_of_several_cells():
    def model(y):
        weights, mu = parameters()
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        numpyro.factor("all alike", -(mu[z].std()))

    refused(model, Y, match="Site 'all alike' reads latent 'z' across the cells of plate 'rows'")


def test_a_latent_that_no_plate_repeats_keeps_its_axis_of_states():
    """An accumulation without an axis would run over the states too; at one state at a time it does not."""

    def model(y):
        weights, mu = parameters()
        z = numpyro.sample("z", dist.Categorical(weights))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(jnp.cumsum(mu[z] * jnp.ones(len(y))) * (1 + z.sum()), 1.0), obs=y)

    agrees(model, Y)


def test_a_continuous_latent_stands_between_a_state_and_the_data():
    """Its draws would come from a loop of JAX's, of which nothing is known."""

    def model(y):
        weights, mu = parameters()
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(weights))
            b = numpyro.sample("b", dist.Gamma(jnp.exp(mu)[z], 1.0))
            numpyro.sample("y", dist.Poisson(b), obs=y)

    y, shapes = np.array([0, 3, 1]), np.exp(PARAMS["mu"])
    each = [PARAMS["w"] @ stats.nbinom.pmf(n, shapes, 0.5) for n in y]
    em = emppl.EM(model, latents={"b": emppl.Quadrature(41)})
    assert float(em.log_likelihood(PARAMS, y)) == pytest.approx(np.log(each).sum(), abs=1e-5)


def test_a_long_computation_from_data_alone():
    def model(y):
        weights, mu = parameters()
        x = y
        for _ in range(1500):
            x = 0.9 * x
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("y", dist.Normal(mu[z] + x, 1.0), obs=y)

    assert "z" in str(emppl.EM(model).plan(Y))


def test_data_of_another_shape_are_named():
    def model(y):
        weights, mu = parameters()
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(2) + z[..., None], jnp.eye(2)), obs=y)

    with pytest.raises(emppl.DataError, match="Site 'y': the value has event shape"):
        log_likelihood(model, np.zeros((3, 3)))


# ------------------------------------------------------------------------------------- where the axis of states lies

CATEGORIES = {
    "stack": lambda p, z: jnp.stack([1 - p[z], p[z]]),
    "array": lambda p, z: jnp.array([1 - p[z], p[z]]),
    "stack, axis 1": lambda p, z: jnp.stack([1 - p[z], p[z]], 1),
    "stack, transposed": lambda p, z: jnp.stack([1 - p[z], p[z]]).T,
    "vstack, transposed": lambda p, z: jnp.vstack([1 - p[z], p[z]]).T,
    "column_stack": lambda p, z: jnp.column_stack([1 - p[z], p[z]]),
    "concatenate": lambda p, z: jnp.concatenate([1 - p[z][:, None], p[z][:, None]], 1),
    "one-hot, transposed": lambda p, z: ((jnp.arange(2)[:, None] == z) * 1.0).T @ jnp.stack([1 - p, p], -1),
    "take": lambda p, z: jnp.take(jnp.stack([1 - p, p]), z, axis=1).T,
    "vmap": lambda p, z: jax.vmap(lambda k: jnp.stack([1 - p[k], p[k]]))(z),
    "position by the latent's size": lambda p, z: jnp.stack([1 - p[z] ** (1 + jnp.arange(z.shape[-1]))] * 2, -1),
    "stack, last": lambda p, z: jnp.stack([1 - p[z], p[z]], -1),
    "moveaxis": lambda p, z: jnp.moveaxis(jnp.stack([1 - p[z], p[z]]), 0, -1),
    "rows of a table": lambda p, z: jnp.stack([1 - p, p], -1)[z],
}


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("in_plate", [True, False], ids=["in the plate", "outside"])
@pytest.mark.parametrize("name", CATEGORIES)
def test_categories_lie_behind_states_or_are_refused(name, in_plate, rows):
    """As many rows, states and categories as each other: every shape fits, whatever lies along an axis."""

    def model(y):
        weights, mu = parameters()
        plate, p = numpyro.plate("rows", len(y)), jax.nn.sigmoid(mu)
        if in_plate:
            with plate:
                z = numpyro.sample("z", dist.Categorical(weights))
        else:
            z = numpyro.sample("z", dist.Categorical(weights))
        with plate:
            numpyro.sample("y", dist.Categorical(CATEGORIES[name](p, z)), obs=y)

    y = np.array([0, 1, 1])[:rows]
    try:
        expected = float(BruteForce(model, PARAMS, y).log_likelihood())
    except (ValueError, IndexError, TypeError):
        pytest.skip("no model: it does not fit the data")
    try:
        got = log_likelihood(model, y)
    except emppl.ModelError as error:
        assert name not in ("stack, last", "moveaxis", "rows of a table")
        assert "axis=-1" in str(error) or "across the cells" in str(error) or "failed" in str(error)
        return
    assert got == pytest.approx(expected)


def chain(categories):
    def model(y, x):
        weights, mu = parameters()

        def step(previous, data):
            leave = jax.nn.sigmoid(mu[previous] * data[1])
            z = numpyro.sample("z", dist.Categorical(categories(leave)))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=data[0])
            return z, None

        scan(step, 0, (y, x))

    return model


def test_a_chain_whose_categories_lie_in_front_of_its_states():
    """An input-output hidden Markov model as people write it, which is right at one state at a time."""
    x = np.array([0.5, -1.0, 2.0])
    mu = PARAMS["mu"]
    alpha = np.array([1.0, 0.0])
    for y, covariate in zip(Y, x, strict=True):
        leave = 1 / (1 + np.exp(-mu * covariate))
        alpha = alpha @ np.stack([1 - leave, leave], -1) * np.exp(-((y - mu) ** 2) / 2) / np.sqrt(2 * np.pi)
    as_written = [
        lambda leave: jnp.stack([1 - leave, leave]),
        lambda leave: jnp.array([1 - leave, leave]),
        lambda leave: jnp.stack([1 - leave, leave], axis=-1),
    ]
    for probs in as_written:
        assert log_likelihood(chain(probs), Y, x) == pytest.approx(np.log(alpha.sum()))


def test_a_chain_that_reads_states_of_other_sequences():
    def model(y, shift):
        weights, mu = parameters()

        def step(previous, data):
            with numpyro.plate("sequences", 2):
                probs = jnp.stack([weights, weights[::-1]])
                z = numpyro.sample("z", dist.Categorical(probs[previous[::-1] if shift else previous]))
                numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=data)
            return z, None

        scan(step, jnp.zeros(2, int), y)

    y = np.array([[0.1, 1.0], [-2.0, 0.5], [0.3, 0.4]])
    assert np.isfinite(log_likelihood(model, y, False))
    refused(model, y, True, match="Site 'z' reads latent 'z' across the cells of plate 'sequences'")


class Around(dist.Distribution):
    """An own distribution that does not say how many axes of its centre belong to one event."""

    arg_constraints = {"centre": constraints.dependent}
    support = constraints.real
    pytree_data_fields = ("centre",)

    def __init__(self, centre, *, validate_args=None):
        self.centre = centre
        super().__init__(jnp.shape(centre), (), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        return jnp.zeros(sample_shape + self.batch_shape) + self.centre

    def log_prob(self, value):
        return -0.5 * (value - self.centre) ** 2 - 0.5 * np.log(2 * np.pi)


def test_arguments_of_unknown_rank():
    """A class that does not say where the events of its arguments are is used where states keep to their axis."""

    def model(x):
        centres = numpyro.param("centres", jnp.array([0.0, 2.0]))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", Around(centres[z]), obs=x)

    x = np.array([0.1, 2.2, 1.9, -0.3])
    expected = np.sum(np.log(0.6 * np.exp(-0.5 * x**2) + 0.4 * np.exp(-0.5 * (x - 2) ** 2)) - 0.5 * np.log(2 * np.pi))
    got = emppl.EM(model, progress_bar=False).log_likelihood({"centres": jnp.array([0.0, 2.0])}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-12)

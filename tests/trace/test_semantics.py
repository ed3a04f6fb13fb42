"""What NumPyro's constructs mean, against a loop over assignments and NumPyro's own enumeration.

Plates, ``obs_mask``, masks, wrappers, shared parameters, latents of one state; and when a model runs again.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.ops.indexing import Vindex

import emppl
from tests.kit.brute_force import BruteForce
from tests.kit.fits import KEY


def agrees(model, params, *args):
    """Log-likelihood, posterior marginals and decoding equal brute force; the M-step raises its objective."""
    oracle, em = BruteForce(model, params, *args), emppl.EM(model, max_iterations=0)
    expected = float(oracle.log_likelihood())
    np.testing.assert_allclose(em.log_likelihood(params, *args), expected, rtol=1e-10, atol=1e-10)
    result = em.run(KEY, *args, init_params=params)
    np.testing.assert_allclose(result.log_likelihood, expected, rtol=1e-10, atol=1e-10)
    for name, table in oracle.marginals().items():
        got, present = result.posterior(name), np.isfinite(table)
        assert got.shape == table.shape
        np.testing.assert_allclose(got[present], table[present], rtol=0, atol=1e-10)
    new = em.m_step(params, em.e_step(params, *args), *args)
    after = BruteForce(model, new, *args)
    before = expected + float(oracle.log_prior(oracle.params))
    assert float(after.log_likelihood()) + float(after.log_prior(after.params)) >= before - 1e-12 * abs(before)
    return result, oracle


MIXTURE = {"w": np.array([0.2, 0.5, 0.3]), "mu": np.array([-1.0, 0.5, 2.0])}


def three():
    weights = numpyro.param("w", jnp.ones(3) / 3, constraint=constraints.simplex)
    return weights, numpyro.param("mu", jnp.array([-1.0, 0.0, 1.0]))


def test_partly_known_labels():
    """``obs_mask``: known labels are certain, the evidence is that of the known labels' joint density."""

    def model(x, labels, known):
        weights, mu = three()
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights), obs=labels, obs_mask=known)
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    x, labels = np.array([0.3, -0.7, 1.9, 0.1]), np.array([0, 1, 2, 0])
    known = np.array([True, False, True, False])
    oracle = BruteForce(model, MIXTURE, x, labels, known)
    em = emppl.EM(model, max_iterations=0)
    np.testing.assert_allclose(em.log_likelihood(MIXTURE, x, labels, known), oracle.log_likelihood(), rtol=1e-12)
    result = em.run(KEY, x, labels, known, init_params=MIXTURE)
    table = oracle.marginals()["z_unobserved"]
    np.testing.assert_allclose(result.posterior("z")[~known], table[~known], atol=1e-12)
    np.testing.assert_allclose(result.posterior("z")[known], np.eye(3)[labels[known]], atol=1e-12)
    np.testing.assert_array_equal(result.decode()["z"][known], labels[known])
    weights = em.m_step(MIXTURE, em.e_step(MIXTURE, x, labels, known), x, labels, known)["w"]
    expected = np.where(known[:, None], np.eye(3)[labels], table).sum(0) / len(x)
    np.testing.assert_allclose(weights, expected, rtol=1e-10)


@pytest.mark.parametrize("covers", ["latent and data", "data"])
def test_masked_cells(covers):
    """A mask over latent and data removes the cell; over the data alone it leaves the latent's prior."""

    def model(x, keep):
        weights, mu = three()
        with numpyro.plate("rows", len(x)):
            if covers == "data":
                z = numpyro.sample("z", dist.Categorical(weights))
                with numpyro.handlers.mask(mask=keep):
                    numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
            else:
                with numpyro.handlers.mask(mask=keep):
                    z = numpyro.sample("z", dist.Categorical(weights))
                    numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    x, keep = np.array([0.3, np.nan, 1.9]), np.array([True, False, True])
    result, _ = agrees(model, MIXTURE, x, keep)
    if covers == "data":
        np.testing.assert_allclose(result.posterior("z")[1], MIXTURE["w"], rtol=1e-12)


def test_nan_elements_of_a_vector_are_left_out():
    """A mask inside ``to_event`` leaves single elements out; NaN there reaches neither value nor derivative."""

    def model(x, keep):
        weights = numpyro.param("w", jnp.ones(3) / 3, constraint=constraints.simplex)
        mu = numpyro.param("mu", jnp.zeros((3, 2)))
        sigma = numpyro.param("sigma", jnp.ones(2), constraint=constraints.positive)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(mu[z], sigma).mask(keep).to_event(1), obs=x)

    x = np.array([[0.3, np.nan], [np.nan, np.nan], [1.9, -0.4], [0.2, 0.8]])
    params = {"w": MIXTURE["w"], "mu": np.array([[-1.0, 0.0], [0.5, 1.0], [2.0, -1.0]]), "sigma": np.array([0.7, 1.3])}
    agrees(model, params, x, ~np.isnan(x))
    em = emppl.EM(model)
    gradient = jax.grad(lambda p: em.log_likelihood(p, x, ~np.isnan(x)))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in gradient.values())
    seen = ~np.isnan(x[:, 1])
    responsibility = np.asarray(em.e_step(params, x, ~np.isnan(x)).weights["x"].reshape(3, 4))[:, seen]
    second = responsibility @ x[seen, 1] / responsibility.sum(1)
    new = em.m_step(params, em.e_step(params, x, ~np.isnan(x)), x, ~np.isnan(x))["mu"]
    np.testing.assert_allclose(new[:, 1], second, rtol=1e-10)


GROUPS = {"v": np.array([0.3, 0.7]), "w": np.array([[0.2, 0.8], [0.6, 0.4]]), "mu": np.array([[-1.0, 0.5], [0.0, 2.0]])}


@pytest.mark.parametrize("dims", [(-2, -1), (-1, -2), (-3, -1)])
def test_nested_plates_at_any_dimension(dims):
    """A latent per group above a latent per row, whatever ``dim=`` the plates have."""

    def model(x):
        v = numpyro.param("v", jnp.ones(2) / 2, constraint=constraints.simplex)
        w = numpyro.param("w", jnp.ones((2, 2)) / 2, constraint=constraints.simplex)
        mu = numpyro.param("mu", jnp.zeros((2, 2)))
        with numpyro.plate("groups", 2, dim=dims[0]):
            g = numpyro.sample("g", dist.Categorical(v))
            with numpyro.plate("rows", 3, dim=dims[1]):
                z = numpyro.sample("z", dist.Categorical(w[g]))
                numpyro.sample("x", dist.Normal(mu[g, z], 1.0), obs=x)

    shape = [1] * -min(dims)
    shape[dims[0]], shape[dims[1]] = 2, 3
    agrees(model, GROUPS, np.random.default_rng(3).normal(size=shape))


def test_overlapping_plates():
    """Row labels beside column data: two plates that cross, with latents in one of them only."""

    def model(x, y):
        w = numpyro.param("w", jnp.ones(2) / 2, constraint=constraints.simplex)
        mu = numpyro.param("mu", jnp.zeros((2, 4)))
        nu = numpyro.param("nu", jnp.zeros(4))
        rows, columns = numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1)
        with rows:
            z = numpyro.sample("z", dist.Categorical(w))
        with columns:
            numpyro.sample("y", dist.Normal(nu, 1.0), obs=y)
        with rows, columns:
            numpyro.sample("x", dist.Normal(mu[z, jnp.arange(4)], 1.0), obs=x)

    rng = np.random.default_rng(4)
    params = {"w": np.array([0.4, 0.6]), "mu": rng.normal(size=(2, 4)), "nu": rng.normal(size=4)}
    agrees(model, params, rng.normal(size=(3, 4)), rng.normal(size=4))


def test_latent_outside_the_plate_of_its_data():
    """One global label for a whole plate of data."""

    def model(x):
        weights, mu = three()
        z = numpyro.sample("z", dist.Categorical(weights))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    result, _ = agrees(model, MIXTURE, np.array([0.3, -0.7, 0.4]))
    assert result.posterior("z").shape == (3,)
    assert result.decode()["z"].shape == ()


def test_two_plates_at_the_same_dimension():
    """Two data sets of different length, each in a plate at dimension -1, share the parameters."""

    def model(x, y):
        weights, mu = three()
        for name, data in (("x", x), ("y", y)):
            with numpyro.plate(f"{name}_rows", len(data)):
                z = numpyro.sample(f"{name}_z", dist.Categorical(weights))
                numpyro.sample(name, dist.Normal(mu[z], 1.0), obs=data)

    x, y = np.array([0.3, -0.7, 0.4]), np.array([1.0, 2.0])
    agrees(model, MIXTURE, x, y)
    em = emppl.EM(model)
    posterior = em.e_step(MIXTURE, x, y)
    counts = sum(posterior.weights[n].reshape(3, -1).sum(1) for n in ("x_z", "y_z"))
    np.testing.assert_allclose(em.m_step(MIXTURE, posterior, x, y)["w"], counts / 5, rtol=1e-12)


WRAPPERS = {
    "expand, mask, to_event": lambda fn, keep: fn.expand((4, 2)).mask(keep).to_event(1),
    "mask, to_event": lambda fn, keep: fn.mask(keep).to_event(1),
    "to_event, mask": lambda fn, keep: fn.to_event(1).mask(keep[:, 0]),
    "to_event, expand, mask": lambda fn, keep: fn.to_event(1).expand((4,)).mask(keep[:, 0]),
    "mask, expand, to_event": lambda fn, keep: fn.mask(keep).expand((4, 2)).to_event(1),
    "mask, to_event, mask": lambda fn, keep: fn.mask(keep).to_event(1).mask(keep[:, 1]),
    "expand twice": lambda fn, keep: fn.expand((4, 2)).expand((4, 2)).to_event(1).expand((4,)),
}


@pytest.mark.parametrize("order", [order for order in WRAPPERS if "expand" not in order])
def test_wrappers_in_any_order(order):
    """``to_event`` and ``mask`` in any order (NumPyro cannot expand an enumerated batch to a fixed shape)."""

    def model(x, keep):
        weights, mu = three()
        z = numpyro.sample("z", dist.Categorical(weights))
        with numpyro.plate("rows", 4):
            numpyro.sample("x", WRAPPERS[order](dist.Normal(mu[z][..., None], jnp.array([0.5, 1.5])), keep), obs=x)

    rng = np.random.default_rng(5)
    x, keep = rng.normal(size=(4, 2)), np.array([[True, True], [True, False], [False, True], [False, False]])
    agrees(model, MIXTURE, x, keep)


@pytest.mark.parametrize("order", WRAPPERS)
def test_wrappers_of_a_site_without_latents(order):
    """The same wrappers, expansions too, on a site that no latent indexes."""

    def model(x, y, keep):
        weights, mu = three()
        with numpyro.plate("other", len(y)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        shift = numpyro.param("shift", jnp.zeros(2))
        with numpyro.plate("rows", 4):
            numpyro.sample("x", WRAPPERS[order](dist.Normal(shift, jnp.array([0.5, 1.5])), keep), obs=x)

    rng = np.random.default_rng(5)
    x, keep = rng.normal(size=(4, 2)), np.array([[True, True], [True, False], [False, True], [False, False]])
    params = {**MIXTURE, "shift": np.array([0.3, -0.6])}
    agrees(model, params, x, np.array([0.1, 0.9, -0.4]), keep)


def test_latent_with_one_state():
    """K = 1: the evidence is the plain likelihood, the posterior is certain, the M-step is maximum likelihood."""

    def model(x):
        mu = numpyro.param("mu", jnp.zeros(1))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(1)))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    x = np.array([0.3, -0.7, 0.4])
    result, _ = agrees(model, {"mu": np.array([0.2])}, x)
    np.testing.assert_array_equal(result.posterior("z"), np.ones((3, 1)))
    em = emppl.EM(model)
    params = {"mu": np.array([0.2])}
    np.testing.assert_allclose(em.m_step(params, em.e_step(params, x), x)["mu"], [x.mean()], rtol=1e-12)


def test_sites_sharing_a_parameter():
    """One vector of rates in two Poisson sites and a scale in two Normal sites: statistics add up over sites."""

    def model(counts, more, x, y):
        w = numpyro.param("w", jnp.ones(2) / 2, constraint=constraints.simplex)
        rate = numpyro.param("rate", jnp.ones(2), constraint=constraints.positive)
        scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
        with numpyro.plate("rows", len(counts)):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("counts", dist.Poisson(rate[z]), obs=counts)
            numpyro.sample("more", dist.Poisson(rate[1 - z]), obs=more)
            numpyro.sample("x", dist.Normal(0.0, scale), obs=x)
            numpyro.sample("y", dist.Normal(2.0, scale), obs=y)

    rng = np.random.default_rng(6)
    counts, more = rng.poisson(3.0, 4), rng.poisson(1.0, 4)
    x, y = rng.normal(size=4), rng.normal(2, 1, size=4)
    params = {"w": np.array([0.4, 0.6]), "rate": np.array([1.0, 3.0]), "scale": np.array(0.8)}
    agrees(model, params, counts, more, x, y)
    em = emppl.EM(model)
    posterior = em.e_step(params, counts, more, x, y)
    r = posterior.weights["counts"].reshape(2, 4)
    new = em.m_step(params, posterior, counts, more, x, y)
    np.testing.assert_allclose(new["rate"], (r @ counts + r[::-1] @ more) / (r + r[::-1]).sum(1), rtol=1e-12)
    np.testing.assert_allclose(new["scale"], np.sqrt((np.sum(x**2) + np.sum((y - 2) ** 2)) / 8), rtol=1e-12)


# -------------------------------------------------------------------- NumPyro's own enumeration, through funsor


def pair(x):
    v = numpyro.param("v", jnp.ones(2) / 2, constraint=constraints.simplex)
    w = numpyro.param("w", jnp.ones((2, 2)) / 2, constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.zeros((2, 2)))
    with numpyro.plate("groups", 2, dim=-2):
        g = numpyro.sample("g", dist.Categorical(v), infer={"enumerate": "parallel"})
        with numpyro.plate("rows", 50, dim=-1):
            z = numpyro.sample("z", dist.Categorical(Vindex(w)[g]), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(Vindex(mu)[g, z], 1.0), obs=x)


def chain(x):
    v = numpyro.param("v", jnp.ones(2) / 2, constraint=constraints.simplex)
    w = numpyro.param("w", jnp.ones((2, 2)) / 2, constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.zeros((2, 2)))
    with numpyro.plate("sequences", x.shape[0]):
        z = numpyro.sample("z0", dist.Categorical(v), infer={"enumerate": "parallel"})
        for t in range(1, x.shape[1]):
            last, z = z, numpyro.sample(f"z{t}", dist.Categorical(Vindex(w)[z]), infer={"enumerate": "parallel"})
            numpyro.sample(f"x{t}", dist.Normal(Vindex(mu)[last, z], 1.0), obs=x[:, t])


@pytest.mark.slow  # NumPyro's enumeration compiles for long
@pytest.mark.parametrize("model, shape", [(pair, (2, 50)), (chain, (3, 5))])
def test_log_likelihood_equals_numpyros_enumeration(model, shape):
    """Value and gradient equal ``numpyro.contrib.funsor.log_density`` on models too large for a loop."""
    pytest.importorskip("funsor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # funsor's own deprecations
        from numpyro.contrib.funsor import config_enumerate, enum, log_density

    x, em = np.random.default_rng(7).normal(size=shape), emppl.EM(model)

    def theirs(params):
        with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
            warnings.simplefilter("ignore")
            return log_density(enum(config_enumerate(model), -3), (x,), {}, params)[0]

    params = {name: jnp.asarray(value) for name, value in GROUPS.items()}
    expected, wanted = jax.value_and_grad(theirs)(params)
    value, gradient = jax.value_and_grad(lambda p: em.log_likelihood(p, x))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for name in params:
        np.testing.assert_allclose(gradient[name], wanted[name], rtol=1e-9, atol=1e-9)


def test_model_runs_again_only_for_new_shapes():
    """The model's Python code is not run for new values of the same shape, in no piece and in no fit."""
    calls = []

    def model(x):
        calls.append(len(x))
        weights, mu = three()
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    def use(x):
        posterior = em.e_step(MIXTURE, x)
        em.m_step(MIXTURE, posterior, x), em.q(MIXTURE, posterior, x), em.log_likelihood(MIXTURE, x)
        em.run(KEY, x).posterior("z")

    em = emppl.EM(model, max_iterations=3)
    x = np.random.default_rng(8).normal(size=20)
    use(x)
    seen = len(calls)
    use(x + 0.1)
    assert len(calls) == seen
    em.log_likelihood(MIXTURE, x[:10])
    assert len(calls) > seen


def test_pieces_compose_with_jax():
    """``jit``, ``vmap`` over parameters and ``grad`` of the pieces; the gradient is brute force's."""

    def model(x):
        weights, mu = three()
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    x, em = np.array([0.3, -0.7, 1.9]), emppl.EM(model)
    step = lambda params: em.m_step(params, em.e_step(params, x), x)  # noqa: E731
    new = jax.jit(step)(MIXTURE)
    several = jax.tree.map(lambda *leaves: jnp.stack(leaves), MIXTURE, new)
    batched = jax.vmap(step)(several)
    for name in MIXTURE:
        np.testing.assert_allclose(batched[name][0], new[name], rtol=1e-13)
        np.testing.assert_allclose(batched[name][1], step(new)[name], rtol=1e-13)
    oracle = BruteForce(model, MIXTURE, x)
    params = {name: jnp.asarray(value) for name, value in MIXTURE.items()}
    gradient, wanted = jax.grad(lambda p: em.log_likelihood(p, x))(params), jax.grad(oracle.log_likelihood)(params)
    posterior = em.e_step(params, x)
    score = jax.grad(lambda p: em.q(p, posterior, x))(params)
    for name in params:
        np.testing.assert_allclose(gradient[name], wanted[name], rtol=1e-10)
        np.testing.assert_allclose(score[name], wanted[name], rtol=1e-10)  # Fisher's identity

"""What NumPyro's constructs mean under EM: weights, masks, labels, plates, priors on priors, and what is refused."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from brute_force import BruteForce
from numpyro.distributions import constraints
from numpyro.ops.indexing import Vindex

import emppl

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = np.where(RNG.random(40) < 0.5, RNG.normal(-2, 1, 40), RNG.normal(2, 1, 40))
PARAMS = {"mu": np.array([-1.0, 1.5])}


def body(x, mu):
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def start():
    return numpyro.param("mu", jnp.array([-1.0, 1.0]))


def plain(x):
    mu = start()
    with numpyro.plate("data", len(x)):
        body(x, mu)


def by_hand(x):
    """Log marginal density of every row at PARAMS, written out."""
    density = [
        w * np.exp(-0.5 * (x - m) ** 2) / np.sqrt(2 * np.pi) for w, m in zip((0.7, 0.3), PARAMS["mu"], strict=True)
    ]
    return np.log(density[0] + density[1])


def log_likelihood(model, *args):
    return float(emppl.EM(model).log_likelihood(PARAMS, *args))


def test_weights_equal_replication():
    """A per-cell weight counts the cell that many times, in the likelihood, the fit, BIC and the posterior."""

    def weighted(x, counts):
        mu = start()
        with numpyro.handlers.scale(scale=counts), numpyro.plate("data", len(x)):
            body(x, mu)

    counts = RNG.integers(1, 4, 40)
    assert log_likelihood(weighted, X, counts) == pytest.approx(np.sum(counts * by_hand(X)), abs=1e-9)
    one = emppl.EM(weighted, progress_bar=False).run(KEY, X, counts)
    other = emppl.EM(plain, progress_bar=False).run(KEY, np.repeat(X, counts))
    np.testing.assert_allclose(one.params["mu"], other.params["mu"], rtol=1e-6)
    assert one.bic == pytest.approx(other.bic, rel=1e-8)
    np.testing.assert_allclose(np.repeat(one.posterior("z"), counts, 0), other.posterior("z"), atol=1e-6)


def test_cells_of_weight_zero_count_nothing_but_have_a_posterior():
    """Empty cells of a table leave likelihood and fit alone; their posterior and decoding are still right."""

    def weighted(x, counts):
        mu = start()
        with numpyro.handlers.scale(scale=counts), numpyro.plate("data", len(x)):
            body(x, mu)

    counts = np.ones(40)
    counts[5] = 0
    assert log_likelihood(weighted, X, counts) == pytest.approx(np.sum(counts * by_hand(X)), abs=1e-9)
    result = emppl.EM(weighted, progress_bar=False).run(KEY, X, counts)
    full = emppl.EM(plain, progress_bar=False, max_iterations=0).run(KEY, X, init_params=result.params)
    np.testing.assert_allclose(result.posterior("z"), full.posterior("z"), atol=1e-12)
    np.testing.assert_array_equal(result.decode()["z"], full.decode()["z"])


def test_masked_rows_are_absent():
    """A mask around latent and data removes the row, without a constant for its states."""

    def masked(x, seen):
        mu = start()
        with numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=seen):
            body(x, mu)

    seen = RNG.random(40) < 0.6
    assert log_likelihood(masked, X, seen) == pytest.approx(by_hand(X)[seen].sum(), abs=1e-9)


def labelled(x, labels, known, seen, inner=False):
    mu = start()
    coin = dist.Bernoulli(0.3)
    with numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=True if inner else seen):
        z = numpyro.sample("z", coin.mask(seen) if inner else coin, obs=labels, obs_mask=known)
        numpyro.sample("x", dist.Normal(mu[z], 1.0).mask(seen), obs=x)


@pytest.mark.parametrize("inner", [False, True])
def test_labels_under_a_mask(inner):
    """Known labels enter as the joint density; masked rows are absent whether the mask is a handler or the user's own."""
    labels = RNG.integers(0, 2, 40)
    known, seen = RNG.random(40) < 0.4, RNG.random(40) < 0.7
    weight = np.array([0.7, 0.3])[labels]
    joint = np.log(weight * np.exp(-0.5 * (X - PARAMS["mu"][labels]) ** 2) / np.sqrt(2 * np.pi))
    expected = np.where(known, joint, by_hand(X))[seen].sum()
    assert log_likelihood(lambda *args: labelled(*args, inner=inner), X, labels, known, seen) == pytest.approx(
        expected, abs=1e-9
    )


def test_posterior_of_known_labels_is_certain():
    """The posterior of a labelled row is its label."""
    labels, known = RNG.integers(0, 2, 40), RNG.random(40) < 0.4
    result = emppl.EM(labelled, progress_bar=False).run(KEY, X, labels, known, np.ones(40, bool))
    np.testing.assert_allclose(result.posterior("z")[known, labels[known]], 1.0, atol=1e-12)
    np.testing.assert_array_equal(result.decode()["z"][known], labels[known])


def test_subsampled_plate_is_scaled_and_said():
    """A subsampled plate counts its rows size/subsample times, and the plan says that it is a subsample."""

    def subsampled(x):
        mu = start()
        with numpyro.plate("data", len(x), subsample_size=10) as index:
            body(x[index], mu)

    em = emppl.EM(subsampled)
    assert "fixed subsample of plate 'data'" in str(em.plan(np.full(40, 0.5)))
    assert log_likelihood(subsampled, np.full(40, 0.5)) == pytest.approx(40 * by_hand(np.array([0.5]))[0], abs=1e-9)


def test_factor_and_deterministic():
    """A log factor multiplies the joint density; a deterministic site changes nothing."""

    def model(x):
        mu = start()
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.factor("tilt", jnp.where(z == 1, jnp.log(0.6), jnp.log(1.4)))
            centre = numpyro.deterministic("centre", mu[z])
            numpyro.sample("x", dist.Normal(centre, 1.0), obs=x)

    assert log_likelihood(model, X) == pytest.approx(by_hand(X).sum(), abs=1e-9)


def test_states_outside_the_support_have_probability_zero():
    """NumPyro's log_prob does not look at the support; a state that makes a value impossible gets weight zero."""

    def model(t):
        rate = numpyro.param("rate", 1.0, constraint=constraints.positive)
        with numpyro.plate("data", len(t)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("t", dist.Exponential(rate), obs=t - jnp.array([0.0, 2.0])[z])

    t = np.array([0.01, 3.0])
    expected = np.log(0.5 * np.exp(-0.01)) + np.log(0.5 * np.exp(-3.0) + 0.5 * np.exp(-1.0))
    assert float(emppl.EM(model).log_likelihood({"rate": 1.0}, t)) == pytest.approx(expected, abs=1e-12)


def test_hyperparameters_feel_the_priors_they_enter():
    """A parameter of another parameter's prior is at a stationary point of the whole objective."""

    def model(x):
        tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
        mu = numpyro.sample("mu", dist.Normal(0, tau).expand([2]).to_event(1))
        with numpyro.plate("data", len(x)):
            body(x, mu)

    em = emppl.EM(model, estimate=["mu"], progress_bar=False)
    result = em.run(KEY, X)

    def objective(params):
        return em.log_likelihood(params, X) + em.log_prior(params, X)

    gradient = jax.grad(objective)({name: jnp.asarray(value) for name, value in result.params.items()})
    assert abs(float(gradient["tau"])) < 1e-3
    assert np.abs(gradient["mu"]).max() < 1e-3


def refused(model, *args, match):
    with pytest.raises(emppl.ModelError, match=match):
        emppl.EM(model).plan(*args)


def test_substituted_values_are_refused():
    """A value set by a handler is not overwritten in silence."""
    refused(numpyro.handlers.substitute(plain, {"mu": jnp.zeros(2)}), X, match="'mu' is given a value by a handler")


def test_sums_over_a_latent_are_refused():
    """Summing a latent over its plate would sum its states instead."""

    def model(x):
        mu = start()
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[0] * z.sum(), 1.0), obs=x)

    refused(model, X, match="through a sum, mean or similar")


def test_weights_that_are_parameters_are_refused():
    """Weights count data."""

    def model(x):
        power = numpyro.param("power", 1.0, constraint=constraints.positive)
        mu = start()
        with numpyro.handlers.scale(scale=power), numpyro.plate("data", len(x)):
            body(x, mu)

    refused(model, X, match="Weights count data")


def test_unbounded_factor_is_not_called_converged():
    """A parameter that a log factor pushes to infinity has no maximum."""

    def model(x):
        numpyro.factor("push", numpyro.param("b", 0.0))
        plain(x)

    result = emppl.EM(model, progress_bar=False).run(KEY, X)
    assert not result.converged


def test_small_units_are_no_boundary():
    """A scale of 1e-6 in the units of the data is an ordinary value with a standard error."""

    def model(x):
        sigma = numpyro.param("sigma", 1e-6, constraint=constraints.positive)
        mu = numpyro.param("mu", jnp.array([-1e-6, 1e-6]))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], sigma), obs=x)

    result = emppl.EM(model, progress_bar=False).run(KEY, 1e-6 * X)
    assert result.boundary == []
    assert np.all(np.isfinite(result.standard_errors()["sigma"]))


# ------------------------------------------------------------------- constructs against a loop over assignments


def agrees(model, params, *args):
    """Log-likelihood, posterior marginals and decoding equal brute force; the M-step raises its objective."""
    oracle, em = BruteForce(model, params, *args), emppl.EM(model, max_iterations=0, progress_bar=False)
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
    em = emppl.EM(model, max_iterations=0, progress_bar=False)
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
    responsibility = em.e_step(params, x, ~np.isnan(x)).weights["z"].reshape(3, 4)
    second = np.nansum(responsibility * x[:, 1], 1) / (responsibility * ~np.isnan(x[:, 1])).sum(1)
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
            numpyro.sample("x", WRAPPERS[order](dist.Normal(mu[z], jnp.array([0.5, 1.5])), keep), obs=x)

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
    agrees(model, params, x, np.array([0.1, 0.9]), keep)


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
    r = posterior.weights["z"].reshape(2, 4)
    new = em.m_step(params, posterior, counts, more, x, y)
    np.testing.assert_allclose(new["rate"], (r @ counts + r[::-1] @ more) / (r + r[::-1]).sum(1), rtol=1e-12)
    np.testing.assert_allclose(new["scale"], np.sqrt((np.sum(x**2) + np.sum((y - 2) ** 2)) / 8), rtol=1e-12)
    assert {rule.kind for rule in em.plan(counts, more, x, y).rules} <= {"closed form"}


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


@pytest.mark.parametrize("model, shape", [(pair, (2, 50)), (chain, (3, 8))])
def test_log_likelihood_equals_numpyros_enumeration(model, shape):
    """Value and gradient equal ``numpyro.contrib.funsor.log_density`` on models too large for a loop."""
    pytest.importorskip("funsor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # funsor's own deprecations
        from numpyro.contrib.funsor import config_enumerate, log_density

    x, em = np.random.default_rng(7).normal(size=shape), emppl.EM(model)

    def theirs(params):
        with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
            warnings.simplefilter("ignore")
            return log_density(config_enumerate(model), (x,), {}, params)[0]

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
        plain(x)

    em = emppl.EM(model, max_iterations=3, progress_bar=False)
    posterior = em.e_step(PARAMS, X)
    em.m_step(PARAMS, posterior, X), em.q(PARAMS, posterior, X), em.log_likelihood(PARAMS, X)
    em.run(KEY, X).posterior("z")
    seen = len(calls)
    other = X + 0.1
    posterior = em.e_step(PARAMS, other)
    em.m_step(PARAMS, posterior, other), em.q(PARAMS, posterior, other), em.log_likelihood(PARAMS, other)
    em.run(KEY, other).posterior("z")
    assert len(calls) == seen
    em.log_likelihood(PARAMS, X[:30])
    assert len(calls) > seen

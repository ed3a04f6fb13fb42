"""Bad input: each case has a clear error that names the site, says what was found, and what to write instead."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import emppl
from tests.kit.fits import KEY, fit

X = np.array([0.1, 0.2, 2.1, 1.9, 0.0, 2.2])


def mixture(x, K=2):
    weights = numpyro.param("weights", jnp.ones(K) / K, constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.arange(K) * 1.0)
    sigma = numpyro.param("sigma", jnp.ones(()), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(weights))
        numpyro.sample("x", dist.Normal(mu[z], sigma), obs=x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_data_names_site_and_row(bad):
    """Infinity in data, or NaN that the model itself makes, is refused with the site and the row."""
    x = X.copy()
    x[3] = 0.0 if np.isnan(bad) else bad
    made = (lambda x: mixture(jnp.where(x == 0, jnp.nan, x))) if np.isnan(bad) else mixture
    words = r"'x' holds NaN or infinity \(first at row 3\).*Normal\(...\).mask\(jnp.isfinite\(x\)\), obs=x\)"
    with pytest.raises(emppl.DataError, match=words):
        fit(made, x)


def test_empty_data():
    """Empty data are refused before tracing."""
    with pytest.raises(emppl.DataError, match="empty"):
        fit(mixture, np.zeros(0))


def test_wrong_shape_is_explained():
    """A shape error inside the model is reported with the sites and the shapes, not as a raw traceback."""

    def model(x):
        mu = numpyro.param("mu", jnp.zeros(2))
        with numpyro.plate("data", 5):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    with pytest.raises(emppl.EMError, match=r"'x'|'z'"):
        fit(model, X)


@pytest.mark.parametrize(("size", "seen"), [(3, 1), (1, 3)])
@pytest.mark.parametrize("family", ["normal", "multinomial"])
def test_vectors_of_another_length_are_explained(family, size, seen):
    """Entries of one event are not spread over others, as copies of a scalar distribution are."""

    def model(x):
        m = numpyro.param("m", jnp.zeros(size))
        with numpyro.plate("data", 4):
            normal = family == "normal"
            fn = dist.MultivariateNormal(m, jnp.eye(size)) if normal else dist.Multinomial(2, jax.nn.softmax(m))
            numpyro.sample("x", fn, obs=x)

    with pytest.raises(emppl.DataError, match=rf"'x': the value has event shape \({seen},\) but .* \({size},\)"):
        fit(model, np.ones((4, seen)))


@pytest.mark.parametrize("by", ["prior", "constraint"])
def test_bounds_that_jax_computes_are_refused(by):
    """The parameter and the remedy are named, and the remedy works."""

    def model(x, array=np.array):
        low = array([0.1, 0.2])
        if by == "prior":
            mu = numpyro.sample("mu", dist.Uniform(low, 0.7).to_event(1))
        else:
            mu = numpyro.param("mu", jnp.array([0.3, 0.4]), constraint=constraints.interval(low, array([0.7, 0.7])))
        numpyro.sample("x", dist.Normal(mu, 1.0).to_event(1), obs=x)

    with pytest.raises(emppl.ModelError, match=rf"'mu': the bounds of its {by} .* numpy.array in place of jnp.array"):
        fit(functools.partial(model, array=jnp.array), np.array([0.5, 0.1]))
    estimate = fit(model, np.array([0.5, 0.1])).params["mu"]  # of which one is beyond a bound
    np.testing.assert_allclose(estimate, [0.5, 0.2], atol=1e-6)


def test_value_outside_support():
    """A count that is negative is named with its row."""

    def model(x):
        rate = numpyro.param("rate", jnp.array([1.0, 2.0]), constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Poisson(rate[z]), obs=x)

    with pytest.raises(emppl.DataError, match=r"'x' holds a value outside the support of Poisson.*row 1"):
        fit(model, np.array([1, -2, 3]))


def test_category_out_of_range():
    """A category code beyond the last category is named."""

    def model(x):
        probs = numpyro.param("probs", jnp.ones((2, 3)) / 3, constraint=constraints.simplex)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Categorical(probs[z]), obs=x)

    with pytest.raises(emppl.DataError, match="outside the support"):
        fit(model, np.array([0, 1, 3]))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("sigma", -1.0, "outside its constraint"),
        ("weights", np.array([0.7, 0.7]), "outside its constraint 'simplex'"),
        ("mu", np.zeros(3), r"shape \(3,\); the model needs \(2,\)"),
        ("mu", np.array([np.inf, np.nan]), "NaN or infinity|outside its constraint 'real'"),
    ],
)
def test_bad_parameter_values(name, value, match):
    """A parameter outside its constraint, of the wrong shape or not finite is refused by name."""
    with pytest.raises(emppl.ParameterError, match=match):
        fit(mixture, X, init_params={name: value})
    with pytest.raises(emppl.ParameterError, match=match):
        fit(mixture, X, fixed={name: value})


@pytest.mark.parametrize("option", ["estimate", "latents", "fixed", "m_step"])
def test_unknown_names_in_options(option):
    """An unknown name in an option is refused with the names that exist."""
    value = {
        "estimate": ["nothing"],
        "latents": {"nothing": emppl.Enumerate()},
        "fixed": {"nothing": 1.0},
        "m_step": {"nothing": lambda params, posterior: 0.0},
    }[option]
    with pytest.raises(emppl.ParameterError, match=f"{option} names 'nothing'"):
        fit(mixture, X, **{option: value})


def test_unknown_name_in_init_params():
    """An unknown starting value is refused."""
    with pytest.raises(emppl.ParameterError, match="init_params names 'nothing'"):
        fit(mixture, X, init_params={"nothing": 1.0})


def test_model_without_observations():
    """Nothing observed."""

    def model():
        p = numpyro.param("p", 0.5, constraint=constraints.unit_interval)
        numpyro.sample("z", dist.Bernoulli(p))

    with pytest.raises(emppl.ModelError, match="observes nothing"):
        fit(model)


def test_model_without_parameters():
    """Nothing to estimate."""

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(emppl.ModelError, match="no parameter to estimate"):
        fit(model, X)


def test_name_used_twice():
    """Two sites of one name."""

    def model(x):
        mu = numpyro.param("mu", jnp.zeros(2))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("z", dist.Normal(mu[z], 1.0), obs=x)

    with pytest.raises(emppl.ModelError, match="'z' is used twice"):
        fit(model, X)


def test_impossible_observation_names_the_row():
    """An observation that no state can produce is named."""

    def model(x):
        p = numpyro.param("p", jnp.array(0.5), constraint=constraints.unit_interval)
        table = jnp.array([0, 1])
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(p))
            numpyro.sample("x", dist.Delta(table[z]), obs=x)

    with pytest.raises(emppl.DataError, match="probability zero under every state.*row 2"):
        fit(model, np.array([0, 1, 2, 1]))


def test_more_components_than_data():
    """K larger than the number of rows."""
    with pytest.raises(emppl.DataError, match="9 states but only 6 data cells"):
        emppl.EM(mixture).run(KEY, X, K=9)


def test_latent_that_cannot_be_enumerated():
    """A Poisson latent has no finite support."""

    def model(x):
        rate = numpyro.param("rate", 1.0, constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            n = numpyro.sample("n", dist.Poisson(rate))
            numpyro.sample("x", dist.Normal(n, 1.0), obs=x)

    with pytest.raises(emppl.ModelError, match="'n' is Poisson, whose support is not finite"):
        fit(model, X)


def test_latent_under_to_event():
    """A vector of discrete latents in one site is refused, with the plate to write."""

    def model(x):
        p = numpyro.param("p", 0.5, constraint=constraints.unit_interval)
        z = numpyro.sample("z", dist.Bernoulli(p).expand([6]).to_event(1))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(emppl.ModelError, match="'z' is a vector of discrete values.*plate"):
        fit(model, X)


def test_ambiguous_role_shows_both_lines():
    """A group effect indexed by data could be either: the error shows both lines."""

    def model(x, group):
        with numpyro.plate("groups", 2):
            b = numpyro.sample("b", dist.Normal(0, 1))
        mu = numpyro.param("mu", jnp.zeros(2))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z] + b[group], 1.0), obs=x)

    group = np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(emppl.ModelError) as caught:
        fit(model, X, group)
    assert "EM(model, estimate=['b'])" in str(caught.value)
    assert "EM(model, latents=['b'])" in str(caught.value)
    assert fit(model, X, group, estimate=["b"]).params["b"].shape == (2,)


def test_prior_on_estimated_hyperparameter_is_ambiguous():
    """A prior that depends on another parameter is not guessed for the means of components."""

    def model(x):
        tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
        mu = numpyro.sample("mu", dist.Normal(0, tau).expand([2]).to_event(1))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    with pytest.raises(emppl.ModelError, match="'mu' is ambiguous.*'tau'"):
        fit(model, X)


def test_indexing_a_latent_across_its_plate():
    """``z[item]`` would silently index the states: it is refused."""

    def model(x, item):
        mu = numpyro.param("mu", jnp.zeros(2))
        with numpyro.plate("items", 3):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(mu[z[item]], 1.0), obs=x)

    with pytest.raises(emppl.EMError):
        fit(model, X, np.array([0, 0, 1, 1, 2, 2]))


def test_argument_that_is_not_hashable():
    """A static argument that is not hashable is explained."""
    with pytest.raises(emppl.DataError, match="numpy.array"):
        fit(lambda frame: mixture(frame["x"]), bytearray(b"123"))


def test_typed_random_key_argument():
    with pytest.raises(emppl.DataError, match="key_data"):
        fit(lambda x, key: mixture(x + jax.random.normal(key)), X, jax.random.key(0))


def test_value_read_in_python():
    """Values that nobody has are explained; the data's own can be read."""

    def model(x):
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(numpyro.param("w", 0.5)))
            if z.sum() > 0:
                numpyro.sample("x", dist.Normal(0, 1), obs=x)

    with pytest.raises(emppl.ModelError, match="reads the value of an array in Python"):
        fit(model, X)


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
def test_collapse_names_the_component(family):
    """A component that collapses onto one point is named, with the remedy, and is not called converged."""

    def free_scales(x):
        mu = numpyro.param("mu", jnp.array([0.0, 5.0]))
        sigma = numpyro.param("sigma", jnp.array([1.0, 0.1]), constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", family(mu[z], sigma[z]), obs=x)

    result = fit(free_scales, np.array([0.3, -0.1, 0.4, -0.6, 0.2, 5.0]))
    assert result.stop_reason is emppl.StopReason.COLLAPSED
    assert not result.converged
    assert "z=1" in result.stop_message and "prior" in result.stop_message
    assert np.all(np.isfinite(result.params["sigma"]))


def test_components_far_narrower_than_the_data_have_not_collapsed():
    """An outlier makes the unit of the data large; deviations from a median keep their digits all the same."""

    def model(x):
        mu = numpyro.param("mu", 0.5)
        scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
        far = numpyro.param("far", 1e11)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Laplace(jnp.where(z == 1, far, mu), scale), obs=x)

    result = fit(model, np.array([0.3, -0.1, 0.4, -0.6, 0.2, 1e11]))
    assert result.converged
    assert result.params["scale"] == pytest.approx(1.4 / 6)  # deviations 0.1, 0.3, 0.2, 0.8, 0 from 0.2, and 0


def test_symmetric_start_is_not_called_converged():
    """Identical components stay identical under EM; the result says so."""
    result = fit(mixture, X, init_params={"mu": np.array([1.0, 1.0])})
    assert result.stop_reason is emppl.StopReason.SYMMETRIC
    assert not result.converged


def test_dirichlet_prior_below_one_is_refused():
    """A Dirichlet density with concentration below one has no mode."""

    def model(x):
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.array([0.5, 0.5])))
        mu = numpyro.param("mu", jnp.array([0.0, 2.0]))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    with pytest.raises(emppl.ModelError, match="'weights'.*concentration below 1"):
        fit(model, X)
    assert fit(model, X, prior=False).converged


@pytest.mark.parametrize("step", [lambda t, at: t > at, lambda t, at: t > jnp.floor(at)])
def test_a_parameter_that_only_makes_steps(step):
    """A change point has no slope: EM would stay where it starts, and say that it converged."""

    def change(x):
        at = numpyro.param("at", 3.0)
        before, after = numpyro.param("before", 0.0), numpyro.param("after", 1.0)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.1))
            numpyro.sample("x", dist.Normal(jnp.where(step(jnp.arange(len(x)), at), after, before) + z, 1.0), obs=x)

    with pytest.raises(emppl.ModelError, match="'at' enters only through a comparison"):
        emppl.EM(change).plan(np.zeros(10))


def test_nothing_left_to_estimate():
    """Refused, with what still can be asked for."""
    fixed = {"weights": np.array([0.3, 0.7]), "mu": np.array([0.0, 2.0]), "sigma": 0.5}
    em = emppl.EM(mixture, fixed=fixed)
    with pytest.raises(emppl.ParameterError, match=r"Every parameter is fixed.*em.log_likelihood\(\{\}, ...\)"):
        em.run(KEY, X)
    density = np.exp(-(((X[:, None] - fixed["mu"]) / 0.5) ** 2) / 2) / 0.5 / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(em.log_likelihood({}, X), np.log(density @ fixed["weights"]).sum(), rtol=1e-12)

"""What a model's Python reads of its arguments is known by its values; everything else stays data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

import emppl
from tests.kit.fits import KEY, compiled_of

RNG = np.random.default_rng(0)
GROUP = np.repeat([0, 1, 2], 4)
Y = RNG.normal(size=12) + GROUP
PARAMS = {"m": np.array([0.1, 0.2, 0.3]), "s": 1.3}
RIGHT = stats.norm.logpdf(Y, PARAMS["m"][GROUP], 1.3).sum()


def means(group, y, groups):
    m = numpyro.param("m", jnp.zeros(groups))
    s = numpyro.param("s", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(m[group], s), obs=y)


def filled(y):
    return jnp.where(jnp.isnan(y), 0.0, y) if np.isnan(y).any() else y


READERS = {
    "unique": lambda group, y: means(group, y, len(np.unique(group))),
    "method": lambda group, y: means(group, y, int(group.max()) + 1),
    "function": lambda group, y: means(group, y, np.max(group) + 1),
    "if": lambda group, y: means(group, filled(y), 3),
    "rows chosen": lambda group, y: means(group[y > -9], y[y > -9], 3),
    "at": lambda group, y: means(group, jnp.asarray(y).at[0].set(y[0]), int(max(group)) + 1),
    "written into": lambda group, y: (y.__setitem__(0, y[0]), means(group, y, 3)),
    "bounds": lambda group, y: [means(group, y, 3), numpyro.sample("u", dist.Uniform(0.0, np.max(y)))],
}


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize("kind", [np.array, jnp.array])
def test_values_read_in_python(how, kind):
    em = emppl.EM(READERS[how])
    got = em.log_likelihood(PARAMS | ({"u": 0.5} if how == "bounds" else {}), kind(GROUP), kind(Y))
    assert float(got) == pytest.approx(RIGHT, rel=1e-13)


def test_as_few_arguments_as_possible_are_known_and_the_plan_says_which():
    plan = emppl.EM(READERS["unique"]).plan(GROUP, y=Y)
    assert len(plan.data) == 1 and plan.data[0].startswith("group is known by its values")
    assert "len(np.unique(group))" in plan.data[0] and plan.data[0] in str(plan)
    assert emppl.EM(lambda group, y: means(group, y, 3)).plan(GROUP, Y).data == ()


def test_other_values_derive_anew_and_the_same_do_not():
    em, other = emppl.EM(READERS["unique"]), np.minimum(GROUP, 1)
    first, _ = compiled_of(em, GROUP, Y)
    assert compiled_of(em, GROUP.copy(), Y + 1)[0] is first
    right = stats.norm.logpdf(Y, np.array([0.1, 0.2])[other], 1.3).sum()
    assert float(em.log_likelihood({"m": np.array([0.1, 0.2]), "s": 1.3}, other, Y)) == pytest.approx(right, rel=1e-13)
    again = GROUP.copy()
    again[:] = other  # written into in place
    assert compiled_of(em, again, Y)[0] is not first and compiled_of(em, GROUP, Y)[0] is first


def test_known_values_stay_among_the_data_of_the_computation():
    """Nothing is a constant that is an argument: rows are compressed, indices checked."""
    model = compiled_of(emppl.EM(READERS["unique"]), GROUP, Y)[0].model
    assert ("data", "0") in model.dependence.of_output(model.trace.outputs["y", "arguments", "loc"])
    with pytest.raises(emppl.DataError, match="picks entry 5 along axis 0.*array 1 among the model's arguments"):
        emppl.EM(READERS["unique"]).run(KEY, np.array([0, 1, 5]), Y[:3])


def test_rows_are_compressed_though_an_argument_is_read():
    group = RNG.integers(0, 3, 3000)
    y = RNG.poisson(np.array([1.0, 2.0, 4.0])[group] * np.array([0.5, 2.0])[RNG.integers(0, 2, 3000)])

    def model(group, y):
        rate = numpyro.param("rate", jnp.ones(int(group.max()) + 1), constraint=constraints.positive)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
            numpyro.sample("y", dist.Poisson(rate[group] * jnp.array([0.5, 2.0])[z]), obs=y)

    result = emppl.EM(model).run(KEY, group, y)
    assert "different ones among the 3,000 rows" in str(result.plan)
    rate = result.params["rate"][group]
    right = np.log(0.4 * stats.poisson.pmf(y, 0.5 * rate) + 0.6 * stats.poisson.pmf(y, 2 * rate)).sum()
    assert result.converged and result.log_likelihood == pytest.approx(right, rel=1e-12)


def test_patients_counted_in_the_model(tmp_path):
    """Random intercepts and slopes of NumPyro's hierarchical regression, beside the marginal normal density."""
    week = RNG.normal(size=12)
    y = 2 + RNG.normal(size=3)[GROUP] + (1 + 0.3 * RNG.normal(size=3)[GROUP]) * week + 0.3 * RNG.normal(size=12)

    def model(patient, week, y=None):
        mean, slope = numpyro.sample("mean", dist.Normal(0, 50)), numpyro.sample("slope", dist.Normal(0, 3))
        with numpyro.plate("patients", len(np.unique(patient))):
            a, b = numpyro.sample("a", dist.Normal(mean, 0.8)), numpyro.sample("b", dist.Normal(slope, 0.5))
        with numpyro.plate("rows", len(patient)):
            numpyro.sample("y", dist.Normal(a[patient] + b[patient] * week, 0.3), obs=y)

    em = emppl.EM(model, latents={"a": emppl.Gaussian(), "b": emppl.Gaussian()})
    result = em.run(KEY, GROUP, week, y=y, checkpoint=tmp_path / "fit")
    same = np.eye(3)[GROUP] @ np.eye(3)[GROUP].T
    covariance = 0.8**2 * same + 0.5**2 * same * np.outer(week, week) + 0.3**2 * np.eye(12)
    right = stats.multivariate_normal.logpdf(y, result.params["mean"] + result.params["slope"] * week, covariance)
    assert result.log_likelihood == pytest.approx(right, rel=1e-11) and not result.notes
    latents = {latent.name: latent.groups for latent in result.plan.latents}
    assert latents == {"a": 3, "b": 3}
    with pytest.raises(emppl.ParameterError, match="static arguments|data"):
        em.run(KEY, np.array([0, 1, 2] * 4), week, y=y, checkpoint=tmp_path / "fit")


def test_traced_arguments_cannot_be_read():
    em = emppl.EM(READERS["unique"])
    with pytest.raises(emppl.ModelError, match="traced itself"):
        jax.jit(lambda group: em.log_likelihood(PARAMS, group, Y))(GROUP)
    value = jax.jit(lambda params: em.log_likelihood(params, GROUP, Y))(PARAMS)
    assert float(value) == pytest.approx(RIGHT, rel=1e-13)
    with pytest.raises(
        emppl.ModelError, match=r"reads array argument number 1 in Python.*Close over it: jax.jit\(lambda"
    ):
        jax.jit(lambda group: em.log_likelihood(PARAMS, group, Y))(GROUP)
    shifted = jax.vmap(lambda m: em.e_step({"m": m, "s": 1.3}, GROUP, Y).log_likelihood)(jnp.stack([PARAMS["m"]] * 2))
    np.testing.assert_allclose(shifted, RIGHT, rtol=1e-13)


def test_what_jax_computes_cannot_be_read():
    with pytest.raises(emppl.ModelError, match=r"write numpy.max\(x\) in place of jnp.max\(x\)"):
        emppl.EM(lambda group, y: means(group, y, int(jnp.max(group)) + 1)).plan(GROUP, Y)
    emppl.EM(lambda group, y: means(group, y, int(np.max(group)) + 1)).plan(GROUP, Y)
    with pytest.raises(emppl.ModelError, match="The model failed before its first site: AttributeError"):
        emppl.EM(lambda group, y: means(group, y.nothing, 3)).plan(GROUP, Y)

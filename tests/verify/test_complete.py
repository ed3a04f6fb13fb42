"""What emppl adds up at values of all latents, against sums by hand and dense normal algebra."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import emppl
from emppl.verify.complete import PRIORS, CompleteData
from tests.kit.fits import program_of

Y = np.array([0.5, 2.0, -1.0, 0.3])
STATES = np.array([1, 0, 1, 1])


def mixture(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.4, 0.6])))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def effects(y):
    tau = numpyro.param("tau", 1.0)
    with numpyro.plate("data", len(y)):
        b = numpyro.sample("b", dist.Normal(0.5, tau))
        numpyro.sample("y", dist.Normal(b, 1.0), obs=y)


def complete(model, params, first, second=None, taken=None, **options):
    program, data = program_of(model, Y, **options)
    return CompleteData(program.model, {n: jnp.asarray(p) for n, p in params.items()}, data, first, second, taken)


def test_sums_by_site_are_those_by_hand():
    mu = np.array([-1.0, 1.5])
    sums = complete(mixture, {"mu": mu}, {"z": jnp.asarray(STATES)}).by_site()
    z = np.log(np.array([0.4, 0.6])[STATES])
    y = stats.norm(mu[STATES], 1).logpdf(Y)
    for name, cells in {"z": z, "y": y, PRIORS: stats.norm(0, 3).logpdf(mu)}.items():
        np.testing.assert_allclose(sums[name][0], cells.sum())
    np.testing.assert_allclose(sums["y"][1], np.abs(y).sum())


@pytest.mark.parametrize("free", [(), (2,), (0, 3)])
def test_states_that_are_marked_are_summed_over(free):
    mu, weights = np.array([-1.0, 1.5]), np.array([0.4, 0.6])
    model = complete(mixture, {"mu": mu}, {"z": jnp.asarray(STATES)})
    marks = model.marks({"z": jnp.asarray(STATES)})
    for row in free:
        marks = {axis: mark.at[..., row].set(1) for axis, mark in marks.items()}
    joint = np.log(weights) + stats.norm(mu, 1).logpdf(Y[:, None])
    rows = [np.logaddexp(*joint[n]) if n in free else joint[n, STATES[n]] for n in range(4)]
    np.testing.assert_allclose(model.summed(marks), np.sum(rows))


def test_every_group_has_its_density_at_one_of_two_values():
    first, second = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 2.0, 3.0, 4.0])
    taken = np.array([True, False, False, True])
    values = ({"b": jnp.asarray(one)} for one in (first, second))
    model = complete(effects, {"tau": 2.0}, *values, {"b@atoms": taken}, latents={"b": emppl.Quadrature(3)})
    b = np.where(taken, first, second)
    sums = model.by_site()
    np.testing.assert_allclose(sums["b"][0], stats.norm(0.5, 2).logpdf(b).sum())
    np.testing.assert_allclose(sums["y"][0], stats.norm(b, 1).logpdf(Y).sum())


def test_evidence_of_a_normal_integral_is_the_ratio_of_two_densities():
    model = complete(effects, {"tau": 2.0}, {"b": jnp.array([0.1, 3.0, -2.0, 0.4])})
    ((own, ratio, _),) = model.integrals().values()
    expected = stats.norm(0.5, np.sqrt(5)).logpdf(Y).sum()
    np.testing.assert_allclose([own, ratio], expected)

"""Values of latents: mixed by group, at the states of a few cells, and where they lie on the axes of tables."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

import emppl
from emppl.verify.values import assignments, choose_groups, mixed, of_axis, on_axes
from tests.kit.fits import program_of

RNG = np.random.default_rng(3)


def effects(y, group):
    with numpyro.plate("schools", 5):
        b = numpyro.sample("b", dist.Normal(numpyro.param("m", 0.0), 1.0).expand([5, 2]).to_event(1))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(b[group].sum(-1), 1.0), obs=y)


def two_latents(y):
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
        w = numpyro.sample("w", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(numpyro.param("m", jnp.zeros(3))[z] + w, 1.0), obs=y)


def second_order(y):
    def step(carry, this):
        before, last = carry
        with numpyro.plate("two", 2):
            z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.2 * before + 0.3 * last))
            numpyro.sample("y", dist.Normal(numpyro.param("m", 1.0) * z, 1.0), obs=this)
        return (last, z), None

    scan(step, (jnp.zeros(2, int), jnp.zeros(2, int)), y)


def test_every_group_has_its_value_from_one_of_two():
    program, _ = program_of(effects, np.zeros(9), np.arange(9) % 5, latents={"b": emppl.Quadrature(3)})
    taken = choose_groups(program.model, RNG)
    first, second = {"b": np.zeros((5, 2))}, {"b": np.ones((5, 2))}
    values = mixed(program.model, taken, first, second)["b"]
    (groups,) = taken.values()
    np.testing.assert_array_equal(values, np.repeat(~np.ravel(groups)[:, None], 2, 1))
    assert 0 < values.sum() < 10


def test_assignments_are_all_joint_states_of_one_cell_of_every_latent_and_the_first_is_given():
    program, _ = program_of(two_latents, np.zeros(4))
    values = {"z": np.array([2, 0, 1, 1]), "w": np.array([0, 1, 1, 0])}
    every = assignments(program.model, values, RNG)
    for name, value in values.items():
        np.testing.assert_array_equal(every[name][0], value)
        assert (np.sum(np.any(every[name] != value, 0))) == 1
    changed = {name: np.argmax(np.any(every[name] != value, 0)) for name, value in values.items()}
    found = {(int(every["z"][n][changed["z"]]), int(every["w"][n][changed["w"]])) for n in range(6)}
    assert found == set(itertools.product(range(3), range(2)))


def test_steps_of_a_chain_lie_on_their_axes():
    program, _ = program_of(second_order, np.zeros((6, 2)))
    model, value = program.model, jnp.arange(12).reshape(6, 2)
    for axis, steps in {
        "z@0": 0,
        "z@1": 1,
        "z": slice(2, 6),
        "z@previous": slice(1, 5),
        "z@previous2": slice(0, 4),
    }.items():
        np.testing.assert_array_equal(of_axis(model, axis, value), value[steps])
    time, plate = (model.axes.names.index(name) for name in (model.trace.sites["z"].time.name, "two"))
    table = np.asarray(on_axes(model, "z", of_axis(model, "z", value)))
    assert table.size == 8
    np.testing.assert_array_equal(np.squeeze(np.moveaxis(table, (time, plate), (0, 1))), value[2:])

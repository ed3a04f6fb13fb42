"""Which parameter axes run over a latent's states, also behind maps; against what the models say on their face."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import emppl
from emppl.jaxpr.depends import Dependence
from emppl.result.components import component_axes
from tests.kit.fits import fit, program_of

RNG = np.random.default_rng(0)
X = np.where(RNG.random(60) < 0.5, RNG.normal(-2, 0.6, 60), RNG.normal(2, 1.1, 60))
DESIGN = RNG.normal(size=(60, 2))

LOCATIONS = {
    "plain": ((3,), lambda p, z: p[z], (["z"],)),
    "exp": ((3,), lambda p, z: jnp.exp(p)[z], (["z"],)),
    "softplus": ((3,), lambda p, z: jax.nn.softplus(p)[z], (["z"],)),
    "shifted after": ((3,), lambda p, z: p[z] + 1, (["z"],)),
    "shifted before": ((3,), lambda p, z: (p + 1)[z], (["z"],)),
    "scaled and squared": ((3,), lambda p, z: (2 * p**2)[z], (["z"],)),
    "centred": ((3,), lambda p, z: (p - p.mean())[z], (["z"],)),
    "rows times data": ((3, 2), lambda p, z: (DESIGN * p[z]).sum(-1), (["z"], [])),
    "data times rows": ((3, 2), lambda p, z: jnp.einsum("...d,...d->...", DESIGN, p[z]), (["z"], [])),
    "product before indexing": ((2, 3), lambda p, z: (DESIGN @ p)[jnp.arange(60), z], ([], ["z"])),
    "exp, product, transposed": ((3, 2), lambda p, z: (DESIGN @ jnp.exp(p).T)[jnp.arange(60), z], (["z"], [])),
    "sum over the other axis": ((2, 3), lambda p, z: p.sum(0)[z], ([], ["z"])),
    "second axis": ((2, 3), lambda p, z: p[0][z], ([], ["z"])),
    "broadcast": ((3,), lambda p, z: jnp.broadcast_to(p[:, None], (3, 2)).mean(-1)[z], (["z"],)),
    "nested jit": ((3,), lambda p, z: jax.jit(jnp.exp)(p)[z], (["z"],)),
    # Mixed along the indexed axis: entry i of the result is no longer entry i of the parameter.
    "cumulative": ((3,), lambda p, z: jnp.cumsum(p)[z], ([],)),
    "sorted": ((3,), lambda p, z: jnp.sort(p)[z], ([],)),
    "mixed by a product": ((3,), lambda p, z: (jnp.ones((3, 3)) @ p)[z], ([],)),
    "reversed": ((3,), lambda p, z: p[::-1][z], ([],)),
    "not indexed": ((3,), lambda p, z: p.sum() * z, ([],)),
    "indexed by data": ((3,), lambda p, z: p[jnp.zeros(60, int)] + z, ([],)),
}


@pytest.mark.parametrize("case", LOCATIONS)
def test_indexed_axes_are_found_through_maps(case):
    """Elementwise operations keep an axis, sums and products drop the one they mix."""
    shape, location, expected = LOCATIONS[case]

    def model(x):
        p = numpyro.param("p", jnp.zeros(shape))
        with numpyro.plate("data", 60):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
            numpyro.sample("x", dist.Normal(location(p, z), 1.0), obs=x)

    program, _ = program_of(model, X)
    dependence = Dependence(program.model.trace.jaxpr, program.model.trace.inputs)
    assert dependence.indexed("p") == tuple(frozenset(latents) for latents in expected)
    axes = tuple(number for number, latents in enumerate(expected) if latents)
    assert component_axes(program.model) == {"z": {"p": axes} if axes else {}}


def test_a_sum_of_parameters_is_followed_for_each():
    """``mu = a + b`` indexed by ``z`` is indexed ``a`` and ``b``; the strict test for selections still refuses it."""

    def model(x):
        a, b = numpyro.param("a", jnp.zeros(3)), numpyro.param("b", jnp.zeros((2, 3)))
        with numpyro.plate("data", 60):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
            y = numpyro.sample("y", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal((a + b)[y, z], 1.0), obs=x)

    program, _ = program_of(model, X)
    dependence = Dependence(program.model.trace.jaxpr, program.model.trace.inputs)
    assert dependence.indexed("a") == (frozenset("z"),)
    assert dependence.indexed("b") == (frozenset("y"), frozenset("z"))
    loc = program.model.trace.outputs["x", "arguments", "loc"]
    assert "add" in dependence.selection("a", loc).reason


@pytest.mark.parametrize(
    "latent",
    [
        lambda p: dist.Categorical(jax.nn.softmax(p)),
        lambda p: dist.Categorical(logits=p),
        lambda p: dist.Categorical(logits=jax.nn.log_softmax(p)),
        lambda p: dist.Categorical(jnp.exp(p) / jnp.exp(p).sum(-1, keepdims=True)),
        lambda p: dist.Categorical(logits=p + 1),
    ],
)
def test_own_class_probabilities_are_found_through_maps(latent):
    """The last axis of the latent's own probabilities runs over its states, behind a softmax or a logarithm too."""

    def model(x):
        p = numpyro.param("p", jnp.zeros(3))
        with numpyro.plate("data", 60):
            z = numpyro.sample("z", latent(p))
            numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)

    assert component_axes(program_of(model, X)[0].model) == {"z": {"p": (0,)}}


def test_an_axis_of_another_length_is_no_component_axis():
    """Two latents indexing one axis of six entries jointly do not number its entries."""

    def model(x):
        p = numpyro.param("p", jnp.arange(6.0))
        with numpyro.plate("data", 60):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(3) / 3))
            y = numpyro.sample("y", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(p[3 * y + z], 1.0), obs=x)

    assert component_axes(program_of(model, X)[0].model) == {"z": {}, "y": {}}


def mapped(x):
    """Everything behind a map: softmax weights, shifted means, exponentiated scales."""
    logits = numpyro.param("logits", jnp.zeros(2))
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    log_sigma = numpyro.param("log_sigma", jnp.zeros(2))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(jax.nn.softmax(logits)))
        numpyro.sample("x", dist.Normal(mu[z] + 1, jnp.exp(log_sigma)[z]), obs=x)


def test_symmetric_start_behind_maps():
    """Identical components are noticed though every parameter goes through a map; different weights do not help."""
    init = {"mu": [0.5, 0.5], "log_sigma": [0.1, 0.1], "logits": [0.3, -0.3]}
    result = fit(mapped, X, init_params=init)
    assert result.stop_reason is emppl.StopReason.SYMMETRIC
    assert fit(mapped, X).converged


def test_fixed_parameters_tell_components_apart():
    """Equal scales beside fixed, different means are no symmetric start."""

    def model(x):
        mu = numpyro.param("mu", jnp.zeros(2))
        sigma = numpyro.param("sigma", jnp.ones(2), constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)

    # Data and means are mirror images, so that the best scales are equal.
    mirrored = np.concatenate([X, -X])
    result = fit(model, mirrored, fixed={"mu": np.array([-2.0, 2.0])})
    assert result.stop_reason is not emppl.StopReason.SYMMETRIC
    np.testing.assert_allclose(result.params["sigma"][0], result.params["sigma"][1], rtol=1e-10)


@pytest.mark.filterwarnings("ignore:No standard error for 'logits'")
def test_compare_aligns_components_behind_maps():
    """Draws whose components are swapped, in every mapped parameter, are matched to the estimate."""
    result = fit(mapped, X)
    noise = np.random.default_rng(1)
    draws = {n: v[None] + 0.01 * noise.normal(size=(100, *v.shape)) for n, v in result.params.items()}
    swapped = {name: np.concatenate([draw[:50, ::-1], draw[50:]]) for name, draw in draws.items()}
    table = emppl.compare(result, swapped)
    np.testing.assert_allclose(table.mean, np.concatenate([draws[n].mean(0) for n in result.params]), rtol=1e-12)
    assert table.relabelled == {"z": 0.5}

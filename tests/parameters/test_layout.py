"""Structure of the second derivatives: few probes give every one of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emppl.parameters.layout import find_layout

BETA, ALPHA, SLOPE = ("beta", (2, 3)), ("alpha", (2,)), ("slope", (3,))
# A location by state and row: ``z`` is (2, 1) as enumeration lays it out, ``X`` is (1, rows, 3). Then the groups and probes.
STRUCTURES = {
    "rows": (lambda p, z, X: (p["beta"][z] * X).sum(-1), (BETA,), 2, 3),
    "rows and intercepts": (lambda p, z, X: (p["beta"][z] * X).sum(-1) + p["alpha"][z], (BETA, ALPHA), 2, 4),
    "common slope": (lambda p, z, X: X @ p["slope"] + p["alpha"][z], (SLOPE, ALPHA), 2, 4),
    "columns": (lambda p, z, X: (X[0] @ p["beta"].T)[jnp.arange(X.shape[1])[None], z], (BETA,), 2, 3),
    "mixed axes": (lambda p, z, X: (p["beta"][z] * X).sum(-1) * p["slope"].sum(), (BETA, SLOPE), 2, 6),
    "where": (lambda p, z, X: jnp.where(z == 1, X @ p["slope"], X[..., 0] * p["alpha"].sum()), (SLOPE, ALPHA), 0, 5),
    "states that meet": (lambda p, z, X: p["alpha"][z] + 0.5 * p["alpha"][1 - z], (ALPHA,), 0, 2),
    "deviations from a mean": (lambda p, z, X: (p["alpha"] - p["alpha"].mean())[z], (ALPHA,), 0, 2),
    "cumulated": (lambda p, z, X: jnp.cumsum(p["alpha"])[z], (ALPHA,), 0, 2),
    "cumulated within rows": (lambda p, z, X: (jnp.cumsum(p["beta"], -1)[z] * X).sum(-1), (BETA,), 2, 3),
    "softmax within rows": (lambda p, z, X: (jax.nn.softmax(p["beta"], -1)[z] * X).sum(-1), (BETA,), 2, 3),
    "softmax across rows": (lambda p, z, X: (jax.nn.softmax(p["beta"], 0)[z] * X).sum(-1), (BETA,), 0, 6),
    "stacked": (lambda p, z, X: jnp.stack([p["alpha"], 2 * p["alpha"]], -1)[z, 1], (ALPHA,), 2, 1),
    "stacked entries": (lambda p, z, X: jnp.stack([p["alpha"][1], p["alpha"][0]])[z], (ALPHA,), 2, 1),
    "indexed by data": (lambda p, z, X: p["alpha"][(X[..., 0] > 0).astype(int)], (ALPHA,), 2, 1),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structured_hessian_equals_the_dense_one(table, name):
    """Few probes give every second derivative; entries that may meet are never put into different groups."""
    loc, shapes, groups, probes = STRUCTURES[name]
    X, y = jnp.asarray(table[0]), jnp.asarray(table[1])
    weight = jnp.asarray(np.random.default_rng(0).dirichlet([1, 1], len(y)).T)

    def cells(block, X, y):
        mean = loc(block, jnp.arange(2)[:, None], X[None])
        return [-((y[None] - mean) ** 2) * (1 + mean**2)]

    layout = find_layout(cells, dict(shapes), X, y)
    assert (layout.groups, layout.probes) == (groups, probes)
    block = {n: jnp.asarray(np.random.default_rng(5).normal(size=s)) for n, s in shapes}

    def total(block):
        return jnp.sum(weight * cells(block, X, y)[0])

    @jax.jit
    def both(block):
        dense = jax.hessian(lambda vectors: total(layout.unpack(vectors)))(layout.pack(block))
        return layout.hessian(jax.grad(total), block), dense

    found, dense = both(block)
    expected = np.zeros_like(dense)
    for number in range(len(found)):
        expected[number, :, number] = found[number]
    np.testing.assert_allclose(dense, expected, atol=1e-9)

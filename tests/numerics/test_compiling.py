"""Functions that compile fast give what others do, also inside of transformations."""

import jax
import jax.numpy as jnp
import numpy as np

from emppl.numerics import compiling
from emppl.numerics.compiling import fast_options, jit_for_few_runs, known
from tests.kit.compilations import compilations


def spread(x, power=2):
    return jnp.sum(jnp.abs(x - jnp.mean(x)) ** power)


X = jnp.array([0.5, -1.0, 3.0, 2.0])


def test_it_is_the_function_by_itself_and_under_every_transformation():
    fast = jit_for_few_runs(spread)
    np.testing.assert_allclose(fast(X), spread(X))
    np.testing.assert_allclose(jax.jit(fast)(X), spread(X))
    np.testing.assert_allclose(jax.jit(lambda: fast(X))(), spread(X))
    np.testing.assert_allclose(jax.grad(fast)(X), jax.grad(spread)(X))
    np.testing.assert_allclose(jax.vmap(fast)(jnp.stack([X, 2 * X])), [spread(X), spread(2 * X)])
    np.testing.assert_allclose(
        jax.grad(lambda x: jit_for_few_runs(lambda power: spread(x, power))(2.0))(X), jax.grad(spread)(X)
    )
    np.testing.assert_allclose(jit_for_few_runs(spread, static_argnums=1)(X, 4), spread(X, 4))


def test_it_is_compiled_once():
    others = X + 1
    fast = jit_for_few_runs(lambda x: spread(x, 3))
    with compilations() as first:
        fast(X)
    with compilations() as second:
        fast(others)
    assert first and not second


def test_options_that_the_compiler_lacks_are_left_out(monkeypatch):
    assert known({"xla_no_such_option": True}) is None
    monkeypatch.setattr(compiling, "_FAST", {"xla_no_such_option": True})
    assert fast_options() == {"xla_backend_optimization_level": 0}
    np.testing.assert_allclose(jit_for_few_runs(spread)(X), spread(X))

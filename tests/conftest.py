"""Settings of the whole test session."""

import pathlib
import sys

import jax
import pytest

# Oracles are compared to many digits; the precision must be set before anything is traced.
jax.config.update("jax_enable_x64", True)
# Silent broadcasting between arrays of different rank hides axis mistakes.
jax.config.update("jax_numpy_rank_promotion", "raise")

# models/ and benchmarks/ are not in the wheel; tests import them from the repository.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

try:
    import matplotlib
except ImportError:
    pass
else:
    matplotlib.use("Agg")


@pytest.fixture(scope="module")
def quick_compilation():
    """For problems so tiny that nearly all the time goes into compiling: do little of it."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Thousands of compiled programs take gigabytes: no module needs those of another."""
    yield
    jax.clear_caches()

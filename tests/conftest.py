"""Settings of the whole test session."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

import jax
import jaxlib
import numpy as np
import pytest

# Oracles are compared to many digits; the precision must be set before anything is traced.
jax.config.update("jax_enable_x64", True)
# Silent broadcasting between arrays of different rank hides axis mistakes.
jax.config.update("jax_numpy_rank_promotion", "raise")
# The suite runs thousands of small programs: nearly all the time goes into compiling, so do little of it, and nothing
# twice, whichever worker did it first.
jax.config.update("jax_disable_most_optimizations", True)
# The older code generator compiles in 60% of the time. Newer versions do not have it, and end at a flag they do not know.
if tuple(map(int, jaxlib.__version__.split(".")[:2])) < (0, 11):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
if "EMPPL_TEST_PROGRAMS" not in os.environ:  # workers inherit it from the process that starts them
    os.environ["EMPPL_TEST_PROGRAMS"] = tempfile.mkdtemp(prefix="emppl-tests-")
    atexit.register(shutil.rmtree, os.environ["EMPPL_TEST_PROGRAMS"], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ["EMPPL_TEST_PROGRAMS"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# A bar of progress has nobody to look at it.
os.environ["TQDM_DISABLE"] = "1"
# The kit holds assertions, which are to say as much as those in tests.
pytest.register_assert_rewrite("tests.kit")

# models/ and benchmarks/ are not in the wheel; tests import them from the repository.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import emppl  # noqa: E402 (after the settings)

try:
    import matplotlib
except ImportError:
    pass
else:
    matplotlib.use("Agg")


def pytest_configure(config):
    """What every first fit compiles beside itself (the comparison with NumPyro's density, second derivatives at the end)
    takes about as long as the fit: slow tests do it for every fit, the others where that is what they test.
    """
    for check in ("verify", "check_maximum"):
        emppl.EM.__init__.__kwdefaults__[check] = config.option.markexpr == "slow"


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Thousands of compiled programs take gigabytes: no module needs those of another."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def x():
    """Two normal components."""
    rng = np.random.default_rng(0)
    return np.where(rng.random(300) < 0.4, rng.normal(-2, 0.7, 300), rng.normal(2, 1.2, 300))


@pytest.fixture(scope="session")
def table():
    """Covariates, and responses about two lines."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(150, 3))
    z = rng.random(150) < 0.4
    loc = np.where(z, X @ [1.0, -2.0, 0.5] + 3.0, X @ [-1.0, 1.0, 2.0] - 1.0)
    return X, loc + np.where(z, 0.5, 1.0) * rng.normal(size=150)

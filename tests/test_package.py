"""The package as a whole: what importing it costs, what it exports, how its modules depend on each other."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

import emppl

ROOT = pathlib.Path(emppl.__file__).parent
FILES = {
    ".".join(("emppl", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
OPTIONAL = ("matplotlib", "pandas", "arviz", "funsor", "scipy.stats", "optax")


def parse(name):
    return ast.parse(FILES[name].read_text())


def test_importing_emppl_leaves_optional_packages_alone():
    # What jax and numpyro load by themselves is not ours to forbid.
    program = (
        "import sys, jax, numpyro, numpyro.distributions, numpyro.infer; before = set(sys.modules); import emppl; "
    )
    program += f"print(*[name for name in {OPTIONAL!r} if name in set(sys.modules) - before])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_emppl_starts_no_backend_and_keeps_the_precision():
    program = "import jax, emppl; from jax._src import xla_bridge; "
    program += "print(jax.config.jax_enable_x64, xla_bridge.backends_are_initialized())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_public_names_are_those_of_all():
    modules = {name.split(".")[1] for name in FILES if name != "emppl"}
    assert {name for name in vars(emppl) if not name.startswith("_")} - modules == set(emppl.__all__) - modules
    assert len(emppl.__all__) == len(set(emppl.__all__))


@pytest.mark.parametrize("name", emppl.__all__)
def test_public_names_are_documented(name):
    assert (getattr(emppl, name).__doc__ or "").strip()


def test_version_is_that_of_the_project():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert emppl.__version__ == project["version"]


def test_one_package_touches_numpyro_handlers():
    forbidden = ("numpyro.handlers", "numpyro.primitives", "numpyro.infer.util", "numpyro.contrib")
    users = {
        name
        for name in FILES
        for node in ast.walk(parse(name))
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Attribute)
        and any(f in ast.unparse(node) for f in forbidden)
        and ast.unparse(node)
        != "from numpyro.infer.util import ParamInfo"  # the record that NumPyro's kernels start from
    }
    assert {name.removeprefix("emppl.").split(".")[0] for name in users} <= {"trace"}

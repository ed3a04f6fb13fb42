"""The house stands: imports run downwards, files are small, the map is current, a name means one thing."""

import ast
import importlib.util

import pytest

from tests.kit.house import ROOT, classes, cycles, imports, sources, upward

FILES = sources()
DOCS = ROOT.parent / "docs"


def make_map():
    spec = importlib.util.spec_from_file_location("make_map", DOCS / "make_map.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_module_imports_itself_by_way_of_others():
    assert cycles(imports(FILES)) == []


def test_imports_run_down_the_map():
    assert upward(imports(FILES), make_map().LAYERS) == []


def test_a_planted_upward_import_is_found():
    planted = {**FILES, "numerics.guarded": FILES["numerics.guarded"] + "\nfrom emppl.fit.loop import limits\n"}
    assert upward(imports(planted), make_map().LAYERS) == ["numerics.guarded -> fit.loop"]


def test_a_planted_circle_of_types_is_found():
    circle = "\nif TYPE_CHECKING:\n    from emppl.mstep.rule import Rule\n"
    planted = {**FILES, "mstep.maximisation": FILES["mstep.maximisation"] + circle}
    assert cycles(imports(planted)) == [["mstep.maximisation", "mstep.rule"]]


def test_the_map_is_current():
    assert (DOCS / "map.md").read_text() == make_map().map_text(), "write it again: python docs/make_map.py"


def test_few_loose_modules_and_small_folders():
    loose = [path.stem for path in ROOT.glob("*.py") if path.stem != "__init__"]
    assert len(loose) <= 8, loose
    folders = {path.parent for path in ROOT.rglob("*.py")} - {ROOT}
    crowded = {str(folder): len(list(folder.glob("*.py"))) - 1 for folder in folders}
    assert {name: number for name, number in crowded.items() if number > 16} == {}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_one_concept(name):
    assert len(FILES[name].splitlines()) <= 500


# By name, with the reason why they are not shorter.
LONG = {
    "integrals.hamiltonian.trajectories": "NumPyro's kernel is set up and moved in one place: its parts share ten arrays",
    "mstep.newton.climb": "one iteration with its line search and its three ends",
    "numerics.block_tridiagonal.smooth_in_lanes": "one recursion forwards and one backwards that share a dozen arrays",
}


def test_no_function_is_longer_than_eighty_lines():
    long = {
        f"{name}.{node.name}"
        for name, text in FILES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 80
    }
    assert long <= set(LONG), long - set(LONG)


# Where the folder makes the meaning plain: what the user says of a latent beside how it is done, families of discrete
# distributions beside strategies for discrete latents, axes of arrays beside those of a model.
SAME_MODULE = {
    "axes": ["jaxpr.axes", "model.axes"],
    "discrete": ["families.discrete", "strategies.discrete"],
    "exact": ["integrals.exact", "strategies.exact"],
    "model": ["model", "model.model"],
    "quadrature": ["integrals.quadrature", "strategies.quadrature"],
    "result": ["result", "result.result"],
    "sampling": ["integrals.sampling", "strategies.sampling"],
}


def test_a_name_means_one_thing():
    modules = {}
    for name in FILES:
        modules.setdefault(name.split(".")[-1], []).append(name)
    twice = {name: sorted(where) for name, where in modules.items() if len(where) > 1}
    assert twice == SAME_MODULE
    assert {name: where for name, where in classes(FILES).items() if len(where) > 1} == {}

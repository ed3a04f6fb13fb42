"""Every file in models/: what it must hold, that it runs as a program, and that a test knows its answer."""

import ast
import importlib
import inspect
import pathlib
import re

import jax
import pytest

import models

MODULES = sorted(path.stem for path in pathlib.Path(models.__file__).parent.glob("[a-z]*.py"))
# Several fits of different size each, or NUTS.
LONG = """
    absences affairs bcg_vaccine booth_hobert carcinoma cattle chest_clinic dippers dyestuff eight_schools
    fitness_club galaxies graded_responses hair_eye holzinger iris_factors law_school lynx matings nile_level
    old_faithful orange_trees pearson_line penicillin pumps response_speed seeds sleep_study spiking_neurons
    stack_loss swiss_fertility synchroniser teaching_method toenails two_sources uk_gas
""".split()
# Fits of minutes, which tests with the slow mark make as well.
LONGEST = ("polio", "stochastic_volatility")
MARKED = [
    pytest.param(n, marks=pytest.mark.long if n in LONGEST else pytest.mark.slow if n in LONG else ()) for n in MODULES
]


@pytest.mark.parametrize("name", MARKED)
def test_main_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"models.{name}")
    if name == "old_faithful":
        # NUTS runs the model in numpyro's own code, which relies on rank promotion.
        with jax.numpy_rank_promotion("allow"):
            module.main(num_warmup=30, num_samples=30)
    else:
        module.main()
    printed = capsys.readouterr().out
    assert printed.startswith("EM plan")
    assert "published" in printed or "known" in printed
    assert (tmp_path / "out" / "old_faithful.png").exists() == (name == "old_faithful")


@pytest.mark.parametrize("name", MODULES)
def test_file_holds_what_it_must(name):
    """A source and the published answer in the docstring; a documented model, its data, and a program."""
    module = importlib.import_module(f"models.{name}")
    source = module.__doc__.split("\nReference:\n")[1]
    assert re.search(r"\(?\b(1[6-9]|20)\d\d\b\)?", source), "the source has no year"
    assert module.__doc__.split("\n")[0].endswith((".", "?"))
    for function in (module.model, module.data, module.main):
        assert inspect.isfunction(function) and function.__doc__, function
    assert module.model.__module__ == module.main.__module__ == module.__name__


@pytest.mark.parametrize("name", MODULES)
def test_file_needs_no_other_file_of_the_folder(name):
    """It runs as ``python models/name.py`` where emppl is installed: the folder is no package there."""
    tree = ast.parse((pathlib.Path(models.__file__).parent / f"{name}.py").read_text())
    imported = [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not {one.split(".")[0] for one in imported} & {"models", "", *MODULES}


def test_every_model_has_a_test():
    """It is used in a file beside test_models, and not only its data."""
    tested = set()
    for path in (pathlib.Path(__file__).parents[1] / "models").glob("test_*.py"):
        tree = ast.parse(path.read_text())
        held = {id(node.value): node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "models"]
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        used = {node.id for node in names if held.get(id(node)) not in ("data", "known", "published", "start")}
        tested |= used & {alias.name for node in imports for alias in node.names}
    assert set(MODULES) - tested == set()

"""Writes docs/map.md, the map of emppl/, from the docstrings of its modules: ``python docs/make_map.py``.

The order of ``LAYERS`` is the order of the pipeline, and the law of imports: a module imports only from its own layer
or from layers above it in the map.
"""

from __future__ import annotations

import ast
import pathlib

LAYERS = (
    "errors names types memo numerics jaxpr inputs trace parameters families strategies elimination model integrals "
    "estep mstep program derivation uncertainty reduce verify checkpoint fit montecarlo compiled result em"
).split()
"""Modules and packages of emppl/, from the bottom of the house upwards."""

ROOT = pathlib.Path(__file__).parents[1]
HEADER = """# The map

Made by `python docs/make_map.py` from the docstrings of the modules; a test holds that it is current. The order is
that of the pipeline: a module imports only from its own folder or from what stands above it here (another test).

"""


def modules(layer: str) -> list[pathlib.Path]:
    """Files of a layer: the module itself, or the package with everything in it, ``__init__`` first."""
    package = ROOT / "emppl" / layer
    if not package.is_dir():
        return [package.with_suffix(".py")]
    return sorted(package.rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path.name))


def first_sentence(path: pathlib.Path) -> str:
    """What a module says of itself: its docstring up to the first blank line."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def map_text() -> str:
    """The whole page."""
    lines = []
    for layer in LAYERS:
        for path in modules(layer):
            name = path.relative_to(ROOT / "emppl")
            is_package = path.name == "__init__.py"
            title = f"{name.parent}/" if is_package else str(name)
            depth = len(name.parts) - 1 - is_package
            lines.append(f"{'  ' * depth}- `{title}` {first_sentence(path)}")
    return HEADER + "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "map.md").write_text(map_text())

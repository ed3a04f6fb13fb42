"""Definitions of a file of NumPyro's checkout, taken out of it without running the rest.

Imports, functions and classes are executed where they stand, in order; of everything else only assignments to the names
asked for. What needs a package that is not installed is left out. A notebook is the sequence of its code cells.
"""

from __future__ import annotations

import ast
import contextlib
import json
import pathlib
import sys
import types
from collections.abc import Sequence
from typing import Any


class Definitions:
    """What a file defines: ``found["model"]`` is its last function of that name, ``found["model", 0]`` its first.

    Attributes:
        namespace: what the file's functions see.
        versions: by name, its functions and classes in order.
        absent: names of what could not be imported.
    """

    def __init__(self, namespace: dict[str, Any], versions: dict[str, list], absent: set[str]):
        self.namespace = namespace
        self.versions = versions
        self.absent = absent

    def __getitem__(self, key: str | tuple[str, int]) -> Any:
        name, number = (key, -1) if isinstance(key, str) else key
        if name not in self.versions:
            raise ImportError(f"{name} needs {', '.join(sorted(self.absent))}")
        return self.versions[name][number]

    def let(self, **values: Any) -> None:
        """Give values to global names that the file reads, in place of its data sets and settings."""
        self.namespace.update(values)


def definitions(path: pathlib.Path, assigned: Sequence[str] = ()) -> Definitions:
    """Execute the definitions of a file.

    Args:
        path: a Python file or a notebook.
        assigned: names whose assignments at the top of the file are executed too.
    """
    module = types.ModuleType(f"numpyro_model_{path.stem}")
    sys.modules[module.__name__] = module  # where decorators of classes look for it
    versions: dict[str, list] = {}
    absent: set[str] = set()
    with contextlib.suppress(ImportError):
        import matplotlib

        matplotlib.use("Agg")
    for statement in ast.parse(_text(path)).body:
        if _is_wanted(statement, assigned):
            code = compile(ast.Module([statement], []), str(path), "exec")
            names = _imported(statement)
            # A decorator or a base class of a package that is absent: whatever needs it is absent as well.
            with contextlib.suppress(ImportError, NameError, OSError):
                exec(code, module.__dict__)
                if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                    versions.setdefault(statement.name, []).append(module.__dict__[statement.name])
            absent |= {name for name in names if name not in module.__dict__}
    return Definitions(module.__dict__, versions, absent)


def _imported(statement: ast.stmt) -> list[str]:
    """Names that an import binds."""
    if not isinstance(statement, ast.Import | ast.ImportFrom):
        return []
    return [(alias.asname or alias.name).split(".")[0] for alias in statement.names]


def _is_wanted(statement: ast.stmt, assigned: Sequence[str]) -> bool:
    if isinstance(statement, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id in assigned for target in statement.targets)
    return isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def _text(path: pathlib.Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell).split("\n")]
    return "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in lines)

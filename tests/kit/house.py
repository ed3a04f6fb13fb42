"""The structure of emppl/, read off its files: imports and their cycles, and what is defined where."""

import ast
import pathlib

import emppl

ROOT = pathlib.Path(emppl.__file__).parent


def sources():
    """Text of every module by its dotted name below ``emppl``; packages by their own name."""
    paths = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.rglob("*.py")}
    names = {path: name.removesuffix(".__init__") for path, name in paths.items()}
    return {name: path.read_text() for path, name in names.items() if name != "__init__"}


def imports(files):
    """By module, the modules that it imports anywhere: inside functions and under ``TYPE_CHECKING`` too.

    ``from emppl.estep import x`` is an import of ``estep.x`` if that is a module, else of ``estep``.
    """
    graph = {}
    for name, text in files.items():
        found = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "emppl":
                module = node.module.removeprefix("emppl").removeprefix(".")
                full = [f"{module}.{alias.name}".removeprefix(".") for alias in node.names]
                found.update(each if each in files else module for each in full)
            if isinstance(node, ast.Import):
                found.update(alias.name.removeprefix("emppl.") for alias in node.names)
        graph[name] = {other for other in found if other in files and other != name}
    return graph


def cycles(graph):
    """Groups of modules that import each other, by Tarjan's algorithm; a package's ``__init__`` is one of its modules."""
    index, low, stack, found = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            # A package re-exports its own modules, which may in turn name the package's siblings: no circle.
            if name.startswith(f"{other}."):
                continue
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def upward(graph, layers):
    """Imports of a module from a layer that stands below it in the map, as ``"importing -> imported"``."""
    rank = {layer: place for place, layer in enumerate(layers)}
    return [
        f"{name} -> {other}"
        for name, found in sorted(graph.items())
        for other in sorted(found)
        if rank[other.split(".")[0]] > rank[name.split(".")[0]]
    ]


def classes(files):
    """Names of the modules that define a class, by the name of the class."""
    where = {}
    for name, text in files.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name, []).append(name)
    return where
